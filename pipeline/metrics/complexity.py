"""Complexity: whether explanations keep to the object, and always to the same parts of it.

Deviation: a part counts as covered where the map is salient, parts that are not visible never; the authors' code cuts
relevance to whole numbers and takes missing parts for the last pixel (DEVIATIONS.md B5, B6).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Num, Shaped
from scipy.sparse import csr_array
from torch import Tensor

from pipeline.metrics.change import mean_over_ranks, relevance
from pipeline.metrics.interface import Evidence, Metric
from pipeline.metrics.maps import num_pixels
from pipeline.metrics.statistics import Statistic, Values, Weights, quotient

_FAMILY = "complexity"

Masks = Bool[Tensor, "image rank height width"]
ObjectMask = Bool[Tensor, "image rows columns"]  # of the frame of the masks, or ValueError
OfRank = Float64[Tensor, "image rank"]


# --- the object


def salient_area(salient: Masks) -> OfRank:
    """Give the share of the image that is salient: overlaps are to be read with it."""
    return salient.double().mean(dim=(2, 3))


def object_overlap(salient: Masks, object_mask: ObjectMask) -> OfRank:
    """Give the share of the object that is salient; 0 without an object."""
    return _share(salient & _per_rank(object_mask, salient), _per_rank(object_mask, salient))


def background_overlap(salient: Masks, object_mask: ObjectMask) -> OfRank:
    """Give the share of the salient pixels that lie on the background; 0 where none is salient."""
    return _share(salient & ~_per_rank(object_mask, salient), salient)


def object_iou(salient: Masks, object_mask: ObjectMask) -> OfRank:
    """Divide what is salient and of the object by what is either; 0 where nothing is."""
    return _share(salient & _per_rank(object_mask, salient), salient | _per_rank(object_mask, salient))


def inside_outside_relevance(maps: Shaped[Tensor, "image rank height width"], object_mask: ObjectMask) -> OfRank:
    """Subtract the mean relevance outside of the object from that inside, as shares of the map's largest value.

    Means are over pixels that are not 0, and 0 where there are none; 0 for a map of zeros. -1..1 for maps without
    negative values; of bool maps the mean is 1 wherever they reach.
    """
    inside, outside = _mean_relevances(maps, object_mask)
    largest = maps.amax(dim=(2, 3)).double()
    return torch.where(inside == outside, 0.0, (inside - outside) / largest)


def outside_inside_ratio(maps: Shaped[Tensor, "image rank height width"], object_mask: ObjectMask) -> OfRank:
    """Divide the mean relevance outside of the object by that inside; infinite where there is none inside.

    Means are over pixels that are not 0, and 0 where there are none.
    """
    inside, outside = _mean_relevances(maps, object_mask)
    return torch.where(inside == 0, math.inf, outside / inside)


# --- the parts


def covered_parts(
    salient: Bool[Tensor, "image rank height width"], parts: Float[Tensor, "image part 2"]
) -> Bool[Tensor, "image rank part"]:
    """Say which parts lie on salient pixels.

    Args:
        salient: masks.
        parts: x and y, pixels of the masks; the pixel a part lies in decides. Parts that are NaN or outside of the
            frame are never covered.
    """
    height, width = salient.shape[2:]
    column, row = parts.floor().unbind(dim=2)
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)  # not where NaN
    pixel = torch.where(is_inside, row * width + column, 0).long()  # [image, part]
    found = salient.flatten(2).gather(2, pixel[:, None].expand(-1, salient.shape[1], -1))
    return found & is_inside[:, None]


def parts_in_boxes(
    boxes: Num[Tensor, "image rank 4"], parts: Float[Tensor, "image part 2"]
) -> Bool[Tensor, "image rank part"]:
    """Say which parts lie in half-open boxes; parts that are NaN never do."""
    low, high, point = boxes[:, :, None, :2], boxes[:, :, None, 2:], parts[:, None]
    return ((low <= point) & (point < high)).all(dim=3)


class Consistency(Statistic):
    """How often a prototype covers a part, of the times it explains an image, if it ever covers that part.

    The mean over the parts that it ever covers, 0 if there are none; then the mean over the prototypes that explain an
    image.
    """

    def __init__(
        self, top: Int[np.ndarray, "image rank"], covered: Bool[np.ndarray, "image rank part"], num_prototypes: int
    ) -> None:
        """Note what is used where.

        Args:
            top: the prototypes that explain each image.
            covered: whether the salient pixels of each of them hold the part.
            num_prototypes: how many there are.
        """
        self.num_images, num_ranks = top.shape
        shape = (num_prototypes, self.num_images)
        images = np.repeat(np.arange(self.num_images), num_ranks)
        self._uses = csr_array((np.ones(top.size), (top.ravel(), images)), shape=shape)
        self._hits = [
            csr_array((np.ones(int(hit.sum())), (top.ravel()[hit], images[hit])), shape=shape)
            for hit in (covered[:, :, part].ravel() for part in range(covered.shape[2]))
        ]

    def __call__(self, weights: Weights) -> Values:
        """Compute it for each draw of weights."""
        by_image = np.ascontiguousarray(weights.T)
        uses = self._uses @ by_image  # [prototype, draw]
        total, num_parts = np.zeros_like(uses), np.zeros_like(uses)
        for of_part in self._hits:
            hits = of_part @ by_image
            total += hits
            num_parts += hits > 0
        is_used = uses > 0
        of_prototype = np.divide(total, uses * num_parts, out=np.zeros_like(uses), where=num_parts > 0)
        return quotient(of_prototype.sum(axis=0), is_used.sum(axis=0))


# --- declarations


def _of_salient(measured: Callable[[Masks, ObjectMask], OfRank]) -> Callable[[Evidence], Float64[Tensor, " image"]]:
    def of_image(evidence: Evidence) -> Float64[Tensor, " image"]:
        assert evidence.look.salient is not None
        assert evidence.object_mask is not None
        return mean_over_ranks(measured(evidence.look.salient, evidence.object_mask))

    return of_image


def _of_relevance(
    measured: Callable[[Shaped[Tensor, "image rank height width"], ObjectMask], OfRank],
) -> Callable[[Evidence], Float64[Tensor, " image"]]:
    def of_image(evidence: Evidence) -> Float64[Tensor, " image"]:
        assert evidence.object_mask is not None
        return mean_over_ranks(measured(relevance(evidence.look), evidence.object_mask))

    return of_image


def _outside_inside_ratio(evidence: Evidence) -> Float64[Tensor, " image"]:
    """Divide means over ranks: one prototype that lies on the background must not make the image infinite.

    NaN where no prototype has relevance inside. Deviation: the authors' code averages ratios, which are infinite for
    such a prototype, and with it for the set (DEVIATIONS.md OIRR).
    """
    assert evidence.object_mask is not None
    inside, outside = (
        mean_over_ranks(means) for means in _mean_relevances(relevance(evidence.look), evidence.object_mask)
    )
    return torch.where(inside > 0, outside / inside, torch.nan)


def _consistency(evidence: Evidence) -> Consistency:
    assert evidence.top is not None
    assert evidence.look.covered is not None
    return Consistency(
        evidence.top.numpy(), evidence.look.covered.numpy(), num_prototypes=evidence.look.similarity.shape[1]
    )


def _salient_area(evidence: Evidence) -> Float64[Tensor, " image"]:
    assert evidence.look.salient is not None
    return mean_over_ranks(salient_area(evidence.look.salient))


METRICS = (
    Metric(
        key="salient_area",
        family=_FAMILY,
        title="Salient area",
        unit="fraction",
        direction="neither",
        formula="salient pixels / pixels of the image; mean over the top prototypes",
        needs=("prototypes", "maps"),
        of_image=_salient_area,
    ),
    Metric(
        key="inside_outside_relevance",
        family=_FAMILY,
        title="Inside-outside relevance (IOR)",
        unit="score",
        direction="higher",
        formula="mean relevance inside the object - outside, over salient pixels, / largest; mean over the top"
        " prototypes (QuanProto)",
        low=-1.0,
        needs=("prototypes", "maps", "object_masks"),
        of_image=_of_relevance(inside_outside_relevance),
    ),
    Metric(
        key="outside_inside_ratio",
        family=_FAMILY,
        title="Outside-inside relevance ratio (OIRR)",
        unit="ratio",
        direction="lower",
        formula="mean relevance outside the object / inside, over salient pixels, both averaged over the top prototypes"
        " (QuanProto, which averages ratios)",
        high=math.inf,
        needs=("prototypes", "maps", "object_masks"),
        of_image=_outside_inside_ratio,
    ),
    Metric(
        key="object_overlap",
        family=_FAMILY,
        title="Object overlap",
        unit="fraction",
        direction="higher",
        formula="salient pixels of the object / pixels of the object; mean over the top prototypes (QuanProto)",
        needs=("prototypes", "maps", "object_masks"),
        of_image=_of_salient(object_overlap),
    ),
    Metric(
        key="background_overlap",
        family=_FAMILY,
        title="Background overlap",
        unit="fraction",
        direction="lower",
        formula="salient pixels of the background / salient pixels; mean over the top prototypes (QuanProto)",
        needs=("prototypes", "maps", "object_masks"),
        of_image=_of_salient(background_overlap),
    ),
    Metric(
        key="object_iou",
        family=_FAMILY,
        title="Object IoU",
        unit="fraction",
        direction="higher",
        formula="IoU of the salient pixels and the object; mean over the top prototypes (QuanProto)",
        needs=("prototypes", "maps", "object_masks"),
        of_image=_of_salient(object_iou),
    ),
    Metric(
        key="consistency",
        family=_FAMILY,
        title="Consistency",
        unit="fraction",
        direction="higher",
        formula="times a prototype covers a part / times it explains an image; mean over the parts it ever covers, then"
        " over the prototypes that explain an image (QuanProto)",
        needs=("prototypes", "maps", "parts"),
        of_set=_consistency,
    ),
)


def _per_rank(object_mask: ObjectMask, salient: Shaped[Tensor, "image rank height width"]) -> Bool[Tensor, "..."]:
    """Give object masks an axis of ranks.

    Raises:
        ValueError: object masks and saliency are not of one frame.
    """
    if object_mask.shape[1:] != salient.shape[2:]:
        raise ValueError(f"object masks of {tuple(object_mask.shape[1:])} pixels, maps of {tuple(salient.shape[2:])}")
    return object_mask[:, None]


def _share(some: Bool[Tensor, "..."], all_: Bool[Tensor, "..."]) -> OfRank:
    return num_pixels(some).double() / num_pixels(all_).clamp(min=1)


def _mean_relevances(maps: Shaped[Tensor, "image rank height width"], object_mask: ObjectMask) -> tuple[OfRank, OfRank]:
    """Average the values that are not 0 inside and outside of the object; 0 where there are none."""
    inside = _per_rank(object_mask, maps)
    is_relevant = torch.from_numpy(maps.numpy() != 0)
    num_inside, num_outside = num_pixels(is_relevant & inside), num_pixels(is_relevant & ~inside)
    if maps.dtype == torch.bool:  # the mean of ones
        return (num_inside > 0).double(), (num_outside > 0).double()
    regions = torch.stack([inside, ~inside], dim=-1).double()[:, 0].flatten(1, 2)  # [image, pixel, inside or outside]
    sums = maps.flatten(2).double() @ regions
    return sums[..., 0] / num_inside.clamp(min=1), sums[..., 1] / num_outside.clamp(min=1)
