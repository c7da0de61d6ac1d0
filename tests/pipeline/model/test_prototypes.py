import math

import numpy as np
import pytest
import torch

from pipeline.model.prototypes import (
    Pooling,
    bag_of_view,
    log_similarity,
    nearest_of,
    nearest_view,
    pooled_distance,
    squared_distance,
)


def random_bags(seed, lengths, num_prototypes=5):
    distance = torch.from_numpy(np.random.default_rng(seed).random((sum(lengths), num_prototypes)))
    return distance, torch.tensor(lengths)


def plain_nearest_view(distance, lengths):
    """Loop over bags, prototypes and views; of equal distances the first view wins."""
    least, where, start = [], [], 0
    for length in lengths.tolist():
        rows = []
        for prototype in range(distance.shape[1]):
            best = start
            for view in range(start, start + length):
                if distance[view, prototype] < distance[best, prototype]:
                    best = view
            rows.append(best)
        least.append([distance[view, prototype].item() for prototype, view in enumerate(rows)])
        where.append(rows)
        start += length
    return torch.tensor(least, dtype=distance.dtype), torch.tensor(where)


def test_squared_distance_is_the_sum_of_squared_differences_and_never_negative():
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.random((30, 1280))).float()
    prototypes = torch.cat([features[:10], features[:4] + 1e-3, torch.from_numpy(rng.random((4, 1280))).float()])
    distance = squared_distance(features, prototypes)
    plain = ((features[:, None].double() - prototypes.double()) ** 2).sum(dim=2)
    # as exact for a view that is the prototype, or nearly so, as for one far away
    np.testing.assert_allclose(distance, plain, rtol=1e-6, atol=1e-11)
    assert (distance >= 0).all()
    assert distance.dtype == torch.float32


def test_log_similarity_falls_with_distance_and_is_bounded_by_epsilon():
    similarity = log_similarity(torch.tensor([0.0, 0.5, 2.0, 1e6]), 1e-4)
    assert similarity[0].item() == pytest.approx(np.log(1e4))
    assert similarity[1].item() == pytest.approx(np.log(1.5 / 0.5001))
    assert (similarity.diff() < 0).all()
    assert similarity[3] >= 0


