"""Boxes in image pixels.

A box is ``(x0, y0, x1, y1)`` in pixels of the original image, half-open: ``image[y0:y1, x0:x1]`` is the crop.
Other conventions (SAM's XYWH, the data sets' one-based inclusive corners) are converted where they enter.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool


class EmptyMaskError(ValueError):
    """A mask without foreground has no box."""


class Box(NamedTuple):
    """A half-open rectangle in image pixels; a tuple, so it is stored and compared as one."""

    x0: int
    y0: int
    x1: int  # first column outside
    y1: int  # first row outside

    @property
    def width_px(self) -> int:
        """Columns inside."""
        return self.x1 - self.x0

    @property
    def height_px(self) -> int:
        """Rows inside."""
        return self.y1 - self.y0

    @property
    def area_px(self) -> int:
        """Pixels inside."""
        return self.width_px * self.height_px

    def clipped(self, width: int, height: int) -> "Box":
        """Cut the box to an image of WIDTH x HEIGHT pixels; the result may be empty (area 0)."""
        x0, y0 = min(max(self.x0, 0), width), min(max(self.y0, 0), height)
        return Box(x0, y0, max(x0, min(self.x1, width)), max(y0, min(self.y1, height)))


def box_around(boxes: Sequence[Box]) -> Box:
    """Find the smallest box that holds all BOXES, of which there is at least one."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return Box(min(x0), min(y0), max(x1), max(y1))


def box_of_mask(mask: Bool[np.ndarray, "height width"]) -> Box:
    """Find the smallest box that holds every foreground pixel.

    Args:
        mask: True is foreground; same size as the image it was predicted on.

    Raises:
        EmptyMaskError: no pixel is foreground.
    """
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        raise EmptyMaskError(f"no foreground in a mask of shape {mask.shape}")
    return Box(int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1)


def box_of_place(view: Box, place_idx: int, grid: Sequence[int]) -> Box:
    """Find the part of the image that lies under one place of a view's feature grid.

    Args:
        view: what the view shows; image pixels.
        place_idx: row by row.
        grid: rows and columns.

    Returns:
        At least one pixel. The network sees more than that of it: its receptive field.
    """
    row, column = divmod(place_idx, grid[1])
    x0 = view.x0 + column * view.width_px // grid[1]
    y0 = view.y0 + row * view.height_px // grid[0]
    x1 = view.x0 + (column + 1) * view.width_px // grid[1]
    y1 = view.y0 + (row + 1) * view.height_px // grid[0]
    return Box(x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))
