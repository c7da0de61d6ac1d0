import itertools
from collections import Counter

import pytest

from pipeline.data.sample import draw_evenly

LABELS = [0] * 10 + [1] * 3 + [4] * 6
KEYS = [f"image-{idx:02d}" for idx in range(len(LABELS))]


def test_each_class_gives_as_many_until_it_has_no_more():
    drawn = draw_evenly(KEYS, LABELS, 12, seed=0)
    assert Counter(LABELS[idx] for idx in drawn) == {0: 5, 1: 3, 4: 4}
    assert drawn == sorted(set(drawn))


def test_a_larger_sample_holds_the_smaller_one():
    samples = [set(draw_evenly(KEYS, LABELS, num, seed=3)) for num in range(1, 20)]
    assert all(small < large for small, large in itertools.pairwise(samples))
    assert samples[-1] == set(range(19))
    assert draw_evenly(KEYS, LABELS, 100, seed=3) == list(range(19))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_which_images_are_drawn_hangs_on_keys_and_not_on_their_order(seed):
    backwards = draw_evenly(KEYS[::-1], LABELS[::-1], 7, seed=seed)
    assert {KEYS[::-1][idx] for idx in backwards} == {KEYS[idx] for idx in draw_evenly(KEYS, LABELS, 7, seed=seed)}


def test_a_sample_smaller_than_the_number_of_classes_is_spread_over_them():
    labels = list(range(200))
    keys = [f"image-{label:03d}" for label in labels]
    drawn = draw_evenly(keys, labels, 24, seed=0)
    assert max(drawn) > 150
    assert drawn != draw_evenly(keys, labels, 24, seed=1)


def test_another_seed_draws_other_images():
    assert len({tuple(draw_evenly(KEYS, LABELS, 6, seed=seed)) for seed in range(8)}) > 4
