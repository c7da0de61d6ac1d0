"""The run of a segmenter over a data set: what the store has is taken, the rest is computed and kept at once."""

import contextlib
import functools
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.catalogue import ImageRow, load_images
from pipeline.data.images import decode_image
from pipeline.data.mask_store import MaskStore, WriteBehind
from pipeline.data.masks import MaskTableWriter, StoredMask
from pipeline.engine import map_ahead, map_in_order
from pipeline.errors import PipelineError
from pipeline.io import new_folder, progress, sha256_of
from pipeline.params import MasksParams
from pipeline.runtime import Runtime, keep_freed_memory
from pipeline.segmenters import Picture, Segmenter, make_segmenter, segmenter_class, settings_of
from pipeline.weights import check_official, checkpoint_with, how_to_get

_log = logging.getLogger(__name__)

_ATTEMPTS = 2  # a damaged row is found out when the table is written, which reads it; then it is put anew
_HASH_CHUNK = 2**20
_NOTES_OF_DOWNLOADS = (".sha256", ".part")  # that pipeline.download leaves beside weights
_LOADING_THREADS = 2  # that read and decode pictures beside a network


def write_masks(
    dataset: Path, out: Path, *, store: Path, params: MasksParams, runtime: Runtime, bgr: bool = False
) -> dict[str, Any]:
    """Segment every image of DATASET and write ``masks.parquet`` in OUT.

    Args:
        dataset: folder with ``images.parquet``.
        out: replaced as a whole when all images are done.
        store: SQLite file that keeps each finished image; see :mod:`pipeline.data.mask_store`.
        params: segmenter and settings.
        runtime: device and workers.
        bgr: SAM and SAM 2 see red and blue exchanged (``compat.bgr_masks``).

    Returns:
        Counts of images and masks.

    Raises:
        PipelineError: missing weights or extras, an image that is unreadable or not the listed one, a store that
            cannot be written, a full disk.
    """
    images = load_images(dataset)
    settings, made_by = fingerprint(params, bgr=bgr), settings_of(params, bgr=bgr)
    with MaskStore(store) as kept, new_folder(out) as folder:
        missing = [row for row in images.rows if not kept.has(store_key(row, params), settings)]
        _log.info("%d of %d images are in the store", len(images.rows) - len(missing), len(images.rows))
        for _ in range(_ATTEMPTS):
            if missing:
                _segment_into(kept, missing, settings=settings, params=params, runtime=runtime, bgr=bgr)
            with (
                writing(out / "masks.parquet"),
                MaskTableWriter(folder / "masks.parquet", segmentation={"weights": params.weights, **made_by}) as table,
            ):
                found = [_add(table, row, kept.get(store_key(row, params), settings)) for row in images.rows]
            missing = [row for row, num_masks in zip(images.rows, found, strict=True) if num_masks is None]
            if not missing:
                return _counts([num_masks for num_masks in found if num_masks is not None], num_in=len(images.rows))
        raise PipelineError(f"{store}: rows come back damaged right after they were put; is its disk sound?")


def _counts(num_masks: list[int], *, num_in: int) -> dict[str, Any]:
    return {
        "num_in": num_in,
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


def fingerprint(params: MasksParams, *, bgr: bool = False) -> str:
    """Hash everything that shapes masks: the active segmenter's settings and version, and its weights or module.

    Args:
        params: segmenter and settings.
        bgr: as in :func:`write_masks`; changes the hash only where it is true and the segmenter heeds it.

    Raises:
        PipelineError: ``masks.weights`` does not exist.
    """
    settings = json.dumps(settings_of(params, bgr=bgr), sort_keys=True)
    return sha256_of(f"{settings}\n{_hash_of(Path(params.weights))}".encode())


def _hash_of(weights: Path) -> str:
    """Hash a file, or a folder's files with their names."""
    if not weights.exists():
        known = checkpoint_with(weights.name)
        way_out = how_to_get(known.name) if known else "put the checkpoint there"
        raise PipelineError(f"masks.weights: {weights} does not exist; {way_out}, or choose another masks.segmenter")
    digest = hashlib.sha256()
    files = [weights] if weights.is_file() else sorted(path for path in weights.rglob("*") if _counts_as_weights(path))
    for path in files:
        if weights.is_dir():
            digest.update(path.relative_to(weights).as_posix().encode() + b"\0")
        with path.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK):
                digest.update(chunk)
    found = digest.hexdigest()
    if weights.is_file():
        check_official(weights, found)
    return found


