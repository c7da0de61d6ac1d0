"""How much of the images the views show: what lies in the box of none can be no reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Float, Int

from pipeline.artifacts import VIEWS, WHOLE_IMAGE, read_table
from pipeline.data.catalogue import ImageRow
from pipeline.errors import PipelineError

_IMAGES_PER_STEP = 1000  # bounds the memory that their grids take


@dataclass(frozen=True, slots=True)
class ViewCover:
    """What the boxes of views cover, the whole image as a view left aside.

    Attributes:
        fracs: of each image that has views, the share that lies in the box of at least one, 0..1.
        num_whole: images whose whole is a view, too.
    """

    fracs: Float[np.ndarray, " image"]
    num_whole: int

    @property
    def num_images(self) -> int:
        """Images that have views."""
        return len(self.fracs)

    @property
    def mean_frac(self) -> float:
        """The mean share over images, 0..1."""
        return float(self.fracs.mean())

    @property
    def of_whole_images(self) -> str:
        """Say in a clause whether the whole image is a view, too; empty where it never is."""
        if self.num_whole == self.num_images:
            return "the whole image is a view, too, and shows everything"
        return f"of {self.num_whole:,} images the whole is a view, too, and shows everything" if self.num_whole else ""


def read_view_cover(path: Path, rows: Sequence[ImageRow]) -> ViewCover:
    """Measure what the boxes of the views in bags cover.

    Args:
        path: ``views.parquet``.
        rows: all images of the data set.

    Raises:
        PipelineError: PATH is missing, damaged, without a view, or names an image that is not among ROWS.
    """
    table = read_table(path, VIEWS)
    table = table.filter(table["in_bag"]).select(["image_key", "mask_idx", "box"])
    if not table.num_rows:
        raise PipelineError(f"{path} lists no view: run `dvc repro crops`")
    keys = table["image_key"].combine_chunks().dictionary_encode()
    sizes = _sizes(path, keys.dictionary.to_pylist(), {row.image_key: (row.width, row.height) for row in rows})
    image_idx = keys.indices.to_numpy()
    is_whole = pc.equal(table["mask_idx"], WHOLE_IMAGE).to_numpy()
    boxes = table["box"].combine_chunks().flatten().to_numpy().reshape(-1, 4)
    covered_px = areas_of_unions(boxes[~is_whole], image_idx[~is_whole], len(sizes))
    return ViewCover(covered_px / sizes.prod(axis=1), len(np.unique(image_idx[is_whole])))


def _sizes(
    path: Path, image_keys: Sequence[str], size_of: Mapping[str, tuple[int, int]]
) -> Int[np.ndarray, "image width_and_height"]:
    for image_key in image_keys:
        if image_key not in size_of:
            raise PipelineError(f"{path} names {image_key}, which is no image of the data set: run `dvc repro crops`")
    return np.array([size_of[image_key] for image_key in image_keys], dtype=np.int64)


def areas_of_unions(
    boxes: Int[np.ndarray, "view corner"], image_idx: Int[np.ndarray, " view"], num_images: int
) -> Int[np.ndarray, " image"]:
    """Count, for each image, the pixels that lie in at least one of its boxes.

    The sides of the boxes cut an image into a grid of cells, each of which lies in a box as a whole or not at all.

    Args:
        boxes: x0, y0, x1, y1; half-open.
        image_idx: the image of each, from 0.
        num_images: also of those without a box.
    """
    order = np.argsort(image_idx, kind="stable")
    counts = np.bincount(image_idx, minlength=num_images)
    slots = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)  # of each box within its image
    # an empty box in the place of those that an image has less than others
    padded = np.zeros((num_images, int(counts.max(initial=0)), 4), dtype=np.int64)
    padded[image_idx[order], slots] = boxes[order]
    steps = range(0, num_images, _IMAGES_PER_STEP)
    areas = [_areas_of_unions(padded[start : start + _IMAGES_PER_STEP]) for start in steps]
    return np.concatenate(areas)


def _areas_of_unions(boxes: Int[np.ndarray, "image view corner"]) -> Int[np.ndarray, " image"]:
    columns = np.sort(np.concatenate([boxes[:, :, 0], boxes[:, :, 2]], axis=1), axis=1)
    lines = np.sort(np.concatenate([boxes[:, :, 1], boxes[:, :, 3]], axis=1), axis=1)
    is_covered = np.zeros((len(boxes), max(columns.shape[1] - 1, 0), max(lines.shape[1] - 1, 0)), dtype=bool)
    for x0, y0, x1, y1 in boxes.transpose(1, 2, 0):
        across = (x0[:, None] <= columns[:, :-1]) & (columns[:, 1:] <= x1[:, None])
        down = (y0[:, None] <= lines[:, :-1]) & (lines[:, 1:] <= y1[:, None])
        is_covered |= across[:, :, None] & down[:, None, :]
    areas: np.ndarray = np.einsum("icl,ic,il->i", is_covered, np.diff(columns, axis=1), np.diff(lines, axis=1))
    return areas
