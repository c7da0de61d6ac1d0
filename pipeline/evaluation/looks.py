"""How bags look to a network: scores, and what lies nearest to the prototypes that explain them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.metrics.interface import Look
from pipeline.model.network import PrototypeNetwork
from pipeline.model.prototypes import bag_of_view

_BAGS_PER_STEP = 64


@dataclass(frozen=True, slots=True)
class Seen:
    """A look at bags, and what is needed to show what was looked at.

    Attributes:
        look: without maps.
        features: the embedding of the element nearest to each top prototype.
        element: position of that element in the bag.
        view: position of its view in the bag.
    """

    look: Look
    features: Float[Tensor, "bag rank dim"]
    element: Int[Tensor, "bag rank"]
    view: Int[Tensor, "bag rank"]


def top_prototypes(similarity: Float[Tensor, "image prototype"], num: int) -> Int[Tensor, "image rank"]:
    """Rank the prototypes of each image by similarity; equal ones by index."""
    return similarity.sort(dim=1, descending=True, stable=True).indices[:, :num]


@torch.no_grad()
def look_at(
    network: PrototypeNetwork,
    encoded: Float[Tensor, "view channel *place"],
    lengths: Sequence[int],
    boxes: Float[Tensor, "view 4"],
    top: Int[Tensor, "bag rank"] | int,
    *,
    num_elements: int | None = None,
) -> tuple[Seen, Int[Tensor, "bag rank"]]:
    """Look at bags through prototypes.

    Args:
        network: in evaluation mode, on the CPU.
        encoded: the views of all bags, one bag after the other.
        lengths: views of each bag.
        boxes: x0, y0, x1, y1 of each view, shares of the image's sides.
        top: the prototypes that explain each bag; a number takes the most similar ones.
        num_elements: length of the axis of elements; None takes that of the largest bag.

    Returns:
        The look, and the prototypes it was taken through.
    """
    per_view = network.elements_per_view(encoded)
    if num_elements is None:
        num_elements = max(lengths) * per_view
    parts: list[tuple[Tensor, ...]] = []
    stop = 0
    for start in range(0, len(lengths), _BAGS_PER_STEP):
        views = torch.tensor(lengths[start : start + _BAGS_PER_STEP])
        begin, stop = stop, stop + int(views.sum())
        features = network.features_of(encoded[begin:stop])
        lengths_here = views * per_view
        output = network.classify(features, lengths_here)
        here = top_prototypes(output.similarity, top) if isinstance(top, int) else top[start : start + len(views)]
        nearest = output.element.gather(1, here)  # on the packed axis
        bag = bag_of_view(lengths_here)
        first = torch.cumsum(lengths_here, 0) - lengths_here
        of_element = network.similarities(features).gather(1, here[bag])  # [element, rank]
        elements = of_element.new_full((len(views), num_elements, here.shape[1]), torch.nan)
        elements[bag, torch.arange(len(bag)) - first[bag]] = of_element
        parts.append(
            (
                output.logits,
                output.similarity,
                elements.transpose(1, 2),
                _centres(boxes[begin:stop], nearest, per_view),
                features[nearest],
                nearest - first[:, None],
                here,
            )
        )
    logits, similarity, elements, centre, features, element, ranked = map(torch.cat, zip(*parts, strict=True))
    look = Look(logits=logits, similarity=similarity, elements=elements, centre=centre)
    return Seen(look, features, element, element // per_view), ranked


def _centres(boxes: Float[Tensor, "view 4"], element: Int[Tensor, "bag rank"], per_view: int) -> Tensor:
    """Locate the centres of elements: of a view, its box's; of a place, that of its cell in the box."""
    side = round(per_view**0.5)
    box = boxes[element // per_view]  # [bag, rank, 4]
    place = element % per_view
    x, y = (place % side + 0.5) / side, (place // side + 0.5) / side
    return torch.stack(
        [box[..., 0] + x * (box[..., 2] - box[..., 0]), box[..., 1] + y * (box[..., 3] - box[..., 1])], dim=-1
    )
