"""Masks made visible: all masks of an image as colours, and those that became views as numbered outlines.

Worker processes import this module and draw; :func:`masked_images` reads what they need.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from pipeline.artifacts import WHOLE_IMAGE
from pipeline.data.bags import BagReader
from pipeline.data.boxes import Box
from pipeline.data.catalogue import ImageRow
from pipeline.data.masks import StoredMask, decode_mask, iterate_masks
from pipeline.errors import PipelineError
from pipeline.report.splits import SPLIT_TITLES
from pipeline.report.thumbnails import draw_rim, inside, read_photograph, shrunk, shrunk_mask

COLOURS_RGB = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Okabe and Ito's colours, which most colour-blind people tell apart (https://jfly.uni-koeln.de/color/)."""
NOT_COVERED = -1

_OPACITY = 0.55  # of a mask's colour
_DIMMED = 0.4  # brightness of what no mask covers
_LINE_RGB = (0, 0, 0)
_LABEL_RGB = (0, 0, 0)
_NUMBER_RGB = (255, 255, 255)
_LABEL_SHARE = 0.075  # height of a number's letters, of the longer side of the picture
_LEAST_LABEL_PX = 12


@dataclass(frozen=True, slots=True)
class ChosenMask:
    """A mask that became a view, or the whole image as one.

    Attributes:
        number: its place in the bag, from 1.
        box: what the view shows; half-open, image pixels.
        rle: as stored; None for the whole image.
        pixels: the view as the network sees it, RGB.
    """

    number: int
    box: Box
    rle: bytes | None
    pixels: UInt8[np.ndarray, "side side 3"]


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """An image, all of its masks, and those that became views.

    Attributes:
        row: the image.
        masks: all of them.
        chosen: in bag order; empty where ``crops`` dropped the image.
    """

    row: ImageRow
    masks: tuple[StoredMask, ...]
    chosen: tuple[ChosenMask, ...]


@dataclass(frozen=True, slots=True)
class MaskPictures:
    """The pictures of a :class:`MaskedImage`, RGB.

    Attributes:
        covered_frac: share of the image's pixels that lie in a mask.
        masks: the photograph under the colours of all masks.
        chosen: the photograph with the outlines and boxes of the chosen masks, numbered.
        views: one per chosen mask.
    """

    covered_frac: float
    masks: UInt8[np.ndarray, "height width 3"]
    chosen: UInt8[np.ndarray, "height width 3"]
    views: tuple[UInt8[np.ndarray, "view_height view_width 3"], ...]


def masked_images(rows: Sequence[ImageRow], *, masks: Path, crops: Path) -> Iterator[MaskedImage]:
    """Read the masks and views of some images.

    Args:
        rows: the images; their order is kept.
        masks: ``masks.parquet``.
        crops: folder with shards.

    Raises:
        PipelineError: masks or views are missing, damaged, or do not fit each other.
    """
    wanted = {row.image_key for row in rows}
    stored = {key: tuple(found) for key, found in iterate_masks(masks, wanted)}
    reader = BagReader(crops, *SPLIT_TITLES)
    position = {image_key: bag_idx for bag_idx, image_key in enumerate(reader.image_keys)}
    for row in rows:
        found = stored.get(row.image_key, ())
        bag_idx = position.get(row.image_key)
        yield MaskedImage(row, found, () if bag_idx is None else tuple(_chosen(reader, bag_idx, found)))


def _chosen(reader: BagReader, bag_idx: int, masks: Sequence[StoredMask]) -> Iterator[ChosenMask]:
    for number, (view, pixels) in enumerate(zip(reader.rows(bag_idx), reader.views(bag_idx), strict=True), start=1):
        if view.mask_idx >= len(masks):
            raise PipelineError(
                f"{view.image_key} has a view of mask {view.mask_idx}, but {len(masks)} masks: masks and views come "
                "from different runs, run `dvc checkout` or `dvc repro`"
            )
        rle = None if view.mask_idx == WHOLE_IMAGE else masks[view.mask_idx].rle
        yield ChosenMask(number, view.box, rle, pixels)