def _counts_as_weights(path: Path) -> bool:
    return path.is_file() and path.suffix not in _NOTES_OF_DOWNLOADS


def name_of(params: MasksParams, *, bgr: bool = False) -> str:
    """Describe the settings for people: the segmenter, its weights, and whether it sees BGR."""
    name = f"{params.segmenter}, {params.weights}"
    return f"{name}, BGR" if "bgr" in settings_of(params, bgr=bgr) else name


def store_key(row: ImageRow, params: MasksParams) -> str:
    """What masks depend on besides the settings: the pixels, and what else the segmenter looks at."""
    return ":".join([row.sha256, *(str(getattr(row, name)) for name in segmenter_class(params).looks_at(params))])


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk says against writing PATH into one line.

    Raises:
        PipelineError: the disk is full, or PATH may not be written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise PipelineError(
            f"{path}: cannot be written ({reason}); make room on its disk and run again: no finished image is lost"
        ) from None


def _add(table: MaskTableWriter, row: ImageRow, masks: list[StoredMask] | None) -> int | None:
    """Add the masks of one image and count them; None where its row turned out damaged."""
    if masks is None:
        return None
    table.add(row.image_key, masks)
    return len(masks)


def _segment_into(
    kept: MaskStore, rows: Sequence[ImageRow], *, settings: str, params: MasksParams, runtime: Runtime, bgr: bool
) -> None:
    """Segment ROWS and put their masks; images that are equal are segmented once."""
    kept.call(settings, name_of(params, bgr=bgr))
    distinct = {store_key(row, params): row for row in rows}
    results = _segment_all(list(distinct.values()), params=params, runtime=runtime, bgr=bgr)
    before = time.perf_counter()
    with WriteBehind(kept) as behind:
        for key, masks in progress(zip(distinct, results, strict=True), what="masks", total=len(distinct)):
            now = time.perf_counter()
            _log.debug("segmented %s", distinct[key].image_key)
            behind.put(key, settings, masks, seconds=now - before)
            before = now


def _segment_all(
    rows: Sequence[ImageRow], *, params: MasksParams, runtime: Runtime, bgr: bool
) -> Iterator[list[StoredMask]]:
    if segmenter_class(params).holds_device:  # a network stays in this process, on its one device
        keep_freed_memory()
        on_device = make_segmenter(params, device=runtime.torch_device, bgr=bgr)
        return on_device.stream(map_ahead(_load, _taken(rows), threads=_LOADING_THREADS))
    return map_in_order(functools.partial(_segment, make_segmenter(params, bgr=bgr)), _taken(rows), runtime=runtime)


def _taken(rows: Iterable[ImageRow]) -> Iterator[ImageRow]:
    """Log each image that is taken in hand; those beyond the images of the data set were done twice."""
    for row in rows:
        _log.debug("segmenting %s", row.image_key)
        yield row


def _segment(segmenter: Segmenter, row: ImageRow) -> list[StoredMask]:
    (masks,) = segmenter.stream([_load(row)])
    return masks


def _load(row: ImageRow) -> Picture:
    try:
        content = row.path.read_bytes()
    except FileNotFoundError:
        raise PipelineError(f"{row.path}: this image does not exist; run `dvc checkout` or `dvc repro`") from None
    if sha256_of(content) != row.sha256:  # the store would keep the masks of one picture as those of another
        raise PipelineError(f"{row.path}: was changed after images.parquet was written; run `dvc repro`")
    return Picture(decode_image(content, row.path), row.object_box, row.image_key)
