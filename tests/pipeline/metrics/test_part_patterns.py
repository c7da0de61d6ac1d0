import numpy as np

from pipeline.metrics.part_patterns import NO_PART, coverage_patterns, mask_consistency, pattern_frequencies


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
