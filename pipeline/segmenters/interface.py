"""What a segmenter is: an image in, scored masks out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, UInt8

from pipeline.data.boxes import Box
from pipeline.params import MasksParams


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
    def uses_object_box(cls, params: MasksParams) -> bool:
        """Say whether masks depend on the object box under PARAMS, so that equal pictures may have unequal masks."""
        return False

    @abstractmethod
    def segment(self, image: UInt8[np.ndarray, "height width 3"], object_box: Box | None = None) -> list[Segment]:
        """Find the masks of one image.

        Args:
            image: RGB.
            object_box: box of the labelled object in image pixels, where the data set has one. Only segmenters with
                ``uses_object_box`` look at it.

        Returns:
            Best score first, ties in a fixed order, no mask empty. An image without structure may have none.
        """


def best_first(segments: Iterable[Segment]) -> list[Segment]:
    """Sort by score, highest first; equal scores keep their order."""
    return sorted(segments, key=lambda segment: -segment.score)
