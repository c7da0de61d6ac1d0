"""Saliency from the feature grid: how similar each place is to a prototype, enlarged to the image.

As ProtoPNet shows its prototypes (Chen et al. 2019, "This Looks Like That", section 2.1): bicubic interpolation.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from pipeline.data.bags import BagReader
from pipeline.saliency.frame import uncrop


def upsampled_maps(
    reader: BagReader,
    bag_idxs: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    similarity: Float[Tensor, "image rank element"],
    view_of_top: Int[Tensor, "image rank"],
    elements_per_view: int,
    side_px: int,
) -> Float[Tensor, "image rank {side_px} {side_px}"]:
    """Enlarge the similarities of the places of each view to its box; 0 outside.

    Interpolation may go a little beyond the values that it joins.

    Args:
        reader: has the boxes.
        bag_idxs: the images.
        sizes: width and height of each, pixels.
        similarity: of each place of each bag to each top prototype; the places of a view are a square, row by row.
        view_of_top: position in its bag of the view nearest to each top prototype.
        elements_per_view: places of a view.
        side_px: of the maps.
    """
    side = round(elements_per_view**0.5)
    maps = similarity.new_zeros(*view_of_top.shape, side_px, side_px)
    for idx, (bag_idx, size, views) in enumerate(zip(bag_idxs, sizes, view_of_top.tolist(), strict=True)):
        rows = reader.rows(bag_idx)
        for rank, view in enumerate(views):
            places = similarity[idx, rank, view * elements_per_view : (view + 1) * elements_per_view]
            grid = places.reshape(side, side)
            maps[idx, rank] = uncrop(grid, rows[view].box, size, side_px, mode="bicubic")
    return maps
