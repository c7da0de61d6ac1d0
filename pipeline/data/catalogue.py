"""The images of ``data/dataset``, as later stages read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import IMAGES, metadata_of, read_table
from pipeline.data.boxes import Box
from pipeline.data.datasets.interface import Part, Split


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One image.

    Attributes:
        image_key: unique, stable, without a dot.
        path: the picture file, in any format :func:`pipeline.data.images.read_image` reads.
        sha256: of the file's bytes.
        width: pixels, with the EXIF orientation applied.
        height: pixels, likewise.
        label: position in ``class_names``.
        class_name: the class in words.
        split: train, val or test.
        object_box: half-open, image pixels, inside the image and not empty; None where unknown.
        parts: the visible ones, inside the image, image pixels.
        object_mask: PNG of the image's size, 255 on the object, 0 elsewhere; None where unknown.
        part_mask: PNG of the image's size, part_idx + 1 on each part, 0 elsewhere; None where unknown.
    """

    image_key: str
    path: Path
    sha256: str
    width: int
    height: int
    label: int
    class_name: str
    split: Split
    object_box: Box | None
    parts: tuple[Part, ...]
    object_mask: Path | None
    part_mask: Path | None


@dataclass(frozen=True)
class ImagesTable:
    """All images, sorted by image_key.

    Attributes:
        class_names: in label order.
        part_names: in part_idx order; empty where the data set has no parts.
        rows: one per image.
    """

    class_names: tuple[str, ...]
    part_names: tuple[str, ...]
    rows: tuple[ImageRow, ...]

    def of_split(self, split: Split) -> tuple[ImageRow, ...]:
        """Choose the rows of one split."""
        return tuple(row for row in self.rows if row.split == split)


def load_images(folder: Path) -> ImagesTable:
    """Read ``images.parquet`` in FOLDER (``data/dataset``); paths come back with FOLDER before them.

    Raises:
        PipelineError: the file is missing, damaged or written by another version.
    """
    table = read_table(folder / "images.parquet", IMAGES)
    return ImagesTable(
        class_names=tuple(metadata_of(table, "class_names")),
        part_names=tuple(metadata_of(table, "part_names")),
        rows=tuple(_typed(row, folder) for row in table.to_pylist()),
    )


def _typed(row: Mapping[str, Any], folder: Path) -> ImageRow:
    paths = {name: None if row[name] is None else folder / row[name] for name in ("path", "object_mask", "part_mask")}
    return ImageRow(
        **{
            **row,
            **paths,
            "object_box": None if row["object_box"] is None else Box(*row["object_box"]),
            "parts": tuple(Part(**part) for part in row["parts"]),
        }
    )
