import numpy as np
import pytest
from pycocotools import mask as coco

from pipeline.data.boxes import box_of_mask
from pipeline.data.masks import encode_mask
from pipeline.data.runs import mask_of_runs, pixels_of, run_lengths
from tests.pipeline.data.plain_runs import plain_runs


def masks(count=30, seed=0):
    """Masks of many sizes: noise of any density, so that there are long and short runs, and some of one value."""
    rng = np.random.default_rng(seed)
    shapes = [(1, 1), (1, 40), (40, 1), (7, 9), (300, 200)]
    made = [rng.random(shapes[i % 5]) < rng.choice([0.002, 0.5, 0.998]) for i in range(count)]
    return [*made, np.zeros((4, 6), dtype=bool), np.ones((4, 6), dtype=bool), np.eye(5, dtype=bool)]


def test_run_lengths_are_those_of_the_pixels_down_the_columns():
    made = masks()
    assert max(len(plain_runs(mask)) for mask in made) > 1000
    assert max(max(plain_runs(mask)) for mask in made) > 1000
    for mask in made:
        assert run_lengths(encode_mask(mask)).tolist() == plain_runs(mask)


def test_the_pixels_of_many_codes_are_those_of_their_images():
    made = masks()
    sizes = [mask.size for mask in made]
    assert len(set(sizes)) > 4
    assert pixels_of([encode_mask(mask) for mask in made]).tolist() == sizes
    assert pixels_of([]).tolist() == []
    assert pixels_of([b"", encode_mask(made[3]), b""]).tolist() == [0, sizes[3], 0]


@pytest.mark.parametrize("damaged", [b"0 5", b"ab\xff", b"P", b"5P", b"PPPPPPPPPPP1"])
def test_what_are_no_run_lengths_is_refused(damaged):
    with pytest.raises(ValueError, match="damaged"):
        run_lengths(damaged)
    with pytest.raises(ValueError, match="damaged"):
        pixels_of([encode_mask(np.eye(5, dtype=bool)), damaged])


def test_a_number_does_not_go_on_in_the_next_code():
    whole = encode_mask(np.arange(6000).reshape(60, 100) > 5990)  # background first, a run of several characters
    assert whole[0] >= 80
    with pytest.raises(ValueError, match="damaged"):
        pixels_of([whole[:1], whole[1:]])


def stored(runs, height, width):
    return mask_of_runs(np.array(runs, dtype=np.int64), height=height, width=width, score=0.5, stability=0.25)


def test_a_mask_of_runs_is_that_of_its_pixels():
    for mask in masks():
        height, width = mask.shape
        made = stored(plain_runs(mask), height, width)
        if not mask.any():
            assert made is None
            continue
        assert made.rle == encode_mask(mask)
        assert made.box == box_of_mask(mask)
        assert made.area_px == mask.sum()
        assert (made.score, made.stability) == (0.5, 0.25)


def test_empty_runs_leave_no_trace():
    mask = np.zeros((3, 4), dtype=bool)
    mask.T.flat[2:7] = True
    assert stored([2, 5, 5], 3, 4).rle == encode_mask(mask)
    for runs in ([2, 3, 0, 2, 5], [2, 0, 0, 5, 5, 0], [0, 0, 2, 4, 0, 1, 4, 0, 1]):
        assert stored(runs, 3, 4) == stored([2, 5, 5], 3, 4)
        assert coco.area({"size": [3, 4], "counts": stored(runs, 3, 4).rle}) == 5
    assert stored([0, 12], 3, 4).rle == encode_mask(np.ones((3, 4), dtype=bool))
    assert stored([12, 0, 0], 3, 4) is None


@pytest.mark.parametrize("runs", [[], [2, 5], [2, 5, 6], [3, -1, 10]])
def test_runs_of_another_size_are_refused(runs):
    with pytest.raises(ValueError, match="4x3"):
        stored(runs, 3, 4)
