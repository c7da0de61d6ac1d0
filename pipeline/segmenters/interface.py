"""What a segmenter is: an image in, scored masks out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, UInt8

from pipeline.data.boxes import Box, box_of_mask
from pipeline.data.masks import StoredMask, encode_mask
from pipeline.params import MasksParams


@dataclass(frozen=True, slots=True)
class Picture:
    """One image as a segmenter gets it.

    Attributes:
        image: RGB (BGR on purpose inside :class:`pipeline.segmenters.SegmenterOfBgr`).
        object_box: box of the labelled object in image pixels, where the data set has one.
        image_key: the image's name in the data set.
    """

    image: UInt8[np.ndarray, "height width 3"]
    object_box: Box | None = None
    image_key: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """One mask of an image.

    Attributes:
        mask: True on the segment, image pixels; at least one pixel.
        score: the segmenter's own ranking, larger is better; comparable within one segmenter only.
        stability: SAM's stability score in 0-1; None where the segmenter has no such number.
    """

    mask: Bool[np.ndarray, "height width"]
    score: float
    stability: float | None = None

    def stored(self) -> StoredMask:
        """Give it as it is kept: run lengths, box and area instead of pixels."""
        return StoredMask(
            rle=encode_mask(self.mask),
            box=box_of_mask(self.mask),
            area_px=int(self.mask.sum()),
            score=float(self.score),
            stability=None if self.stability is None else float(self.stability),
        )


class Segmenter(ABC):
    """Splits images into masks. The same image and settings give the same masks, in the same order.

    Attributes:
        holds_device: True is a network on one device, run in one process; False runs in worker processes, and
            instances are small and picklable.
        version: raised whenever equal settings and weights give other masks than before.
    """

    holds_device: ClassVar[bool]
    version: ClassVar[int]

    @classmethod
    @abstractmethod
    def from_params(cls, params: MasksParams, device: str) -> "Segmenter":
        """Build the segmenter from its section of PARAMS and ``masks.weights``.

        Args:
            params: the ``masks`` section.
            device: torch's name of the device; segmenters without a network do not use it.

        Raises:
            PipelineError: weights or an extra are missing, or do not fit the settings.
        """

    @classmethod
    def looks_at(cls, params: MasksParams) -> tuple[Literal["object_box", "image_key"], ...]:
        """Name what masks depend on under PARAMS besides the pixels, so that equal images may have unequal masks."""
        return ()

    @abstractmethod
    def segment(self, picture: Picture) -> list[Segment]:
        """Find the masks of one image.

        Returns:
            Best score first, ties in a fixed order, no mask empty. An image without structure may have none.
        """

    def stream(self, pictures: Iterable[Picture]) -> Iterator[list[StoredMask]]:
        """Find the masks of many images, in their order; the same as :meth:`segment` one by one.

        Segmenters that are faster on several images at once take PICTURES in ahead of what they give, a bounded
        number of them.
        """
        for picture in pictures:
            yield [segment.stored() for segment in self.segment(picture)]


def best_first(segments: Iterable[Segment]) -> list[Segment]:
    """Sort by score, highest first; equal scores keep their order."""
    return sorted(segments, key=lambda segment: -segment.score)