def draw_masks(image: MaskedImage, *, side_px: int, view_px: int) -> MaskPictures:
    """Draw the masks of an image.

    Args:
        image: what to draw.
        side_px: the longer side of the photographs; they are never enlarged.
        view_px: the side of the views, likewise.

    Raises:
        PipelineError: the photograph is missing, damaged or of another size than its table or its masks say.
    """
    height, width = image.row.height, image.row.width
    photograph = read_photograph(image.row.path, width=width, height=height)
    try:
        smallest = smallest_masks(image.masks, height=height, width=width)
        outlines = {
            chosen.number: decode_mask(chosen.rle, height=height, width=width)
            for chosen in image.chosen
            if chosen.rle is not None
        }
    except ValueError as error:
        raise PipelineError(f"{image.row.path}: {error}: run `dvc repro masks`") from None
    small = shrunk(photograph, side_px)
    return MaskPictures(
        covered_frac=float((smallest != NOT_COVERED).mean()),
        masks=_coloured(small, _sampled(smallest, *small.shape[:2])),
        chosen=_numbered(small, image.chosen, outlines, scale=small.shape[1] / width),
        views=tuple(shrunk(chosen.pixels, view_px) for chosen in image.chosen),
    )


def smallest_masks(masks: Sequence[StoredMask], *, height: int, width: int) -> Int[np.ndarray, "height width"]:
    """Say for each pixel which mask lies on top when the smaller ones lie on the larger ones.

    Args:
        masks: of one image; of equally large ones, the earlier lies on top.
        height: pixels of the image.
        width: likewise.

    Returns:
        Positions in MASKS, or NOT_COVERED.

    Raises:
        ValueError: a mask is of another size, or damaged.
    """
    on_top = np.full((height, width), NOT_COVERED, dtype=np.int64)
    for idx in sorted(range(len(masks)), key=lambda idx: (-masks[idx].area_px, -idx)):
        on_top[decode_mask(masks[idx].rle, height=height, width=width)] = idx
    return on_top


def _sampled(
    labels: Int[np.ndarray, "height width"], new_height: int, new_width: int
) -> Int[np.ndarray, "new_height new_width"]:
    """Shrink without mixing: the label under the centre of each new pixel."""
    rows = ((np.arange(new_height) + 0.5) * labels.shape[0] / new_height).astype(np.int64)
    columns = ((np.arange(new_width) + 0.5) * labels.shape[1] / new_width).astype(np.int64)
    sampled: np.ndarray = labels[np.ix_(rows, columns)]
    return sampled


