"""Which images are held out.

The rule is a draw class by class, which depends on the seed, the class's name and the keys of its images: neither on
the order of records nor on which other classes there are. Beside it stand scikit-learn's draws, which see all images at
once: folds, and the authors' split.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split

from pipeline.data.datasets.interface import DatasetError, ImageRecord


def draw_per_class(
    records: Sequence[ImageRecord], class_names: Sequence[str], *, frac: float, seed: int, purpose: str
) -> frozenset[str]:
    """Draw a share of each class's training images.

    Args:
        records: those whose split is not train are passed over.
        class_names: in label order.
        frac: share to draw, in (0, 1); of n images round(frac * n), but at least one is drawn and one left. A class
            with a single training image keeps it.
        seed: start of the draw.
        purpose: what the images are drawn for; draws for two purposes are independent.

    Returns:
        The keys of the drawn images.
    """
    keys: dict[int, list[str]] = defaultdict(list)
    for record in records:
        if record.split == "train":
            keys[record.label].append(record.image_key)
    drawn: set[str] = set()
    for label, candidates in keys.items():
        num_drawn = min(len(candidates) - 1, max(1, round(frac * len(candidates))))
        name_hash = int.from_bytes(hashlib.sha256(f"{purpose}/{class_names[label]}".encode()).digest()[:8], "big")
        order = np.random.default_rng([seed, name_hash]).permutation(len(candidates))
        in_order = sorted(candidates)
        drawn.update(in_order[position] for position in order[:num_drawn])
    return frozenset(drawn)


def shuffled_split(
    labels: Sequence[int], *, rest_frac: float, seed: int, stratified: bool = True
) -> tuple[Int[np.ndarray, " rest"], Int[np.ndarray, " held_out"]]:
    """Draw a share of all images in one shuffle, as scikit-learn's ``train_test_split``.

    Args:
        labels: of the images, in an order that the draw depends on.
        rest_frac: share that is left, in (0, 1), rounded down.
        seed: start of the shuffle.
        stratified: draw from each class about as large a share.

    Returns:
        Positions of the images that are left, and of those that are drawn, as shuffled.

    Raises:
        DatasetError: not every class can be on both sides.
    """
    positions = np.arange(len(labels))
    try:
        rest, held_out = train_test_split(
            positions, train_size=rest_frac, random_state=seed, stratify=labels if stratified else None
        )
    except ValueError as error:
        raise DatasetError(f"scikit-learn cannot split the images: {error}") from None
    return rest, held_out


def fold_of(
    labels: Sequence[int], *, num_folds: int, fold: int, seed: int, stratified: bool = True
) -> Int[np.ndarray, " held_out"]:
    """Give one fold of a shuffled k-fold, as scikit-learn makes them: each image is in exactly one.

    Args:
        labels: of the images, in an order that the folds depend on.
        num_folds: at least 2.
        fold: which one, counted from 0.
        seed: start of the shuffle.
        stratified: give each fold about equally many images of a class.

    Returns:
        Positions of the images of the fold, ascending.
    """
    folds = (StratifiedKFold if stratified else KFold)(num_folds, shuffle=True, random_state=seed)
    parts: list[tuple[np.ndarray, np.ndarray]] = list(folds.split(np.zeros(len(labels)), labels))
    return parts[fold][1]


def cut_validation(
    records: Sequence[ImageRecord],
    class_names: Sequence[str],
    *,
    val_frac: float,
    seed: int,
    num_folds: int = 0,
    fold: int = 0,
    sklearn_splits: bool = False,
) -> list[ImageRecord]:
    """Turn a share of each class's training images into validation images, unless there are some already.

    Args:
        records: in any order, which is kept.
        class_names: in label order.
        val_frac: share of each class's training images; at least one is cut and one left.
        seed: start of the draw.
        num_folds: where above 0, fold number ``fold`` of so many is cut instead of ``val_frac``.
        fold: counted from 0.
        sklearn_splits: as the authors' code, by scikit-learn's stratified shuffle of all training images, which depends
            on the order of the records; ``val_frac`` is the share of all of them.

    Raises:
        DatasetError: a class has too few training images, or no test image: its recall, and with it the balanced
            test accuracy, would be undefined.
    """
    count = Counter((record.label, record.split) for record in records)
    has_val = any(record.split == "val" for record in records)
    # to learn from one, and to validate on one: of each fold
    needed = 1 if has_val else max(2, num_folds)
    for label, class_name in enumerate(class_names):
        num_train, num_test = count[label, "train"], count[label, "test"]
        if num_train < needed or num_test == 0:
            raise DatasetError(
                f"class `{class_name}` has {num_train} training and {num_test} test images, and needs at least {needed}"
                " and 1: add images, or leave the class out with `dataset.classes`"
            )
    if has_val:
        return list(records)
    train = [record for record in records if record.split == "train"]
    if not sklearn_splits:
        train.sort(key=lambda record: record.image_key)
    labels = [record.label for record in train]
    if num_folds > 0:
        drawn = _keys(train, fold_of(labels, num_folds=num_folds, fold=fold, seed=seed))
    elif sklearn_splits:
        drawn = _keys(train, shuffled_split(labels, rest_frac=1 - val_frac, seed=seed)[1])
    else:
        drawn = draw_per_class(records, class_names, frac=val_frac, seed=seed, purpose="validation")
    left = {record.label for record in train if record.image_key not in drawn}
    for label, class_name in enumerate(class_names):
        if label not in left:
            raise DatasetError(
                f"class `{class_name}` has no training image left: lower `dataset.val_frac`, or add images"
            )
    return [replace(record, split="val") if record.image_key in drawn else record for record in records]


def _keys(records: Sequence[ImageRecord], positions: Int[np.ndarray, " drawn"]) -> frozenset[str]:
    return frozenset(records[position].image_key for position in positions)
