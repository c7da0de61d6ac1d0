"""Contrastivity: how different the prototypes are that explain one image, or images of different classes.

What is compared inside an image are all pairs of its top prototypes; an image has no value where a map is compared with
itself and there is nothing to compare, and with a single prototype.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Num, Shaped
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional

from pipeline.metrics.change import box_iou, point_distance, relative_change, relevance, similar_elements, similarity_to
from pipeline.metrics.interface import Evidence, Metric, Need
from pipeline.metrics.maps import num_pixels, values_but_zeros
from pipeline.metrics.statistics import Statistic, Values, Weights, mean_of_present, quotient

_FAMILY = "contrastivity"

NUM_BINS = 10
"""Bins of activations, for their entropy (QuanProto)."""
_LEAST_FREQUENCY = 1e-3  # bins with a smaller share do not count (QuanProto)


# --- inside an image


def mean_over_pairs(values: Num[Tensor, "image rank other_rank"]) -> Float64[Tensor, " image"]:
    """Average over ordered pairs of different ranks.

    Args:
        values: of all pairs; of a rank with itself 0, or NaN where that rank has nothing to compare. One such rank
            leaves the image without a value.
    """
    num = values.shape[1]
    if num == 1:  # rounding must not make an infinity of 0 / 0
        return torch.full((len(values),), math.nan, dtype=torch.float64)
    return values.double().sum(dim=(1, 2)) / (num * (num - 1))


def intra_mask_change(masks: Bool[Tensor, "image rank height width"]) -> Float64[Tensor, " image"]:
    """1 - IoU of two masks, averaged over pairs; NaN with an empty mask."""
    flat = masks.flatten(2).float()  # counts stay exact: a frame has less than 2 ** 24 pixels
    shared = (flat @ flat.transpose(1, 2)).double()
    size = flat.sum(dim=2).double()
    return mean_over_pairs(1 - shared / (size[:, :, None] + size[:, None] - shared))


def intra_box_change(boxes: Num[Tensor, "image rank 4"]) -> Float64[Tensor, " image"]:
    """1 - IoU of two half-open boxes, averaged over pairs; NaN with a box without area."""
    num = boxes.shape[1]
    one, other = boxes[:, :, None].expand(-1, -1, num, -1), boxes[:, None].expand(-1, num, -1, -1)
    return mean_over_pairs(1 - box_iou(one, other))


def intra_activation_change(maps: Shaped[Tensor, "image rank height width"]) -> Float64[Tensor, " image"]:
    """:func:`pipeline.metrics.change.activation_change` of two maps, averaged over pairs; NaN with a map of zeros."""
    if maps.dtype == torch.bool:
        size = num_pixels(maps).double()
        smaller, larger = torch.minimum(size[:, :, None], size[:, None]), torch.maximum(size[:, :, None], size[:, None])
    else:
        [values] = values_but_zeros(maps)
        values = values.double()
        total = values.sum(dim=2)
        both, gap = total[:, :, None] + total[:, None], torch.cdist(values, values, p=1)
        smaller, larger = (both - gap) / 2, (both + gap) / 2
    return mean_over_pairs(1 - smaller / larger)


def intra_point_distance(points: Num[Tensor, "image rank 2"]) -> Float64[Tensor, " image"]:
    """Manhattan distance of two points, averaged over pairs."""
    num = points.shape[1]
    one, other = points[:, :, None].expand(-1, -1, num, -1), points[:, None].expand(-1, num, -1, -1)
    return mean_over_pairs(point_distance(one, other))


def intra_relative_difference(scores: Float[Tensor, "image rank"]) -> Float64[Tensor, " image"]:
    """|s1 - s2| / max(s1, s2) of two scores, averaged over pairs; NaN with a score of 0."""
    larger = torch.maximum(scores[:, :, None], scores[:, None])
    smaller = torch.minimum(scores[:, :, None], scores[:, None])
    return mean_over_pairs(relative_change(larger, smaller))


def intra_distance(vectors: Float[Tensor, "image rank dim"]) -> Float64[Tensor, " image"]:
    """Mean cosine distance between the vectors of each image, over pairs; NaN for a single vector.

    A vector of length 0 is at distance 1 from all, itself included.
    """
    unit = _unit(vectors)
    return mean_over_pairs(1 - unit @ unit.transpose(1, 2))


# --- between classes


class InterDistance(Statistic):
    """The cosine distance of all vectors of a class's images to all vectors of all other images, averaged over classes.

    Only classes with images count, and only where another class has images. The mean over pairs is
    1 - (mean unit vector of the class) . (mean unit vector of the rest), so the cost is linear in images. A vector of
    length 0 is at distance 1 from all.

    Deviation: the authors' code compares equal ranks only and counts absent classes as 0 (DEVIATIONS.md B9).

    Attributes:
        classes: that have images, ascending.
    """

    def __init__(self, vectors: Float[Tensor, "image rank dim"], labels: Int[Tensor, " image"]) -> None:
        self.num_images, self._num_ranks = vectors.shape[:2]
        self._by_image = _unit(vectors).sum(dim=1).numpy()  # [image, dim]
        self.classes, owner = np.unique(labels.numpy(), return_inverse=True)
        self._images = [np.flatnonzero(owner == idx) for idx in range(len(self.classes))]

    def of_classes(self, weights: Weights) -> Float64[np.ndarray, "draw class"]:
        """Compute the distance of each class to the rest; NaN where a class, or the rest, has no image."""
        of_all, num_all = weights @ self._by_image, weights.sum(axis=1) * self._num_ranks
        distances = np.empty((len(weights), len(self.classes)))
        for idx, images in enumerate(self._images):
            own = weights[:, images] @ self._by_image[images]  # [draw, dim]
            num_own = weights[:, images].sum(axis=1) * self._num_ranks
            similar = np.einsum("nd,nd->n", own, of_all - own)
            distances[:, idx] = 1 - quotient(similar, num_own * (num_all - num_own))
        return distances

    def __call__(self, weights: Weights) -> Values:
        """Compute it for each draw of weights."""
        return mean_of_present(self.of_classes(weights))


# --- activations


def usage(top: Int[Tensor, "image rank"], num_prototypes: int) -> Int[Tensor, " prototype"]:
    """Count the images that each prototype explains."""
    return torch.bincount(top.flatten(), minlength=num_prototypes)


class Unused(Statistic):
    """The share of prototypes that explain no image."""

    def __init__(self, top: Int[Tensor, "image rank"], num_prototypes: int) -> None:
        self.num_images = len(top)
        self._uses = _uses(top, num_prototypes)

    def __call__(self, weights: Weights) -> Values:
        """Compute it for each draw of weights."""
        unused: Values = (self._uses @ weights.T == 0).mean(axis=0)
        return unused


class ActivationEntropy(Statistic):
    """How evenly a prototype's similarities to images are spread, averaged over the prototypes that explain an image.

    The similarities to all images, as shares of the prototype's largest one, are counted in equal bins of 0..1; the
    entropy of that is in bits. Shares below 0, and bins with less than a thousandth of the images, do not count. The
    scale of a prototype is that of all images, whatever their weights.

    Deviation: up to log2(number of bins) bits; the authors' code cuts at 1 (DEVIATIONS.md B10).
    """

    def __init__(
        self, similarity: Float[Tensor, "image prototype"], top: Int[Tensor, "image rank"], num_bins: int = NUM_BINS
    ) -> None:
        """Sort similarities into bins.

        Args:
            similarity: of every prototype to the image.
            top: the prototypes that explain each image.
            num_bins: bins.
        """
        self.num_images = len(similarity)
        self._num_bins = num_bins
        self._uses = _uses(top, similarity.shape[1])
        scaled = similarity / similarity.amax(dim=0)
        self._bin = (scaled * num_bins).floor().clamp(max=num_bins - 1).nan_to_num(-1).to(torch.int16).numpy()
        self._is_scaled = (similarity.amax(dim=0) > 0).numpy()

    def of_prototypes(self, weights: Weights) -> Float64[np.ndarray, "draw prototype"]:
        """Compute the entropy of each prototype; NaN where all similarities are 0."""
        light = weights.astype(np.float32)  # numbers of draws stay exact
        counts = [light @ (self._bin == idx).astype(np.float32) for idx in range(self._num_bins)]
        total = np.asarray(np.sum(counts, axis=0, dtype=np.float64))
        entropy = np.zeros(total.shape)
        for count in counts:
            share = quotient(count, total)
            counted = np.where(share >= _LEAST_FREQUENCY, share, 1.0)
            entropy -= counted * np.log2(counted)
        return np.where(self._is_scaled & (total > 0), entropy, np.nan)

    def __call__(self, weights: Weights) -> Values:
        """Compute it for each draw of weights."""
        is_used = (self._uses @ weights.T).T > 0
        return mean_of_present(np.where(is_used, self.of_prototypes(weights), np.nan))


# --- declarations


def _salient(evidence: Evidence) -> Bool[Tensor, "image rank height width"]:
    assert evidence.look.salient is not None
    return evidence.look.salient


def _top(evidence: Evidence) -> Int[Tensor, "image rank"]:
    assert evidence.top is not None
    return evidence.top


def _vectors(evidence: Evidence) -> Float[Tensor, "image rank dim"]:
    assert evidence.vectors is not None
    return evidence.vectors


def _features(evidence: Evidence) -> Float[Tensor, "image rank dim"]:
    assert evidence.features is not None
    return evidence.features


_NEEDS: tuple[Need, ...] = ("prototypes",)
_NEEDS_MAPS: tuple[Need, ...] = ("prototypes", "maps")
_MEAN = "; mean over pairs of an image's top prototypes, then images (QuanProto)"
_INTER = (
    "mean over classes of the mean cosine distance of all {} of their images to all of other classes' (QuanProto: only"
    " equal ranks)"
)

METRICS = (
    Metric(
        key="saliency_location_change",
        family=_FAMILY,
        title="Saliency location change (VLC)",
        unit="fraction",
        direction="higher",
        formula=f"1 - IoU of the salient pixels{_MEAN}",
        needs=_NEEDS_MAPS,
        of_image=lambda evidence: intra_mask_change(_salient(evidence)),
    ),
    Metric(
        key="saliency_value_change",
        family=_FAMILY,
        title="Saliency value change (VAC)",
        unit="fraction",
        direction="higher",
        formula=f"1 - sum of the smaller / sum of the larger values of the salient pixels, sorted{_MEAN}",
        needs=_NEEDS_MAPS,
        of_image=lambda evidence: intra_activation_change(relevance(evidence.look)),
    ),
    Metric(
        key="location_change",
        family=_FAMILY,
        title="Prototype location change (PLC)",
        unit="fraction",
        direction="higher",
        formula=f"half the Manhattan distance of the nearest elements' centres, shares of the image's sides{_MEAN}",
        needs=_NEEDS,
        of_image=lambda evidence: intra_point_distance(evidence.look.centre) / 2,
    ),
    Metric(
        key="similarity_change",
        family=_FAMILY,
        title="Prototype similarity change (PSC)",
        unit="fraction",
        direction="neither",
        formula=f"|s1 - s2| / max(s1, s2) of the similarities s{_MEAN.removesuffix(' (QuanProto)')}",
        needs=_NEEDS,
        of_image=lambda evidence: intra_relative_difference(similarity_to(evidence.look, _top(evidence))),
    ),
    Metric(
        key="element_location_change",
        family=_FAMILY,
        title="Similar elements' location change (PALC)",
        unit="fraction",
        direction="higher",
        formula=f"1 - IoU of the elements above half of the range of their similarities{_MEAN}",
        needs=_NEEDS,
        of_image=lambda evidence: intra_mask_change(similar_elements(evidence.look)),
    ),
    Metric(
        key="intra_prototype_distance",
        family=_FAMILY,
        title="Intra prototype distance",
        unit="distance",
        direction="higher",
        formula=f"cosine distance of the vectors{_MEAN}",
        high=2.0,
        needs=_NEEDS,
        of_image=lambda evidence: intra_distance(_vectors(evidence)),
    ),
    Metric(
        key="inter_prototype_distance",
        family=_FAMILY,
        title="Inter prototype distance",
        unit="distance",
        direction="higher",
        formula=_INTER.format("top prototypes"),
        high=2.0,
        needs=_NEEDS,
        of_set=lambda evidence: InterDistance(_vectors(evidence), evidence.labels),
    ),
    Metric(
        key="intra_feature_distance",
        family=_FAMILY,
        title="Intra feature distance",
        unit="distance",
        direction="higher",
        formula=f"cosine distance of the features nearest to them{_MEAN}",
        high=2.0,
        needs=_NEEDS,
        of_image=lambda evidence: intra_distance(_features(evidence)),
    ),
    Metric(
        key="inter_feature_distance",
        family=_FAMILY,
        title="Inter feature distance",
        unit="distance",
        direction="higher",
        formula=_INTER.format("features nearest to the top prototypes"),
        high=2.0,
        needs=_NEEDS,
        of_set=lambda evidence: InterDistance(_features(evidence), evidence.labels),
    ),
    Metric(
        key="activation_entropy",
        family=_FAMILY,
        title="Activation entropy",
        unit="bits",
        direction="neither",
        formula=f"entropy of a prototype's similarities to all images, as shares of the largest, in {NUM_BINS} bins;"
        " mean over the prototypes that explain an image (QuanProto: cut at 1)",
        high=math.log2(NUM_BINS),
        needs=_NEEDS,
        of_set=lambda evidence: ActivationEntropy(evidence.look.similarity, _top(evidence)),
    ),
    Metric(
        key="unused",
        family=_FAMILY,
        title="Unused prototypes",
        unit="fraction",
        direction="lower",
        formula="prototypes that are among the top ones of no image / prototypes",
        needs=_NEEDS,
        of_set=lambda evidence: Unused(_top(evidence), evidence.look.similarity.shape[1]),
    ),
)


def _unit(vectors: Float[Tensor, "image rank dim"]) -> Float64[Tensor, "image rank dim"]:
    """Scale vectors to length 1; those of length 0 stay."""
    return functional.normalize(vectors.double(), dim=2)


def _uses(top: Int[Tensor, "image rank"], num_prototypes: int) -> csr_array:
    """Note which images each prototype explains: a matrix of ones, [prototype, image]."""
    images = np.repeat(np.arange(len(top)), top.shape[1])
    return csr_array((np.ones(top.numel()), (top.flatten().numpy(), images)), shape=(num_prototypes, len(top)))