def _coloured(
    picture: UInt8[np.ndarray, "height width 3"], labels: Int[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Lay a colour on each label, with lines between them; what has none becomes dark and grey."""
    colours = np.array(COLOURS_RGB, dtype=np.float64)
    mixed = np.repeat(_DIMMED * picture.mean(axis=2, keepdims=True), 3, axis=2)
    for label, colour in colours_of(labels).items():
        region = labels == label
        mixed[region] = _OPACITY * colours[colour] + (1 - _OPACITY) * picture[region]
    line = np.zeros(labels.shape, dtype=bool)
    line[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    line[1:] |= labels[1:] != labels[:-1]
    mixed[line] = _LINE_RGB
    return np.round(mixed).astype(np.uint8)


def colours_of(labels: Int[np.ndarray, "height width"]) -> dict[int, int]:
    """Give each label a colour that none of its neighbours has, as long as the colours suffice.

    Args:
        labels: NOT_COVERED gets none.

    Returns:
        Positions in :data:`COLOURS_RGB`. The labels with most neighbours choose first, each the colour that fewest
        neighbours have, then the one used least.
    """
    neighbours: dict[int, set[int]] = {int(label): set() for label in np.unique(labels) if label != NOT_COVERED}
    pairs = np.concatenate(
        [
            np.stack([labels[:, 1:].ravel(), labels[:, :-1].ravel()], axis=1),
            np.stack([labels[1:].ravel(), labels[:-1].ravel()], axis=1),
        ]
    )
    for one, other in np.unique(pairs, axis=0).tolist():
        if one != other and NOT_COVERED not in (one, other):
            neighbours[one].add(other)
            neighbours[other].add(one)
    used = [0] * len(COLOURS_RGB)
    chosen: dict[int, int] = {}
    for label in sorted(neighbours, key=lambda label: (-len(neighbours[label]), label)):
        beside = [chosen[other] for other in neighbours[label] if other in chosen]
        colour = min(range(len(COLOURS_RGB)), key=lambda idx: (beside.count(idx), used[idx], idx))
        chosen[label] = colour
        used[colour] += 1
    return chosen


def colour_of_number(number: int) -> tuple[int, int, int]:
    """Give the colour in which the outline of the view with this NUMBER is drawn."""
    return COLOURS_RGB[(number - 1) % len(COLOURS_RGB)]


def _numbered(
    picture: UInt8[np.ndarray, "height width 3"],
    chosen: Sequence[ChosenMask],
    outlines: dict[int, Bool[np.ndarray, "image_height image_width"]],
    *,
    scale: float,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the outline, the box and the number of each chosen mask; the whole image as a view has none of them."""
    drawn: np.ndarray = picture.copy()
    with_masks = [mask for mask in chosen if mask.number in outlines]
    for mask in with_masks:
        draw_rim(drawn, inside(mask.box, drawn.shape[:2], scale), colour_of_number(mask.number), thickness_px=1)
    for mask in with_masks:
        region = shrunk_mask(outlines[mask.number], drawn.shape[:2])
        draw_rim(drawn, region, colour_of_number(mask.number), thickness_px=2)
    return _with_numbers(drawn, [(mask.number, mask.box) for mask in with_masks], scale=scale)


def _with_numbers(
    picture: UInt8[np.ndarray, "height width 3"], boxes: Sequence[tuple[int, Box]], *, scale: float
) -> UInt8[np.ndarray, "height width 3"]:
    """Write each number into a corner of its box, where no other number stands."""
    height, width = picture.shape[:2]
    letters_px = max(_LEAST_LABEL_PX, round(_LABEL_SHARE * max(height, width)))
    font = ImageFont.load_default(letters_px)
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    taken: list[tuple[int, int, int, int]] = []
    for number, box in boxes:
        label_width, label_height = round(draw.textlength(str(number), font)) + 6, letters_px + 4
        left, top = round(scale * box.x0), round(scale * box.y0)
        right, bottom = round(scale * box.x1) - label_width, round(scale * box.y1) - label_height
        corners = [(x, y) for y in (top, bottom) for x in (left, right)]
        below = [(left, top + step * label_height) for step in range(1, height // label_height + 1)]
        places = [
            (min(max(x, 0), max(0, width - label_width)), min(max(y, 0), max(0, height - label_height)))
            for x, y in corners + below
        ]
        x, y = next((place for place in places if not _meets(place, label_width, label_height, taken)), places[0])
        taken.append((x, y, x + label_width, y + label_height))
        rim = colour_of_number(number)
        draw.rectangle((x, y, x + label_width - 1, y + label_height - 1), fill=_LABEL_RGB, outline=rim)
        draw.text((x + label_width / 2, y + label_height / 2), str(number), fill=_NUMBER_RGB, font=font, anchor="mm")
    return np.asarray(canvas)


def _meets(place: tuple[int, int], width: int, height: int, taken: Sequence[tuple[int, int, int, int]]) -> bool:
    x, y = place
    return any(x < x1 and x0 < x + width and y < y1 and y0 < y + height for x0, y0, x1, y1 in taken)
