import numpy as np
import pytest

from pipeline.metrics.mask_consistency import MaskConsistency
from pipeline.metrics.part_patterns import mask_consistency, pattern_frequencies
from pipeline.metrics.registry import METRICS

PATTERNS = [frozenset({0, 1}), frozenset({1, 2}), frozenset({1}), frozenset(), frozenset({0, 5})]
LABELS = np.array([0, 0, 1, 1, 3])


@pytest.mark.parametrize("without", [False, True])
def test_the_statistic_of_all_images_is_the_plain_mean_of_frequencies(without):
    plain = mask_consistency(pattern_frequencies(PATTERNS, LABELS.tolist(), num_classes=4), without_no_part=without)
    assert MaskConsistency(PATTERNS, LABELS, without_no_part=without).value(5) == pytest.approx(plain)


@pytest.mark.parametrize("without", [False, True])
def test_weights_stand_for_copies_of_images(without):
    counts = np.random.default_rng(0).multinomial(5, np.full(5, 0.2), size=30)
    values = MaskConsistency(PATTERNS, LABELS, without_no_part=without)(counts.astype(float))
    for drawn, value in zip(counts, values, strict=True):
        copies = np.repeat(np.arange(5), drawn)
        frequencies = pattern_frequencies(
            [PATTERNS[idx] for idx in copies], [int(LABELS[idx]) for idx in copies], num_classes=4
        )
        plain = mask_consistency(frequencies, without_no_part=without)
        assert value == pytest.approx(np.nan if plain is None else plain, nan_ok=True)
    assert np.isfinite(values).any()


def test_images_without_any_mask_have_no_consistency():
    assert np.isnan(MaskConsistency([frozenset(), frozenset()], np.array([0, 1])).value(2))


def test_both_numbers_are_declared():
    assert {metric.key for metric in METRICS if metric.family == "mask_consistency"} == {
        "mask_consistency",
        "mask_consistency_of_parts",
    }
