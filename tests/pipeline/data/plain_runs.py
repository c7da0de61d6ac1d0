"""COCO's run lengths, written down plainly."""

import numpy as np


def plain_runs(mask: np.ndarray) -> list[int]:
    """Count down the columns: background first, then in turn."""
    runs, value = [0], False
    for pixel in mask.ravel(order="F").tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs
