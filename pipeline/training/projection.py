"""Projection: each prototype becomes the feature of its nearest own-class training view (paper: push).

The nearest view of the whole training split, not of a batch (DEVIATIONS.md A1); a class without views keeps its
prototypes (A2). Distances are computed class by class, as one matrix each: those between a view and the prototypes of
other classes, all but a small part, are never needed. Memory is bounded in the number of images: per prototype only its
best few views are kept.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.model.prototypes import squared_distance
from pipeline.runtime import one_thread
from pipeline.training.nearest import EmbeddedBag, Name, Nearest, in_batches, merge

_AUTHORS_BATCH = 16  # images
_VALUES_PER_BATCH = 2**23  # of features: 32 MiB; larger batches mean fewer, larger matrices


@dataclass(frozen=True, slots=True)
class ProjectionSource:
    """The view that a prototype was replaced by.

    Attributes:
        distance_before: squared distance of the learned prototype to the view.
    """

    image_key: str
    view_idx: int
    distance_before: float


@dataclass(frozen=True, slots=True)
class Projection:
    """The projected prototypes and where each comes from; None where a class has no view."""

    prototypes: Float[Tensor, "prototype dim"]
    sources: tuple[ProjectionSource | None, ...]


@torch.no_grad()
def project(
    prototypes: Float[Tensor, "prototype dim"],
    prototype_labels: Int[Tensor, " prototype"],
    bags: Iterable[EmbeddedBag],
    *,
    distinct_views: bool,
) -> Projection:
    """Find the nearest own-class view of every prototype and take its feature.

    Equal distances go to the smaller (image_key, view_idx), so neither the order of bags nor their batching matters.

    Args:
        prototypes: the learned vectors.
        prototype_labels: the class that owns each.
        bags: the training split, in any order, read once.
        distinct_views: no view serves two prototypes of a class: the nearest pair goes first, the others take their
            next nearest view. Where a class has fewer views than prototypes, views are shared after all.
    """
    of_class = {
        label: torch.nonzero(prototype_labels == label).flatten() for label in sorted(set(prototype_labels.tolist()))
    }
    # with k prototypes in a class, one loses at most its k - 1 best views to the others
    k = max((len(owned) for owned in of_class.values()), default=1) if distinct_views else 1
    nearest: Nearest | None = None
    wanted = (bag for bag in bags if bag.label in of_class)
    for batch in in_batches(wanted, _VALUES_PER_BATCH // prototypes.shape[1]):
        with one_thread():  # a product per class, each of a few views and prototypes
            found = _nearest_views(batch, prototypes, of_class, k)
            nearest = found if nearest is None else merge(nearest, found, k)
    if nearest is None:
        return Projection(prototypes.clone(), (None,) * len(prototypes))
    ranks = _distinct_ranks(nearest, of_class) if distinct_views else [0] * len(prototypes)
    rank = torch.tensor(ranks, device=nearest.item.device)[:, None]
    chosen, distance = nearest.item.gather(1, rank)[:, 0], nearest.distance.gather(1, rank)[:, 0]  # [prototype]
    projected = prototypes.clone()
    has_view = chosen >= 0
    projected[has_view] = nearest.values[chosen[has_view]].to(projected.dtype)
    return Projection(
        projected,
        tuple(
            None if item < 0 else _source(nearest.names[item], value)
            for item, value in zip(chosen.tolist(), distance.tolist(), strict=True)
        ),
    )


def last_batches(
    bags: Iterable[EmbeddedBag], image_keys: Sequence[str], labels: Sequence[int]
) -> Iterator[EmbeddedBag]:
    """Pass on the bags among which the authors' code looks for sources (``compat.project_last_batch``).

    Its minimum starts anew in every batch of the loader, which is sorted by class (DEVIATIONS.md A1): what remains is
    the last batch that holds the class.

    Args:
        bags: the training split.
        image_keys: of all of its images.
        labels: of all of its images.
    """
    order = sorted(range(len(labels)), key=lambda idx: (labels[idx], image_keys[idx]))
    batch_of = {image_keys[idx]: position // _AUTHORS_BATCH for position, idx in enumerate(order)}
    last = {labels[idx]: position // _AUTHORS_BATCH for position, idx in enumerate(order)}
    return (bag for bag in bags if batch_of[bag.image_key] == last[bag.label])


def _nearest_views(
    batch: Sequence[EmbeddedBag],
    prototypes: Float[Tensor, "prototype dim"],
    of_class: Mapping[int, Int[Tensor, " own"]],
    k: int,
) -> Nearest:
    """Find the K nearest own-class views of every prototype in one batch."""
    ordered = sorted(batch, key=lambda bag: (bag.label, bag.image_key))
    features = torch.cat([bag.features for bag in ordered])  # [view, dim], class after class
    distance = features.new_full((len(prototypes), k), torch.inf)
    item = torch.full((len(prototypes), k), -1, device=features.device)
    start = 0
    for label, of_label in groupby(ordered, key=lambda bag: bag.label):
        stop = start + sum(len(bag.features) for bag in of_label)
        owned = of_class[label]
        block = squared_distance(features[start:stop], prototypes[owned])  # [view, own]
        value, position = block.T.contiguous().sort(dim=1, stable=True)  # equal ones stay in the order of their names
        num = min(k, stop - start)
        distance[owned, :num] = value[:, :num]
        item[owned, :num] = position[:, :num] + start
        start = stop
    return Nearest(distance, item, _ViewNames(ordered), features).compact()


class _ViewNames(Sequence[Name]):
    """The names of all views of some bags, made when asked for: only those of the nearest ones ever are."""

    def __init__(self, bags: Sequence[EmbeddedBag]) -> None:
        self._bags = bags
        self._stops = list(accumulate(len(bag.features) for bag in bags))

    def __len__(self) -> int:
        return self._stops[-1] if self._stops else 0

    def __getitem__(self, idx: Any) -> Any:
        bag_idx = bisect_right(self._stops, idx)
        bag = self._bags[bag_idx]
        return bag.label, bag.image_key, idx - (self._stops[bag_idx] - len(bag.features))


def _distinct_ranks(nearest: Nearest, of_class: Mapping[int, Int[Tensor, " own"]]) -> list[int]:
    """Say which of its nearest views each prototype takes: nearest pair first, each view once while there are enough.

    Where there are not enough, a prototype that comes away empty takes its nearest view, too.
    """
    ranks = [0] * len(nearest.item)
    distances, items = nearest.distance.tolist(), nearest.item.tolist()
    for owned in of_class.values():
        pairs = sorted(
            (distance, item, idx, rank)
            for idx in owned.tolist()
            for rank, (distance, item) in enumerate(zip(distances[idx], items[idx], strict=True))
            if item >= 0
        )
        served: set[int] = set()
        taken: set[int] = set()
        for _, item, idx, rank in pairs:
            if idx not in served and item not in taken:
                ranks[idx] = rank
                served.add(idx)
                taken.add(item)
    return ranks


def _source(name: Name, distance: float) -> ProjectionSource:
    _, image_key, view_idx = name
    return ProjectionSource(str(image_key), int(view_idx), distance)
