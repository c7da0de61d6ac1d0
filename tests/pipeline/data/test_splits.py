import random
from collections import Counter

import numpy as np
import pytest
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

from pipeline.data.datasets.interface import DatasetError, ImageRecord
from pipeline.data.splits import cut_validation, fold_of, shuffled_split

NAMES = ["gull", "wren"]


def images(label, split, num, first=0):
    return [ImageRecord(f"{label}-{split}-{i}", f"{i}.png", label, split) for i in range(first, first + num)]


def val_keys(records, names=NAMES, val_frac=0.25, seed=0, **more):
    after = cut_validation(records, names, val_frac=val_frac, seed=seed, **more)
    return {r.image_key for r in after if r.split == "val"}


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


# --- scikit-learn's draws


@pytest.mark.parametrize("stratified", [True, False])
def test_draws_are_those_of_scikit_learn(stratified):
    labels = np.random.default_rng(0).integers(0, 3, 40).tolist()
    rest, held_out = shuffled_split(labels, rest_frac=0.7, seed=42, stratified=stratified)
    expected = train_test_split(
        list(range(40)), train_size=0.7, random_state=42, stratify=labels if stratified else None
    )
    assert [rest.tolist(), held_out.tolist()] == expected
    assert len(rest) == 28
    folds = (StratifiedKFold if stratified else KFold)(3, shuffle=True, random_state=7).split(labels, labels)
    for fold, (_, of_fold) in enumerate(folds):
        found = fold_of(labels, num_folds=3, fold=fold, seed=7, stratified=stratified)
        assert found.tolist() == of_fold.tolist()


def test_each_training_image_is_in_one_fold_and_each_class_is_in_all_of_them(records):
    folds = [val_keys(records, num_folds=4, fold=fold) for fold in range(4)]
    assert sorted(key for of_fold in folds for key in of_fold) == sorted(
        record.image_key for record in records if record.split == "train"
    )
    assert [Counter(key[0] for key in of_fold) for of_fold in folds] == [{"0": 2, "1": 5}] * 4


@pytest.mark.parametrize("more", [{"num_folds": 4}, {"num_folds": 4, "fold": 3}])
def test_folds_depend_on_the_seed_and_not_on_the_order_of_records(records, more):
    shuffled = random.Random(0).sample(records, len(records))
    assert val_keys(shuffled, **more) == val_keys(records, **more)
    assert val_keys(records, seed=1, **more) != val_keys(records, **more)


def test_the_authors_draw_takes_the_share_of_all_training_images_in_their_order(records):
    train = [record for record in records if record.split == "train"]
    _, expected = train_test_split(
        [record.image_key for record in train],
        train_size=0.75,
        random_state=3,
        stratify=[record.label for record in train],
    )
    assert val_keys(records, seed=3, sklearn_splits=True) == set(expected)
    assert val_keys(records[::-1], seed=3, sklearn_splits=True) != set(expected)
    after = cut_validation(records, NAMES, val_frac=0.25, seed=3, sklearn_splits=True)
    assert [record.image_key for record in after] == [record.image_key for record in records]


def test_the_authors_folds_are_those_of_the_order_of_records(records):
    train = [record for record in records if record.split == "train"]
    expected = fold_of([record.label for record in train], num_folds=4, fold=1, seed=0)
    found = val_keys(records, num_folds=4, fold=1, sklearn_splits=True)
    assert found == {train[position].image_key for position in expected}


@pytest.mark.parametrize("more", [{}, {"num_folds": 2}, {"sklearn_splits": True}])
def test_no_draw_touches_validation_images_of_the_data_set(records, more):
    given = [*records, *images(1, "val", 1)]
    assert cut_validation(given, NAMES, val_frac=0.25, seed=0, **more) == given


def test_a_class_with_fewer_images_than_folds_is_named(records):
    with pytest.raises(DatasetError, match="`gull` has 8 training and 3 test images, and needs at least 9"):
        val_keys(records, num_folds=9)


def test_a_split_that_scikit_learn_cannot_make_is_said_in_one_line(records):
    with pytest.raises(DatasetError, match="scikit-learn cannot split the images: The test_size = 1 should be"):
        val_keys(records, val_frac=0.01, sklearn_splits=True)


def test_a_class_that_scikit_learn_leaves_no_training_image_is_named():
    records = images(0, "train", 40) + images(0, "test", 1) + images(1, "train", 2) + images(1, "test", 1)
    with pytest.raises(DatasetError, match="`wren` has no training image left"):
        val_keys(records, val_frac=0.9, sklearn_splits=True)
