"""Views: which masks of an image become one, which box each shows, and what its pixels are, cut and as stored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import Bool, UInt8
from PIL import Image

from pipeline.artifacts import WHOLE_IMAGE
from pipeline.data.boxes import Box
from pipeline.data.masks import StoredMask, pairwise_iou
from pipeline.errors import PipelineError
from pipeline.params import CropsParams


@dataclass(frozen=True, slots=True)
class Choice:
    """The masks of one image that become views, in bag order, and why the others do not."""

    mask_idxs: tuple[int, ...]
    passed_over: dict[str, int]


def choose_masks(masks: Sequence[StoredMask], *, height: int, width: int, params: CropsParams) -> Choice:
    """Choose the masks that become views.

    Masks are taken in the preferred order; one that is too small, too large, too thin or too like an earlier one is
    passed over, until there are ``max_views``.

    Args:
        masks: all masks of the image, in mask_idx order.
        height: of the image, pixels.
        width: of the image, pixels.
        params: the limits.
    """
    by_preference = sorted(
        range(len(masks)), key=lambda idx: (-(masks[idx].score if params.order == "score" else masks[idx].area_px), idx)
    )
    iou = pairwise_iou(masks, height=height, width=width)
    chosen: list[int] = []
    passed_over: dict[str, int] = {}
    for idx in by_preference:
        mask = masks[idx]
        share = mask.area_px / (height * width)
        if share < params.min_area_frac:
            reason = "too_small"
        elif share > params.max_area_frac:
            reason = "too_large"
        elif min(mask.box.width_px, mask.box.height_px) < params.min_extent_px:
            reason = "too_thin"
        elif any(iou[idx, other] >= params.duplicate_iou for other in chosen):
            reason = "duplicate"
        elif len(chosen) == params.max_views:
            reason = "over_max_views"
        else:
            chosen.append(idx)
            continue
        passed_over[reason] = passed_over.get(reason, 0) + 1
    return Choice(tuple(chosen), passed_over)


def box_of_view(mask_box: Box, *, height: int, width: int, params: CropsParams, clipped: bool = False) -> Box:
    """Grow the box of a mask to the box its view shows: padding, least side, square; always within the image.

    A side that must grow does so evenly in both directions; where the image ends, the rest is added on the other side.

    Args:
        mask_box: half-open, image pixels.
        height: of the image, pixels.
        width: of the image, pixels.
        params: ``padding_frac``, ``min_box_side_frac``, ``square``.
        clipped: what is grown lacks the last row and column of the mask's box, where it has more than one
            (``compat.clipped_boxes``; Deviation: the authors' code reads inclusive corners as exclusive ones,
            DEVIATIONS.md A10).
    """
    if clipped:
        mask_box = mask_box._replace(x1=max(mask_box.x0 + 1, mask_box.x1 - 1), y1=max(mask_box.y0 + 1, mask_box.y1 - 1))
    pad_x = round(params.padding_frac * mask_box.width_px)
    pad_y = round(params.padding_frac * mask_box.height_px)
    x0, x1 = max(0, mask_box.x0 - pad_x), min(width, mask_box.x1 + pad_x)
    y0, y1 = max(0, mask_box.y0 - pad_y), min(height, mask_box.y1 + pad_y)
    x0, x1 = _grown(x0, x1, round(params.min_box_side_frac * width), width)
    y0, y1 = _grown(y0, y1, round(params.min_box_side_frac * height), height)
    if params.square:
        side = max(x1 - x0, y1 - y0)
        x0, x1 = _grown(x0, x1, side, width)
        y0, y1 = _grown(y0, y1, side, height)
    return Box(x0, y0, x1, y1)


def _grown(start: int, stop: int, least: int, limit: int) -> tuple[int, int]:
    """Grow [start, stop) to LEAST pixels, but not beyond [0, limit)."""
    least = min(least, limit)
    if stop - start >= least:
        return start, stop
    start = min(max(0, start - (least - (stop - start)) // 2), limit - least)
    return start, start + least


def cut_view(
    image: UInt8[np.ndarray, "height width 3"],
    mask: Bool[np.ndarray, "height width"],
    box: Box,
    params: CropsParams,
    *,
    aliased: bool = False,
) -> tuple[UInt8[np.ndarray, "side side 3"], Bool[np.ndarray, "side side"]]:
    """Cut one view and the mask inside it.

    Args:
        image: RGB.
        mask: the mask the view is about, in the size of the image.
        box: what the view shows; half-open, image pixels.
        params: ``background`` and ``size_px``.
        aliased: resize without antialiasing (``compat.aliased_resizing``), as the authors' code does.

    Returns:
        The view, RGB, resized with a bilinear filter, antialiased unless asked otherwise (Deviation, DEVIATIONS.md
        resizing); and the mask, resized to the nearest pixel.
    """
    crop, inside = image[box.y0 : box.y1, box.x0 : box.x1], mask[box.y0 : box.y1, box.x0 : box.x1]
    if params.background == "zero":
        crop = np.where(inside[..., None], crop, np.uint8(0))
    elif params.background == "mean":
        # Deviation: black pixels of the mask count like any other (DEVIATIONS.md A23)
        mean = image[mask].mean(axis=0).astype(np.uint8) if mask.any() else np.zeros(3, np.uint8)
        crop = np.where(inside[..., None], crop, mean)
    size = (params.size_px, params.size_px)
    if aliased:
        view = _resized_aliased(crop, params.size_px)
    else:
        view = np.asarray(Image.fromarray(np.ascontiguousarray(crop)).resize(size, Image.Resampling.BILINEAR))
    small_mask = Image.fromarray(np.ascontiguousarray(inside)).resize(size, Image.Resampling.NEAREST)
    return view, np.asarray(small_mask, dtype=bool)


def _resized_aliased(crop: UInt8[np.ndarray, "height width 3"], size_px: int) -> UInt8[np.ndarray, "side side 3"]:
    """Mix the four pixels around each place, however much the crop shrinks; the outermost ones go on beyond it.

    That is OpenCV's INTER_LINEAR up to its rounding. Pillow's resize always antialiases, but its transform never does;
    of bytes it would cut fractions off, so it gets floats, which have one channel.
    """
    height, width = crop.shape[:2]
    extent = (0, 0, width, height)
    channels = [
        Image.fromarray(channel).transform(
            (size_px, size_px), Image.Transform.EXTENT, extent, Image.Resampling.BILINEAR
        )
        for channel in np.moveaxis(crop, 2, 0).astype(np.float32, order="C")
    ]
    view: np.ndarray = np.rint(np.stack([np.asarray(channel) for channel in channels], axis=2)).astype(np.uint8)
    return view


@dataclass(frozen=True, slots=True)
class View:
    """A view of an image.

    Attributes:
        mask_idx: of the image's masks, or ``WHOLE_IMAGE``.
        mask_box: of the mask; half-open, image pixels.
        box: what the view shows; half-open, image pixels.
        area_px: of the mask, image pixels.
        pixels: RGB.
        mask: the mask inside the view; all True for the whole image.
    """

    mask_idx: int
    mask_box: Box
    box: Box
    area_px: int
    pixels: UInt8[np.ndarray, "side side 3"]
    mask: Bool[np.ndarray, "side side"]


def cut_views(
    image: UInt8[np.ndarray, "height width 3"],
    masks: Sequence[StoredMask],
    mask_idxs: Sequence[int],
    params: CropsParams,
    *,
    mask_of: Callable[[int], Bool[np.ndarray, "height width"]],
    clipped: bool = False,
    aliased: bool = False,
) -> list[View]:
    """Cut the views of an image: of the chosen masks, in their order, then of the whole image.

    The whole image comes always; :func:`shows_whole_image` says whether it belongs to the bag.

    Args:
        image: RGB.
        masks: all masks of the image.
        mask_idxs: the chosen ones; see :func:`choose_masks`.
        params: the look of views.
        mask_of: gives the pixels of a mask by its index.
        clipped: see :func:`box_of_view`.
        aliased: see :func:`cut_view`.
    """
    height, width = image.shape[:2]
    views = []
    for mask_idx in mask_idxs:
        stored = masks[mask_idx]
        box = box_of_view(stored.box, height=height, width=width, params=params, clipped=clipped)
        pixels, inside = cut_view(image, mask_of(mask_idx), box, params, aliased=aliased)
        views.append(View(mask_idx, stored.box, box, stored.area_px, pixels, inside))
    whole = Box(0, 0, width, height)
    pixels, inside = cut_view(image, np.ones((height, width), dtype=bool), whole, params, aliased=aliased)
    return [*views, View(WHOLE_IMAGE, whole, whole, whole.area_px, pixels, inside)]


def shows_whole_image(mask_idxs: Sequence[int], params: CropsParams) -> bool:
    """Whether the whole image is a view of the bag of these masks: as params say, or because there is no other."""
    return params.whole_image or not mask_idxs


def encode_view(pixels: UInt8[np.ndarray, "side side 3"], params: CropsParams) -> bytes:
    """Encode a view as it is stored: JPEG, colours not subsampled."""
    encoded: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), params.jpeg_quality, "RGB", "444")
    return encoded


def as_stored(pixels: UInt8[np.ndarray, "side side 3"], params: CropsParams) -> UInt8[np.ndarray, "side side 3"]:
    """Give the pixels of a view as a network reads them from a shard."""
    decoded: np.ndarray = simplejpeg.decode_jpeg(encode_view(pixels, params), "RGB")
    return decoded


class EmptyBagError(PipelineError):
    """An image has no view, and ``crops.empty_bag`` says that this is an error."""

    def __init__(self, image: str | Path) -> None:
        super().__init__(
            f"{image}: no mask fits the limits in `crops`; relax them, or set crops.empty_bag to whole_image or drop"
        )
