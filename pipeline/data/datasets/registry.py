"""From the section ``dataset`` of ``params.yaml`` to a data set that can be read."""

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from pipeline.data.datasets.cars196 import StanfordCars
from pipeline.data.datasets.cub200 import Cub200
from pipeline.data.datasets.dogs import StanfordDogs
from pipeline.data.datasets.folder import ImageFolder
from pipeline.data.datasets.interface import Dataset, DatasetError, ImageRecord, Listing
from pipeline.params import DatasetParams


class ClassSubset(Dataset):
    """Some classes of another data set, numbered 0..n-1 in that data set's order.

    Args:
        whole: the other data set.
        classes: names of the classes to keep, in any order.
    """

    def __init__(self, whole: Dataset, classes: Sequence[str]) -> None:
        self.whole = whole
        self.classes = tuple(classes)

    def listing(self) -> Listing:
        """List the images of the kept classes; the others are counted as ``dropped.other_class``.

        Raises:
            DatasetError: the data set has no class of one of the names, or has a fault of its own.
        """
        listing = self.whole.listing()
        for name in self.classes:
            if name not in listing.class_names:
                near = difflib.get_close_matches(name, listing.class_names, n=1, cutoff=0.0)
                hint = f"; did you mean `{near[0]}`?" if near else ""
                raise DatasetError(
                    f"params.yaml: dataset.classes names `{name}`, which is none of the data set's"
                    f" {len(listing.class_names)} classes{hint}"
                )
        kept = [label for label, name in enumerate(listing.class_names) if name in self.classes]
        new_label = {label: position for position, label in enumerate(kept)}
        records = [replace(r, label=new_label[r.label]) for r in listing.records if r.label in new_label]
        return replace(
            listing,
            class_names=[listing.class_names[label] for label in kept],
            records=records,
            dropped={**listing.dropped, "other_class": len(listing.records) - len(records)},
        )

    def image_bytes(self, record: ImageRecord) -> bytes:
        """As the whole data set."""
        return self.whole.image_bytes(record)

    def object_mask(self, record: ImageRecord) -> Bool[np.ndarray, "height width"] | None:
        """As the whole data set."""
        return self.whole.object_mask(record)

    def part_mask(self, record: ImageRecord) -> UInt8[np.ndarray, "height width"] | None:
        """As the whole data set."""
        return self.whole.part_mask(record)


def open_dataset(params: DatasetParams, seed: int) -> Dataset:
    """Open the data set that PARAMS names; nothing is read before ``listing()``.

    Args:
        params: ``classes``, where given, keeps only these.
        seed: of what the data set itself draws: synthetic images, the test share of an image folder.
    """
    whole = _open_whole(params, seed)
    return ClassSubset(whole, params.classes) if params.classes else whole


def _open_whole(params: DatasetParams, seed: int) -> Dataset:
    source = Path(params.source)
    match params.name:
        case "synthetic":
            # only here: the other data sets need nothing of what draws the birds
            from pipeline.data.datasets.synthetic import SyntheticBirds

            return SyntheticBirds(params.synthetic, seed)
        case "cub200":
            return Cub200(source)
        case "dogs":
            return StanfordDogs(source)
        case "cars196":
            return StanfordCars(source)
        case "folder":
            return ImageFolder(source, seed)
