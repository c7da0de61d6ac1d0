import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.saliency.relevance import conserving

SIDE_PX = 3
BOUNDS = (torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))


def random_values():
    return torch.randn(1, 3, SIDE_PX, SIDE_PX, generator=torch.Generator().manual_seed(0))


def relevance_through(function, network=None):
    """Relevance of random inputs, and what it was shared out from."""
    values = random_values().requires_grad_()
    with conserving(network or nn.Identity(), lambda _, v: function(v), values, bounds=BOUNDS, device="cpu") as run:
        made = run(values)
        relevance = torch.rand(made.shape, generator=torch.Generator().manual_seed(1))
        [found] = torch.autograd.grad(made, values, relevance)
    with torch.no_grad():
        torch.testing.assert_close(made.detach(), function(values))
    return found[0], relevance[0], random_values()[0]


@pytest.mark.parametrize("function", [lambda x: x[:, :1] + x[:, 1:2], lambda x: x[:, :1] - x[:, 1:2]])
def test_terms_of_a_sum_share_by_their_sizes(function):
    found, relevance, values = relevance_through(function)
    for row in range(SIDE_PX):
        for column in range(SIDE_PX):
            first, second = values[:2, row, column].abs().tolist()
            own = relevance[0, row, column].item()
            expected = torch.tensor([own * first / (first + second), own * second / (first + second), 0.0])
            torch.testing.assert_close(found[:, row, column], expected)


def test_a_sum_of_nothing_is_shared_equally():
    found, relevance, _ = relevance_through(lambda x: (x[:, :1] * 0.0) + (x[:, 1:2] * 0.0))
    torch.testing.assert_close(found[:2], relevance.expand(2, -1, -1) / 2)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x.mean(dim=(2, 3), keepdim=True).sigmoid(),  # as squeeze-and-excitation does
        lambda x: x * 3.0,
        lambda x: 2.0 - x,
        lambda x: x / x.square().mean(),
    ],
)
def test_gates_and_factors_get_nothing(function):
    found, relevance, _ = relevance_through(function)
    torch.testing.assert_close(found, relevance)


def test_factors_of_one_size_share_equally():
    found, relevance, _ = relevance_through(lambda x: x[:, :1] * x[:, 1:2])
    torch.testing.assert_close(found[:2], relevance.expand(2, -1, -1) / 2)


@pytest.mark.parametrize(
    "function", [lambda x: x.mean(dim=(2, 3)), lambda x: functional.adaptive_avg_pool2d(x, 1).flatten(1)]
)
def test_what_is_averaged_shares_by_its_size(function):
    found, relevance, values = relevance_through(function)
    for channel in range(3):
        sizes = values[channel].abs()
        torch.testing.assert_close(found[channel], relevance[channel] * sizes / sizes.sum())


def attention(queries, keys, values, is_fused):
    if is_fused:
        return functional.scaled_dot_product_attention(queries, keys, values)
    return (queries @ keys.transpose(1, 2) / math.sqrt(3)).softmax(dim=2) @ values


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("num_first", [0, 1])
def test_attention_shares_among_the_tokens_that_hold_pixels(is_fused, num_first):
    first = torch.ones(1, num_first, 3)

    def tokens_of(x):
        return torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1)

    network = nn.Identity()
    network.num_prefix_tokens = num_first
    found, relevance, values = relevance_through(
        lambda x: attention(tokens_of(x), tokens_of(x), tokens_of(x), is_fused)[:, num_first:], network
    )
    tokens = tokens_of(values[None])[0]
    weights = (tokens @ tokens.T / math.sqrt(3)).softmax(dim=1)
    num = SIDE_PX**2
    expected = torch.zeros(num, 3)
    for query in range(num):
        for channel in range(3):
            terms = [
                (weights[num_first + query, num_first + key] * tokens[num_first + key, channel].abs()).item()
                for key in range(num)
            ]
            for key in range(num):
                expected[key, channel] += relevance[query, channel] * terms[key] / sum(terms)
    torch.testing.assert_close(found.flatten(1).T, expected)


def test_an_output_that_only_its_bias_has_raised_spreads_evenly_over_what_it_sees():
    as_it_is, negative = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 1, 2, padding=1)
    with torch.no_grad():
        as_it_is.weight.copy_(torch.eye(3)[:, :, None, None])
        negative.weight.fill_(-1.0)
    values = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    network = nn.Sequential(as_it_is, negative)
    with conserving(network, lambda own, v: own(v), values, bounds=BOUNDS, device="cpu") as run:
        [found] = torch.autograd.grad(run(values), values, torch.ones(1, 1, 3, 3))
    # each pixel is seen alone once, twice with one neighbour, once with all three; in 3 colours each
    torch.testing.assert_close(found, torch.full((1, 3, 2, 2), (1 + 2 / 2 + 1 / 4) / 3))
