import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.masks import encode_mask
from pipeline.metrics.mask_consistency import NO_PART, coverage_patterns, mask_consistency, pattern_frequencies
from pipeline.metrics.mask_quality import parts_in_masks

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"


def vectors(name):
    if not (GOLDEN / name).exists():
        pytest.skip("needs the conformance vectors in ../shared/golden")
    return np.load(GOLDEN / name)


def patterns_of(masks, parts):
    """The patterns of one image of the vectors, with parts numbered by their position; -1 fills their list."""
    visible = np.flatnonzero(parts[:, 0] >= 0)
    height, width = masks.shape[1:]
    pixels = np.floor(parts[visible]).astype(int)
    covered = np.zeros((len(masks), len(parts)), dtype=bool)
    covered[:, visible] = parts_in_masks([encode_mask(mask > 0) for mask in masks], pixels, height=height, width=width)
    return coverage_patterns(covered)


@pytest.mark.parametrize("case", ["loader", "loader_padded", "dataset_224"])
def test_frequencies_are_the_intended_ones_of_the_conformance_vectors(case):
    stored = vectors("technique_mask_consistency.npz")
    entries = {entry["file"]: entry["cases"] for entry in json.loads((GOLDEN / "index.json").read_text())["files"]}
    [entry] = [entry for entry in entries["technique_mask_consistency.npz"] if entry["id"] == case]
    patterns = [
        patterns_of(masks[:count], parts)
        for masks, count, parts in zip(
            *(stored[f"{case}.in.{name}"] for name in ("masks", "nmask", "parts")), strict=True
        )
    ]
    labels = stored[f"{case}.in.labels"].tolist()
    result = pattern_frequencies(patterns, labels, num_classes=entry["params"]["num_classes"])
    lengths = stored[f"{case}.fix.hist_len"].tolist()
    assert [len(of_class) for of_class in result] == lengths
    assert sum(lengths) > 3
    for of_class, length, expected, ids in zip(
        result, lengths, stored[f"{case}.fix.hist"], stored[f"{case}.fix.patterns"], strict=True
    ):
        assert list(of_class) == ids[:length].tolist()
        np.testing.assert_allclose(list(of_class.values()), expected[:length], rtol=entry["rtol"], atol=entry["atol"])


def test_patterns_of_one_image_are_those_of_the_conformance_vectors():
    stored = vectors("metrics_complexity.npz")
    [masks], [parts] = (stored[f"mask_consistency_b1.in.{name}"] for name in ("map_batch", "partlocs"))
    assert sorted(patterns_of(masks, parts)) == stored["mask_consistency_b1.out.out"].tolist() == [0, 2, 31]


def test_a_pattern_has_a_bit_for_each_part_that_the_mask_covers():
    covered = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 0, 1]], dtype=bool)
    assert coverage_patterns(covered) == {0b001, 0b101, NO_PART}


def test_an_image_without_masks_has_no_pattern():
    assert coverage_patterns(np.zeros((0, 3), dtype=bool)) == frozenset()


def test_there_may_be_more_parts_than_bits_in_a_machine_number():
    covered = np.zeros((1, 200), dtype=bool)
    covered[0, [0, 199]] = True
    assert coverage_patterns(covered) == {2**199 + 1}


def test_a_frequency_is_the_share_of_the_classs_images_that_have_the_pattern():
    result = pattern_frequencies([{0, 3}, {0}, {3}, {0, 1}], [0, 0, 0, 2], num_classes=4)
    assert result == [{0: 2 / 3, 3: 2 / 3}, {}, {0: 1.0, 1: 1.0}, {}]
    assert list(result[2]) == [0, 1]


def test_an_image_without_masks_counts_among_the_images_of_its_class():
    assert pattern_frequencies([{1}, set()], [0, 0], num_classes=1) == [{1: 0.5}]


def test_consistency_is_the_mean_over_patterns_and_then_over_classes_that_have_some():
    frequencies = [{0: 1.0, 1: 0.5}, {}, {2: 0.25}]
    assert mask_consistency(frequencies) == (0.75 + 0.25) / 2
    assert mask_consistency(frequencies, without_no_part=True) == (0.5 + 0.25) / 2
    assert mask_consistency([{0: 1.0}], without_no_part=True) is None
    assert mask_consistency([{}, {}]) is None


def test_masks_that_cover_the_same_parts_everywhere_are_fully_consistent():
    same = coverage_patterns(np.eye(4, dtype=bool))
    assert mask_consistency(pattern_frequencies([same] * 5, [0, 0, 0, 1, 1], num_classes=2)) == 1.0
    other = coverage_patterns(np.eye(4, dtype=bool)[:2])
    assert mask_consistency(pattern_frequencies([same, other], [0, 0], num_classes=1)) == 0.75
