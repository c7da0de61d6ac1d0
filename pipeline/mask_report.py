"""The quality of a data set's masks: every stored mask against its image, the labelled object and the parts."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from pipeline.data.catalogue import ImageRow, ImagesTable, load_images
from pipeline.data.masks import StoredMask, encode_mask, join_masks
from pipeline.data.runs import pixels_of
from pipeline.engine import map_in_order
from pipeline.errors import PipelineError
from pipeline.io import progress
from pipeline.metrics.mask_quality import (
    AREA_EDGES,
    area_histogram,
    best_object_iou,
    covered_frac,
    parts_in_boxes,
    parts_in_masks,
    spread,
)
from pipeline.metrics.part_patterns import NO_PART, coverage_patterns, mask_consistency, pattern_frequencies
from pipeline.runtime import Runtime

_SPLITS = ("train", "val", "test")
_IOU_LIMITS = (0.5, 0.75, 0.9)
_LISTED_PATTERNS = 10  # per class; all of them would be megabytes for 200 classes
_DECIMALS = 6

_REASONS = {
    "object_iou": "none of these images has an object mask",
    "parts": "none of these images has a visible part",
    "mask_consistency": "the data set has no parts",
}


@dataclass(frozen=True, slots=True)
class _Measured:
    """What one image adds; the last four are None where the image has no object mask, or the data set no parts."""

    split: str
    label: int
    area_frac: Float[np.ndarray, " mask"]
    box_frac: Float[np.ndarray, " mask"]
    covered_frac: float
    best_iou: float | None
    num_parts: int | None
    num_parts_in_mask: int | None
    num_parts_in_box: int | None
    patterns: frozenset[int] | None


def mask_quality(dataset: Path, masks: Path, runtime: Runtime) -> dict[str, Any]:
    """Measure all stored masks.

    Args:
        dataset: folder with ``images.parquet``.
        masks: folder with ``masks.parquet``.
        runtime: workers; without influence on the result.

    Returns:
        JSON-like, six decimals. ``all`` and each split that has images hold:

        - ``num_images``, ``num_masks``; ``masks_per_image``, a :func:`~pipeline.metrics.mask_quality.spread`;
        - ``area_frac``: area of a mask as share of its image; over masks, with a histogram of edges and counts;
        - ``box_frac``: the same of its box; ``box_fill``: area of the mask / area of its box;
        - ``covered_frac``: share of an image's pixels in at least one mask; over images;
        - ``object_iou``: largest IoU of a mask with the object mask; over the images that have one, an image without
          masks counts as 0; ``share_at_least`` says in how many of them it reaches a limit;
        - ``parts``: visible parts, the share that lies in at least one mask, and in the box of at least one mask.

        ``mask_consistency`` (:mod:`pipeline.metrics.part_patterns`) is of all splits together, for frequencies
        depend on the number of images: the paper's mean, the mean without the pattern of no part, and per class the
        number of its patterns and the most frequent ones, named by their parts.

        What the data set cannot tell is null, and ``reasons`` beside it says why; so is the spread of no values.

    Raises:
        PipelineError: an input is missing, damaged or does not fit the other.
    """
    images = load_images(dataset)
    measure = functools.partial(_measure, num_parts=len(images.part_names))
    results = map_in_order(measure, join_masks(images.rows, masks / "masks.parquet"), runtime=runtime)
    measured = list(progress(results, what="quality of masks", total=len(images.rows)))
    of_split = {split: [one for one in measured if one.split == split] for split in _SPLITS}
    quality = {
        "all": _summary(measured),
        **{split: _summary(of_this) for split, of_this in of_split.items() if of_this},
        "mask_consistency": _consistency(measured, images) if images.part_names else None,
    }
    rounded: dict[str, Any] = _rounded(_with_reasons(quality))
    return rounded


def _measure(item: tuple[ImageRow, list[StoredMask]], *, num_parts: int) -> _Measured:
    row, masks = item
    size = {"height": row.height, "width": row.width}
    _check_fit(row, masks)
    coded = [mask.rle for mask in masks]
    best_iou, in_mask, in_box, patterns = None, None, None, None
    if row.object_mask is not None:
        best_iou = best_object_iou(coded, encode_mask(_read_mask(row.object_mask, row)), **size)
    if num_parts:
        parts = _pixels(row)
        covered = parts_in_masks(coded, parts, **size)  # [mask, visible part]
        in_mask = int(covered.any(axis=0).sum())
        in_box = int(parts_in_boxes([mask.box for mask in masks], parts).any(axis=0).sum())
        patterns = _patterns(row, covered, num_parts)
    num_px = row.height * row.width
    return _Measured(
        split=row.split,
        label=row.label,
        area_frac=np.array([mask.area_px for mask in masks], dtype=np.float64) / num_px,
        box_frac=np.array([mask.box.area_px for mask in masks], dtype=np.float64) / num_px,
        covered_frac=covered_frac(coded, **size),
        best_iou=best_iou,
        num_parts=len(row.parts) if num_parts else None,
        num_parts_in_mask=in_mask,
        num_parts_in_box=in_box,
        patterns=patterns,
    )


def patterns_of(row: ImageRow, masks: Sequence[StoredMask], num_parts: int) -> frozenset[int]:
    """Give the patterns of the masks of an image; see :mod:`pipeline.metrics.part_patterns`.

    Raises:
        PipelineError: the masks are of another picture.
    """
    _check_fit(row, masks)
    covered = parts_in_masks([mask.rle for mask in masks], _pixels(row), height=row.height, width=row.width)
    return _patterns(row, covered, num_parts)


def _pixels(row: ImageRow) -> Int[np.ndarray, "part 2"]:
    """Give column and row of the pixel of each visible part."""
    return np.array([(int(part.x), int(part.y)) for part in row.parts], dtype=np.int64).reshape(-1, 2)


def _patterns(row: ImageRow, covered: Bool[np.ndarray, "mask visible"], num_parts: int) -> frozenset[int]:
    by_part_idx = np.zeros((len(covered), num_parts), dtype=bool)
    by_part_idx[:, [part.part_idx for part in row.parts]] = covered
    return coverage_patterns(by_part_idx)


def _check_fit(row: ImageRow, masks: Sequence[StoredMask]) -> None:
    """Make sure that the masks are of this picture, for run lengths carry no size; comparing others may never end."""
    try:
        num_px = pixels_of([mask.rle for mask in masks])
    except ValueError:
        raise PipelineError(f"{row.path}: a mask of it is damaged: run `dvc repro masks`") from None
    for mask_idx, mask in enumerate(masks):
        if num_px[mask_idx] != row.height * row.width or mask.box.clipped(row.width, row.height) != mask.box:
            raise PipelineError(f"{row.path}: mask {mask_idx} is not of this picture: run `dvc repro masks`")


def _read_mask(path: Path, row: ImageRow) -> Bool[np.ndarray, "height width"]:
    try:
        with Image.open(path) as opened:
            mask: np.ndarray = np.asarray(opened.convert("L")) > 0
    except (OSError, SyntaxError, ValueError) as error:
        raise PipelineError(f"{path} cannot be read ({' '.join(str(error).split())}): run `dvc repro`") from None
    if mask.shape != (row.height, row.width):
        raise PipelineError(
            f"{path} is {mask.shape[1]}x{mask.shape[0]}, its image {row.width}x{row.height}: run `dvc repro`"
        )
    return mask


def _summary(measured: Sequence[_Measured]) -> dict[str, Any]:
    area_frac = _joined(one.area_frac for one in measured)
    box_frac = _joined(one.box_frac for one in measured)
    return {
        "num_images": len(measured),
        "num_masks": len(area_frac),
        "masks_per_image": spread([len(one.area_frac) for one in measured]),
        "area_frac": spread(area_frac),
        "area_histogram": {"edges": list(AREA_EDGES), "num_masks": area_histogram(area_frac)},
        "box_frac": spread(box_frac),
        "box_fill": spread(area_frac / box_frac),
        "covered_frac": spread([one.covered_frac for one in measured]),
        "object_iou": _object_iou([one.best_iou for one in measured if one.best_iou is not None]),
        "parts": _parts(measured),
    }


def _with_reasons(content: dict[str, Any]) -> dict[str, Any]:
    """Say why where a whole measure is null, in this group and those in it."""
    inner = {key: _with_reasons(value) if isinstance(value, dict) else value for key, value in content.items()}
    reasons = {key: reason for key, reason in _REASONS.items() if key in content and content[key] is None}
    return {**inner, "reasons": reasons} if reasons else inner


def _joined(arrays: Iterable[Float[np.ndarray, " mask"]]) -> Float[np.ndarray, " all_masks"]:
    return np.concatenate([np.zeros(0), *arrays])


def _object_iou(best: Sequence[float]) -> dict[str, Any] | None:
    if not best:
        return None
    reached = {str(limit): sum(iou >= limit for iou in best) / len(best) for limit in _IOU_LIMITS}
    return {"num_images": len(best), **(spread(best) or {}), "share_at_least": reached}


def _parts(measured: Sequence[_Measured]) -> dict[str, Any] | None:
    num_visible = sum(one.num_parts or 0 for one in measured)
    if not num_visible:
        return None
    return {
        "num_visible": num_visible,
        "in_a_mask": sum(one.num_parts_in_mask or 0 for one in measured) / num_visible,
        "in_a_box": sum(one.num_parts_in_box or 0 for one in measured) / num_visible,
    }


def _consistency(measured: Sequence[_Measured], images: ImagesTable) -> dict[str, Any]:
    num_classes = len(images.class_names)
    labels = [one.label for one in measured]
    frequencies = pattern_frequencies([one.patterns or () for one in measured], labels, num_classes=num_classes)
    return {
        "mean": mask_consistency(frequencies),
        "mean_without_no_part": mask_consistency(frequencies, without_no_part=True),
        "classes": {
            name: {
                "num_images": labels.count(label),
                "num_patterns": len(frequencies[label]),
                "no_part": frequencies[label].get(NO_PART, 0.0),
                "most_frequent": [
                    {"parts": _named(pattern, images.part_names), "frequency": frequency}
                    for pattern, frequency in _ranked(frequencies[label])[:_LISTED_PATTERNS]
                ],
            }
            for label, name in enumerate(images.class_names)
        },
    }


def _ranked(frequencies: dict[int, float]) -> list[tuple[int, float]]:
    """Sort the patterns that cover a part, the most frequent first, equal ones by pattern."""
    some_part = [(pattern, frequency) for pattern, frequency in frequencies.items() if pattern != NO_PART]
    return sorted(some_part, key=lambda entry: (-entry[1], entry[0]))


def _named(pattern: int, part_names: Sequence[str]) -> list[str]:
    return [name for part_idx, name in enumerate(part_names) if pattern >> part_idx & 1]


def _rounded(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_rounded(value) for value in content]
    return round(content, _DECIMALS) if isinstance(content, float) else content
