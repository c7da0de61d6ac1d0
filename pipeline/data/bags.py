"""Bags: the views of each image of a split, read at random from the shards.

``views.parquet`` says where in which tar each view's bytes lie, so a training run draws images in any order without a
shuffle buffer and without unpacking. The writer is :mod:`pipeline.data.shards`.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg
from jaxtyping import Bool, UInt8
from PIL import Image

from pipeline.artifacts import VIEWS, VIEWS_TABLE, WHOLE_IMAGE, metadata_of, read_table
from pipeline.data.boxes import Box
from pipeline.errors import PipelineError
from pipeline.io import sha256_of, sha256_of_file


@dataclass(frozen=True, slots=True)
class ViewRow:
    """One view as ``views.parquet`` lists it; see ``artifacts.VIEWS``."""

    image_key: str
    view_idx: int
    label: int
    mask_idx: int
    mask_box: Box
    box: Box
    area_px: int
    shard: str
    jpeg_offset: int
    jpeg_size: int
    mask_offset: int | None
    mask_size: int | None


class BagReader:
    """Random access to the bags of one split, in the order of image keys. Picklable; opens shards when first read."""

    def __init__(
        self, crops: Path, *splits: str, views: Literal["bag", "whole"] = "bag", equal_lengths: bool = False
    ) -> None:
        """Read the table of CROPS.

        Args:
            crops: folder with shards and ``views.parquet``.
            splits: train, val or test; several are read as one.
            views: the views of each bag, or only the whole image.
            equal_lengths: fill bags up with copies of their views until all are as long as the longest, as the authors'
                code does (``compat.equal_bags``).

        Raises:
            PipelineError: missing or damaged table, or a split without images.
        """
        self._crops = crops
        table = read_table(crops / VIEWS_TABLE, VIEWS)
        self.class_names: list[str] = metadata_of(table, "class_names")
        self.size_px: int = metadata_of(table, "size_px")
        self.preparation: dict[str, Any] | None = metadata_of(table, "preparation")
        self._bags: list[list[ViewRow]] = []
        is_wanted = table["in_bag"] if views == "bag" else pc.equal(table["mask_idx"], WHOLE_IMAGE)
        is_in_splits = pc.is_in(table["split"], value_set=pa.array(splits, pa.string()))
        for row in table.filter(pc.and_(is_wanted, is_in_splits)).to_pylist():
            values: dict[str, Any] = {name: row[name] for name in ViewRow.__slots__}
            view = ViewRow(**{**values, "box": Box(*row["box"]), "mask_box": Box(*row["mask_box"])})
            if not self._bags or self._bags[-1][0].image_key != view.image_key:
                self._bags.append([])
            self._bags[-1].append(view)
        if not self._bags:
            names = " or ".join(splits)
            raise PipelineError(f"{crops / VIEWS_TABLE}: no image in the {names} split; check dataset.val_frac")
        self._bags.sort(key=lambda bag: bag[0].image_key)
        if equal_lengths:
            longest = max(map(len, self._bags))
            self._bags = [[bag[idx] for idx in filled_up(len(bag), longest)] for bag in self._bags]
        self._files: dict[str, int] = {}
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self._bags)

    @property
    def labels(self) -> list[int]:
        """The label of each bag."""
        return [bag[0].label for bag in self._bags]

    @property
    def image_keys(self) -> list[str]:
        """The image key of each bag."""
        return [bag[0].image_key for bag in self._bags]

    @property
    def lengths(self) -> list[int]:
        """How many views each bag has."""
        return [len(bag) for bag in self._bags]

    def fingerprint(self) -> str:
        """Hash everything that decides what :meth:`views` gives: the rows of the bags, and their shards' bytes."""
        if self._fingerprint is not None:
            return self._fingerprint
        parts = [repr(self._bags)]
        for shard in sorted({row.shard for bag in self._bags for row in bag}):
            try:
                parts.append(sha256_of_file(self._crops / shard))
            except FileNotFoundError:
                raise self._damaged(shard, "it does not exist") from None
        self._fingerprint = sha256_of("\n".join(parts).encode())
        return self._fingerprint

    def rows(self, bag_idx: int) -> list[ViewRow]:
        """The table rows of one bag's views, in bag order."""
        return self._bags[bag_idx]

    def views(self, bag_idx: int) -> UInt8[np.ndarray, "view side side 3"]:
        """Decode the views of one bag, RGB.

        Raises:
            PipelineError: a shard is missing or was changed after the table was written.
        """
        return np.stack([self.view(row) for row in self._bags[bag_idx]])

    def view(self, row: ViewRow) -> UInt8[np.ndarray, "side side 3"]:
        """Decode one view, RGB; see :meth:`views`."""
        content = self._read(row.shard, row.jpeg_offset, row.jpeg_size)
        try:
            decoded: np.ndarray = simplejpeg.decode_jpeg(content, "RGB")
        except ValueError as error:
            raise self._damaged(row.shard, f"view {row.view_idx} of {row.image_key}: {error}") from None
        if decoded.shape != (self.size_px, self.size_px, 3):
            raise self._damaged(row.shard, f"view {row.view_idx} of {row.image_key} has shape {decoded.shape}")
        return decoded

    def mask(self, row: ViewRow) -> Bool[np.ndarray, "side side"]:
        """Read the mask inside one view; all True for the whole image.

        Raises:
            PipelineError: a shard is missing or was changed after the table was written.
        """
        if row.mask_offset is None or row.mask_size is None:
            return np.ones((self.size_px, self.size_px), dtype=bool)
        content = self._read(row.shard, row.mask_offset, row.mask_size)
        try:
            with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
                mask = np.asarray(picture, dtype=bool)
        except Exception as error:  # whatever a damaged file makes PIL trip over
            why = f"mask of view {row.view_idx} of {row.image_key}: {type(error).__name__}"
            raise self._damaged(row.shard, why) from None
        if mask.shape != (self.size_px, self.size_px):
            raise self._damaged(row.shard, f"mask of view {row.view_idx} of {row.image_key} has shape {mask.shape}")
        return mask

    def _read(self, shard: str, offset: int, size: int) -> bytes:
        if shard not in self._files:
            try:
                self._files[shard] = os.open(self._crops / shard, os.O_RDONLY)
            except FileNotFoundError:
                raise self._damaged(shard, "it does not exist") from None
        content = os.pread(self._files[shard], size, offset)
        if len(content) != size:
            raise self._damaged(shard, "it ends early")
        return content

    def _damaged(self, shard: str, why: str) -> PipelineError:
        return PipelineError(
            f"{self._crops / shard} does not fit {VIEWS_TABLE} ({why}): run `dvc checkout` or `dvc repro -f -s crops`"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # file descriptors belong to one process

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)


def filled_up(num_views: int, length: int) -> list[int]:
    """Copy the views of a bag until it has LENGTH, as the authors' code does: positions of views.

    Copies come after the views: full rounds of all of them, one more copy of the first ones; grouped by view.

    Raises:
        ValueError: there is no view.
    """
    if num_views == 0:
        raise ValueError("a bag without views has nothing to copy")
    full, rest = divmod(length, num_views)
    copies = [idx for idx in range(num_views) for _ in range(full - 1 + (idx < rest))]
    return [*range(num_views), *copies]
