import random
from collections import Counter

import pytest

from pipeline.data.datasets.interface import DatasetError, ImageRecord
from pipeline.data.splits import cut_validation

NAMES = ["gull", "wren"]


def images(label, split, num, first=0):
    return [ImageRecord(f"{label}-{split}-{i}", f"{i}.png", label, split) for i in range(first, first + num)]


def val_keys(records, names=NAMES, val_frac=0.25, seed=0):
    return {r.image_key for r in cut_validation(records, names, val_frac=val_frac, seed=seed) if r.split == "val"}


@pytest.fixture
def records():
    return images(0, "train", 8) + images(1, "train", 20) + images(0, "test", 3) + images(1, "test", 3)


@pytest.mark.parametrize(
    ("num_train", "val_frac", "num_val"),
    [(20, 0.25, 5), (10, 0.16, 2), (2, 0.01, 1), (3, 0.01, 1), (2, 0.99, 1), (5, 0.9, 4)],
)
def test_the_rounded_share_is_cut_but_one_image_at_least_on_either_side(num_train, val_frac, num_val):
    records = images(0, "train", num_train) + images(0, "test", 1)
    assert len(val_keys(records, ["gull"], val_frac)) == num_val


def test_every_class_gives_its_share_and_test_images_are_left_alone(records):
    after = cut_validation(records, NAMES, val_frac=0.25, seed=0)
    assert [r.image_key for r in after] == [r.image_key for r in records]
    assert Counter((r.label, r.split) for r in after) == {
        (0, "train"): 6, (0, "val"): 2, (0, "test"): 3,
        (1, "train"): 15, (1, "val"): 5, (1, "test"): 3,
    }  # fmt: skip


def test_the_cut_does_not_depend_on_the_order_of_records(records):
    shuffled = random.Random(0).sample(records, len(records))
    assert shuffled != records
    assert val_keys(shuffled) == val_keys(records)


def test_another_seed_cuts_other_images(records):
    assert val_keys(records, seed=0) != val_keys(records, seed=1)


def test_the_cut_of_a_class_does_not_depend_on_the_other_classes(records):
    alone = [ImageRecord(r.image_key, r.file_name, 0, r.split) for r in records if r.label == 1]
    assert val_keys(alone, ["wren"]) == {key for key in val_keys(records) if key.startswith("1-")}


def test_validation_images_of_the_data_set_are_used_as_they_are(records):
    given = [*records, *images(1, "val", 1)]
    assert cut_validation(given, NAMES, val_frac=0.25, seed=0) == given


@pytest.mark.parametrize(
    ("wrens", "message"),
    [
        (images(1, "train", 1) + images(1, "test", 1), "`wren` has 1 training and 1 test images"),
        (images(1, "test", 2), "`wren` has 0 training and 2 test images"),
        (images(1, "train", 5), "`wren` has 5 training and 0 test images"),
        (images(1, "val", 5) + images(1, "test", 1), "`wren` has 0 training and 1 test images"),
    ],
)
def test_a_class_that_cannot_be_learned_validated_and_tested_is_named_with_its_counts(wrens, message):
    with pytest.raises(DatasetError, match=message):
        cut_validation(images(0, "train", 4) + images(0, "test", 1) + wrens, NAMES, val_frac=0.25, seed=0)
