import numpy as np
import pytest

from pipeline.data.boxes import Box, box_of_mask
from pipeline.data.masks import encode_mask
from pipeline.metrics.mask_quality import (
    AREA_EDGES,
    area_histogram,
    best_object_iou,
    covered_frac,
    parts_in_boxes,
    parts_in_masks,
    spread,
)

SIZE = {"height": 13, "width": 9}


def random_masks(seed, count=6):
    """Rectangles with holes: some apart, some within others."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, SIZE["height"], SIZE["width"]), dtype=bool)
    for mask in masks:
        (top, bottom), (left, right) = (np.sort(rng.integers(0, SIZE[side] + 1, 2)) for side in ("height", "width"))
        mask[top : bottom + 1, left : right + 1] = rng.random((bottom + 1 - top, right + 1 - left))[
            : SIZE["height"] - top, : SIZE["width"] - left
        ] < rng.choice([0.6, 1.0])
    return masks[masks.any(axis=(1, 2))]


def coded(masks):
    return [encode_mask(mask) for mask in masks]


@pytest.mark.parametrize("seed", range(8))
def test_every_measure_is_that_of_the_decoded_pixels(seed):
    masks = random_masks(seed)
    rng = np.random.default_rng(seed)
    target = random_masks(seed + 100)[0]
    every_pixel = np.array([(x, y) for x in range(SIZE["width"]) for y in range(SIZE["height"])])
    assert len(masks) > 2
    assert covered_frac(coded(masks), **SIZE) == np.any(masks, axis=0).mean()
    ious = [(mask & target).sum() / (mask | target).sum() for mask in masks]
    assert best_object_iou(coded(masks), encode_mask(target), **SIZE) == pytest.approx(max(ious), rel=1e-12)
    parts = rng.permutation(every_pixel)
    in_masks = parts_in_masks(coded(masks), parts, **SIZE)
    assert in_masks.dtype == bool
    np.testing.assert_array_equal(in_masks, masks[:, parts[:, 1], parts[:, 0]])
    boxes = [box_of_mask(mask) for mask in masks]
    np.testing.assert_array_equal(
        parts_in_boxes(boxes, parts),
        [[box.x0 <= x < box.x1 and box.y0 <= y < box.y1 for x, y in parts] for box in boxes],
    )


def test_corners_of_the_image_are_covered_by_the_whole_image_and_only_their_own_pixel():
    corners = np.array([(0, 0), (8, 0), (0, 12), (8, 12)])
    single = np.zeros((4, 13, 9), dtype=bool)
    single[range(4), corners[:, 1], corners[:, 0]] = True
    np.testing.assert_array_equal(parts_in_masks(coded(single), corners, **SIZE), np.eye(4, dtype=bool))
    assert parts_in_masks(coded([np.ones((13, 9), dtype=bool)]), corners, **SIZE).all()


def test_a_hole_and_the_rest_of_the_box_are_not_covered():
    ring = np.ones((13, 9), dtype=bool)
    ring[6, 4] = False
    assert parts_in_masks(coded([ring]), np.array([(4, 6), (4, 5)]), **SIZE).tolist() == [[False, True]]
    assert parts_in_boxes([Box(0, 0, 9, 13)], np.array([(4, 6)])).tolist() == [[True]]


def test_known_shares():
    upper, left = np.zeros((2, 13, 9), dtype=bool)
    upper[:4], left[:, :3] = True, True
    assert covered_frac(coded([upper, left]), **SIZE) == (36 + 39 - 12) / 117
    assert best_object_iou(coded([upper, left]), encode_mask(upper), **SIZE) == 1.0
    assert best_object_iou(coded([left]), encode_mask(upper), **SIZE) == pytest.approx(12 / 63)
    lower = ~upper
    assert best_object_iou(coded([lower]), encode_mask(upper), **SIZE) == 0.0


def test_without_masks_nothing_is_covered():
    parts = np.array([(1, 1), (2, 2)])
    assert covered_frac([], **SIZE) == 0.0
    assert best_object_iou([], encode_mask(np.ones((13, 9), dtype=bool)), **SIZE) == 0.0
    assert parts_in_masks([], parts, **SIZE).shape == parts_in_boxes([], parts).shape == (0, 2)


def test_without_parts_there_are_no_columns():
    none = np.zeros((0, 2), dtype=np.int64)
    assert parts_in_masks(coded(random_masks(0)[:2]), none, **SIZE).shape == (2, 0)
    assert parts_in_boxes([Box(0, 0, 1, 1)] * 2, none).shape == (2, 0)


def test_a_spread_names_the_quantiles_of_its_values():
    values = np.random.default_rng(0).permutation(101) / 100
    expected = {"min": 0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1, "mean": 0.5}
    assert spread(values) == pytest.approx(expected)
    assert list(spread(values)) == list(expected)
    assert set(spread([7]).values()) == {7.0}
    assert spread([]) is None


def test_areas_are_counted_in_half_open_bins_and_the_whole_image_in_the_last():
    assert area_histogram(np.array(AREA_EDGES[1:])) == [0, 1, 1, 1, 1, 1, 1, 1, 2]
    below = np.nextafter(AREA_EDGES[1:], 0)
    assert area_histogram(below) == [1] * 9
    assert area_histogram(np.zeros(0)) == [0] * 9
    many = np.random.default_rng(0).random(500)
    assert sum(area_histogram(many)) == 500
