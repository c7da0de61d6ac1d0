"""The frame of all saliency maps: the whole image, brought to a square; its aspect is not kept.

What is known inside a view comes into the frame in one of two ways. :func:`paste` asks for each pixel of the frame what
lies at its centre, which is right for masks. :func:`uncrop` resizes what the view has, which is right for values that
are graded.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from pipeline.data.boxes import Box


def paste(
    mask: Bool[np.ndarray, "rows columns"], box: Box, size: tuple[int, int], side_px: int
) -> Bool[np.ndarray, "{side_px} {side_px}"]:
    """Bring a mask inside a view into the frame: each pixel takes the value at its centre; False outside the view.

    Args:
        mask: of what the box shows, at any size.
        box: what the view shows, image pixels.
        size: width and height of the image, pixels.
        side_px: of the frame.
    """
    in_view_y, rows = _cells(box.y0, box.y1, size[1], side_px, mask.shape[0])
    in_view_x, columns = _cells(box.x0, box.x1, size[0], side_px, mask.shape[1])
    pasted = np.zeros((side_px, side_px), dtype=bool)
    pasted[np.ix_(in_view_y, in_view_x)] = mask[np.ix_(rows, columns)]
    return pasted


def _cells(
    start: int, stop: int, extent_px: int, side_px: int, num_cells: int
) -> tuple[Int[np.ndarray, " inside"], Int[np.ndarray, " inside"]]:
    """Find the pixels of the frame whose centre lies in START..STOP, and in which of the equal cells between the two.

    In whole numbers, of which the frame's pixels are 2 x extent long: nothing is rounded.
    """
    centre = (2 * np.arange(side_px) + 1) * extent_px  # in pixels of the image, times 2 x side
    low, high = 2 * side_px * start, 2 * side_px * stop
    inside = np.flatnonzero((low <= centre) & (centre < high))
    return inside, (centre[inside] - low) * num_cells // (high - low)


def uncrop(
    values: Float[Tensor, "height width"],
    box: Box | tuple[float, float, float, float],
    size: tuple[int, int],
    side_px: int,
    *,
    mode: Literal["bilinear", "bicubic"] = "bilinear",
) -> Float[Tensor, "{side_px} {side_px}"]:
    """Bring values inside a view into the frame: resized to what the box takes there, 0 elsewhere.

    Corner and extent are rounded by themselves, halves to the even number. Resizing interpolates between the centres of
    pixels, without antialiasing.

    Deviation: a box that takes less than half a pixel of the frame gets a whole one; the authors' code raises.

    Args:
        values: of the view, or of the places of its feature grid.
        box: what the view shows: x0, y0, x1, y1, image pixels.
        size: width and height of the image, pixels.
        side_px: of the frame.
        mode: of the interpolation.
    """
    x0, y0, x1, y1 = box
    (left, width), (top, height) = _place(x0, x1, size[0], side_px), _place(y0, y1, size[1], side_px)
    resized = functional.interpolate(values[None, None], (height, width), mode=mode, align_corners=False)
    placed = values.new_zeros(side_px, side_px)
    placed[top : top + height, left : left + width] = resized[0, 0]
    return placed


def _place(start: int | float, stop: int | float, extent_px: int, side_px: int) -> tuple[int, int]:
    length = max(1, round((stop - start) * side_px / extent_px))
    return min(round(start * side_px / extent_px), side_px - length), length


def uncrop_share(
    values: Float[Tensor, "height width"], box: Box, size: tuple[int, int], side_px: int
) -> Float[Tensor, "{side_px} {side_px}"]:
    """Bring values whose sum means something into the frame: un-cropped, then scaled back to the sum they had.

    Where resizing has met none of the values that are not 0, the sum is spread evenly over the box.

    Args:
        values: of the view, all at least 0.
        box: what the view shows, image pixels.
        size: width and height of the image, pixels.
        side_px: of the frame.
    """
    placed = uncrop(values, box, size, side_px)
    if placed.sum() <= 0:
        placed = uncrop(torch.ones_like(values), box, size, side_px)
    return placed * (values.sum() / placed.sum())
