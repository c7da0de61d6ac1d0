import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from pipeline.metrics.causal import (
    METRICS,
    deletion_check,
    preservation_check,
    single_deletion,
    sufficiency,
    target_sensitivity,
    unclaimed_parts_check,
)
from pipeline.metrics.interface import Evidence, Look, Scenes

NUM_IMAGES, NUM_PARTS, NUM_CLASSES = 60, 5, 4
FUNCTIONS = [metric.of_image for metric in METRICS]


def evidence_of(logits, scenes, labels=None):
    num = len(logits)
    nothing = torch.zeros(num, 1, 1)
    look = Look(logits=logits, similarity=torch.zeros(num, 1), elements=nothing, centre=torch.zeros(num, 1, 2))
    return Evidence(labels=logits.argmax(dim=1) if labels is None else labels, look=look, scenes=scenes)


def random_evidence():
    """Few different values, so that many are equal; NaN where a part is not visible."""
    rng = np.random.default_rng(0)

    def scores(*shape):
        return torch.from_numpy(rng.integers(0, 6, (*shape, NUM_CLASSES)).astype(np.float32))

    visible = torch.from_numpy(rng.random((NUM_IMAGES, NUM_PARTS)) < 0.75)
    without, only = (
        scores(NUM_IMAGES, NUM_PARTS).masked_fill(~visible[..., None], torch.nan) for _ in range(2)
    )  # [image, part, class]
    labels = torch.from_numpy(rng.integers(0, NUM_CLASSES, NUM_IMAGES))
    kinds = torch.from_numpy(rng.integers(0, 2, (NUM_CLASSES, NUM_PARTS)))
    scenes = Scenes(
        visible=visible,
        claimed=torch.from_numpy(rng.integers(-1, 3, (NUM_IMAGES, NUM_PARTS)).astype(np.float32)),
        without=without,
        only=only,
        none=scores(NUM_IMAGES),
        differs=kinds[labels][:, None] != kinds,
    )
    return evidence_of(scores(NUM_IMAGES), scenes, labels)


def chosen(evidence, images):
    def of(one):
        fields = {name: getattr(one, name) for name in one.__dataclass_fields__}
        return replace(
            one, **{name: value[images] for name, value in fields.items() if isinstance(value, torch.Tensor)}
        )

    return replace(of(evidence), look=of(evidence.look), scenes=of(evidence.scenes))


def by_image(evidence):
    """What each image has, in plain Python: predicted class, visible parts, claims, and score tables."""
    scenes = evidence.scenes
    for image, logits in enumerate(evidence.look.logits.tolist()):
        predicted = max(range(NUM_CLASSES), key=lambda idx: logits[idx])
        parts = [part for part in range(NUM_PARTS) if scenes.visible[image, part]]
        claimed = scenes.claimed[image].tolist()
        yield (
            image,
            logits,
            predicted,
            parts,
            claimed,
            scenes.without[image].tolist(),
            scenes.only[image].tolist(),
            scenes.none[image].tolist(),
        )


def winner(scores):
    return max(range(len(scores)), key=lambda idx: scores[idx])


def mean(values):
    return sum(values) / len(values) if values else math.nan


def claimed_most(parts, claimed):
    largest = max((claimed[part] for part in parts), default=0)
    return [part for part in parts if claimed[part] == largest and largest > 0]


