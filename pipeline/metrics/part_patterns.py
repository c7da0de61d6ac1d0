"""Part patterns: which parts of the object each mask covers together, and how often in the images of a class.

A mask covers some of an image's parts and leaves out the others; which ones is its *pattern*. Where a segmenter cuts
the head off the body in one image of a class and not in the next, the patterns of that class are rare ones.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Bool

NO_PART = 0
"""The pattern of a mask that covers no part."""


def coverage_patterns(covered: Bool[np.ndarray, "mask part"]) -> frozenset[int]:
    """Find the distinct patterns among the masks of one image.

    Args:
        covered: whether the mask covers the part; False for parts that are not visible. The second axis is part_idx
            and the same for all images, so that equal patterns mean equal parts.

    Returns:
        Patterns as bit sets: bit i is part i. Without masks, none; :data:`NO_PART` only if a mask covers no part.

    Deviation: the authors' code numbers bits by position in the image's own list of parts, and reads the bottom-right
    pixel for the padding of that list (DEVIATIONS.md B18).
    """
    packed = np.packbits(covered, axis=1, bitorder="little")
    return frozenset(int.from_bytes(row.tobytes(), "little") for row in packed)


def pattern_frequencies(
    patterns: Sequence[Collection[int]], labels: Sequence[int], *, num_classes: int
) -> list[dict[int, float]]:
    """Count, per class, in which share of its images each pattern occurs.

    Args:
        patterns: of each image, distinct; from :func:`coverage_patterns`.
        labels: class of each image.
        num_classes: classes without an image get no pattern.

    Returns:
        For each class, pattern to frequency in (0, 1], sorted by pattern.
    """
    num_images = Counter(labels)
    counts: list[Counter[int]] = [Counter() for _ in range(num_classes)]
    for found, label in zip(patterns, labels, strict=True):
        counts[label].update(found)
    return [
        {pattern: count / num_images[label] for pattern, count in sorted(counted.items())}
        for label, counted in enumerate(counts)
    ]


def mask_consistency(frequencies: Sequence[Mapping[int, float]], *, without_no_part: bool = False) -> float | None:
    """Average frequencies over the patterns of each class, then over classes: the paper's number, as a fraction.

    It rises when few patterns occur, in many images. One over the number of images is the least a pattern can have, so
    only data sets with equally many images per class can be compared.

    Args:
        frequencies: per class, from :func:`pattern_frequencies`; classes without a pattern do not count.
        without_no_part: leave out :data:`NO_PART`, which the paper counts. Nearly every image has a mask of
            background, so it says little about parts and pulls the mean up.

    Returns:
        In (0, 1]; None without any pattern.
    """
    per_class = [
        [frequency for pattern, frequency in found.items() if not (without_no_part and pattern == NO_PART)]
        for found in frequencies
    ]
    means = [float(np.mean(of_class)) for of_class in per_class if of_class]
    return float(np.mean(means)) if means else None
