"""Small pictures: photographs with the masks and boxes of views drawn on them, and the views.

Where places of a view's feature grid are compared, the box is that of the place, and the view is cut to its
neighbourhood.

Nothing heavy is imported here: worker processes do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import Bool, UInt8
from PIL import Image
from scipy.ndimage import distance_transform_edt

from pipeline.data.boxes import Box
from pipeline.data.images import read_image
from pipeline.data.masks import decode_mask
from pipeline.errors import PipelineError

OUTLINE_RGB = (255, 214, 0)
BOX_RGB = (255, 255, 255)
NUMBER_RGB = (
    (255, 214, 0),
    (86, 190, 245),
    (255, 140, 50),
    (70, 215, 135),
    (245, 130, 195),
    (190, 165, 255),
    (240, 240, 240),
)
"""The outlines of views that are numbered; after the last one, the first again. Black can be read on all of them."""
_EDGE_RGB = (0, 0, 0)  # beside a line, so that it shows on light and dark pictures
_QUALITY = 85


@dataclass(frozen=True, slots=True)
class SourceView:
    """A view to be drawn.

    Attributes:
        pixels: the view as the network sees it, or the part of it around a place; RGB.
        box: what the view shows, or what lies under the place; half-open, image pixels.
        rle: the mask, as stored; None for the whole image.
    """

    pixels: UInt8[np.ndarray, "height width 3"]
    box: Box
    rle: bytes | None


@dataclass(frozen=True, slots=True)
class SourceImage:
    """A photograph and those of its views that prototypes came from."""

    path: Path
    width: int
    height: int
    views: tuple[SourceView, ...]


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A JPEG file's bytes."""

    content: bytes
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class NumberedView:
    """A view of a test image, or a place in one, to be drawn.

    Attributes:
        number: on the photograph, from 1; None draws nothing there.
        pixels: the view as the network sees it, or the part of it around a place; RGB.
        box: what the view shows, or what lies under the place; half-open, image pixels.
        rle: the mask, as stored; None for the whole image.
    """

    number: int | None
    pixels: UInt8[np.ndarray, "height width 3"]
    box: Box
    rle: bytes | None


@dataclass(frozen=True, slots=True)
class NumberedImage:
    """A photograph and those of its views that pages show; numbers are in ascending order."""

    path: Path
    width: int
    height: int
    views: tuple[NumberedView, ...]


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """A test image in pictures.

    Attributes:
        small: the photograph, half as large.
        photograph: with an outline around each numbered view.
        views: each with the outline of its mask, half as large.
        points: where the number of each numbered view stands on the photograph: shares of its width and height, 0..1.
    """

    small: Thumbnail
    photograph: Thumbnail
    views: tuple[Thumbnail, ...]
    points: tuple[tuple[float, float], ...]


def draw_source(source: SourceImage, *, side_px: int) -> list[tuple[Thumbnail, Thumbnail]]:
    """Draw, for each view of SOURCE, the photograph with outline and box, and the view.

    Args:
        source: what to draw.
        side_px: the longer side of what comes back; pictures are never enlarged.

    Raises:
        PipelineError: the photograph is missing, damaged or of another size than its table says.
    """
    image = read_photograph(source.path, width=source.width, height=source.height)
    small = shrunk(image, side_px)
    drawn = []
    for view in source.views:
        mask = None
        if view.rle is not None:
            mask = decode_mask(view.rle, height=source.height, width=source.width)
        photograph = with_outline_and_box(small, mask, view.box, scale=small.shape[1] / source.width)
        drawn.append((encoded(photograph), encoded(shrunk(view.pixels, side_px))))
    return drawn


