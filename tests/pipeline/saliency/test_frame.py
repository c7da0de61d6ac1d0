import math

import numpy as np
import pytest
import torch

from pipeline.data.boxes import Box
from pipeline.saliency.frame import paste, uncrop, uncrop_share

BOXES = [
    (Box(0, 0, 50, 40), (50, 40)),
    (Box(7, 3, 31, 40), (50, 40)),
    (Box(20, 10, 21, 11), (50, 40)),  # one pixel, less than one of the frame
    (Box(100, 3, 103, 500), (600, 500)),
    (Box(2, 1, 5, 4), (6, 5)),  # the image is smaller than the frame
]


def random_mask(side):
    return np.random.default_rng(0).random((side, side)) < 0.5


@pytest.mark.parametrize(("box", "size"), BOXES)
def test_each_pixel_of_the_frame_takes_the_value_at_its_centre(box, size):
    mask, side_px = random_mask(9), 16
    expected = np.zeros((side_px, side_px), dtype=bool)
    for row in range(side_px):
        for column in range(side_px):
            x, y = (column + 0.5) * size[0] / side_px, (row + 0.5) * size[1] / side_px
            if box.x0 <= x < box.x1 and box.y0 <= y < box.y1:
                across, down = (x - box.x0) / box.width_px, (y - box.y0) / box.height_px
                expected[row, column] = mask[math.floor(down * 9), math.floor(across * 9)]
    np.testing.assert_array_equal(paste(mask, box, size, side_px), expected)


def test_a_mask_of_the_whole_image_at_the_frame_s_size_stays_as_it_is():
    mask = random_mask(16)
    np.testing.assert_array_equal(paste(mask, Box(0, 0, 48, 32), (48, 32), 16), mask)


def bilinear(values, height, width):
    """Between the centres of pixels; beyond the outermost centres, as there."""
    resized = np.zeros((height, width))
    rows, columns = values.shape
    for row in range(height):
        for column in range(width):
            y = max((row + 0.5) * rows / height - 0.5, 0)
            x = max((column + 0.5) * columns / width - 0.5, 0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            down, across = y - top, x - left
            upper = (1 - across) * values[top, left] + across * values[top, right]
            lower = (1 - across) * values[bottom, left] + across * values[bottom, right]
            resized[row, column] = (1 - down) * upper + down * lower
    return resized


@pytest.mark.parametrize(("box", "size"), BOXES)
def test_uncropping_resizes_to_the_box_s_place_in_the_frame(box, size):
    values, side_px = np.random.default_rng(0).normal(size=(8, 8)), 16
    width = max(1, round(box.width_px * side_px / size[0]))
    height = max(1, round(box.height_px * side_px / size[1]))
    left, top = round(box.x0 * side_px / size[0]), round(box.y0 * side_px / size[1])
    expected = np.zeros((side_px, side_px))
    expected[top : top + height, left : left + width] = bilinear(values, height, width)
    found = uncrop(torch.from_numpy(values).float(), box, size, side_px)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("side_px", [9, 16, 33])
def test_every_box_has_a_place_inside_the_frame(side_px):
    width, height, num = 13, 11, 0
    for x0 in range(width):
        for x1 in range(x0 + 1, width + 1):
            placed = uncrop(torch.ones(4, 4), Box(x0, 3, x1, height), (width, height), side_px)
            num += bool(placed.any())
    assert num == width * (width + 1) // 2


@pytest.mark.parametrize(("box", "size"), BOXES)
def test_shares_keep_their_sum(box, size):
    values = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    plain, shares = uncrop(values, box, size, 16), uncrop_share(values, box, size, 16)
    assert shares.sum().item() == pytest.approx(values.sum().item(), rel=1e-5)
    torch.testing.assert_close(shares / shares.max(), plain / plain.max())


def test_shares_that_resizing_has_missed_are_spread_over_the_box():
    values = torch.zeros(32, 32)
    values[0, 0] = 1.0
    shares = uncrop_share(values, Box(0, 0, 10, 10), (40, 40), 16)
    torch.testing.assert_close(shares[:4, :4], torch.full((4, 4), 1 / 16))
    assert shares.sum().item() == pytest.approx(1.0)
