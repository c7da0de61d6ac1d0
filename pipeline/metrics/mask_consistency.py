"""Mask consistency: how reliably the segmenter finds the same parts, together, in all images of a class."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array

from pipeline.metrics.interface import Evidence, Metric
from pipeline.metrics.part_patterns import NO_PART
from pipeline.metrics.statistics import Statistic, Values, Weights, mean_of_present

_FAMILY = "mask_consistency"


class MaskConsistency(Statistic):
    """The mean frequency of the patterns of a class, averaged over classes.

    The same number as :func:`pipeline.metrics.part_patterns.mask_consistency`, for any weights of images; a pattern
    that no image of positive weight has is no pattern of its class.
    """

    def __init__(
        self,
        patterns: Sequence[frozenset[int]],
        labels: Int[np.ndarray, " image"],
        *,
        without_no_part: bool = False,
    ) -> None:
        """Number the patterns of each class.

        Args:
            patterns: of the masks of each image; see :mod:`pipeline.metrics.part_patterns`.
            labels: class of each image.
            without_no_part: leave out the pattern of masks that cover no part.
        """
        self.num_images = len(patterns)
        self._classes, class_of = np.unique(labels, return_inverse=True)
        columns: dict[tuple[int, int], int] = {}
        found = [
            (image, columns.setdefault((int(owner), pattern), len(columns)))
            for image, (own, owner) in enumerate(zip(patterns, class_of, strict=True))
            for pattern in sorted(own)
            if not (without_no_part and pattern == NO_PART)
        ]
        rows = np.array([image for image, _ in found], dtype=np.int64)
        positions = np.array([column for _, column in found], dtype=np.int64)
        self._occurs = csr_array((np.ones(len(found)), (rows, positions)), shape=(len(patterns), len(columns)))
        self._owner = np.array([owner for owner, _ in columns], dtype=np.int64)
        self._is_class = (class_of[:, None] == np.arange(len(self._classes))).astype(np.float64)  # [image, class]

    def __call__(self, weights: Weights) -> Values:
        """Compute it for each draw; see the base class."""
        counts = (self._occurs.T @ weights.T).T  # [draw, class and pattern]
        num_images = weights @ self._is_class  # [draw, class]
        with np.errstate(invalid="ignore", divide="ignore"):
            frequency = np.where(counts > 0, counts / num_images[:, self._owner], 0.0)
        of_class = (self._owner[:, None] == np.arange(len(self._classes))).astype(np.float64)
        num_present = (counts > 0) @ of_class
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.where(num_present > 0, frequency @ of_class / num_present, np.nan)
        return mean_of_present(means)


def _statistic(evidence: Evidence, *, without_no_part: bool) -> MaskConsistency:
    assert evidence.patterns is not None
    return MaskConsistency(evidence.patterns, evidence.labels.numpy(), without_no_part=without_no_part)


METRICS = (
    Metric(
        key="mask_consistency",
        family=_FAMILY,
        title="Mask consistency",
        unit="fraction",
        direction="higher",
        formula="per class, mean over the part patterns of its images' masks of images with the pattern / images; mean"
        " over classes (paper; as QuanProto, parts by name and not by position)",
        needs=("parts", "patterns"),
        of_set=lambda evidence: _statistic(evidence, without_no_part=False),
    ),
    Metric(
        key="mask_consistency_of_parts",
        family=_FAMILY,
        title="Mask consistency of parts",
        unit="fraction",
        direction="higher",
        formula="as mask consistency, without the pattern of masks that cover no part, which nearly every image has",
        needs=("parts", "patterns"),
        of_set=lambda evidence: _statistic(evidence, without_no_part=True),
    ),
)
