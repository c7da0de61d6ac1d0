"""What a data set tells the ``dataset`` stage: its classes, its parts and one record per image."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, UInt8

from pipeline.data.boxes import Box
from pipeline.errors import PipelineError

Split = Literal["train", "val", "test"]


class DatasetError(PipelineError):
    """A source folder that is missing, half-unpacked or at odds with itself."""


@dataclass(frozen=True, slots=True)
class Part:
    """Where one visible part lies, in pixels of the image; ``part_idx`` counts from 0 into ``part_names``."""

    part_idx: int
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image as its data set lists it.

    Attributes:
        image_key: unique and stable over runs and over subsets of the data set; ``[A-Za-z0-9_-]+``.
        file_name: name inside the source, with its suffix; what an error message shows.
        label: position in ``class_names``.
        split: as the data set gives it. A data set without validation images leaves that to the stage, which cuts
            them from train.
        object_box: box of the labelled object, half-open, image pixels; None where the data set has none.
        parts: the visible parts only.
    """

    image_key: str
    file_name: str
    label: int
    split: Split
    object_box: Box | None = None
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Listing:
    """Everything a data set knows before a picture is opened.

    Attributes:
        class_names: in label order.
        records: in a stable order.
        part_names: in ``part_idx`` order; empty where the data set has no parts.
        dropped: images listed by the source that are left out, counted by reason.
    """

    class_names: Sequence[str]
    records: Sequence[ImageRecord]
    part_names: Sequence[str] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)


class Dataset(ABC):
    """A source of labelled images. Instances are small and picklable: worker processes get a copy."""

    @abstractmethod
    def listing(self) -> Listing:
        """List the classes and images.

        Raises:
            DatasetError: the source is missing, incomplete or contradicts itself; names the file and the way out.
        """

    @abstractmethod
    def image_bytes(self, record: ImageRecord) -> bytes:
        """Give the picture file of RECORD, byte for byte.

        Raises:
            DatasetError: the file is listed but missing.
        """

    def object_mask(self, record: ImageRecord) -> Bool[np.ndarray, "height width"] | None:
        """Give the labelled object's pixels, in the size of the image; None where the data set has no such masks."""
        return None

    def part_mask(self, record: ImageRecord) -> UInt8[np.ndarray, "height width"] | None:
        """Give ``part_idx + 1`` at the pixels of each part and 0 elsewhere; None where the data set has no such."""
        return None
