"""Boxes: half-open, in image pixels."""

import numpy as np
import pytest

from pipeline.data.boxes import Box, EmptyMaskError, box_around, box_of_mask


def test_box_of_mask_is_half_open_so_the_crop_keeps_the_last_row_and_column():
    mask = np.zeros((7, 7), dtype=bool)
    mask[1:4, 1:5] = True  # 3 rows, 4 columns
    box = box_of_mask(mask)
    assert box == Box(x0=1, y0=1, x1=5, y1=4)
    assert mask[box.y0 : box.y1, box.x0 : box.x1].sum() == mask.sum() == 12


def test_box_of_mask_agrees_with_a_search_over_all_pixels():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 9, size=2)
        mask = rng.random((height, width)) < 0.2
        pixels = [(x, y) for y in range(height) for x in range(width) if mask[y, x]]
        if not pixels:
            continue
        xs, ys = [x for x, _ in pixels], [y for _, y in pixels]
        assert box_of_mask(mask) == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)])
def test_one_pixel_has_a_box_of_one_pixel(row, column):
    mask = np.zeros((3, 5), dtype=bool)
    mask[row, column] = True
    box = box_of_mask(mask)
    assert box == Box(column, row, column + 1, row + 1)
    assert (box.width_px, box.height_px, box.area_px) == (1, 1, 1)


def test_separate_pixels_share_one_box():
    mask = np.zeros((5, 9), dtype=bool)
    mask[4, 0] = mask[0, 8] = True
    assert box_of_mask(mask) == Box(0, 0, 9, 5)


def test_a_full_mask_has_the_box_of_the_image():
    assert box_of_mask(np.ones((3, 5), dtype=bool)) == Box(0, 0, 5, 3)


@pytest.mark.parametrize("shape", [(3, 5), (0, 0), (0, 4)])
def test_a_mask_without_foreground_has_no_box(shape):
    with pytest.raises(EmptyMaskError, match=rf"no foreground in a mask of shape \({shape[0]}, {shape[1]}\)"):
        box_of_mask(np.zeros(shape, dtype=bool))


def test_numbers_of_a_box_are_pythons_own_so_that_json_takes_them():
    mask = np.zeros((3, 3), dtype=bool)
    mask[1, 1] = True
    assert all(type(number) is int for number in box_of_mask(mask))


def test_sizes_are_in_the_order_width_height():
    box = Box(x0=2, y0=3, x1=12, y1=7)
    assert (box.width_px, box.height_px, box.area_px) == (10, 4, 40)


@pytest.mark.parametrize(
    ("box", "clipped"),
    [
        (Box(2, 3, 8, 9), Box(2, 3, 8, 9)),  # inside
        (Box(-5, -1, 8, 9), Box(0, 0, 8, 9)),
        (Box(2, 3, 20, 30), Box(2, 3, 10, 20)),
        (Box(-5, -5, 50, 50), Box(0, 0, 10, 20)),
        (Box(0, 0, 10, 20), Box(0, 0, 10, 20)),  # exactly the image
    ],
)
def test_clipping_keeps_what_lies_in_the_image(box, clipped):
    assert box.clipped(width=10, height=20) == clipped


@pytest.mark.parametrize("box", [Box(-9, -9, -2, -2), Box(12, 3, 15, 9), Box(2, 25, 8, 30), Box(10, 20, 11, 21)])
def test_clipping_a_box_beside_the_image_leaves_an_empty_box_within_it(box):
    clipped = box.clipped(width=10, height=20)
    assert clipped.area_px == 0
    assert 0 <= clipped.x0 <= clipped.x1 <= 10
    assert 0 <= clipped.y0 <= clipped.y1 <= 20


def test_clipping_agrees_with_counting_pixels():
    rng = np.random.default_rng(0)
    for _ in range(100):
        x0, y0 = (int(n) for n in rng.integers(-6, 9, size=2))
        box = Box(x0, y0, x0 + int(rng.integers(0, 12)), y0 + int(rng.integers(0, 12)))
        inside = sum(box.x0 <= x < box.x1 and box.y0 <= y < box.y1 for y in range(7) for x in range(5))
        assert box.clipped(width=5, height=7).area_px == inside


def test_the_box_around_boxes_is_the_smallest_that_holds_them_all():
    boxes = [Box(4, 1, 6, 9), Box(2, 3, 5, 4), Box(3, 8, 7, 9)]
    assert box_around(boxes) == Box(2, 1, 7, 9)
    assert box_around(boxes[:1]) == boxes[0]
