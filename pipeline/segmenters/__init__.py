"""Segmenters split images into masks. Each is imported only when it is asked for: some load torch, some need extras."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from pipeline.data.masks import StoredMask
from pipeline.params import MasksParams
from pipeline.segmenters.interface import Picture, Segment, Segmenter

__all__ = ["Picture", "Segment", "Segmenter", "SegmenterOfBgr", "make_segmenter", "segmenter_class", "settings_of"]

_BGR_IN_AUTHORS_CODE = {"sam", "sam2"}
_THROUGHPUT_KEYS = {"points_per_batch", "images_per_batch"}  # how fast masks come, not which


def make_segmenter(params: MasksParams, device: str = "cpu", *, bgr: bool = False) -> Segmenter:
    """Build the segmenter that PARAMS name, its weights loaded; see :meth:`Segmenter.from_params`.

    With BGR, SAM and SAM 2 see red and blue exchanged (``compat.bgr_masks``); the other segmenters do not.
    """
    kind = SegmenterOfBgr if _sees_bgr(params, bgr) else segmenter_class(params)
    return kind.from_params(params.resolved(), device)


def settings_of(params: MasksParams, *, bgr: bool = False) -> dict[str, Any]:
    """Give what shapes the masks, weights aside: the active segmenter, its version and its section, JSON-like.

    BGR is part of it only where it is true and has an effect, so that what was stored without it stays known.
    """
    section = getattr(params.resolved(), params.segmenter)
    return {
        "segmenter": params.segmenter,
        "version": segmenter_class(params).version,
        "settings": section.model_dump(mode="json", exclude=_THROUGHPUT_KEYS),
        **({"bgr": True} if _sees_bgr(params, bgr) else {}),
    }


def _sees_bgr(params: MasksParams, bgr: bool) -> bool:
    return bgr and params.segmenter in _BGR_IN_AUTHORS_CODE


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


class SegmenterOfBgr(Segmenter):
    """Gives another segmenter pictures with red and blue exchanged, as the authors' code does (DEVIATIONS.md A12)."""

    holds_device = True
    version = 1

    def __init__(self, segmenter: Segmenter) -> None:
        """Take the segmenter that finds the masks."""
        self._segmenter = segmenter

    @classmethod
    def from_params(cls, params: MasksParams, device: str) -> "SegmenterOfBgr":
        """Build the segmenter that PARAMS name; see :meth:`Segmenter.from_params`."""
        return cls(segmenter_class(params).from_params(params, device))

    def segment(self, picture: Picture) -> list[Segment]:
        """Find the masks of one image; see :class:`Segmenter`."""
        return self._segmenter.segment(_as_bgr(picture))

    def stream(self, pictures: Iterable[Picture]) -> Iterator[list[StoredMask]]:
        """Find the masks of many images; see :class:`Segmenter`."""
        return self._segmenter.stream(_as_bgr(picture) for picture in pictures)


def _as_bgr(picture: Picture) -> Picture:
    return dataclasses.replace(picture, image=np.ascontiguousarray(picture.image[..., ::-1]))
