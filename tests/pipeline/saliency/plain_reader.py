"""A reader of bags that lie in memory."""

import numpy as np

from pipeline.data.bags import BagReader, ViewRow
from pipeline.data.boxes import Box


class PlainReader(BagReader):
    """Bags with given boxes; the masks are random."""

    def __init__(self, boxes: list[list[Box]], size_px: int) -> None:
        self.size_px = size_px
        self._files = {}
        self._bags = [
            [
                ViewRow(f"image{bag}", view, 0, view, box, box, box.area_px, "", 0, 0, 0, 0)
                for view, box in enumerate(of_bag)
            ]
            for bag, of_bag in enumerate(boxes)
        ]

    def mask(self, row: ViewRow) -> np.ndarray:
        """Draw the mask of a view."""
        start = [int(row.image_key.removeprefix("image")), row.view_idx]
        return np.random.default_rng(start).random((self.size_px, self.size_px)) < 0.5
