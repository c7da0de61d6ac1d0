"""Masks as they are stored: COCO run-length codes in ``masks.parquet``, a row per mask.

``python -m pipeline.data.masks export --coco OUT.json`` writes them as a COCO instances file, for other tools.
"""

import importlib
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool
from pycocotools import mask as coco

from pipeline.artifacts import MASKS, encoded_metadata, metadata_of
from pipeline.data.boxes import Box
from pipeline.data.catalogue import ImageRow
from pipeline.errors import PipelineError

_IMAGES_PER_ROW_GROUP = 256


@dataclass(frozen=True, slots=True)
class StoredMask:
    """One mask of an image.

    Attributes:
        rle: COCO compressed counts of the mask in the size of its image.
        score: the segmenter's own ranking, larger is better.
        stability: SAM's stability score; None for segmenters without one.
    """

    rle: bytes
    box: Box
    area_px: int
    score: float
    stability: float | None = None


def encode_mask(mask: Bool[np.ndarray, "height width"]) -> bytes:
    """Run-length encode MASK as COCO compressed counts."""
    # column by column, as the encoder reads: turning the bytes over is twice as fast as asking for Fortran's order
    columns = np.ascontiguousarray(mask.view(np.uint8).T).T
    counts: bytes = coco.encode(columns)["counts"]
    return counts


def decode_mask(rle: bytes, *, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """Undo :func:`encode_mask` for an image of HEIGHT x WIDTH pixels.

    Raises:
        ValueError: RLE is of a mask of another size, or damaged.
    """
    decoded: np.ndarray = coco.decode({"size": [height, width], "counts": rle})
    mask = decoded.astype(bool)
    if encode_mask(mask) != rle:  # where the counts end early, pycocotools leaves memory as it was
        raise ValueError(f"the run lengths are not those of a mask of {width}x{height} pixels")
    return mask


def pairwise_iou(masks: Sequence[StoredMask], *, height: int, width: int) -> np.ndarray:
    """Intersection over union of every two masks of one image, without decoding them: float64 [mask, mask]."""
    coded = [{"size": [height, width], "counts": mask.rle} for mask in masks]
    if not coded:
        return np.zeros((0, 0))
    return np.asarray(coco.iou(coded, coded, [0] * len(coded)), dtype=np.float64)


class MaskTableWriter:
    """Writes ``masks.parquet`` image by image, in bounded memory; a context manager."""

    def __init__(self, path: Path, segmentation: Mapping[str, Any] | None = None) -> None:
        """Start the table.

        Args:
            path: of the file.
            segmentation: what made the masks, JSON-like, kept in the file's metadata; see :func:`segmentation_of`.
        """
        # parquet's checksums are off by default, and without them a flipped bit gives another mask
        self._writer = pq.ParquetWriter(
            path,
            MASKS.with_metadata(encoded_metadata(segmentation=segmentation)),
            compression="zstd",
            write_page_checksum=True,
        )
        self._rows: list[dict[str, Any]] = []
        self._images_waiting = 0

    def add(self, image_key: str, masks: Iterable[StoredMask]) -> None:
        """Append the masks of one image, best score first; call in the order of image keys."""
        self._rows.extend(
            {
                "image_key": image_key,
                "mask_idx": mask_idx,
                "rle": mask.rle,
                "box": list(mask.box),
                "area_px": mask.area_px,
                "score": mask.score,
                "stability": mask.stability,
            }
            for mask_idx, mask in enumerate(masks)
        )
        self._images_waiting += 1
        if self._images_waiting == _IMAGES_PER_ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=MASKS))
        self._rows, self._images_waiting = [], 0

    def __enter__(self) -> "MaskTableWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


def segmentation_of(path: Path) -> dict[str, Any] | None:
    """Say what made the masks of ``masks.parquet``: segmenter, weights and settings; None where it was not noted.

    Raises:
        PipelineError: missing, or damaged.
    """
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError:
        raise PipelineError(f"{path} does not exist: run `dvc repro masks`") from None
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(f"{path} is damaged ({' '.join(str(error).split())}): delete it and `dvc repro`") from None
    noted: dict[str, Any] | None = metadata_of(schema, "segmentation")
    return noted


def iterate_masks(path: Path, image_keys: Collection[str] | None = None) -> Iterator[tuple[str, list[StoredMask]]]:
    """Read ``masks.parquet`` image by image, in the order of image keys; images without masks do not occur.

    Args:
        path: the table.
        image_keys: only the masks of these; what lies between them is passed over quickly. None reads all.

    Raises:
        PipelineError: missing, damaged, or not this table.
    """
    current: str | None = None
    masks: list[StoredMask] = []
    for row in _iterate_rows(path, image_keys):
        if row["image_key"] != current:
            if current is not None:
                yield current, masks
            current, masks = row["image_key"], []
        masks.append(StoredMask(row["rle"], Box(*row["box"]), row["area_px"], row["score"], row["stability"]))
    if current is not None:
        yield current, masks


def join_masks(
    images: Sequence[ImageRow], path: Path, *, are_all: bool = True
) -> Iterator[tuple[ImageRow, list[StoredMask]]]:
    """Walk ``masks.parquet`` beside the images; images without masks come with none.

    Args:
        images: in the order of image keys.
        path: the table.
        are_all: whether IMAGES are all of the data set; if not, masks of others are passed over quickly.

    Raises:
        PipelineError: as :func:`iterate_masks`, or the table has masks of an image that is not among all IMAGES.
    """
    stored = iterate_masks(path, None if are_all else {image.image_key for image in images})
    current = next(stored, None)
    for image in images:
        if current is not None and current[0] < image.image_key:
            break
        if current is not None and current[0] == image.image_key:
            yield image, current[1]
            current = next(stored, None)
        else:
            yield image, []
    if current is not None:
        raise PipelineError(f"{path}: has masks of {current[0]}, which is no image of the data set: run `dvc repro`")


def _iterate_rows(path: Path, image_keys: Collection[str] | None) -> Iterator[dict[str, Any]]:
    if not path.exists():
        raise PipelineError(f"{path} does not exist: run `dvc repro masks`")
    try:  # around the reading, too: the pages are opened one after another
        with pq.ParquetFile(path, page_checksum_verification=True) as table:
            if not table.schema_arrow.equals(MASKS, check_metadata=False):
                raise PipelineError(f"{path} was written by another version of the pipeline: run `dvc repro masks`")
            if image_keys is None:
                for batch in table.iter_batches(batch_size=4096):
                    yield from batch.to_pylist()
                return
            wanted = pa.array(sorted(image_keys), pa.string())
            for batch in table.iter_batches(batch_size=4096, row_groups=_groups_with(table, image_keys)):
                yield from batch.filter(pc.is_in(batch["image_key"], wanted)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise PipelineError(f"{path} is damaged ({' '.join(str(error).split())}): delete it and `dvc repro`") from None


def _groups_with(table: pq.ParquetFile, image_keys: Collection[str]) -> list[int]:
    """Find the row groups that may have masks of some images: the table is sorted, and groups say where they end."""
    keys = sorted(image_keys)
    column = table.schema_arrow.get_field_index("image_key")
    found = []
    for group in range(table.num_row_groups):
        limits = table.metadata.row_group(group).column(column).statistics
        if limits is None or not limits.has_min_max or bisect_left(keys, limits.min) < bisect_right(keys, limits.max):
            found.append(group)
    return found


if __name__ == "__main__":
    # by name: what only the command needs is no dependency of the stages that import this module
    importlib.import_module("pipeline.data.coco").app()
