"""The splits that a network learns from and is chosen on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from pipeline.data.bags import BagReader
from pipeline.errors import PipelineError
from pipeline.model.network import Network
from pipeline.params import CompatParams


def open_splits(crops: Path, network: type[Network], compat: CompatParams) -> tuple[BagReader, BagReader]:
    """Open the training and the validation split as the kind of NETWORK sees them.

    With ``compat.validate_on_test`` (DEVIATIONS.md A6) these are training and validation images together, and the test
    images; nothing else here ever opens the test split.

    Raises:
        PipelineError: a split has no images.
    """
    training, validation = (("train", "val"), ("test",)) if compat.validate_on_test else (("train",), ("val",))
    return (
        BagReader(crops, *training, views=network.views, equal_lengths=compat.equal_bags),
        BagReader(crops, *validation, views=network.views, equal_lengths=compat.equal_bags),
    )


def class_weights(labels: Sequence[int], class_names: Sequence[str]) -> Float[torch.Tensor, " class"]:
    """Weigh classes by inverse frequency, N / (C * n_c), as the authors' code does.

    Raises:
        PipelineError: a class has no training image.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    if (counts == 0).any():
        raise PipelineError(
            f"class {class_names[int(counts.argmin())]!r} has no training image with views: check crops.empty_bag, or"
            " leave it out of dataset.classes"
        )
    return torch.from_numpy(len(labels) / (len(class_names) * counts)).float()


def check_classes(reader: BagReader, class_names: Sequence[str], folder: Path) -> None:
    """Make sure that the network in FOLDER, which knows CLASS_NAMES, was trained on shards like the reader's.

    Raises:
        PipelineError: it was not.
    """
    if reader.class_names != list(class_names):
        raise PipelineError(f"{folder}: its network knows other classes than the shards: run `dvc repro train`")
