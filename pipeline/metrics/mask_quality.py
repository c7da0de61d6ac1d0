"""How good masks are by themselves: against the image, the labelled object and its parts.

Masks are COCO's compressed counts throughout, and are compared as such: run lengths meet in a small part of the time
that their pixels would take. All masks of a call have the size of one image.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools import mask as coco

from pipeline.data.boxes import Box

AREA_EDGES = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Bounds of the bins of :func:`area_histogram`: two per decade, shares of the image."""

_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def spread(values: Sequence[int | float] | Float[np.ndarray, " value"]) -> dict[str, float] | None:
    """Describe a distribution: min, five quantiles (interpolated linearly), max and mean; None without a value."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return None
    quantiles = np.quantile(array, list(_QUANTILES.values()))
    return {
        "min": float(array.min()),
        **dict(zip(_QUANTILES, quantiles.tolist(), strict=True)),
        "max": float(array.max()),
        "mean": float(array.mean()),
    }


def area_histogram(area_frac: Float[np.ndarray, " mask"]) -> list[int]:
    """Count masks by area as share of the image, in bins from each of :data:`AREA_EDGES` up to below the next.

    A mask of the whole image is in the last bin.
    """
    counts: list[int] = np.histogram(area_frac, bins=AREA_EDGES)[0].tolist()
    return counts


def covered_frac(masks: Sequence[bytes], *, height: int, width: int) -> float:
    """Share of the image's pixels that lie in at least one mask."""
    if not masks:
        return 0.0
    union = coco.merge(_coded(masks, height, width))
    return float(coco.area(union)) / (height * width)


def best_object_iou(masks: Sequence[bytes], object_mask: bytes, *, height: int, width: int) -> float:
    """Largest intersection over union of a mask with the object's; 0 without masks."""
    if not masks:
        return 0.0
    iou: np.ndarray = coco.iou(_coded(masks, height, width), _coded([object_mask], height, width), [0])  # [mask, 1]
    return float(iou.max())


def parts_in_masks(
    masks: Sequence[bytes], parts: Int[np.ndarray, "part 2"], *, height: int, width: int
) -> Bool[np.ndarray, "mask part"]:
    """Find which masks cover which parts.

    Args:
        masks: of one image.
        parts: column and row of the pixel of each part, inside the image.
        height: of the image, pixels.
        width: of the image, pixels.
    """
    if not len(masks) or not len(parts):
        return np.zeros((len(masks), len(parts)), dtype=bool)
    pixels = [_one_pixel(int(column) * height + int(row), height, width) for column, row in parts]
    # as a crowd, the intersection is divided by the mask's area instead of the union's: above 0 means covered
    share: np.ndarray = coco.iou(_coded(masks, height, width), pixels, [1] * len(pixels))
    return share > 0


def parts_in_boxes(boxes: Sequence[Box], parts: Int[np.ndarray, "part 2"]) -> Bool[np.ndarray, "box part"]:
    """Find which boxes hold which parts.

    Args:
        boxes: half-open.
        parts: column and row of the pixel of each part.
    """
    corners = np.asarray(boxes, dtype=np.int64).reshape(-1, 4, 1)  # [box, x0 y0 x1 y1, 1]
    column, row = parts[:, 0], parts[:, 1]
    inside: np.ndarray = (
        (corners[:, 0] <= column) & (column < corners[:, 2]) & (corners[:, 1] <= row) & (row < corners[:, 3])
    )
    return inside


def _coded(masks: Sequence[bytes], height: int, width: int) -> list[dict[str, object]]:
    return [{"size": [height, width], "counts": counts} for counts in masks]


def _one_pixel(position: int, height: int, width: int) -> object:
    """Encode a mask of one pixel, at POSITION down the columns."""
    runs = [position, 1, height * width - position - 1]
    return coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)
