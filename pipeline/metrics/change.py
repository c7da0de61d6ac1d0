"""How much two maps, boxes or rankings differ, and the metrics that follow from two looks at the same images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int, Num, Shaped
from torch import Tensor

from pipeline.metrics.interface import Evidence, Look, Metric, Need
from pipeline.metrics.maps import clipped, min_max_mask, num_pixels, values_but_zeros

ELEMENT_THRESHOLD = 0.5
"""Elements count as similar above this share of the range of an image's similarities to a prototype (QuanProto)."""


# --- two of a kind


def mask_iou(
    one: Bool[Tensor, "*batch height width"], other: Bool[Tensor, "*batch height width"]
) -> Float64[Tensor, "*batch"]:
    """Divide what both masks hold by what either holds; NaN for two empty masks."""
    return num_pixels(one & other).double() / num_pixels(one | other)


def box_iou(one: Num[Tensor, "*batch 4"], other: Num[Tensor, "*batch 4"]) -> Float64[Tensor, "*batch"]:
    """Divide the area of what two half-open boxes share by that of both; NaN for two boxes without area.

    Deviation: boxes apart share nothing; in the authors' code they share less than nothing, or something
    (DEVIATIONS.md B13).
    """
    least, largest = torch.maximum(one, other), torch.minimum(one, other)
    shared = (largest[..., 2:] - least[..., :2]).clamp(min=0).double().prod(dim=-1)
    return shared / (_area(one) + _area(other) - shared)


def activation_change(
    one: Shaped[Tensor, "*batch height width"], other: Shaped[Tensor, "*batch height width"]
) -> Float64[Tensor, "*batch"]:
    """Compare the values of two maps, wherever they are: 1 - sum of smaller / sum of larger ones of each pair.

    Pairs are formed by size: the largest of one map and of the other, the second largest, and so on. 0..1 for maps
    without negative values; NaN where both are 0 everywhere. Pixels that are NaN in both do not count.
    """
    if one.dtype == torch.bool and other.dtype == torch.bool:  # of equally many ones and zeros, sorted, ...
        sizes = [num_pixels(mask).double() for mask in (one, other)]
        return 1 - torch.minimum(*sizes) / torch.maximum(*sizes)
    first, second = (values.double() for values in values_but_zeros(one, other))
    return 1 - torch.minimum(first, second).nansum(dim=-1) / torch.maximum(first, second).nansum(dim=-1)


def point_distance(one: Num[Tensor, "*batch 2"], other: Num[Tensor, "*batch 2"]) -> Num[Tensor, "*batch"]:
    """Compute the Manhattan distance."""
    return (one - other).abs().sum(dim=-1)


def relative_change(before: Float[Tensor, "*item"], after: Float[Tensor, "*item"]) -> Float[Tensor, "*item"]:
    """Divide the size of a change by what was there before; infinite or NaN where that is 0."""
    return (before - after).abs() / before


def rank_of(scores: Float[Tensor, "image *rank item"], wanted: Int[Tensor, "image rank"]) -> Int[Tensor, "image rank"]:
    """Find the place of items among all, ordered by score, the largest first; equal ones by index.

    Args:
        scores: of each image; with an axis of ranks, each wanted item has scores of its own.
        wanted: the items.

    Returns:
        From 0.
    """
    of_rank = scores if scores.ndim == 3 else scores[:, None].expand(-1, wanted.shape[1], -1)
    own = of_rank.gather(2, wanted[..., None])
    is_earlier = torch.arange(scores.shape[-1]) < wanted[..., None]
    return ((of_rank > own) | ((of_rank == own) & is_earlier)).sum(dim=2)


def rank_change(
    top: Int[Tensor, "image rank"], scores: Float[Tensor, "image *rank prototype"]
) -> Int[Tensor, "image rank"]:
    """Say by how many places prototypes have moved that were the first ones, in this order.

    Args:
        top: of each image.
        scores: the new ones; see :func:`rank_of`.
    """
    return (rank_of(scores, top) - torch.arange(top.shape[1])).abs()


# --- looks


def relevance(look: Look) -> Shaped[Tensor, "image rank height width"]:
    """Give the maps of a look where they are salient, 0 elsewhere."""
    assert look.maps is not None
    assert look.salient is not None
    return clipped(look.maps, look.salient)


def similar_elements(look: Look) -> Bool[Tensor, "image rank 1 element"]:
    """Choose the elements that are similar to the prototype of the rank, for the images' own standards: as masks."""
    return min_max_mask(look.elements[:, :, None], ELEMENT_THRESHOLD)


