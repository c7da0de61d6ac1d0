"""COCO's run lengths, read as numbers: what a mask is made of, without its pixels."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from pycocotools import mask as coco

from pipeline.data.boxes import Box
from pipeline.data.masks import StoredMask

_MORE = 48 + 32  # characters below this end a number
_MAX_DIGITS = 7  # five bits each: more do not fit the 32 bits of a run


def run_lengths(rle: bytes) -> Int[np.ndarray, " run"]:
    """Unpack COCO's compressed counts: runs of background and foreground in turn, down the columns.

    Raises:
        ValueError: RLE holds other characters than COCO's, or ends in the middle of a number.
    """
    runs = _numbers(rle)
    # from the fourth on, each is stored as its difference to the run before last
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def pixels_of(rles: Sequence[bytes]) -> Int[np.ndarray, " mask"]:
    """Sum the runs of each code, in one go for all: the pixels of the image that it was made for.

    pycocotools never returns from comparing two codes with unequal sums.

    Raises:
        ValueError: as :func:`run_lengths`.
    """
    if any(rle and rle[-1] >= _MORE for rle in rles):
        raise ValueError("its run lengths are damaged")  # the next code would go on with the number
    text = b"".join(rles)
    code_ends = np.cumsum([len(rle) for rle in rles], dtype=np.int64)
    numbers_up_to = np.concatenate([[0], np.cumsum(np.frombuffer(text, dtype=np.uint8) < _MORE)])
    numbers = _numbers(text)
    counts = np.diff(numbers_up_to[code_ends], prepend=0)
    place = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
    left = np.repeat(counts, counts) - place  # numbers of the same code from this one on
    times = np.where(place == 0, 1, (left + 1) // 2)  # as often as it enters a sum, itself and through differences
    sums = np.bincount(np.repeat(np.arange(len(rles)), counts), weights=numbers * times, minlength=len(rles))
    return sums.astype(np.int64)


def _numbers(rle: bytes) -> Int[np.ndarray, " number"]:
    """Unpack the numbers of compressed counts: five bits per character, the lowest first, the sixth says "more"."""
    digits = np.frombuffer(rle, dtype=np.uint8).astype(np.int64) - 48
    if digits.size == 0:
        return digits
    if digits.min() < 0 or digits.max() > 63 or digits[-1] >= 32:
        raise ValueError("its run lengths are damaged")
    ends = np.flatnonzero(digits < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_DIGITS:
        raise ValueError("its run lengths are damaged")
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    numbers: np.ndarray = np.add.reduceat((digits & 31) << (5 * place), starts)
    numbers -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)  # the highest bit is the sign
    return numbers


def encode_runs(first: Int[np.ndarray, " run"], behind: Int[np.ndarray, " run"], *, height: int, width: int) -> bytes:
    """Encode a mask that is given by its foreground runs, as :func:`~pipeline.data.masks.encode_mask` would.

    Args:
        first: number of each run's first pixel, down the columns; ascending, at least one.
        behind: number of the pixel after its last; runs may touch, not overlap.
        height: of the image.
        width: of the image.
    """
    apart = first[1:] > behind[:-1]
    first, behind = first[np.append(True, apart)], behind[np.append(apart, True)]
    counts = np.diff(np.stack([first, behind], axis=1).ravel(), prepend=0, append=height * width)
    if counts[-1] == 0:
        counts = counts[:-1]
    encoded: bytes = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)["counts"]
    return encoded


def mask_of_runs(
    runs: Int[np.ndarray, " run"], *, height: int, width: int, score: float, stability: float | None
) -> StoredMask | None:
    """Store a mask that is given by its runs, as :func:`~pipeline.data.masks.encode_mask` would; None without pixels.

    Raises:
        ValueError: the runs are not those of a mask of HEIGHT x WIDTH pixels.
    """
    if runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise ValueError(f"its run lengths are not those of a mask of {width}x{height} pixels")
    ends = np.cumsum(runs)
    first, last = (ends - runs)[1::2], ends[1::2]  # foreground runs, half-open
    first, last = first[last > first], last[last > first]
    if first.size == 0:
        return None
    rle = encode_runs(first, last, height=height, width=width)
    x, y, box_width, box_height = map(int, coco.toBbox({"size": [height, width], "counts": rle}))
    return StoredMask(
        rle=rle,
        box=Box(x, y, x + box_width, y + box_height),
        area_px=int((last - first).sum()),
        score=score,
        stability=stability,
    )
