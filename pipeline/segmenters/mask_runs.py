"""Run lengths of many masks at once, on the device on which the masks are.

A run is a piece of one column: COCO's run lengths go down the columns. Boxes, areas and the stored masks come from the
runs alone, which are thousands of times smaller than the pixels, so pixels never leave the device.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pipeline.data.runs import encode_runs


@dataclass(frozen=True, slots=True)
class MaskRuns:
    """The runs of some masks of one size: mask by mask, column by column, from the top.

    Attributes:
        mask: which mask the run belongs to, ascending.
        column: of the run.
        start: its first row.
        stop: the row after its last.
        num_masks: masks without a run included.
    """

    mask: Int[Tensor, " run"]
    column: Int[Tensor, " run"]
    start: Int[Tensor, " run"]
    stop: Int[Tensor, " run"]
    num_masks: int

    def inclusive_boxes(self) -> Int[Tensor, "mask 4"]:
        """Find each mask's x0, y0, x1, y1 as Segment Anything has them: the last column and row, none beyond.

        A mask without pixels has 0, 0, 0, 0.
        """
        edges = [
            _per_mask(self, self.column, "amin"),
            _per_mask(self, self.start, "amin"),
            _per_mask(self, self.column, "amax"),
            _per_mask(self, self.stop - 1, "amax"),
        ]
        return torch.stack(edges, dim=1)

    def areas_px(self) -> Int[Tensor, " mask"]:
        """Count each mask's pixels."""
        areas = torch.zeros(self.num_masks, dtype=self.start.dtype, device=self.start.device)
        return areas.index_add_(0, self.mask, self.stop - self.start)

    def take(self, masks: Int[Tensor, " chosen"]) -> "MaskRuns":
        """Take some of the masks, in the order in which they are named."""
        num_runs = torch.bincount(self.mask, minlength=self.num_masks)
        begins = num_runs.cumsum(0) - num_runs
        taken = num_runs[masks]
        number = torch.arange(len(masks), device=self.mask.device).repeat_interleave(taken)
        within = torch.arange(len(number), device=self.mask.device) - (taken.cumsum(0) - taken)[number]
        runs = begins[masks][number] + within
        return MaskRuns(number, self.column[runs], self.start[runs], self.stop[runs], len(masks))

    def moved(self, columns: int, rows: int) -> "MaskRuns":
        """Shift all masks to the right and down, into a larger frame."""
        return MaskRuns(self.mask, self.column + columns, self.start + rows, self.stop + rows, self.num_masks)

    def cpu(self) -> "MaskRuns":
        """Bring them to the host."""
        return MaskRuns(self.mask.cpu(), self.column.cpu(), self.start.cpu(), self.stop.cpu(), self.num_masks)

    def coco_counts(self, *, height: int, width: int) -> list[bytes]:
        """Encode each mask as COCO compressed counts, the bytes that pycocotools gives for its pixels.

        Args:
            height: of the image, in whose frame the masks are; none of them empty.
            width: of the image.
        """
        if self.num_masks == 0:
            return []
        above = self.column.long() * height
        first, behind = (above + self.start).numpy(), (above + self.stop).numpy()
        cuts = np.searchsorted(self.mask.numpy(), np.arange(1, self.num_masks))
        return [
            encode_runs(first_of_mask, behind_of_mask, height=height, width=width)
            for first_of_mask, behind_of_mask in zip(np.split(first, cuts), np.split(behind, cuts), strict=True)
        ]


def find_runs(masks: Bool[Tensor, "mask height width"]) -> MaskRuns:
    """Find the runs of MASKS."""
    num_masks, height, width = masks.shape
    columns = masks.transpose(1, 2)
    edges = torch.zeros(num_masks, width, height + 1, dtype=torch.bool, device=masks.device)
    edges[:, :, 0] = columns[:, :, 0]
    torch.ne(columns[:, :, 1:], columns[:, :, :-1], out=edges[:, :, 1:height])
    edges[:, :, height] = columns[:, :, -1]
    places = edges.flatten().nonzero()[:, 0]  # in every column, starts and stops take turns
    starts, stops = places[0::2], places[1::2]
    line = starts // (height + 1)
    return MaskRuns(
        mask=line // width,
        column=(line % width).int(),
        start=(starts % (height + 1)).int(),
        stop=(stops % (height + 1)).int(),
        num_masks=num_masks,
    )


def join_runs(parts: Sequence[MaskRuns]) -> MaskRuns:
    """Put masks of one frame behind each other; at least one part, which may be without masks."""
    offsets = itertools.accumulate((part.num_masks for part in parts), initial=0)
    return MaskRuns(
        torch.cat([part.mask + offset for part, offset in zip(parts, offsets, strict=False)]),
        torch.cat([part.column for part in parts]),
        torch.cat([part.start for part in parts]),
        torch.cat([part.stop for part in parts]),
        sum(part.num_masks for part in parts),
    )


def _per_mask(runs: MaskRuns, values: Int[Tensor, " run"], how: str) -> Int[Tensor, " mask"]:
    found = torch.zeros(runs.num_masks, dtype=values.dtype, device=values.device)
    return found.scatter_reduce_(0, runs.mask, values, how, include_self=False)
