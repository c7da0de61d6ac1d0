import math

import pytest
import torch

from pipeline.metrics.compactness import METRICS, global_size, local_size, negative_positive_ratio, sparsity
from pipeline.metrics.interface import Evidence, Look
from pipeline.params import EvaluateParams

WEIGHTS = torch.tensor([[1.0, -0.5, 0.0009765625, 0.0], [0.002, -0.002, -0.0009765625, 0.0005]])
EPSILON = 0.0009765625  # a power of two, so that a weight can be just as large
SIMILARITY = torch.tensor([[8.0, 2.0, 1.9, 0.0], [4.0, 4.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]])


def test_weights_count_where_they_exceed_epsilon():
    assert global_size(WEIGHTS, EPSILON) == 1  # prototype 0; prototype 1 only speaks against classes
    assert sparsity(WEIGHTS, EPSILON) == 4 / 8
    assert negative_positive_ratio(WEIGHTS, EPSILON) == 2 / 2


def test_without_a_positive_weight_the_ratio_is_infinite_and_without_any_there_is_none():
    assert negative_positive_ratio(torch.tensor([[-1.0, 0.0]]), 0.001) == math.inf
    assert math.isnan(negative_positive_ratio(torch.zeros(1, 2), 0.001))


def test_local_size_counts_similarities_above_a_share_of_the_images_largest():
    assert local_size(SIMILARITY, 0.25).tolist() == [1, 4, 0]
    assert local_size(SIMILARITY, 0.2).tolist() == [3, 4, 0]


def test_local_size_of_an_image_does_not_depend_on_the_others():
    alone = torch.cat([local_size(SIMILARITY[[idx]], 0.2) for idx in range(3)])
    torch.testing.assert_close(local_size(SIMILARITY, 0.2), alone)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (EvaluateParams(weight_epsilon=EPSILON, local_size_threshold=0.2), [1, 0.5, 1, 7 / 3]),
        (EvaluateParams(weight_epsilon=0.6, local_size_threshold=0.25), [1, 7 / 8, 0, 5 / 3]),
    ],
)
def test_metrics_take_their_thresholds_from_the_params(params, expected):
    look = Look(
        logits=torch.zeros(3, 2), similarity=SIMILARITY, elements=torch.zeros(3, 1, 1), centre=torch.zeros(3, 1, 2)
    )
    evidence = Evidence(labels=torch.zeros(3, dtype=torch.int64), look=look, last_layer=WEIGHTS, params=params)
    values = {
        metric.key: metric.of_set(evidence).value(3) if metric.of_set else float(metric.of_image(evidence).mean())
        for metric in METRICS
    }
    names = ["global_size", "sparsity", "negative_positive_ratio", "local_size"]
    assert values == pytest.approx(dict(zip(names, expected, strict=True)))
