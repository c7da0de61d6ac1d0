"""Equal rectangles: the baseline without segmentation."""

import itertools

import numpy as np
from jaxtyping import UInt8

from pipeline.data.boxes import Box
from pipeline.params import GridParams, MasksParams
from pipeline.segmenters.interface import Segment, Segmenter


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
    def uses_object_box(cls, params: MasksParams) -> bool:
        """As ``use_object_box`` says."""
        return params.grid.use_object_box

    def segment(self, image: UInt8[np.ndarray, "height width 3"], object_box: Box | None = None) -> list[Segment]:
        """Cut the area into cells; fewer than rows x columns where it has fewer pixels than that."""
        height, width = image.shape[:2]
        area = Box(0, 0, width, height)
        if self._params.use_object_box and object_box is not None:
            area = object_box.clipped(width, height)
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