def test_bag_of_view_names_each_views_bag():
    assert bag_of_view(torch.tensor([2, 1, 3])).tolist() == [0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize("seed", range(5))
def test_nearest_view_is_that_of_a_plain_loop(seed):
    lengths = np.random.default_rng(seed).integers(1, 7, size=9).tolist()
    distance, lengths = random_bags(seed, lengths)
    distance = (distance * 4).round() / 4  # so coarse that many views tie
    assert len(distance.unique()) == 5
    least, view = nearest_view(distance, lengths)
    expected_least, expected_view = plain_nearest_view(distance, lengths)
    assert torch.equal(least, expected_least)
    assert torch.equal(view, expected_view)


def test_of_equally_near_views_the_first_wins():
    distance = torch.tensor([[3.0], [1.0], [1.0], [0.5], [0.5]])
    least, view = nearest_view(distance, torch.tensor([3, 2]))
    assert least.flatten().tolist() == [1.0, 0.5]
    assert view.flatten().tolist() == [1, 3]


def test_the_gradient_of_a_bags_distance_reaches_its_first_nearest_view_only():
    distance = torch.tensor([[3.0, 1.0], [1.0, 2.0], [1.0, 2.0], [9.0, 4.0]], requires_grad=True)
    least, _ = nearest_view(distance, torch.tensor([3, 1]))
    least.backward(torch.tensor([[1.0, 10.0], [100.0, 1000.0]]))
    assert distance.grad.tolist() == [[0, 10], [1, 0], [0, 0], [100, 1000]]


def test_nearest_view_does_not_depend_on_how_bags_are_batched():
    lengths = [4, 1, 2, 6, 3]
    distance, all_lengths = random_bags(0, lengths)
    least, view = nearest_view(distance, all_lengths)
    start = 0
    for bag, length in enumerate(lengths):
        alone_least, alone_view = nearest_view(distance[start : start + length], torch.tensor([length]))
        assert torch.equal(alone_least[0], least[bag])
        assert torch.equal(alone_view[0] + start, view[bag])
        start += length


def test_nearest_view_follows_the_order_of_bags():
    lengths = [4, 1, 2]
    distance, all_lengths = random_bags(1, lengths)
    least, _ = nearest_view(distance, all_lengths)
    backwards = torch.cat(list(reversed(distance.split(lengths))))
    reversed_least, _ = nearest_view(backwards, all_lengths.flip(0))
    assert torch.equal(reversed_least, least.flip(0))


def test_nearest_of_takes_the_minimum_over_wanted_prototypes():
    distance = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    wanted = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    assert nearest_of(distance, wanted).tolist() == [2.0, 1.0, float("inf")]


def test_the_gradient_of_nearest_of_goes_to_one_of_several_equally_near_prototypes():
    distance = torch.tensor([[2.0, 1.0, 1.0]], requires_grad=True)
    nearest_of(distance, torch.ones(1, 3, dtype=torch.bool)).sum().backward()
    assert sorted(distance.grad[0].tolist()) == [0.0, 0.0, 1.0]


POOLINGS = [Pooling(), Pooling("top_k_mean", k=2), Pooling("top_k_mean", k=3), Pooling("soft", temperature=0.3)]


def plainly_pooled(distances, pooling):
    """One bag and prototype, without tensors."""
    values = sorted(distances)
    if pooling.kind == "nearest":
        return values[0]
    if pooling.kind == "top_k_mean":
        return sum(values[: pooling.k]) / len(values[: pooling.k])
    weights = [math.exp(-value / pooling.temperature) for value in values]
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_pooled_distances_are_those_of_a_plain_loop_over_bags_of_any_length(pooling):
    lengths = [4, 1, 2, 6, 3]
    distance, all_lengths = random_bags(2, lengths)
    found, view = pooled_distance(distance, all_lengths, pooling)
    start = 0
    for bag, length in enumerate(lengths):
        for prototype in range(distance.shape[1]):
            values = distance[start : start + length, prototype].tolist()
            assert found[bag, prototype].item() == pytest.approx(plainly_pooled(values, pooling), rel=1e-5)
            assert view[bag, prototype].item() == start + int(np.argmin(values))
        start += length


@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
def test_pooling_does_not_depend_on_how_bags_are_batched(pooling):
    lengths = [4, 1, 2, 6, 3]
    distance, all_lengths = random_bags(3, lengths)
    together, _ = pooled_distance(distance, all_lengths, pooling)
    start = 0
    for bag, length in enumerate(lengths):
        alone, _ = pooled_distance(distance[start : start + length], torch.tensor([length]), pooling)
        torch.testing.assert_close(alone[0], together[bag], atol=1e-6, rtol=1e-6)
        start += length


@pytest.mark.parametrize("pooling", [POOLINGS[2], POOLINGS[3]], ids=str)
def test_averaging_lets_every_view_that_counts_learn(pooling):
    distance = torch.tensor([[1.0], [2.0], [3.0], [9.0]], requires_grad=True)
    pooled_distance(distance, torch.tensor([4]), pooling)[0].sum().backward()
    assert torch.isfinite(distance.grad).all()
    assert (distance.grad[:3] != 0).all()
    assert (distance.grad[3] == 0) == (pooling.kind == "top_k_mean")


def test_soft_pooling_becomes_the_least_distance_as_it_hardens_and_never_overflows():
    distance, lengths = random_bags(4, [3, 5])
    least, _ = nearest_view(distance, lengths)
    hard, _ = pooled_distance(distance, lengths, Pooling("soft", temperature=1e-6))
    torch.testing.assert_close(hard, least)
    far, _ = pooled_distance(distance + 1e6, lengths, Pooling("soft", temperature=1e-3))
    assert torch.isfinite(far).all()
