"""Which images are held out, drawn class by class.

A draw depends on the seed, the class's name and the keys of its images: neither on the order of records nor on which
other classes there are.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

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


def cut_validation(
    records: Sequence[ImageRecord], class_names: Sequence[str], *, val_frac: float, seed: int
) -> list[ImageRecord]:
    """Turn a share of each class's training images into validation images, unless there are some already.

    Args:
        records: in any order, which is kept.
        class_names: in label order.
        val_frac: share of each class's training images; at least one is cut and one left.
        seed: start of the draw.

    Raises:
        DatasetError: a class has too few training images, or no test image: its recall, and with it the balanced
            test accuracy, would be undefined.
    """
    count = Counter((record.label, record.split) for record in records)
    has_val = any(record.split == "val" for record in records)
    for label, class_name in enumerate(class_names):
        num_train, num_test = count[label, "train"], count[label, "test"]
        needed = 1 if has_val else 2  # one to learn from, one to validate on
        if num_train < needed or num_test == 0:
            raise DatasetError(
                f"class `{class_name}` has {num_train} training and {num_test} test images, and needs at least {needed}"
                " and 1: add images, or leave the class out with `dataset.classes`"
            )
    if has_val:
        return list(records)
    drawn = draw_per_class(records, class_names, frac=val_frac, seed=seed, purpose="validation")
    return [replace(record, split="val") if record.image_key in drawn else record for record in records]
