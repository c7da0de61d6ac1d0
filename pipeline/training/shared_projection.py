"""Projection of prototypes that several classes may share: each takes the nearest element of all of its owners' images.

An element is what a prototype is compared with, a place of a feature grid for the networks that share prototypes.
Unlike :mod:`pipeline.training.projection`, which works class by class, distances of all prototypes are computed and
those of other classes' images left out. Memory is bounded in the number of images: a batch, and per prototype the
nearest element so far.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.training.nearest import EmbeddedBag, Name, Nearest, in_batches, merge
from pipeline.training.projection import Projection, ProjectionSource

_VALUES_PER_BATCH = 2**23  # of features or of distances, whichever are more; 32 MiB

Distances = Callable[[Float[Tensor, "element dim"]], Float[Tensor, "element prototype"]]


@torch.no_grad()
def nearest_elements(
    distance_of: Distances,
    owners: Bool[Tensor, "prototype class"],
    bags: Iterable[EmbeddedBag],
    *,
    prototypes: Float[Tensor, "prototype dim"],
) -> Projection:
    """Find the nearest element of every prototype in the images of the classes that own it, and its feature.

    Equal distances go to the smaller (image_key, element), so neither the order of bags nor their batching matters.
    Several prototypes may take the same element.

    Args:
        distance_of: measures features against all prototypes.
        owners: which class has which prototype.
        bags: the training split, in any order, read once; their features are those of elements.
        prototypes: in the space of features; one that nobody owns, or whose owners have no image, keeps its vector
            and has no source.

    Returns:
        ``view_idx`` of a source is the position of the element in its bag.
    """
    is_needed = owners.any(dim=0).tolist()  # of each class
    nearest: Nearest | None = None
    wanted = (bag for bag in bags if is_needed[bag.label])
    for batch in in_batches(wanted, max(1, _VALUES_PER_BATCH // max(prototypes.shape))):
        found = _nearest_in_batch(batch, distance_of, owners)
        nearest = found if nearest is None else merge(nearest, found, 1)
    if nearest is None:
        return Projection(prototypes.clone(), (None,) * len(prototypes))
    projected = prototypes.clone()
    item, distance = nearest.item[:, 0], nearest.distance[:, 0]  # [prototype]
    has_element = item >= 0
    values = nearest.values[item[has_element]]
    projected[has_element.to(projected.device)] = values.to(projected.device, projected.dtype)
    return Projection(
        projected,
        tuple(
            None if idx < 0 else _source(nearest.names[idx], value)
            for idx, value in zip(item.tolist(), distance.tolist(), strict=True)
        ),
    )


def _nearest_in_batch(
    batch: Sequence[EmbeddedBag], distance_of: Distances, owners: Bool[Tensor, "prototype class"]
) -> Nearest:
    ordered = sorted(batch, key=lambda bag: bag.image_key)
    features = torch.cat([bag.features for bag in ordered])  # [element, dim]
    distance = distance_of(features)  # [element, prototype]
    labels = torch.tensor([bag.label for bag in ordered for _ in range(len(bag.features))], device=owners.device)
    is_owned = owners[:, labels].T.to(distance.device)  # [element, prototype]
    # the first of equal ones, which has the smallest name
    value, position = distance.masked_fill(~is_owned, torch.inf).min(dim=0)
    item = torch.where(value.isfinite(), position, -1)
    names: list[Name] = [(bag.image_key, element) for bag in ordered for element in range(len(bag.features))]
    return Nearest(value[:, None], item[:, None], names, features.to(distance.device)).compact()


def _source(name: Name, distance: float) -> ProjectionSource:
    image_key, element = name
    return ProjectionSource(str(image_key), int(element), distance)
