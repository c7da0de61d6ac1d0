import numpy as np
import pytest

from pipeline.metrics.statistics import Constant, MeanOverClasses, MeanOverImages, sums_of_groups


def draws(num_images, num_draws=7):
    """How often each image was drawn, in a few resamples."""
    return np.random.default_rng(0).multinomial(num_images, np.full(num_images, 1 / num_images), num_draws)


def each_repeated(values, labels, statistic):
    """The statistic of the set in which each image lies as often as it was drawn, draw by draw."""
    return [
        statistic(np.repeat(values, counts), np.repeat(labels, counts)).value(int(counts.sum()))
        for counts in draws(len(values))
    ]


def test_a_constant_is_the_same_whatever_is_drawn():
    constant = Constant(0.25)
    assert constant(np.zeros((3, 5))).tolist() == [0.25] * 3
    assert constant.value(5) == 0.25
    assert constant.num_images == 0


@pytest.mark.parametrize(
    "values", [[1.0, 2.0, 4.0, 8.0, 16.0], [1.0, np.nan, 4.0, np.nan, 16.0], [1.0, np.nan, np.inf, 8.0, 16.0]]
)
def test_a_weighted_mean_is_that_of_the_repeated_images_that_have_a_value(values):
    values = np.array(values)
    weighted = MeanOverImages(values)(draws(5).astype(float))
    np.testing.assert_allclose(weighted, [np.nanmean(np.repeat(values, counts)) for counts in draws(5)])
    assert MeanOverImages(values).value(5) == np.nanmean(values)


def test_an_infinite_image_makes_a_mean_infinite_only_where_it_is_drawn():
    mean = MeanOverImages(np.array([1.0, np.inf, 3.0]))
    assert mean(np.array([[1.0, 0, 1], [1, 1, 1], [0, 2, 0]])).tolist() == [2, np.inf, np.inf]


def test_without_a_value_there_is_no_mean():
    mean = MeanOverImages(np.array([np.nan, 5.0]))
    assert mean.num_images == 1
    np.testing.assert_array_equal(mean(np.array([[3.0, 0], [3, 1]])), [np.nan, 5.0])
    assert np.isnan(MeanOverImages(np.array([np.nan])).value(1))


def test_a_mean_over_classes_is_that_of_a_plain_loop():
    values, labels = np.random.default_rng(0).normal(size=9), np.array([0, 5, 5, 5, 0, 2, 5, 2, 5])
    statistic = MeanOverClasses(values, labels)
    assert statistic.value(9) == pytest.approx(np.mean([values[labels == label].mean() for label in (0, 2, 5)]))
    assert statistic.num_images == 9
    expected = each_repeated(values, labels, MeanOverClasses)
    np.testing.assert_allclose(statistic(draws(9).astype(float)), expected)


def test_a_class_that_is_not_drawn_does_not_count_among_classes():
    statistic = MeanOverClasses(np.array([1.0, 3.0, 10.0]), np.array([0, 0, 1]))
    np.testing.assert_array_equal(
        statistic(np.array([[1.0, 1, 1], [1, 1, 0], [0, 0, 4], [0, 0, 0]])), [6.0, 2.0, 10.0, np.nan]
    )


@pytest.mark.parametrize("order", ["C", "F"])
def test_sums_of_groups_are_those_of_a_plain_loop(order):
    rng = np.random.default_rng(0)
    weights = np.asarray(rng.random((3, 6)), order=order)
    groups, values = np.array([2, 0, 2, 4, 0, 2]), rng.normal(size=6)
    for factors in (None, values):
        expected = np.zeros((3, 5))
        for draw in range(3):
            for image in range(6):
                expected[draw, groups[image]] += weights[draw, image] * (1 if factors is None else factors[image])
        np.testing.assert_allclose(sums_of_groups(weights, groups, 5, factors), expected)
