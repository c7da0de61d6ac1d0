import numpy as np
import pytest
import torch

from pipeline.data.boxes import Box
from pipeline.saliency.frame import paste
from pipeline.saliency.upsample import upsampled_maps
from pipeline.saliency.views import mask_maps, view_maps
from tests.pipeline.saliency.plain_reader import PlainReader

BOXES = [[Box(0, 0, 20, 10), Box(5, 2, 15, 10)], [Box(1, 1, 30, 40)], [Box(0, 0, 8, 8), Box(2, 2, 6, 6)]]
SIZES = [(20, 10), (30, 40), (8, 8)]
SIDE_PX = 12


def test_masks_are_those_of_the_views_of_each_rank():
    reader = PlainReader(BOXES, 6)
    views = torch.tensor([[0, 1, 1], [1, 0, 1]])
    maps = mask_maps(reader, [2, 0], [SIZES[2], SIZES[0]], views, SIDE_PX)
    assert maps.shape == (2, 3, SIDE_PX, SIDE_PX)
    assert maps.dtype == torch.bool
    for idx, bag in enumerate([2, 0]):
        for rank, view in enumerate(views[idx].tolist()):
            row = reader.rows(bag)[view]
            expected = paste(reader.mask(row), row.box, SIZES[bag], SIDE_PX)
            np.testing.assert_array_equal(maps[idx, rank].numpy(), expected)


def test_a_view_is_all_of_its_box_and_holds_its_mask():
    reader, views = PlainReader(BOXES, 6), torch.tensor([[1], [0], [1]])
    filled = view_maps(reader, [0, 1, 2], SIZES, views, SIDE_PX)
    # x of pixel centres are 20 / 12 px apart, y 10 / 12 px: those in 5..15 and 2..10
    expected = torch.zeros(SIDE_PX, SIDE_PX, dtype=torch.bool)
    expected[2:12, 3:9] = True
    torch.testing.assert_close(filled[0, 0], expected)
    masks = mask_maps(reader, [0, 1, 2], SIZES, views, SIDE_PX)
    assert not (masks & ~filled).any()
    assert masks.any(dim=(2, 3)).all()


def test_a_grid_is_enlarged_from_the_places_of_the_view_alone():
    reader = PlainReader([[Box(0, 0, 12, 12), Box(6, 0, 12, 12)]], 6)
    similarity = torch.zeros(1, 2, 8)
    similarity[0, 0, 3] = 1.0  # lower right place of the first view
    similarity[0, 1, 4] = 1.0  # upper left place of the second
    maps = upsampled_maps(reader, [0], [(12, 12)], similarity, torch.tensor([[0, 1]]), 4, SIDE_PX)
    assert maps[0, 0].argmax() in (9 * 12 + 9, 11 * 12 + 11, 10 * 12 + 10)
    assert maps[0, 0, 6:, 6:].mean() > 0.5 > maps[0, 0, :6, :6].abs().mean() * 5
    assert (maps[0, 1, :, :6] == 0).all()
    assert maps[0, 1, :6, 6:9].mean() > 0.5


def test_an_even_grid_gives_an_even_map():
    reader = PlainReader([[Box(3, 0, 9, 12)]], 6)
    maps = upsampled_maps(reader, [0], [(12, 12)], torch.full((1, 1, 49), 2.5), torch.tensor([[0]]), 49, SIDE_PX)
    torch.testing.assert_close(maps[0, 0, :, 3:9], torch.full((12, 6), 2.5))
    assert maps.sum().item() == pytest.approx(2.5 * 72)
