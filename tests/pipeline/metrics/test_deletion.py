import itertools

import numpy as np
import pytest
import torch

from pipeline.metrics.deletion import METRICS, area, inserted, insertion_gain, removal_gain, removed
from pipeline.metrics.interface import Deletion, Evidence, Look

NUM_IMAGES, NUM_STEPS = 7, 10


def random_curves():
    return torch.from_numpy(np.random.default_rng(0).random((4, NUM_IMAGES, NUM_STEPS + 1), dtype=np.float32))


def evidence_of(curves):
    num = curves.shape[1]
    look = Look(
        logits=torch.zeros(num, 2),
        similarity=torch.zeros(num, 1),
        elements=torch.zeros(num, 1, 1),
        centre=torch.zeros(num, 1, 2),
    )
    own = Deletion(removed=curves[0], inserted=curves[1], removed_at_random=curves[2], inserted_at_random=curves[3])
    return Evidence(labels=torch.zeros(num, dtype=torch.long), look=look, deletion=own)


def plain_area(curve):
    return sum((left + right) / 2 for left, right in itertools.pairwise(curve)) / (len(curve) - 1)


def test_areas_and_gains_are_those_of_a_plain_loop():
    curves = random_curves()
    evidence = evidence_of(curves)
    plain = torch.tensor([[plain_area(curve.tolist()) for curve in kind] for kind in curves], dtype=torch.float64)
    torch.testing.assert_close(removed(evidence), plain[0])
    torch.testing.assert_close(inserted(evidence), plain[1])
    torch.testing.assert_close(removal_gain(evidence), plain[2] - plain[0])
    torch.testing.assert_close(insertion_gain(evidence), plain[1] - plain[3])


@pytest.mark.parametrize(
    ("curve", "expected"), [([0.4, 0.4], 0.4), ([1.0, 0.0], 0.5), ([1.0, 0.0, 0.0], 0.25), ([0.0, 1.0, 1.0], 0.75)]
)
def test_an_area_is_a_mean_height(curve, expected):
    assert area(torch.tensor([curve])).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
def test_a_value_does_not_depend_on_the_other_images(metric):
    curves = random_curves()
    together = metric.of_image(evidence_of(curves))
    order = [4, 0, 5]
    assert metric.of_image(evidence_of(curves[:, order])).tolist() == together[order].tolist()


def test_an_order_no_better_than_chance_gains_nothing():
    curves = random_curves()
    curves[2:] = curves[:2]
    assert removal_gain(evidence_of(curves)).tolist() == [0] * NUM_IMAGES
    assert insertion_gain(evidence_of(curves)).tolist() == [0] * NUM_IMAGES


def test_the_bounds_of_the_family_are_reached():
    least, most = torch.zeros(1, 3), torch.ones(1, 3)
    best, worst = torch.stack([least, most, most, least]), torch.stack([most, least, least, most])
    assert len(METRICS) == 4
    for metric in METRICS:
        values = {curves is best: metric.of_image(evidence_of(curves)).item() for curves in (best, worst)}
        bounds = {metric.direction == "higher": metric.high, metric.direction != "higher": metric.low}
        assert values == bounds
        assert metric.family == "deletion"
        assert "deletion" in metric.needs
