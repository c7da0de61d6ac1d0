import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from segment_anything.utils.amg import batched_mask_to_box

from pipeline.segmenters.mask_runs import MaskRuns, find_runs, join_runs


def special_masks(height: int, width: int) -> torch.Tensor:
    """Everything that ends at a border, or fills a line: full, corners, border columns and rows, runs that merge."""
    masks = torch.zeros(10, height, width, dtype=torch.bool)
    masks[0] = True
    masks[1, 0, 0] = True
    masks[2, -1, -1] = True
    masks[3, -1, 0] = True
    masks[4, 0, -1] = True
    masks[5, :, width // 2 :] = True
    masks[6, 0, :] = True
    masks[7, -1, :] = True
    masks[8, height // 2, width // 2] = True
    masks[9, -1, : width // 2 + 1] = True  # the last row of a column, then the first of the next
    masks[9, 0, 1:] = True
    return masks


def random_masks(count: int, height: int, width: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    share = rng.uniform(0.05, 0.95, (count, 1, 1))
    return torch.from_numpy(rng.random((count, height, width)) < share)


def pixels(runs: MaskRuns, height: int, width: int) -> torch.Tensor:
    """Paint the runs one by one."""
    masks = torch.zeros(runs.num_masks, height, width, dtype=torch.bool)
    for mask, column, start, stop in zip(
        *map(torch.Tensor.tolist, (runs.mask, runs.column, runs.start, runs.stop)), strict=True
    ):
        masks[mask, start:stop, column] = True
    return masks


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (5, 8), (8, 5), (31, 33)])
def test_runs_give_the_bytes_boxes_and_areas_of_the_pixels(height, width):
    masks = torch.cat([special_masks(height, width), random_masks(20, height, width)])
    masks = masks[masks.flatten(1).any(dim=1)]
    assert len(masks) > 10
    runs = find_runs(masks)
    want = coco.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8)))
    assert runs.coco_counts(height=height, width=width) == [one["counts"] for one in want]
    assert runs.areas_px().tolist() == coco.area(want).tolist()
    torch.testing.assert_close(runs.inclusive_boxes(), batched_mask_to_box(masks), rtol=0, atol=0, check_dtype=False)
    assert torch.equal(pixels(runs, height, width), masks)


def test_runs_are_of_masks_that_are_views_too():
    masks = random_masks(6, 9, 12)
    view = masks[::2, 2:8].transpose(1, 2)
    assert not view.is_contiguous()
    assert torch.equal(pixels(find_runs(view), 12, 6), view)


def test_masks_without_pixels_count_and_have_the_packages_empty_box():
    masks = torch.zeros(4, 3, 5, dtype=torch.bool)
    masks[1, 1, 2] = True
    runs = find_runs(masks)
    assert runs.num_masks == 4
    assert runs.areas_px().tolist() == [0, 1, 0, 0]
    assert runs.inclusive_boxes().tolist() == batched_mask_to_box(masks).tolist()


def test_no_masks_have_no_runs():
    runs = find_runs(torch.zeros(0, 3, 5, dtype=torch.bool))
    assert (runs.num_masks, len(runs.mask)) == (0, 0)
    assert runs.inclusive_boxes().shape == (0, 4)
    assert runs.areas_px().shape == (0,)
    assert runs.coco_counts(height=3, width=5) == []
    assert runs.take(torch.zeros(0, dtype=torch.long)).num_masks == 0


@pytest.mark.parametrize("masks", [[4, 0, 2], [1, 1, 5, 1], [3], [], [5, 4, 3, 2, 1, 0]])
def test_masks_come_in_the_order_in_which_they_are_taken(masks):
    everything = random_masks(6, 9, 7)
    everything[3] = False
    chosen = torch.tensor(masks, dtype=torch.long)
    taken = find_runs(everything).take(chosen)
    assert taken.num_masks == len(masks)
    assert torch.equal(pixels(taken, 9, 7), everything[chosen])
    assert taken.inclusive_boxes().tolist() == batched_mask_to_box(everything)[chosen].tolist()
    assert torch.equal(taken.mask, taken.mask.sort().values)


def test_joined_parts_are_as_found_together_though_some_have_no_masks_or_only_empty_ones():
    masks = random_masks(5, 6, 8)
    masks[2] = masks[4] = False
    parts = [masks[:0], masks[:2], masks[2:2], masks[2:3], masks[3:5], masks[5:]]
    joined, together = join_runs([find_runs(part) for part in parts]), find_runs(masks)
    assert joined.num_masks == together.num_masks == 5
    for name in ("mask", "column", "start", "stop"):
        assert torch.equal(getattr(joined, name), getattr(together, name))
    assert join_runs([find_runs(masks[:0])]).num_masks == 0


def test_moved_runs_are_those_of_the_pixels_in_a_larger_frame():
    masks = torch.cat([special_masks(5, 6), random_masks(5, 5, 6)])
    frame = torch.zeros(len(masks), 11, 13, dtype=torch.bool)
    frame[:, 4:9, 3:9] = masks
    moved = find_runs(masks).moved(3, 4)
    assert torch.equal(pixels(moved, 11, 13), frame)
    assert moved.coco_counts(height=11, width=13) == find_runs(frame).coco_counts(height=11, width=13)
    assert moved.inclusive_boxes().tolist() == batched_mask_to_box(frame).tolist()


def test_full_height_runs_of_a_moved_crop_merge_only_where_they_touch():
    full = find_runs(torch.ones(1, 4, 3, dtype=torch.bool))
    same_height = coco.encode(np.asfortranarray(np.array([[0, 1, 1, 1, 0]] * 4, dtype=np.uint8)))["counts"]
    assert full.moved(1, 0).coco_counts(height=4, width=5) == [same_height]
    one_higher = np.array([[0, 1, 1, 1, 0]] * 4 + [[0] * 5], dtype=np.uint8)
    assert full.moved(1, 0).coco_counts(height=5, width=5) == [coco.encode(np.asfortranarray(one_higher))["counts"]]
