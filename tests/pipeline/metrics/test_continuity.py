import numpy as np
import pytest
import torch

from pipeline.metrics.continuity import METRICS, prediction_rank, score_change, stability
from pipeline.metrics.interface import Evidence, Look


def of_key(key):
    return next(declared for declared in METRICS if declared.key == key)


def a_look(logits, covered):
    num_images, num_ranks = covered.shape[:2]
    nothing = torch.zeros(num_images, num_ranks)
    return Look(
        logits=logits,
        similarity=nothing,
        elements=nothing[..., None],
        centre=torch.zeros(num_images, num_ranks, 2),
        covered=covered,
    )


def test_scores_that_change_their_classes_only_do_not_change():
    logits = torch.tensor([[3.0, 1.0, 2.0]])
    assert score_change(logits, logits[:, [1, 2, 0]]).tolist() == [0]
    assert score_change(logits, torch.tensor([[6.0, 4.0, 2.0]])).tolist() == [0.5]


def test_a_prediction_that_stays_has_rank_0_and_one_that_becomes_the_last_the_last():
    before = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 2.0]])
    after = torch.tensor([[2.0, 3.0, 2.5], [2.0, 1.0, 2.5]])
    assert prediction_rank(before, after).tolist() == [0, 2]


def test_stability_counts_parts_covered_both_times_among_those_covered_either_time():
    rng = np.random.default_rng(0)
    before, after = torch.from_numpy(rng.random((2, 5, 3, 4)) > 0.5)
    expected = np.full((5, 3), np.nan)
    for place in np.ndindex(5, 3):
        first, second = set(np.flatnonzero(before[place])), set(np.flatnonzero(after[place]))
        if first | second:
            expected[place] = len(first & second) / len(first | second)
    np.testing.assert_allclose(stability(before, after), expected)


def test_ranks_that_cover_no_part_do_not_enter_the_stability_of_an_image():
    before = torch.tensor([[[True, True], [False, False]], [[False, False], [False, False]]])
    after = torch.tensor([[[True, False], [False, False]], [[False, False], [False, False]]])
    logits = torch.zeros(2, 3)
    evidence = Evidence(
        labels=torch.zeros(2, dtype=torch.long), look=a_look(logits, before), changed=a_look(logits, after)
    )
    found = of_key("stability").of_image(evidence)
    assert found[0] == 0.5
    assert found[1].isnan()


@pytest.mark.parametrize(("key", "expected"), [("score_change", 0.5), ("prediction_rank", 1.0)])
def test_class_scores_are_compared_with_those_of_the_changed_image(key, expected):
    covered = torch.zeros(1, 1, 2, dtype=torch.bool)
    evidence = Evidence(
        labels=torch.zeros(1, dtype=torch.long),
        look=a_look(torch.tensor([[1.0, 2.0]]), covered),
        changed=a_look(torch.tensor([[4.0, 2.0]]), covered),
    )
    assert of_key(key).of_image(evidence).tolist() == [expected]


def test_stability_alone_is_better_when_it_is_higher():
    assert [declared.key for declared in METRICS if declared.direction == "higher"] == ["stability"]
    assert len({declared.key for declared in METRICS}) == len(METRICS) == 10
