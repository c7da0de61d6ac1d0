"""Pictures of any file format and mode, brought to uint8 RGB in one place."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import PipelineError

Image.MAX_IMAGE_PIXELS = None  # the users' own pictures, however large; a decompression bomb is theirs too

_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")


class UnreadableImageError(PipelineError):
    """The file is no picture, or ends in the middle of one."""


def decode_image(content: bytes, name: str | Path) -> UInt8[np.ndarray, "height width 3"]:
    """Decode the bytes of a picture file to RGB.

    The EXIF orientation is applied, so rows and columns are those a viewer shows. 16-bit grey is scaled to 8 bits,
    palettes are looked up, CMYK is converted, and transparency is laid over white.

    Args:
        content: the whole file (JPEG, PNG, WebP, TIFF, BMP, GIF's first frame, ...).
        name: what to call the picture in an error.

    Raises:
        UnreadableImageError: not a picture, or a truncated one.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()  # raises on truncation; PIL is lazy before
            picture = ImageOps.exif_transpose(opened)
    except UnidentifiedImageError:  # PIL's own words are the address of the buffer
        raise UnreadableImageError(
            f"{name}: cannot be decoded (no known picture format); replace the file or remove it from the data"
        ) from None
    except Exception as error:  # whatever a damaged file makes PIL trip over: OSError, struct.error, MemoryError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(
            f"{name}: cannot be decoded ({reason}); replace the file or remove it from the data"
        ) from None
    return np.asarray(_to_rgb(picture))


def read_image(path: Path) -> UInt8[np.ndarray, "height width 3"]:
    """Read a picture file as RGB; see :func:`decode_image`.

    Raises:
        PipelineError: the file does not exist, or cannot be read.
        UnreadableImageError: not a picture, or a truncated one.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise PipelineError(f"{path}: this image does not exist") from None
    except OSError as error:  # a folder, or a file of somebody else
        raise PipelineError(f"{path}: cannot be read ({error.strerror})") from None
    return decode_image(content, path)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in (*_SIXTEEN_BIT_MODES, "I"):
        wide = np.asarray(picture).astype(np.int64).clip(0, 65535)
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        return Image.fromarray(np.asarray(picture).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")
