"""Bringing a data set into the pipeline's own layout: every picture checked once, so that no later stage has to.

The folder holds ``images/CLASS/KEY.SUFFIX`` (the source's bytes, unchanged), ``object_masks/`` and ``part_masks/``
with one PNG per image where the data set has such masks, and ``images.parquet``, the list of it all.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline.artifacts import IMAGES, write_table
from pipeline.data.datasets.interface import Dataset, DatasetError, ImageRecord, Listing
from pipeline.data.datasets.sources import safe_name
from pipeline.data.images import decode_image
from pipeline.data.splits import cut_validation
from pipeline.engine import map_in_order
from pipeline.io import new_folder, progress, sha256_of
from pipeline.params import CompatParams, DatasetParams
from pipeline.runtime import Runtime

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Stored:
    """One row of ``images.parquet``, and what was left out of it."""

    row: dict[str, Any]
    num_parts_outside: int
    empty_object_mask: bool


def write_dataset(
    dataset: Dataset,
    out: Path,
    *,
    params: DatasetParams,
    seed: int,
    runtime: Runtime,
    compat: CompatParams = CompatParams(),
) -> dict[str, Any]:
    """Write the images of DATASET to the folder OUT, which stays as it was if anything is wrong.

    Boxes are cut to their image. Part locations outside their image are left out, as are object masks without a
    foreground pixel; both are counted.

    Args:
        dataset: read once for the list, then once per image, in worker processes.
        out: replaced in one step.
        params: says which images are for validation.
        seed: of the validation split.
        runtime: how many workers; without influence on what is written.
        compat: ``sklearn_splits``.

    Returns:
        The counts of the report: ``num_in = num_out + sum(dropped)`` images, and what was found with them.

    Raises:
        PipelineError: an image is missing or damaged, a class has too few images, an annotation does not fit; names
            the image or the class.
    """
    _protect_source(Path(params.source), out)
    listing = dataset.listing()
    check_listing(listing)
    cut = cut_validation(
        listing.records,
        listing.class_names,
        val_frac=params.val_frac,
        seed=seed,
        num_folds=params.folds,
        fold=params.fold,
        sklearn_splits=compat.sklearn_splits,
    )
    records = sorted(cut, key=lambda record: record.image_key)
    with new_folder(out) as work:
        for record in records:
            for folder in ("images", "object_masks", "part_masks"):
                (work / folder / _class_folder(listing, record)).mkdir(parents=True, exist_ok=True)
        store = partial(_store_image, dataset, listing.class_names, len(listing.part_names), work.resolve())
        stored = list(progress(map_in_order(store, records, runtime=runtime), what="dataset", total=len(records)))
        for folder in ("object_masks", "part_masks"):
            _remove_empty_folders(work / folder)
        write_table(
            work / "images.parquet",
            [one.row for one in stored],
            IMAGES,
            class_names=list(listing.class_names),
            part_names=list(listing.part_names),
        )

    rows = [one.row for one in stored]
    num_per_split = Counter(row["split"] for row in rows)
    summary: dict[str, Any] = {
        "num_in": len(listing.records) + sum(listing.dropped.values()),
        "num_out": len(rows),
        "dropped": dict(listing.dropped),
        "num_classes": len(listing.class_names),
        "num_per_split": {split: num_per_split[split] for split in ("train", "val", "test")},
        "num_object_boxes": sum(row["object_box"] is not None for row in rows),
        "num_object_masks": sum(row["object_mask"] is not None for row in rows),
        "num_part_masks": sum(row["part_mask"] is not None for row in rows),
        "num_parts": sum(len(row["parts"]) for row in rows),
        "dropped_parts": {"outside_image": sum(one.num_parts_outside for one in stored)},
        "dropped_object_masks": {"empty": sum(one.empty_object_mask for one in stored)},
        "num_test_duplicates": _count_test_duplicates(rows, records),
    }
    assert summary["num_in"] == summary["num_out"] + sum(listing.dropped.values())
    logger.info(
        "%d of %d images in %d classes: %s",
        len(rows),
        summary["num_in"],
        len(listing.class_names),
        ", ".join(f"{count} {split}" for split, count in summary["num_per_split"].items()),
    )
    return summary


def check_listing(listing: Listing) -> None:
    """Check what every later stage relies on.

    Raises:
        DatasetError: no image, fewer than two classes, a class name twice, or a key that is unsafe or not unique.
    """
    if not listing.records:
        raise DatasetError("the data set lists no image: check `dataset.source` and `dataset.classes` in params.yaml")
    if len(listing.class_names) < 2:
        raise DatasetError(
            f"the only class is `{listing.class_names[0]}`, and there is nothing to tell it from:"
            " check `dataset.source` and `dataset.classes` in params.yaml"
        )
    name, count = Counter(listing.class_names).most_common(1)[0]
    if count > 1:
        raise DatasetError(f"{count} classes are called `{name}`: give them different names")
    seen: dict[str, str] = {}
    for record in listing.records:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", record.image_key):
            raise DatasetError(
                f"{record.file_name}: `{record.image_key}` cannot be a key; it may hold only A-Z a-z 0-9 _ -"
            )
        if record.image_key in seen:
            raise DatasetError(
                f"{record.file_name} and {seen[record.image_key]} would have the same key `{record.image_key}`:"
                " rename one of them"
            )
        seen[record.image_key] = record.file_name


def _protect_source(source: Path, out: Path) -> None:
    """Refuse to replace a folder that holds the source: the raw pictures would be gone."""
    if source.resolve().is_relative_to(out.resolve()):
        raise DatasetError(
            f"dataset.source ({source}) lies in {out}, which this stage replaces: move the source elsewhere"
        )


def _store_image(
    dataset: Dataset, class_names: Sequence[str], num_parts: int, out: Path, record: ImageRecord
) -> _Stored:
    """Check one image with its annotations and write its files; the folders exist."""
    content = dataset.image_bytes(record)
    height, width = decode_image(content, record.file_name).shape[:2]
    inside = PurePosixPath(safe_name(class_names[record.label]))
    path = "images" / inside / (record.image_key + PurePosixPath(record.file_name).suffix.lower())
    (out / path).write_bytes(content)

    object_mask = dataset.object_mask(record)
    object_mask_path = None
    if object_mask is not None:
        _check_size(object_mask.shape, (height, width), record, "object mask")
        if object_mask.any():
            object_mask_path = "object_masks" / inside / f"{record.image_key}.png"
            _write_png(out / object_mask_path, object_mask.astype(np.uint8) * 255)

    part_mask = dataset.part_mask(record)
    part_mask_path = None
    if part_mask is not None:
        _check_size(part_mask.shape, (height, width), record, "part mask")
        if part_mask.max() > num_parts:
            raise DatasetError(
                f"{record.file_name}: its part mask has the value {part_mask.max()}, but there are {num_parts} parts"
            )
        part_mask_path = "part_masks" / inside / f"{record.image_key}.png"
        _write_png(out / part_mask_path, part_mask)

    parts = [part for part in record.parts if 0 <= part.x < width and 0 <= part.y < height]
    row = {
        "image_key": record.image_key,
        "path": str(path),
        "sha256": sha256_of(content),
        "width": width,
        "height": height,
        "label": record.label,
        "class_name": class_names[record.label],
        "split": record.split,
        "object_box": _box_inside(record, width, height),
        "parts": [asdict(part) for part in parts],
        "object_mask": None if object_mask_path is None else str(object_mask_path),
        "part_mask": None if part_mask_path is None else str(part_mask_path),
    }
    return _Stored(row, len(record.parts) - len(parts), object_mask is not None and object_mask_path is None)


def _class_folder(listing: Listing, record: ImageRecord) -> str:
    return safe_name(listing.class_names[record.label])


def _box_inside(record: ImageRecord, width: int, height: int) -> list[int] | None:
    if record.object_box is None:
        return None
    box = record.object_box.clipped(width, height)
    if box.area_px == 0:
        raise DatasetError(
            f"{record.file_name}: the object's box {tuple(record.object_box)} covers no pixel of the image"
            f" ({width} x {height}): correct the annotation or remove the image from the data"
        )
    return list(box)


def _check_size(shape: tuple[int, ...], expected: tuple[int, int], record: ImageRecord, what: str) -> None:
    if shape != expected:
        raise DatasetError(
            f"{record.file_name}: its {what} is {shape[1]} x {shape[0]} pixels, but the image is"
            f" {expected[1]} x {expected[0]}: replace one of them, or remove the image from the data"
        )


def _write_png(path: Path, pixels: UInt8[np.ndarray, "height width"]) -> None:
    Image.fromarray(pixels).save(path)


def _remove_empty_folders(folder: Path) -> None:
    for inner in [*folder.iterdir(), folder]:
        if not any(inner.iterdir()):
            inner.rmdir()


def _count_test_duplicates(rows: Sequence[Mapping[str, Any]], records: Sequence[ImageRecord]) -> int:
    """Count the test images whose file is, byte for byte, also a training or validation image, and warn of them."""
    names = {record.image_key: record.file_name for record in records}
    seen = {row["sha256"]: row["image_key"] for row in reversed(rows) if row["split"] != "test"}
    pairs = [
        (row["image_key"], seen[row["sha256"]]) for row in rows if row["split"] == "test" and row["sha256"] in seen
    ]
    if pairs:
        test_key, train_key = pairs[0]
        logger.warning(
            "%d test image(s) are also training or validation images, which flatters the results; the first is %s = %s",
            len(pairs),
            names[test_key],
            names[train_key],
        )
    return len(pairs)