def similarity_to(look: Look, top: Int[Tensor, "image rank"]) -> Float[Tensor, "image rank"]:
    """Give the similarity of each image to its prototypes, where each rank has its own image, of that one."""
    if look.similarity.ndim == 2:
        return look.similarity.gather(1, top)
    return look.similarity.gather(2, top[..., None])[..., 0]


def mean_over_ranks(values: Num[Tensor, "image rank"]) -> Float64[Tensor, " image"]:
    """Average over the ranks that have a value; NaN where none has.

    Deviation: in the authors' code, but for stability, one rank without a value leaves no number at all (DEVIATIONS.md
    B16).
    """
    return values.double().nanmean(dim=1)


def saliency_location_change(before: Look, after: Look) -> Float64[Tensor, "image rank"]:
    """1 - IoU of the salient pixels; NaN where there are none."""
    assert before.salient is not None
    assert after.salient is not None
    return 1 - mask_iou(before.salient, after.salient)


@dataclass(frozen=True, slots=True)
class _Change:
    """A metric of two looks; ``of_ranks`` gets the first, the second, and the prototypes that explain the images."""

    key: str
    title: str
    formula: str
    of_ranks: Callable[[Look, Look, Int[Tensor, "image rank"]], Num[Tensor, "image rank"]]
    unit: Literal["fraction", "count"] = "fraction"
    high: float = 1.0
    needs_maps: bool = False


_CHANGES = (
    _Change(
        "saliency_location_change",
        "Saliency location change (VLC)",
        "1 - IoU of the salient pixels",
        lambda before, after, top: saliency_location_change(before, after),
        needs_maps=True,
    ),
    _Change(
        "saliency_value_change",
        "Saliency value change (VAC)",
        "1 - sum of the smaller / sum of the larger values of the salient pixels, sorted,",
        lambda before, after, top: activation_change(relevance(before), relevance(after)),
        needs_maps=True,
    ),
    _Change(
        "location_change",
        "Prototype location change (PLC)",
        "half the Manhattan distance of the nearest elements' centres, shares of the image's sides,",
        lambda before, after, top: point_distance(before.centre, after.centre) / 2,
    ),
    _Change(
        "similarity_change",
        "Prototype similarity change (PSC)",
        "|s1 - s2| / s1 of the similarities s",
        lambda before, after, top: relative_change(similarity_to(before, top), similarity_to(after, top)),
        high=math.inf,
    ),
    _Change(
        "rank_change",
        "Prototype rank change (PRC)",
        "places moved among all prototypes, ordered by similarity,",
        lambda before, after, top: rank_change(top, after.similarity),
        unit="count",
        high=math.inf,
    ),
    _Change(
        "element_location_change",
        "Similar elements' location change (PALC)",
        "1 - IoU of the elements above half of the range of their similarities",
        lambda before, after, top: 1 - mask_iou(similar_elements(before), similar_elements(after)),
    ),
    _Change(
        "element_value_change",
        "Elements' similarity change (PAC)",
        "1 - sum of the smaller / sum of the larger similarities of elements, sorted,",
        lambda before, after, top: activation_change(before.elements[:, :, None], after.elements[:, :, None]),
    ),
)


def change_metrics(family: str, need: Need, after: Callable[[Evidence], Look | None], what: str) -> tuple[Metric, ...]:
    """Declare how much explanations change from the images as they are to another look at them.

    Args:
        family: of the metrics.
        need: of the other look.
        after: the other look.
        what: between what the change is, for the formulas.

    Deviation: the location of a prototype is that of its nearest element in the image, in the authors' code that of the
    element in a list of views or a grid of features (DEVIATIONS.md PLC).
    """

    def of_image(change: _Change) -> Callable[[Evidence], Float64[Tensor, " image"]]:
        def mean(evidence: Evidence) -> Float64[Tensor, " image"]:
            other = after(evidence)
            assert other is not None
            assert evidence.top is not None
            return mean_over_ranks(change.of_ranks(evidence.look, other, evidence.top))

        return mean

    return tuple(
        Metric(
            key=change.key,
            family=family,
            title=change.title,
            unit=change.unit,
            direction="lower",
            formula=f"{change.formula} {what}; mean over the top prototypes (QuanProto)",
            high=change.high,
            needs=("prototypes", need, "maps") if change.needs_maps else ("prototypes", need),
            of_image=of_image(change),
        )
        for change in _CHANGES
    )


def _area(boxes: Num[Tensor, "*batch 4"]) -> Float64[Tensor, "*batch"]:
    return (boxes[..., 2:] - boxes[..., :2]).double().prod(dim=-1)
