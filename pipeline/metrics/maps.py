"""Saliency maps: where they are salient, and the boxes around that.

A map says of each pixel how much it matters; a mask says which pixels count. All functions take any number of maps at
once, and no map depends on the others. Boxes are x0, y0, x1, y1, half-open, in the pixels of the map.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


def sorted_values(maps: Shaped[Tensor, "*batch height width"]) -> Shaped[Tensor, "*batch pixel"]:
    """Sort the values of each map, ascending, NaN last; NumPy does this many times as fast as torch.

    Maps are shared out among as many threads as torch has; NumPy holds no lock while it sorts.
    """
    given = maps.flatten(-2).numpy()
    values = np.empty_like(given)
    num_threads = max(1, min(torch.get_num_threads(), given.size // max(1, given.shape[-1])))
    parts = [np.array_split(array.reshape(-1, array.shape[-1]), num_threads) for array in (given, values)]
    if num_threads == 1:
        _sort_into(parts[0][0], parts[1][0])
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(_sort_into, *parts))
    return torch.from_numpy(values)


def _sort_into(given: Shaped[np.ndarray, "row value"], place: Shaped[np.ndarray, "row value"]) -> None:
    place[:] = given
    place.sort(axis=1)


def values_but_zeros(*sets: Shaped[Tensor, "*batch height width"]) -> list[Shaped[Tensor, "*batch value"]]:
    """Sort the values of each map, ascending, NaN last, without zeros: most pixels of a clipped map say nothing.

    Maps with fewer values than others, of this or another set, keep as many zeros as make all equally long. So equally
    many are left out of each map, and what is compared by rank comes out as for all values.
    """
    rows = [[row[row != 0] for row in maps.numpy().reshape(-1, maps.shape[-2] * maps.shape[-1])] for maps in sets]
    longest = max((len(row) for own in rows for row in own), default=0)
    found = []
    for maps, own in zip(sets, rows, strict=True):
        values = np.zeros((len(own), longest), dtype=maps.numpy().dtype)
        for place, row in zip(values, own, strict=True):
            place[: len(row)] = row
        values.sort(axis=-1)
        found.append(torch.from_numpy(values.reshape(*maps.shape[:-2], longest)))
    return found


def num_pixels(masks: Bool[Tensor, "*batch height width"]) -> Int[Tensor, "*batch"]:
    """Count the pixels of each mask; NumPy does this one by one several times as fast as torch sums them."""
    flat = masks.numpy().reshape(-1, *masks.shape[-2:])
    return torch.tensor([np.count_nonzero(mask) for mask in flat], dtype=torch.long).view(masks.shape[:-2])


def percentile_mask(
    maps: Float[Tensor, "*batch height width"], percentile: float
) -> Bool[Tensor, "*batch height width"]:
    """Choose the pixels that reach a percentile of their map, the same ones as ``torch.quantile`` would.

    Values between two pixels are interpolated. Where the percentile is the map's least value, all pixels are chosen: a
    map that is 0 nearly everywhere is chosen as a whole (combine with :func:`positive_mask`).

    Args:
        maps: graded.
        percentile: 0..100.
    """
    values = sorted_values(maps)
    # torch rounds the share to the values' type, and then goes on in double precision
    position = torch.tensor(percentile / 100, dtype=maps.dtype).item() * (values.shape[-1] - 1)
    below, above = values[..., math.floor(position)], values[..., math.ceil(position)]
    bound = torch.lerp(below, above, torch.tensor(position - math.floor(position), dtype=maps.dtype))
    return torch.from_numpy(maps.numpy() >= bound[..., None, None].numpy())  # torch takes several times as long


def min_max_mask(maps: Float[Tensor, "*batch height width"], threshold: float) -> Bool[Tensor, "*batch height width"]:
    """Choose the pixels above a share of the range of their map: (value - least) / (largest - least) > THRESHOLD.

    None where all values are equal. Pixels that are NaN are left out, and count for neither end of the range.
    """
    is_absent = maps.isnan()
    least = maps.masked_fill(is_absent, math.inf).amin(dim=(-2, -1), keepdim=True)
    largest = maps.masked_fill(is_absent, -math.inf).amax(dim=(-2, -1), keepdim=True)
    return (maps - least) / (largest - least) > threshold


def positive_mask(maps: Shaped[Tensor, "*batch height width"]) -> Bool[Tensor, "*batch height width"]:
    """Choose the pixels above 0."""
    return maps > 0


def clipped(
    maps: Shaped[Tensor, "*batch height width"], mask: Bool[Tensor, "*batch height width"]
) -> Shaped[Tensor, "*batch height width"]:
    """Set the pixels outside of a mask to 0."""
    return maps & mask if maps.dtype == torch.bool else torch.where(mask, maps, 0)


def box_of(masks: Bool[Tensor, "*batch height width"]) -> Int[Tensor, "*batch 4"]:
    """Find the smallest box around each mask; 0, 0, 0, 0 for an empty one."""
    pixels = masks.numpy()  # NumPy says many times as fast as torch whether any is True
    x0, x1 = _span(torch.from_numpy(pixels.any(axis=-2)))
    y0, y1 = _span(torch.from_numpy(pixels.any(axis=-1)))
    return torch.stack([x0, y0, x1, y1], dim=-1)


def box_masks(boxes: Int[Tensor, "*batch 4"], *, height: int, width: int) -> Bool[Tensor, "*batch height width"]:
    """Fill boxes; what lies outside of the frame is lost."""
    x0, y0, x1, y1 = boxes[..., None].unbind(dim=-2)
    column, row = torch.arange(width), torch.arange(height)
    in_columns, in_rows = (x0 <= column) & (column < x1), (y0 <= row) & (row < y1)
    return in_rows[..., :, None] & in_columns[..., None, :]


def peak(maps: Float[Tensor, "*batch height width"]) -> Int[Tensor, "*batch 2"]:
    """Find row and column of the largest value; of equal ones, the first, row by row."""
    position = maps.flatten(-2).argmax(dim=-1)
    width = maps.shape[-1]
    return torch.stack([position // width, position % width], dim=-1)


def _span(taken: Bool[Tensor, "*batch place"]) -> tuple[Int[Tensor, "*batch"], Int[Tensor, "*batch"]]:
    """Find the first place that is taken and the first one behind the last; 0 and 0 where none is."""
    is_any = taken.any(dim=-1)
    first = taken.to(torch.uint8).argmax(dim=-1)
    stop = taken.shape[-1] - taken.flip(-1).to(torch.uint8).argmax(dim=-1)
    return first, torch.where(is_any, stop, 0)
