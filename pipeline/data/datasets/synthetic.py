"""Synthetic birds: a fine-grained data set whose parts, masks and class differences are known exactly.

Images are drawn when they are asked for, each from a seed of its own: an image depends neither on the others, nor on
how many there are, nor on the process that draws it.
"""

import re

import numpy as np
from jaxtyping import Bool, UInt8

from pipeline.data.boxes import box_of_mask
from pipeline.data.datasets.bird_renderer import render_masks
from pipeline.data.datasets.bird_species import PART_NAMES, SPECIES, Species
from pipeline.data.datasets.interface import Dataset, DatasetError, ImageRecord, Listing, Part, Split
from pipeline.data.datasets.scenes import picture_bytes
from pipeline.params import SyntheticParams

_SPLITS: tuple[Split, ...] = ("train", "test")
_KEY = re.compile(r"bird_(\d{2})_(train|test)_(\d{4,})")


class SyntheticBirds(Dataset):
    """The first species of ``SPECIES``, each in scenes drawn from ``seed``.

    A record's parts are those of which at least one pixel is seen; a location is the column and row of a pixel of the
    part, the nearest to the middle of what is seen. ``object_box`` is the box of the visible bird.
    """

    def __init__(self, params: SyntheticParams, seed: int) -> None:
        self._params = params
        self._seed = seed

    def listing(self) -> Listing:
        """List all images; see the base class. Draws the masks of each, a few milliseconds per image."""
        counts = {"train": self._params.train_per_species, "test": self._params.test_per_species}
        return Listing(
            class_names=tuple(species.name for species in SPECIES[: self._params.num_species]),
            records=tuple(
                self._record(label, split, idx)
                for label in range(self._params.num_species)
                for split in _SPLITS
                for idx in range(counts[split])
            ),
            part_names=PART_NAMES,
        )

    def image_bytes(self, record: ImageRecord) -> bytes:
        """Draw the image of RECORD as JPEG; see the base class."""
        return picture_bytes(*self.scene(record), self._params.image_size_px)

    def object_mask(self, record: ImageRecord) -> Bool[np.ndarray, "height width"]:
        """Give the pixels of the visible bird; see the base class."""
        return render_masks(*self.scene(record), self._params.image_size_px)[1]

    def part_mask(self, record: ImageRecord) -> UInt8[np.ndarray, "height width"]:
        """Give the part of each pixel; see the base class."""
        return render_masks(*self.scene(record), self._params.image_size_px)[0]

    def scene(self, record: ImageRecord) -> tuple[Species, tuple[int, ...]]:
        """Give what :func:`~pipeline.data.datasets.bird_renderer.render` needs to draw RECORD, or a variation of it.

        Raises:
            DatasetError: RECORD is none of this data set.
        """
        match = _KEY.fullmatch(record.image_key)
        if match is None or int(match[1]) >= self._params.num_species:
            raise DatasetError(
                f"{record.image_key} is no image of the synthetic birds (dataset.synthetic): run `dvc repro` again"
            )
        return self._scene(int(match[1]), "train" if match[2] == "train" else "test", int(match[3]))

    def _scene(self, label: int, split: Split, idx: int) -> tuple[Species, tuple[int, ...]]:
        return SPECIES[label], (self._seed, label, _SPLITS.index(split), idx)

    def _record(self, label: int, split: Split, idx: int) -> ImageRecord:
        part_ids, object_mask = render_masks(*self._scene(label, split, idx), self._params.image_size_px)
        image_key = f"bird_{label:02d}_{split}_{idx:04d}"
        return ImageRecord(
            image_key=image_key,
            file_name=f"{image_key}.jpg",
            label=label,
            split=split,
            object_box=box_of_mask(object_mask),
            parts=tuple(
                _located(part_idx, part_ids == part_idx + 1)
                for part_idx in range(len(PART_NAMES))
                if (part_ids == part_idx + 1).any()
            ),
        )


def _located(part_idx: int, mask: Bool[np.ndarray, "height width"]) -> Part:
    rows, columns = np.nonzero(mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    return Part(part_idx, x=float(columns[nearest]), y=float(rows[nearest]))
