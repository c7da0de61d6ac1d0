"""Equal rectangles: the baseline without segmentation."""

import itertools
from typing import Literal

import numpy as np

from pipeline.data.boxes import Box
from pipeline.params import GridParams, MasksParams
from pipeline.segmenters.interface import Picture, Segment, Segmenter


class GridSegmenter(Segmenter):
    """Cells of the image, or of the object box with ``use_object_box``, row by row.

    Deviation: the paper's code makes cells of ``int(extent / 2)`` and so leaves out the last row or column of an odd
    extent, and shuffles them. Here they cover the area exactly (sides differ by one pixel at most) and keep their
    order; only that order ranks them, so all scores are 0.
    """

    holds_device = False
    version = 1

    def __init__(self, params: GridParams) -> None:
        self._params = params

    @classmethod
    def from_params(cls, params: MasksParams, device: str) -> "GridSegmenter":
        """Build it from its section; there are no weights."""
        return cls(params.grid)

    @classmethod
    def looks_at(cls, params: MasksParams) -> tuple[Literal["object_box", "image_key"], ...]:
        """The object box, where ``use_object_box`` says so."""
        return ("object_box",) if params.grid.use_object_box else ()

    def segment(self, picture: Picture) -> list[Segment]:
        """Cut the area into cells; fewer than rows x columns where it has fewer pixels than that."""
        height, width = picture.image.shape[:2]
        area = Box(0, 0, width, height)
        if self._params.use_object_box and picture.object_box is not None:
            area = picture.object_box.clipped(width, height)
        segments = []
        for y0, y1 in _cuts(area.y0, area.y1, self._params.rows):
            for x0, x1 in _cuts(area.x0, area.x1, self._params.columns):
                mask = np.zeros((height, width), dtype=bool)
                mask[y0:y1, x0:x1] = True
                segments.append(Segment(mask, score=0.0))
        return segments


def _cuts(start: int, stop: int, count: int) -> list[tuple[int, int]]:
    """Divide ``start:stop`` into ``count`` half-open spans as equal as pixels allow; empty ones are left out."""
    edges = [start + (stop - start) * i // count for i in range(count + 1)]
    return [(low, high) for low, high in itertools.pairwise(edges) if low < high]