def assert_same(values, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    assert 5 < expected.isnan().sum() < NUM_IMAGES - 5
    assert expected[~expected.isnan()].unique().numel() > 1
    torch.testing.assert_close(values, expected, equal_nan=True)


def test_single_deletion_is_spearmans_correlation_over_visible_parts():
    evidence = random_evidence()
    expected = []
    for _, logits, predicted, parts, claimed, without, _, _ in by_image(evidence):
        drops = [logits[predicted] - without[part][predicted] for part in parts]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy's, of constant values
            enough = len(parts) > 1
            expected.append(spearmanr(drops, [claimed[part] for part in parts])[0] if enough else math.nan)
    assert_same(single_deletion(evidence), expected)


def test_the_deletion_check_asks_whether_the_part_claimed_most_was_needed():
    evidence = random_evidence()
    expected = []
    for _, _, predicted, parts, claimed, without, _, none in by_image(evidence):
        changed = [winner(without[part]) != predicted for part in claimed_most(parts, claimed)]
        expected.append(mean(changed) if winner(none) != predicted else math.nan)
    assert_same(deletion_check(evidence), expected)


def test_the_preservation_check_asks_whether_the_part_claimed_most_is_enough():
    evidence = random_evidence()
    expected = []
    for _, _, predicted, parts, claimed, _, only, none in by_image(evidence):
        kept = [winner(only[part]) == predicted for part in claimed_most(parts, claimed)]
        expected.append(mean(kept) if winner(none) != predicted else math.nan)
    assert_same(preservation_check(evidence), expected)


def test_the_unclaimed_parts_check_asks_whether_the_others_can_be_spared():
    evidence = random_evidence()
    expected = []
    for _, _, predicted, parts, claimed, without, _, none in by_image(evidence):
        kept = [winner(without[part]) == predicted for part in parts if claimed[part] <= 0]
        expected.append(mean(kept) if winner(none) != predicted else math.nan)
    assert_same(unclaimed_parts_check(evidence), expected)


def test_target_sensitivity_counts_pairs_in_the_order_in_which_the_network_uses_them():
    evidence = random_evidence()
    expected = []
    for image, logits, predicted, parts, claimed, without, _, _ in by_image(evidence):
        if predicted != evidence.labels[image]:
            expected.append(math.nan)
            continue
        of_classes = []
        for other in range(NUM_CLASSES):
            differs = evidence.scenes.differs[image, other].tolist()
            lost = {
                part: (logits[predicted] - logits[other]) - (without[part][predicted] - without[part][other])
                for part in parts
            }
            points = [
                1.0 if claimed[first] > claimed[second] else 0.5 if claimed[first] == claimed[second] else 0.0
                for first in parts
                for second in parts
                if differs[first] and not differs[second] and lost[first] > lost[second]
            ]
            if points:
                of_classes.append(mean(points))
        expected.append(mean(of_classes))
    assert_same(target_sensitivity(evidence), expected)


def test_sufficiency_is_the_share_of_the_gap_that_one_part_closes():
    evidence = random_evidence()
    expected = []
    for _, logits, predicted, parts, claimed, _, only, none in by_image(evidence):
        gap = logits[predicted] - none[predicted]
        shares = [
            min(1.0, max(0.0, (only[part][predicted] - none[predicted]) / gap))
            for part in claimed_most(parts, claimed)
            if gap > 0
        ]
        expected.append(mean(shares))
    assert_same(sufficiency(evidence), expected)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_value_does_not_depend_on_the_other_images(function):
    evidence = random_evidence()
    together = function(evidence)
    for images in ([3], [17, 4, 40], list(reversed(range(NUM_IMAGES)))):
        torch.testing.assert_close(function(chosen(evidence, images)), together[images], equal_nan=True, atol=0, rtol=0)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_value_does_not_depend_on_the_order_of_parts_or_on_those_not_visible(function):
    evidence = random_evidence()
    scenes, order = evidence.scenes, torch.tensor([3, 0, 4, 2, 1])
    moved = replace(
        scenes,
        visible=scenes.visible[:, order],
        claimed=torch.where(scenes.visible, scenes.claimed, 99.0)[:, order],
        without=scenes.without.nan_to_num(7.0)[:, order],
        only=scenes.only.nan_to_num(7.0)[:, order],
        differs=scenes.differs[:, :, order],
    )
    torch.testing.assert_close(function(replace(evidence, scenes=moved)), function(evidence), equal_nan=True)


def honest():
    """One bird whose wing makes the class, a little helped by its tail; the explanation says so. Class 1 has no wing.

    Parts: wing, tail, leg.
    """
    scenes = Scenes(
        visible=torch.tensor([[True, True, True]]),
        claimed=torch.tensor([[2.0, 0.5, 0.0]]),
        without=torch.tensor([[[0.0, 3.0], [4.0, 1.0], [5.0, 1.0]]]),
        only=torch.tensor([[[4.0, 1.0], [0.5, 3.0], [0.0, 3.0]]]),
        none=torch.tensor([[0.0, 3.0]]),
        differs=torch.tensor([[[False, False, False], [True, False, False]]]),
    )
    return evidence_of(torch.tensor([[5.0, 1.0]]), scenes)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_explanation_that_names_what_matters_has_the_best_value(function):
    best = 0.8 if function is sufficiency else 1.0
    assert function(honest()).tolist() == [best]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (single_deletion, -1.0),
        (deletion_check, 0.0),
        (preservation_check, 0.0),
        (unclaimed_parts_check, 0.0),
        (target_sensitivity, 0.0),
        (sufficiency, 0.0),
    ],
)
def test_an_explanation_that_names_what_does_not_matter_has_the_worst_value(function, expected):
    evidence = honest()
    claimed = torch.tensor([[0.0, 0.5, 2.0]])
    assert function(replace(evidence, scenes=replace(evidence.scenes, claimed=claimed))).tolist() == [expected]


@pytest.mark.parametrize(
    "changed",
    [
        {"visible": torch.zeros(1, 3, dtype=torch.bool)},
        {"without": torch.full((1, 3, 2), 5.0), "none": torch.tensor([[5.0, 1.0]]), "only": torch.full((1, 3, 2), 5.0)},
    ],
    ids=["no part is visible", "no part matters"],
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_there_is_no_value_where_nothing_could_be_right_or_wrong(function, changed):
    evidence = honest()
    assert function(replace(evidence, scenes=replace(evidence.scenes, **changed))).isnan().all()


@pytest.mark.parametrize("function", [single_deletion, deletion_check, preservation_check, sufficiency])
def test_an_explanation_that_claims_no_part_is_not_judged(function):
    evidence = honest()
    silent = replace(evidence, scenes=replace(evidence.scenes, claimed=torch.zeros(1, 3)))
    assert function(silent).isnan().all()
    assert unclaimed_parts_check(silent).tolist() == pytest.approx([2 / 3])  # the wing was needed
    assert target_sensitivity(silent).tolist() == [0.5]


def test_the_family_is_declared_with_bounds_that_its_values_keep():
    assert [metric.key for metric in METRICS] == [
        "single_deletion",
        "deletion_check",
        "preservation_check",
        "unclaimed_parts_check",
        "target_sensitivity",
        "sufficiency",
    ]
    evidence = random_evidence()
    for metric in METRICS:
        values = metric.of_image(evidence)
        values = values[~values.isnan()]
        assert metric.family == "causal"
        assert "scenes" in metric.needs
        assert metric.low <= values.min() < values.max() <= metric.high
