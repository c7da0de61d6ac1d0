"""The splits of a data set in words: what they are called, and what part they have in training."""

from collections.abc import Mapping

from pipeline.data.datasets.interface import Split
from pipeline.params import Params

SPLIT_TITLES: Mapping[Split, str] = {"train": "training", "val": "validation", "test": "test"}
"""What stands before "images", in the order in which splits are shown."""


def images_of(split: Split) -> str:
    """Name the images of a split."""
    return f"{SPLIT_TITLES[split]} images"


def kept_epochs(params: Params) -> str:
    """Say in a sentence which epoch a phase of training hands on."""
    if params.compat.last_epoch:
        return "Each phase hands on its last epoch (compat.last_epoch)."
    judge = "test images (compat.validate_on_test)" if params.compat.validate_on_test else "validation images"
    return f"Each phase hands on the epoch, or the start, that was best on {judge}."


def part_of_test_images(params: Params) -> str:
    """Say in a sentence what part test images have in how the network came about."""
    chosen = None
    if params.compat.validate_on_test:
        if not params.compat.last_epoch:
            chosen = "the epoch that each phase hands on"
        elif params.train.patience_epochs is not None:
            chosen = "the epoch after which training stops"
    if chosen is None:
        return "Test images took no part in training or in choosing anything."
    return (
        f"Test images took no part in training, but they chose {chosen} (compat.validate_on_test), so numbers about "
        "them flatter."
    )
