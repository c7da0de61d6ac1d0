import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.boxes import Box, box_of_mask
from pipeline.params import GridParams, MasksParams
from pipeline.segmenters.grid import GridSegmenter
from pipeline.segmenters.interface import Picture

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"


def boxes(params: GridParams, height: int, width: int, object_box: Box | None = None) -> list[Box]:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    return [box_of_mask(segment.mask) for segment in GridSegmenter(params).segment(Picture(image, object_box))]


def test_cells_come_row_by_row_and_share_the_remainder_pixels():
    assert boxes(GridParams(rows=2, columns=3), height=5, width=10) == [
        *(Box(0, 0, 3, 2), Box(3, 0, 6, 2), Box(6, 0, 10, 2)),
        *(Box(0, 2, 3, 5), Box(3, 2, 6, 5), Box(6, 2, 10, 5)),
    ]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (3, 7)])
def test_cells_are_full_rectangles_that_cover_every_pixel_of_the_area_once(rows, columns):
    area = Box(4, 3, 27, 22)
    params = GridParams(rows=rows, columns=columns, use_object_box=True)
    segments = GridSegmenter(params).segment(Picture(np.zeros((24, 30, 3), dtype=np.uint8), area))
    assert len(segments) == rows * columns
    covered = np.sum([segment.mask for segment in segments], axis=0)
    inside = np.zeros((24, 30), dtype=int)
    inside[area.y0 : area.y1, area.x0 : area.x1] = 1
    np.testing.assert_array_equal(covered, inside)
    assert all(segment.mask.sum() == box_of_mask(segment.mask).area_px for segment in segments)


def test_the_object_box_counts_only_when_asked_for():
    area = Box(2, 2, 6, 6)
    assert boxes(GridParams(rows=1, columns=1), 8, 8, area) == [Box(0, 0, 8, 8)]
    assert boxes(GridParams(rows=1, columns=1, use_object_box=True), 8, 8, area) == [area]
    assert boxes(GridParams(rows=1, columns=1, use_object_box=True), 8, 8) == [Box(0, 0, 8, 8)]
    assert GridSegmenter.looks_at(MasksParams(grid=GridParams(use_object_box=True))) == ("object_box",)
    assert GridSegmenter.looks_at(MasksParams()) == ()


def test_a_box_beyond_the_image_is_cut_to_it():
    params = GridParams(rows=1, columns=2, use_object_box=True)
    assert boxes(params, 8, 8, Box(4, -3, 12, 20)) == [Box(4, 0, 6, 8), Box(6, 0, 8, 8)]
    assert boxes(params, 8, 8, Box(9, 0, 12, 8)) == []


def test_fewer_pixels_than_cells_give_one_cell_per_pixel():
    assert boxes(GridParams(rows=4, columns=2), height=1, width=1) == [Box(0, 0, 1, 1)]


def test_cells_hold_those_of_the_reference_and_only_add_its_lost_remainder():
    if not GOLDEN.is_dir():
        pytest.skip("needs the conformance vectors in ../shared/golden")
    vectors = np.load(GOLDEN / "preprocess_segmentation.npz")
    files = json.loads((GOLDEN / "index.json").read_text())["files"]
    [cases] = [entry["cases"] for entry in files if entry["file"] == "preprocess_segmentation.npz"]
    [case] = [case for case in cases if case["id"] == "patches"]
    height, width = case["params"]["image_hw"]
    cells_per_side = case["params"]["split_factor"]
    area = Box(*vectors["patches.in.bbox"].astype(int).tolist())
    params = GridParams(rows=cells_per_side, columns=cells_per_side, use_object_box=True)
    got = GridSegmenter(params).segment(Picture(np.zeros((height, width, 3), dtype=np.uint8), area))
    got_boxes = [box_of_mask(segment.mask) for segment in got]
    want_boxes = sorted(
        (box_of_mask(mask > 0) for mask in vectors["patches.out.masks"]), key=lambda box: (box.y0, box.x0)
    )
    assert len(got_boxes) == len(want_boxes) == 4
    for ours, theirs in zip(got_boxes, want_boxes, strict=True):
        # where the extent is odd (23 x 19 here), the reference's second cell is one pixel short
        assert (ours.x0, ours.y0) == (theirs.x0, theirs.y0)
        assert 0 <= ours.x1 - theirs.x1 <= 1
        assert 0 <= ours.y1 - theirs.y1 <= 1
    assert got_boxes[0] == want_boxes[0]