def draw_numbered(source: NumberedImage, *, side_px: int) -> DrawnImage:
    """Draw a test image for the pages that show it.

    Args:
        source: what to draw.
        side_px: the longer side of the photograph; pictures are never enlarged.

    Raises:
        PipelineError: the photograph is missing, damaged or of another size than its table says.
    """
    small = shrunk(read_photograph(source.path, width=source.width, height=source.height), side_px)
    height, width = small.shape[:2]
    scale = width / source.width
    drawn: np.ndarray = small.copy()
    views, regions = [], []
    for view in source.views:
        picture = shrunk(view.pixels, side_px // 2)
        region = inside(view.box, (height, width), scale)
        if view.rle is not None:
            mask = decode_mask(view.rle, height=source.height, width=source.width)
            region = shrunk_mask(mask, (height, width))
            box = view.box
            picture = picture.copy()
            draw_rim(picture, shrunk_mask(mask[box.y0 : box.y1, box.x0 : box.x1], picture.shape[:2]), OUTLINE_RGB, 2)
        views.append(encoded(picture))
        regions.append(region)
    # the first number last, so that nothing lies over it
    for view, region in reversed(list(zip(source.views, regions, strict=True))):
        if view.number is not None:
            draw_rim(drawn, region, NUMBER_RGB[(view.number - 1) % len(NUMBER_RGB)], 2)
    points: list[tuple[float, float]] = []
    for view, region in zip(source.views, regions, strict=True):
        if view.number is not None:
            points.append(_free_point(region, points))
    return DrawnImage(encoded(shrunk(small, side_px // 2)), encoded(drawn), tuple(views), tuple(points))


def read_photograph(path: Path, *, width: int, height: int) -> UInt8[np.ndarray, "height width 3"]:
    """Read an image, RGB, and check that it is as large as its table says.

    Raises:
        PipelineError: missing, damaged or of another size.
    """
    image = read_image(path)
    if image.shape[:2] != (height, width):
        raise PipelineError(
            f"{path}: is {image.shape[1]}x{image.shape[0]}, its table says {width}x{height}: "
            "run `dvc checkout` or `dvc repro dataset`"
        )
    return image


def _free_point(region: Bool[np.ndarray, "height width"], taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Find a point deep inside REGION that is far from all of TAKEN; shares of width and height, 0..1."""
    height, width = region.shape
    # a picture's edge is an edge of the region, too
    room = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    rows, columns = np.indices(region.shape)
    for x, y in taken:
        away = np.hypot(columns + 0.5 - x * width, rows + 0.5 - y * height)
        room = np.where(region, np.minimum(room, away / 2), room)
    row, column = np.unravel_index(int(room.argmax()), region.shape)
    return (float(column) + 0.5) / width, (float(row) + 0.5) / height


def shrunk(image: UInt8[np.ndarray, "height width 3"], side_px: int) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Bring the longer side down to SIDE_PX; smaller pictures stay as they are."""
    height, width = image.shape[:2]
    scale = side_px / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def around_place(
    view: UInt8[np.ndarray, "height width 3"], place: Box, shown: Box
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Cut VIEW to a cell of its feature grid and one cell around it, as far as the view reaches.

    Args:
        view: as the network sees it; not changed.
        place: what lies under the cell; image pixels, within SHOWN.
        shown: what the view shows; image pixels.
    """
    height, width = view.shape[:2]
    x0, x1 = _stretch(place.x0, place.x1, shown.x0, shown.x1, width)
    y0, y1 = _stretch(place.y0, place.y1, shown.y0, shown.y1, height)
    return view[y0:y1, x0:x1]


def _stretch(start: int, end: int, shown_start: int, shown_end: int, num_px: int) -> tuple[int, int]:
    """Grow [start, end) by its length on both sides and say which of the NUM_PX pixels it covers, at least one."""
    length, scale = end - start, num_px / (shown_end - shown_start)
    first = min(round(scale * max(start - length - shown_start, 0)), num_px - 1)
    last = min(round(scale * (end + length - shown_start)), num_px)
    return first, max(last, first + 1)


def with_outline_and_box(
    picture: UInt8[np.ndarray, "height width 3"],
    mask: Bool[np.ndarray, "image_height image_width"] | None,
    box: Box,
    *,
    scale: float,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the rim of MASK and the frame of BOX.

    Args:
        picture: RGB; not changed.
        mask: in the size of the original image; None draws no rim.
        box: half-open, pixels of the original image.
        scale: picture pixels per image pixel.
    """
    drawn: np.ndarray = picture.copy()
    draw_rim(drawn, inside(box, picture.shape[:2], scale), BOX_RGB, thickness_px=1)
    if mask is not None:
        draw_rim(drawn, shrunk_mask(mask, picture.shape[:2]), OUTLINE_RGB, thickness_px=2)
    return drawn


def inside(box: Box, shape: Sequence[int], scale: float) -> Bool[np.ndarray, "height width"]:
    """Mark what BOX covers, at least one pixel, on a picture with SCALE pixels per image pixel."""
    height, width = shape
    covered = np.zeros((height, width), dtype=bool)
    x0, y0 = min(int(scale * box.x0), width - 1), min(int(scale * box.y0), height - 1)
    covered[y0 : max(y0 + 1, round(scale * box.y1)), x0 : max(x0 + 1, round(scale * box.x1))] = True
    return covered


def shrunk_mask(
    mask: Bool[np.ndarray, "height width"], shape: Sequence[int]
) -> Bool[np.ndarray, "new_height new_width"]:
    """Bring MASK to the rows and columns of a picture: True where a quarter of a pixel is covered."""
    height, width = shape
    share = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    covered: np.ndarray = np.asarray(share) >= 64
    return covered


def draw_rim(
    picture: UInt8[np.ndarray, "height width 3"],
    region: Bool[np.ndarray, "height width"],
    colour: tuple[int, int, int],
    thickness_px: int,
) -> None:
    """Colour the rim of REGION on PICTURE, inside it, with a dark edge around."""
    inner = region
    for _ in range(thickness_px):
        inner = _eroded(inner)
    picture[_dilated(region) & ~region] = _EDGE_RGB
    picture[region & ~inner] = colour


def _eroded(region: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Keep pixels whose four neighbours are in REGION; what lies beyond the picture is not."""
    padded = np.pad(region, 1)
    kept: np.ndarray = region & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return kept


def _dilated(region: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Add the pixels that have one of their four neighbours in REGION."""
    padded = np.pad(region, 1)
    grown: np.ndarray = region | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return grown


def encoded(picture: UInt8[np.ndarray, "height width 3"]) -> Thumbnail:
    """Write PICTURE, RGB, as a JPEG file."""
    # no chroma subsampling: it would smear the coloured lines
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), _QUALITY, "RGB", "444")
    return Thumbnail(content, picture.shape[1], picture.shape[0])
