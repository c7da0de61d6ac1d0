"""What drawings in one piece are made of: pictures brought to a size, and lines of text that fit."""

import bisect
import functools
import math
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

PAPER_RGB = (255, 255, 255)
TEXT_RGB = (27, 32, 38)
SOFT_RGB = (85, 96, 108)


@functools.cache
def letters(height_px: int) -> ImageFont.FreeTypeFont:
    """Give the font of drawings: DejaVu Sans, which comes with matplotlib.

    It knows the alphabets of Europe; Chinese, Japanese and Korean letters become boxes, and writing from right to left
    is not turned around. Pages know all of them.
    """
    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(path, height_px, layout_engine=ImageFont.Layout.BASIC)


def fitted(picture: UInt8[np.ndarray, "height width 3"], side_px: int) -> Image.Image:
    """Bring the longer side to SIDE_PX."""
    height, width = picture.shape[:2]
    scale = side_px / max(height, width)
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    return Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)


def write_line(
    draw: ImageDraw.ImageDraw,
    text: str,
    at: tuple[int, int],
    *,
    width_px: int,
    letters_px: int,
    colour: tuple[int, int, int],
) -> None:
    """Write TEXT on one line, its upper left corner at AT, shortened to WIDTH_PX; letters are LETTERS_PX high."""
    font = letters(letters_px)
    draw.text(at, shortened(text, width_px, font), fill=colour, font=font)


def shortened(text: str, width_px: int, font: ImageFont.FreeTypeFont) -> str:
    """Cut the end of TEXT off, if need be, so that it fits; an ellipsis says so."""
    line = " ".join(text.split())
    if font.getlength(line) <= width_px:
        return line
    # a longer beginning is never narrower, but for what kerning does
    fits = bisect.bisect_right(
        range(1, len(line)), width_px, key=lambda length: math.ceil(font.getlength(_cut(line, length)))
    )
    return _cut(line, fits) if fits else "…"


def _cut(line: str, length: int) -> str:
    return f"{line[:length].rstrip()}…"
