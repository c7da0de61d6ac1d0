import numpy as np
import pytest

from pipeline.metrics.statistics import Constant, MeanOverClasses, MeanOverImages, Statistic
from pipeline.metrics.uncertainty import LEVEL, Bootstrap, Difference, Interval


def plain_interval(values, num_draws, seed):
    """Resample by drawing positions one set after the other, from the same counts."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(num_draws):
        counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)))
        means.append(np.mean(np.repeat(values, counts)))
    return np.quantile(means, 0.025), np.quantile(means, 0.975)


def test_the_interval_of_a_mean_is_that_of_means_of_resampled_values():
    values = np.random.default_rng(0).normal(size=40)
    interval = Bootstrap(40, num_draws=300, seed=7).interval(MeanOverImages(values))
    assert (interval.low, interval.high) == pytest.approx(plain_interval(values, 300, 7))


def test_draws_are_the_same_however_many_are_taken_at_once(monkeypatch):
    statistic = MeanOverImages(np.random.default_rng(0).normal(size=30))
    at_once = Bootstrap(30, num_draws=100, seed=0).interval(statistic)
    monkeypatch.setattr("pipeline.metrics.uncertainty._CELLS_PER_PART", 200)
    assert Bootstrap(30, num_draws=100, seed=0).interval(statistic) == at_once


def test_about_95_percent_of_intervals_hold_the_true_mean():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        interval = Bootstrap(60, num_draws=400, seed=trial).interval(MeanOverImages(rng.normal(3.0, 1.0, size=60)))
        held += interval.low <= 3.0 <= interval.high
    assert 0.89 <= held / 200 <= 0.99


def test_a_property_of_weights_has_no_interval():
    assert Bootstrap(5, num_draws=50, seed=0).interval(Constant(3.0)) is None


def test_a_value_that_too_few_draws_have_gets_no_interval():
    one_of_ten = np.array([1.0] + [np.nan] * 9)  # absent from a third of the draws
    assert Bootstrap(10, num_draws=200, seed=0).interval(MeanOverImages(one_of_ten)) is None
    most = np.array([np.nan] + [1.0, 2.0] * 10)
    assert Bootstrap(21, num_draws=200, seed=0).interval(MeanOverImages(most)) is not None


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(0)
    hardness = rng.normal(size=50)  # what both runs share
    before, after = MeanOverImages(hardness), MeanOverImages(hardness + 0.2 + 0.05 * rng.normal(size=50))
    bootstrap = Bootstrap(50, num_draws=500, seed=0)
    difference = bootstrap.difference(before, after)
    assert difference.is_significant
    assert difference.value == pytest.approx((after.values - before.values).mean())
    assert bootstrap.interval(after).low < bootstrap.interval(before).high  # the two alone would not tell
    assert bootstrap.difference(after, before).value == pytest.approx(-difference.value)


@pytest.mark.parametrize("cells_per_part", [200, 8_000_000])
def test_differences_of_several_pairs_are_to_the_bit_those_of_each_statistic_alone(monkeypatch, cells_per_part):
    monkeypatch.setattr("pipeline.metrics.uncertainty._CELLS_PER_PART", cells_per_part)
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=30)
    pairs = [
        (MeanOverImages(rng.normal(size=30)), MeanOverImages(rng.normal(size=30))),
        (MeanOverClasses(rng.normal(size=30), labels), MeanOverImages(np.append(rng.normal(size=29), np.nan))),
        (MeanOverImages(np.append(np.full(29, 1.0), np.inf)), MeanOverImages(np.full(30, np.inf))),
    ]
    found = Bootstrap(30, num_draws=100, seed=3).differences(pairs)
    for pair, difference in zip(pairs[:2], found, strict=False):
        before, after = (
            np.concatenate([statistic(weights) for weights in Bootstrap(30, num_draws=100, seed=3)._weights()])
            for statistic in pair
        )
        low, high = np.quantile(after - before, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        value = pair[1].value(30) - pair[0].value(30)
        assert difference == Difference(value, Interval(low, high))
        assert Bootstrap(30, num_draws=100, seed=3).difference(*pair) == difference
    assert found[2] is None


def test_all_statistics_of_differences_see_the_same_draws_which_are_made_once(monkeypatch):
    class Remembering(MeanOverImages):
        def __call__(self, weights):
            self.seen = [*getattr(self, "seen", []), weights]
            return super().__call__(weights)

    monkeypatch.setattr("pipeline.metrics.uncertainty._CELLS_PER_PART", 200)
    statistics = [Remembering(np.arange(10.0) * factor) for factor in range(4)]
    Bootstrap(10, num_draws=50, seed=0).differences([tuple(statistics[:2]), tuple(statistics[2:])])
    first, *others = [[weights for weights in one.seen if len(weights) > 1] for one in statistics]
    assert [len(weights) for weights in first] == [20, 20, 10]
    for other in others:
        assert all(one is same for one, same in zip(other, first, strict=True))


def test_no_difference_is_not_significant():
    values = MeanOverImages(np.arange(10.0))
    difference = Bootstrap(10, num_draws=50, seed=0).difference(values, values)
    assert (difference.value, difference.interval, difference.is_significant) == (0.0, Interval(0.0, 0.0), False)


def test_classes_that_a_draw_leaves_out_do_not_count_in_it():
    labels = np.array([0, 0, 0, 0, 1])
    statistic = MeanOverClasses(np.array([1.0, 1.0, 1.0, 1.0, 0.0]), labels)
    assert statistic(np.array([[1.0, 1, 1, 1, 1], [5, 0, 0, 0, 0]])).tolist() == [0.5, 1.0]
    assert Bootstrap(5, num_draws=100, seed=0).interval(statistic).high == 1.0


def test_a_statistic_that_counts_different_images_gets_no_interval():
    class NumDifferent(Statistic):
        num_images = 30

        def __call__(self, weights):
            return (weights > 0).sum(axis=1).astype(float)

    bootstrap = Bootstrap(30, num_draws=200, seed=0)
    assert bootstrap.interval(NumDifferent()) is None
    assert bootstrap.difference(MeanOverImages(np.zeros(30)), NumDifferent()) is None


def test_a_value_that_all_images_share_is_its_own_interval():
    interval = Bootstrap(7, num_draws=50, seed=0).interval(MeanOverImages(np.full(7, 0.1)))
    assert interval.low == pytest.approx(0.1)
    assert interval.high == pytest.approx(0.1)
