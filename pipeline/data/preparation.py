"""How a picture becomes the views that a network was trained on: what a model needs to be shown other pictures.

``masks.parquet`` notes what made its masks, ``views.parquet`` adds the params of the views, and ``model.json`` carries
both, so a model knows how to look at a picture wherever it is copied.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.params import CompatParams, CropsParams, MasksParams, Section


class Segmentation(Section):
    """What made the masks; settings that change the speed alone are left out."""

    segmenter: str
    """As in ``masks.segmenter``."""
    version: int
    """Of the segmenter's code."""
    settings: Mapping[str, Any]
    """The segmenter's section of ``masks``, a profile filled in."""
    weights: str
    """As in ``masks.weights``."""
    bgr: bool = False
    """Whether it saw red and blue exchanged (``compat.bgr_masks``)."""

    @property
    def params(self) -> MasksParams:
        """The section ``masks`` that makes the same masks."""
        content = {"segmenter": self.segmenter, "weights": self.weights, self.segmenter: dict(self.settings)}
        return MasksParams.model_validate(content)


class Preparation(Section):
    """Segmenting and cropping, as a model was trained with."""

    segmentation: Segmentation | None
    """None where nothing noted it."""
    crops: CropsParams
    """Which masks become views, and how these look."""
    clipped_boxes: bool = False
    """As in ``compat``."""
    aliased_resizing: bool = False
    """As in ``compat``."""

    @classmethod
    def of(cls, segmentation: Mapping[str, Any] | None, crops: CropsParams, compat: CompatParams) -> "Preparation":
        """Put together what ``masks.parquet`` notes and what the stage ``crops`` was given.

        Args:
            segmentation: see :func:`pipeline.data.masks.segmentation_of`.
            crops: params of the views.
            compat: departures of the authors' code.
        """
        return cls(
            segmentation=None if segmentation is None else Segmentation.model_validate(segmentation),
            crops=crops,
            clipped_boxes=compat.clipped_boxes,
            aliased_resizing=compat.aliased_resizing,
        )
