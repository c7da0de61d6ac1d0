"""Contact sheets: single pictures of a run, for ``dvc plots`` and editors that show them side by side.

Every sheet is as wide as the others, and there is always each of them: where there is nothing to show, it says so in
words, so that two branches can be compared whatever their networks are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from pipeline.artifacts import PER_IMAGE, read_table
from pipeline.data.catalogue import ImageRow, ImagesTable
from pipeline.data.images import read_image
from pipeline.data.sample import draw_evenly
from pipeline.errors import PipelineError
from pipeline.report.drawing import PAPER_RGB, SOFT_RGB, TEXT_RGB, fitted, write_line
from pipeline.report.mask_pictures import draw_masks, masked_images
from pipeline.report.shown import ShownPrototype
from pipeline.report.thumbnails import shrunk

MASKS_SHEET = "masks.jpg"
PROTOTYPES_SHEET = "prototypes.jpg"
MISTAKES_SHEET = "mistakes.jpg"
WIDTH_PX = 1200
NUM_TILES = 24
"""Of prototypes at most, and about so many where classes have several."""

_NUM_MASK_IMAGES = 12
_NUM_MISTAKES = 12
_GAP_PX = 16
_LETTERS_PX = 15
_LINE_PX = 23
_TITLE_PX = 24
_QUALITY = 85


@dataclass(frozen=True, slots=True)
class Tile:
    """Some pictures beside each other, and lines below them.

    Attributes:
        pictures: RGB, of any size; each is brought into a square of its own.
        lines: each is shortened to the width of the tile; names and, below each, what is said of them.
    """

    pictures: tuple[UInt8[np.ndarray, "_height _width 3"], ...]
    lines: tuple[str, ...]


def write_sheets(
    folder: Path,
    *,
    images: ImagesTable,
    masks: Path,
    crops: Path,
    per_image: Path,
    head: str,
    prototypes: Sequence[ShownPrototype],
    site_folder: Path,
) -> None:
    """Write ``masks.jpg``, ``prototypes.jpg`` and ``mistakes.jpg`` into FOLDER.

    Args:
        folder: exists.
        images: the data set.
        masks: ``masks.parquet``.
        crops: folder with shards.
        per_image: ``per_image.parquet``.
        head: of the network; names its rows.
        prototypes: all of the network, by prototype_idx; empty for a black box.
        site_folder: where the pictures of the prototypes lie.

    Raises:
        PipelineError: an input is missing, damaged or does not fit the others.
    """
    write_masks_sheet(folder / MASKS_SHEET, images, masks=masks, crops=crops)
    write_prototypes_sheet(folder / PROTOTYPES_SHEET, prototypes, site_folder)
    write_mistakes_sheet(folder / MISTAKES_SHEET, images, per_image, head)


def write_masks_sheet(path: Path, images: ImagesTable, *, masks: Path, crops: Path) -> None:
    """Draw some images under all their masks, and beside it with those that became views.

    Args:
        path: of the picture.
        images: the data set; a sample of it is shown, which hangs on no param, so that branches show the same images.
        masks: ``masks.parquet``.
        crops: folder with shards.

    Raises:
        PipelineError: an image, mask or view is missing, damaged, or does not fit the others.
    """
    keys, labels = [row.image_key for row in images.rows], [row.label for row in images.rows]
    rows = [images.rows[idx] for idx in draw_evenly(keys, labels, _NUM_MASK_IMAGES, seed=0)]
    columns = 3
    side_px = _side_px(columns, pictures=2)
    tiles = []
    for image in masked_images(rows, masks=masks, crops=crops):
        drawn = draw_masks(image, side_px=side_px, view_px=side_px)
        facts = f"{len(image.masks)} masks on {100 * drawn.covered_frac:.1f} %, {len(image.chosen)} views"
        tiles.append(Tile((drawn.masks, drawn.chosen), (image.row.class_name, facts)))
    write_sheet(path, "All masks of some images, and those that became views", tiles, columns=columns)


def write_prototypes_sheet(path: Path, prototypes: Sequence[ShownPrototype], site_folder: Path) -> None:
    """Draw some prototypes: the training image, and the view or place that they are shown by.

    Slots and not usage decide which are shown, so that branches show the same slots.

    Args:
        path: of the picture.
        prototypes: all of the network; empty for a black box.
        site_folder: where their pictures lie.
    """
    title = "Some prototypes of every class"
    of_class: dict[str, list[ShownPrototype]] = {}
    for prototype in prototypes:
        if prototype.photograph is not None and prototype.view is not None:
            of_class.setdefault(prototype.class_name, []).append(prototype)
    if not of_class:
        why = "This network has no prototypes: it is a black box." if not prototypes else "No prototype has a picture."
        write_sheet(path, "Prototypes", [], columns=1, instead=why)
        return
    names = list(of_class)
    if len(names) > NUM_TILES:
        names = [names[position * len(names) // NUM_TILES] for position in range(NUM_TILES)]
        title = f"A prototype of {NUM_TILES} of {len(of_class)} classes"
    per_class = max(1, NUM_TILES // len(names))
    tiles = []
    for name in names:
        for prototype in of_class[name][:per_class]:
            both = (prototype.photograph, prototype.view)
            pictures = tuple(_picture(site_folder / shown.src) for shown in both if shown is not None)
            tiles.append(Tile(pictures, (name, f"prototype {prototype.prototype_idx}")))
    write_sheet(path, title, tiles, columns=4)


def _picture(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    picture: np.ndarray = simplejpeg.decode_jpeg(path.read_bytes(), "RGB")
    return picture


def write_mistakes_sheet(path: Path, images: ImagesTable, per_image: Path, head: str) -> None:
    """Draw the test images that the network is most sure of, and wrong about.

    Args:
        path: of the picture.
        images: the data set.
        per_image: ``per_image.parquet``.
        head: of the network.

    Raises:
        PipelineError: the table or an image is missing or damaged, or the table has no row of HEAD.
    """
    table = read_table(per_image, PER_IMAGE)
    table = table.filter(pc.equal(table["row"], head)).select(["image_key", "label", "predicted", "confidence"])
    if not table.num_rows:
        raise PipelineError(f"{per_image} has no row `{head}`: run `dvc repro evaluate`")
    wrong = table.filter(pc.not_equal(table["predicted"], table["label"])).to_pylist()
    wrong.sort(key=lambda row: (-row["confidence"], row["image_key"]))
    by_key = {row.image_key: row for row in images.rows}
    columns = 6
    side_px = _side_px(columns, pictures=1)
    tiles = []
    for row in wrong[:_NUM_MISTAKES]:
        image = _image_row(by_key, row["image_key"], per_image)
        lines = (
            images.class_names[row["predicted"]],
            f"predicted, {100 * row['confidence']:.0f} %",
            images.class_names[row["label"]],
            "true class",
        )
        tiles.append(Tile((shrunk(read_image(image.path), side_px),), lines))
    title = f"Most confident mistakes: {len(tiles)} of {len(wrong)}, among {table.num_rows} test images"
    write_sheet(path, title, tiles, columns=columns, instead="The network made no mistake.")


def _image_row(by_key: dict[str, ImageRow], image_key: str, per_image: Path) -> ImageRow:
    if image_key not in by_key:
        raise PipelineError(f"{per_image} names {image_key}, which is no image of the data set: run `dvc repro`")
    return by_key[image_key]


def _side_px(columns: int, *, pictures: int) -> int:
    """The side of the squares for pictures when each of the COLUMNS holds so many."""
    tile = (WIDTH_PX - (columns + 1) * _GAP_PX) // columns
    return (tile - (pictures - 1) * _GAP_PX // 4) // pictures


def write_sheet(path: Path, title: str, tiles: Sequence[Tile], *, columns: int, instead: str = "") -> None:
    """Lay tiles out in rows, as wide as every sheet, and write them as a JPEG file.

    Args:
        path: of the picture.
        title: stands above.
        tiles: equally many pictures and lines in each.
        columns: tiles per row.
        instead: what is said where there is no tile.
    """
    pictures = max((len(tile.pictures) for tile in tiles), default=1)
    num_lines = max((len(tile.lines) for tile in tiles), default=0)
    side = _side_px(columns, pictures=pictures)
    tile_width = (WIDTH_PX - (columns + 1) * _GAP_PX) // columns
    tile_height = side + num_lines * _LINE_PX + _GAP_PX
    num_rows = -(-len(tiles) // columns)
    top = 2 * _GAP_PX + _TITLE_PX
    canvas = Image.new("RGB", (WIDTH_PX, top + (num_rows * tile_height or 3 * _LINE_PX) + _GAP_PX), PAPER_RGB)
    draw = ImageDraw.Draw(canvas)
    full = WIDTH_PX - 2 * _GAP_PX
    write_line(draw, title, (_GAP_PX, _GAP_PX), width_px=full, letters_px=_TITLE_PX, colour=TEXT_RGB)
    if not tiles:
        write_line(draw, instead, (_GAP_PX, top), width_px=full, letters_px=_LETTERS_PX, colour=TEXT_RGB)
    for position, tile in enumerate(tiles):
        row, column = divmod(position, columns)
        x, y = _GAP_PX + column * (tile_width + _GAP_PX), top + row * tile_height
        for idx, picture in enumerate(tile.pictures):
            small = fitted(picture, side)
            canvas.paste(small, (x + idx * (side + _GAP_PX // 4), y + side - small.height))
        for idx, line in enumerate(tile.lines):
            at, colour = (x, y + side + 4 + idx * _LINE_PX), SOFT_RGB if idx % 2 else TEXT_RGB
            write_line(draw, line, at, width_px=tile_width, letters_px=_LETTERS_PX, colour=colour)
    # no chroma subsampling: it would smear letters and coloured lines
    path.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(canvas), _QUALITY, "RGB", "444"))
