import numpy as np
import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.training.readers import class_weights
from pipeline.training.seeding import prepare


def test_class_weights_are_the_inverse_frequencies_and_average_to_1_over_images():
    labels = [0, 0, 0, 1, 2, 2]
    weights = class_weights(labels, ["a", "b", "c"])
    assert weights.tolist() == pytest.approx([6 / (3 * 3), 6 / (3 * 1), 6 / (3 * 2)])
    assert weights[labels].mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize("labels", [[0, 0, 2], [0, 2, 2, 2]])
def test_a_class_without_images_has_no_weight_and_is_named(labels):
    with pytest.raises(PipelineError, match=r"^class 'wren' has no training image with views: [^\n]+$"):
        class_weights(labels, ["gull", "wren", "auk"])


def test_preparing_seeds_every_generator():
    drawn = []
    for seed in (3, 3, 4):
        prepare(seed)
        drawn.append((torch.rand(3).tolist(), np.random.rand(3).tolist()))  # noqa: NPY002
    torch.use_deterministic_algorithms(False)
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0]
    assert drawn[0][1] != drawn[2][1]
