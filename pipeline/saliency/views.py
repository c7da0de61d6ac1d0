"""Saliency from the views alone: the segment of the view nearest to a prototype, or all that the view shows."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pipeline.data.bags import BagReader, ViewRow
from pipeline.saliency.frame import paste


def mask_maps(
    reader: BagReader,
    bag_idxs: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    view_of_top: Int[Tensor, "image rank"],
    side_px: int,
) -> Bool[Tensor, "image rank {side_px} {side_px}"]:
    """Mark the segment of each view: exact, as the view was cut around it.

    Args:
        reader: has the masks.
        bag_idxs: the images.
        sizes: width and height of each, pixels.
        view_of_top: position in its bag of the view nearest to each top prototype.
        side_px: of the maps.

    Raises:
        PipelineError: a shard is missing or was changed after its table was written.
    """
    return _maps(reader, bag_idxs, sizes, view_of_top, side_px, reader.mask)


def view_maps(
    reader: BagReader,
    bag_idxs: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    view_of_top: Int[Tensor, "image rank"],
    side_px: int,
) -> Bool[Tensor, "image rank {side_px} {side_px}"]:
    """Mark all that each view shows; see :func:`mask_maps`."""
    whole = np.ones((1, 1), dtype=bool)
    return _maps(reader, bag_idxs, sizes, view_of_top, side_px, lambda row: whole)


def _maps(
    reader: BagReader,
    bag_idxs: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    view_of_top: Int[Tensor, "image rank"],
    side_px: int,
    mask_of: Callable[[ViewRow], np.ndarray],
) -> Tensor:
    maps = torch.zeros(*view_of_top.shape, side_px, side_px, dtype=torch.bool)
    for idx, (bag_idx, size, views) in enumerate(zip(bag_idxs, sizes, view_of_top.tolist(), strict=True)):
        rows = reader.rows(bag_idx)
        pasted = {
            view: torch.from_numpy(paste(mask_of(rows[view]), rows[view].box, size, side_px)) for view in set(views)
        }
        for rank, view in enumerate(views):
            maps[idx, rank] = pasted[view]
    return maps
