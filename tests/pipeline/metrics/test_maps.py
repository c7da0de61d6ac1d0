import numpy as np
import pytest
import torch

from pipeline.metrics.maps import (
    box_masks,
    box_of,
    clipped,
    min_max_mask,
    num_pixels,
    peak,
    percentile_mask,
    positive_mask,
    sorted_values,
    values_but_zeros,
)


def random_maps(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("percentile", [0.0, 37.5, 50.0, 95.0, 100.0])
@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (16, 16), (4, 1, 1)])
def test_the_percentile_is_that_of_torch_for_each_map(percentile, shape):
    maps = random_maps(*shape)
    bound = maps.flatten(-2).quantile(percentile / 100, dim=-1)
    assert torch.equal(percentile_mask(maps, percentile), maps >= bound[..., None, None])


def test_the_percentile_is_that_of_torch_among_equal_values():
    maps = (random_maps(20, 9, 9) * 6).floor()
    for percentile in (50.0, 80.0, 95.0):
        bound = maps.flatten(-2).quantile(percentile / 100, dim=-1)
        assert torch.equal(percentile_mask(maps, percentile), maps >= bound[..., None, None])


def test_a_map_of_zeros_is_chosen_as_a_whole_by_its_percentile_and_not_at_all_by_being_positive():
    maps = torch.zeros(1, 10, 10)
    maps[0, 3, 4] = 1
    assert percentile_mask(maps, 95.0).all()
    assert positive_mask(maps).nonzero().tolist() == [[0, 3, 4]]


def test_the_range_of_a_map_is_its_own():
    maps = torch.tensor([[[0.0, 1.0, 2.0, 4.0]], [[10.0, 16.0, 14.0, 20.0]]])
    assert min_max_mask(maps, 0.5).tolist() == [[[False, False, False, True]], [[False, True, False, True]]]


def test_nothing_is_above_half_of_no_range():
    assert not min_max_mask(torch.full((2, 3, 3), 7.0), 0.5).any()


def test_absent_elements_do_not_take_part_in_a_range():
    maps = torch.tensor([[[1.0, 2.0, 4.0, torch.nan]], [[torch.nan] * 4]])
    assert min_max_mask(maps, 0.5).tolist() == [[[False, False, True, False]], [[False] * 4]]


def test_clipping_keeps_what_the_mask_holds():
    maps = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    mask = torch.tensor([[True, True], [False, True]])
    assert clipped(maps, mask).tolist() == [[1, -2], [0, 4]]
    assert torch.equal(clipped(torch.ones(2, 2, dtype=torch.bool), mask), mask)


def test_boxes_are_half_open_and_found_for_each_mask():
    masks = torch.zeros(2, 2, 6, 8, dtype=torch.bool)
    masks[0, 0, 1:4, 2:7] = True
    masks[0, 1, 5, 7] = True
    masks[1, 0, 0, 0] = masks[1, 0, 5, 3] = True
    assert box_of(masks).tolist() == [[[2, 1, 7, 4], [7, 5, 8, 6]], [[0, 0, 4, 6], [0, 0, 0, 0]]]


def test_filled_boxes_have_the_boxes_they_were_filled_from():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 9, size=(40, 2, 2)), axis=1)
    boxes = torch.from_numpy(corners.reshape(40, 4))
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)]
    assert len(boxes) > 20
    filled = box_masks(boxes, height=11, width=9)
    assert torch.equal(box_of(filled), boxes)
    assert torch.equal(filled.sum(dim=(1, 2)), (boxes[:, 2:] - boxes[:, :2]).prod(dim=1))


def test_an_empty_box_fills_nothing():
    assert not box_masks(torch.zeros(3, 4, dtype=torch.long), height=4, width=5).any()


def test_the_peak_is_row_and_column_of_the_first_largest_value():
    maps = torch.zeros(2, 3, 5)
    maps[0, 2, 4] = 1
    maps[1, 1, 3] = maps[1, 2, 0] = 2
    assert peak(maps).tolist() == [[2, 4], [1, 3]]


def test_values_are_sorted_with_absent_ones_last():
    assert sorted_values(torch.tensor([[2.0, torch.nan], [-1.0, 3.0]]))[:3].tolist() == [-1, 2, 3]


def test_equally_many_zeros_are_left_out_of_every_map():
    one = torch.tensor([[[0.0, 3.0, 0.0, -1.0, 0.0]], [[0.0, 0.0, 0.0, 0.0, 0.0]]])
    other = torch.tensor([[[0.0, 2.0, 0.0, 0.0, 0.0]], [[5.0, 0.0, torch.nan, 4.0, 0.0]]])
    first, second = values_but_zeros(one, other)
    assert first.tolist() == [[-1, 0, 3], [0, 0, 0]]
    assert second[0].tolist() == [0, 0, 2]
    assert second[1, :2].tolist() == [4, 5]
    assert second[1, 2].isnan()


def test_without_zeros_the_differences_by_rank_are_those_of_all_values():
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(rng.integers(-2, 3, size=(20, 5, 4)) * rng.random((20, 5, 4))) for _ in range(2))
    all_gaps = (sorted_values(one) - sorted_values(other)).abs().sum(dim=-1)
    first, second = values_but_zeros(one, other)
    assert first.shape[-1] < 20
    torch.testing.assert_close((first - second).abs().sum(dim=-1), all_gaps)
    assert [values.shape for values in values_but_zeros(torch.zeros(3, 2, 2))] == [(3, 0)]


def test_pixels_are_counted_mask_by_mask():
    masks = torch.from_numpy(np.random.default_rng(0).random((2, 3, 4, 5)) < 0.4)
    assert num_pixels(masks).tolist() == [[sum(mask.flatten().tolist()) for mask in own] for own in masks]
    assert num_pixels(masks[0, 0]).item() == sum(masks[0, 0].flatten().tolist())
    assert num_pixels(masks[:0]).shape == (0, 3)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
def test_sorting_on_any_number_of_threads_gives_the_same(monkeypatch, num_threads):
    maps = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    assert torch.equal(sorted_values(maps), maps.flatten(2).sort(dim=2).values)
    assert sorted_values(maps[:0]).shape == (0, 3, 20)
