"""Segmenters split images into masks. Each is imported only when it is asked for: some load torch, some need extras."""

from typing import Any

from pipeline.params import MasksParams
from pipeline.segmenters.interface import Picture, Segment, Segmenter

__all__ = ["Picture", "Segment", "Segmenter", "make_segmenter", "segmenter_class", "settings_of"]

_THROUGHPUT_KEYS = {"points_per_batch", "images_per_batch"}  # how fast masks come, not which


def make_segmenter(params: MasksParams, device: str = "cpu") -> Segmenter:
    """Build the segmenter that PARAMS name, its weights loaded; see :meth:`Segmenter.from_params`."""
    return segmenter_class(params).from_params(params.resolved(), device)


def settings_of(params: MasksParams) -> dict[str, Any]:
    """Give what shapes the masks, weights aside: the active segmenter, its version and its section, JSON-like."""
    section = getattr(params.resolved(), params.segmenter)
    return {
        "segmenter": params.segmenter,
        "version": segmenter_class(params).version,
        "settings": section.model_dump(mode="json", exclude=_THROUGHPUT_KEYS),
    }


def segmenter_class(params: MasksParams) -> type[Segmenter]:
    """Find the class that PARAMS name, without building anything."""
    match params.segmenter:  # without a default, so that mypy names a segmenter that is missing here
        case "superpixel":
            from pipeline.segmenters.superpixel import SuperpixelSegmenter

            return SuperpixelSegmenter
        case "grid":
            from pipeline.segmenters.grid import GridSegmenter

            return GridSegmenter
        case "sam":
            from pipeline.segmenters.sam import SamSegmenter

            return SamSegmenter
        case "sam2":
            from pipeline.segmenters.sam2 import Sam2Segmenter

            return Sam2Segmenter
        case "slit":
            from pipeline.segmenters.slit import SlitSegmenter

            return SlitSegmenter
        case "coco":
            from pipeline.segmenters.coco import CocoSegmenter

            return CocoSegmenter
