"""The run of a segmenter over a data set: what the store has is taken, the rest is computed and kept at once."""

import functools
import hashlib
import json
import logging
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.boxes import box_of_mask
from pipeline.data.catalogue import ImageRow, load_images
from pipeline.data.images import decode_image
from pipeline.data.mask_store import MaskStore
from pipeline.data.masks import MaskTableWriter, StoredMask, encode_mask
from pipeline.engine import map_in_order
from pipeline.errors import PipelineError
from pipeline.io import new_folder, progress, sha256_of
from pipeline.params import MasksParams
from pipeline.runtime import Runtime, keep_freed_memory
from pipeline.segmenters import Segmenter, make_segmenter, segmenter_class, settings_of

_log = logging.getLogger(__name__)

_HASH_CHUNK = 2**20


def write_masks(dataset: Path, out: Path, *, store: Path, params: MasksParams, runtime: Runtime) -> dict[str, Any]:
    """Segment every image of DATASET and write ``masks.parquet`` in OUT.

    Args:
        dataset: folder with ``images.parquet``.
        out: replaced as a whole when all images are done.
        store: SQLite file that keeps each finished image; see :mod:`pipeline.data.mask_store`.
        params: segmenter and settings.
        runtime: device and workers.

    Returns:
        Counts of images and masks.

    Raises:
        PipelineError: missing weights or extras, an image that is unreadable or not the listed one, a store that
            cannot be written.
    """
    images = load_images(dataset)
    settings = fingerprint(params)
    num_masks: list[int] = []
    with MaskStore(store) as kept, new_folder(out) as folder:
        missing = [row for row in images.rows if kept.get(_key_of(row, params), settings) is None]
        _log.info("%d of %d images are in the store", len(images.rows) - len(missing), len(images.rows))
        if missing:
            results = _segment_all(missing, params=params, runtime=runtime)
            for row, masks in progress(zip(missing, results, strict=True), what="masks", total=len(missing)):
                kept.put(_key_of(row, params), settings, masks)
        with MaskTableWriter(folder / "masks.parquet") as table:
            for row in images.rows:
                stored = kept.get(_key_of(row, params), settings)
                assert stored is not None, f"{row.image_key} was just stored"
                table.add(row.image_key, stored)
                num_masks.append(len(stored))
    return {
        "num_in": len(images.rows),
        "num_out": len(num_masks),
        "dropped": {},
        "num_masks": sum(num_masks),
        "masks_per_image": {
            "min": min(num_masks),
            "median": statistics.median(num_masks),
            "max": max(num_masks),
        },
        "images_without_masks": num_masks.count(0),
    }


def fingerprint(params: MasksParams) -> str:
    """Hash everything that shapes masks: the active segmenter's settings and version, and its weights or module.

    Raises:
        PipelineError: ``masks.weights`` does not exist.
    """
    settings = json.dumps(settings_of(params), sort_keys=True)
    return sha256_of(f"{settings}\n{_hash_of(Path(params.weights))}".encode())


def _hash_of(weights: Path) -> str:
    """Hash a file, or a folder's files with their names."""
    if not weights.exists():
        raise PipelineError(
            f"masks.weights: {weights} does not exist; put the checkpoint there or choose another masks.segmenter"
        )
    digest = hashlib.sha256()
    files = [weights] if weights.is_file() else sorted(path for path in weights.rglob("*") if path.is_file())
    for path in files:
        if weights.is_dir():
            digest.update(path.relative_to(weights).as_posix().encode() + b"\0")
        with path.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _key_of(row: ImageRow, params: MasksParams) -> str:
    """What masks depend on besides the settings: the picture, and its object box where the segmenter looks at that."""
    if segmenter_class(params).uses_object_box(params):
        return f"{row.sha256}:{row.object_box}"
    return row.sha256


def _segment_all(rows: Sequence[ImageRow], *, params: MasksParams, runtime: Runtime) -> Iterator[list[StoredMask]]:
    if segmenter_class(params).holds_device:  # a network stays in this process, on its one device
        keep_freed_memory()
        on_device = make_segmenter(params, device=runtime.torch_device)
        return map(functools.partial(_segment, on_device), rows)
    return map_in_order(functools.partial(_segment, make_segmenter(params)), rows, runtime=runtime)


def _segment(segmenter: Segmenter, row: ImageRow) -> list[StoredMask]:
    try:
        content = row.path.read_bytes()
    except FileNotFoundError:
        raise PipelineError(f"{row.path}: this image does not exist; run `dvc checkout` or `dvc repro`") from None
    if sha256_of(content) != row.sha256:  # the store would keep the masks of one picture as those of another
        raise PipelineError(f"{row.path}: was changed after images.parquet was written; run `dvc repro`")
    segments = segmenter.segment(decode_image(content, row.path), row.object_box)
    return [
        StoredMask(
            encode_mask(segment.mask),
            box_of_mask(segment.mask),
            int(segment.mask.sum()),
            float(segment.score),
            None if segment.stability is None else float(segment.stability),
        )
        for segment in segments
    ]
