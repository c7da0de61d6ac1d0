"""A small painter: smooth outlines become anti-aliased colour and, from the same coverage, an exact id map.

Points are rows of ``x, y`` in image pixels, x to the right and y down; pixel ``[row, column]`` is the square
``[column, column + 1) x [row, row + 1)``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Points: TypeAlias = Float[np.ndarray, "_ 2"]
"""Rows of x, y; as many as there are."""
Colour: TypeAlias = tuple[int, int, int]
"""Red, green, blue, 0-255."""

_SUPERSAMPLING = 4
_CATMULL_ROM = 0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]], dtype=np.float64)


def smooth_outline(corners: Points, samples: int = 8) -> Points:
    """Draw a closed, smooth (Catmull-Rom) curve through CORNERS, with so many SAMPLES between two of them."""
    t = np.arange(samples) / samples
    weights = np.stack([np.ones_like(t), t, t**2, t**3], axis=1) @ _CATMULL_ROM  # (sample, 4)
    neighbours = np.stack([np.roll(corners, shift, axis=0) for shift in (1, 0, -1, -2)])  # (4, corner, 2)
    curve: Points = np.einsum("sn,ncx->csx", weights, neighbours).reshape(-1, 2)
    return curve


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> Points:
    """Give the outline of an upright ellipse around X, Y."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], axis=1)


def ribbon(path: Points, widths: Sequence[float]) -> Points:
    """Give the outline of a band along PATH that is as wide at each point as WIDTHS says."""
    along = np.gradient(path, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    offset = across * np.asarray(widths, dtype=np.float64)[:, None] / 2
    return np.concatenate([path + offset, (path - offset)[::-1]])


@dataclass(frozen=True, slots=True)
class Stencil:
    """Where a shape covers the image: a black-and-white picture, supersampled, of the part around the shape.

    Attributes:
        x0: first column, image pixels.
        y0: first row, image pixels.
        picture: mode L, 0 or 255, ``_SUPERSAMPLING`` pixels for each pixel of the image; never empty.
    """

    x0: int
    y0: int
    picture: Image.Image

    def clipped(self, other: "Stencil") -> "Stencil":
        """Keep only what OTHER covers, too."""
        left, top = ((self.x0 - other.x0) * _SUPERSAMPLING, (self.y0 - other.y0) * _SUPERSAMPLING)
        window = other.picture.crop((left, top, left + self.picture.width, top + self.picture.height))
        return Stencil(self.x0, self.y0, ImageChops.darker(self.picture, window))


class Painter(ABC):
    """Takes stencils from back to front; what becomes of them is up to the subclasses."""

    def __init__(self, size_px: int) -> None:
        self.size_px = size_px

    def stencil(self, *outlines: Points) -> Stencil:
        """Cut one stencil from the union of OUTLINES; what lies outside the image is left out."""
        corners = np.concatenate(outlines)
        x0, y0 = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, self.size_px - 1).tolist()
        x1, y1 = np.clip(np.ceil(corners.max(axis=0)).astype(int), (x0 + 1, y0 + 1), self.size_px).tolist()
        picture = Image.new("L", ((x1 - x0) * _SUPERSAMPLING, (y1 - y0) * _SUPERSAMPLING))
        draw = ImageDraw.Draw(picture)
        for outline in outlines:
            # Pillow's polygon takes the centre of pixel (0, 0) for the origin; ours is its corner
            draw.polygon(((outline - (x0, y0)) * _SUPERSAMPLING - 0.5).ravel().tolist(), fill=255)
        return Stencil(x0, y0, picture)

    @abstractmethod
    def paint(
        self,
        stencil: Stencil,
        colour: Colour,
        *,
        owner: int,
        rim_px: float = 0.0,
    ) -> None:
        """Lay a shape over what is there.

        Args:
            stencil: where.
            colour: what.
            owner: whose the shape is; 0 is nobody's.
            rim_px: how far a darker rim reaches inwards, which makes the shape look round; 0 for none.
        """

    @abstractmethod
    def paint_detail(
        self,
        outline: Points,
        within: Stencil,
        colour: Colour,
        *,
        owner: int,
        opacity: float = 1.0,
    ) -> None:
        """Lay a marking on the shape painted with the stencil WITHIN; see :meth:`paint`.

        Args:
            outline: of the marking; what lies outside the shape is left out.
            within: where the shape lies.
            colour: what.
            owner: whose the shape is.
            opacity: 0-1.
        """


class IdPainter(Painter):
    """Notes who owns each pixel: the last shape that covers half of it or more.

    Attributes:
        ids: the owner's id; 0 at the start.
    """

    def __init__(self, size_px: int) -> None:
        super().__init__(size_px)
        self.ids: UInt8[np.ndarray, "size size"] = np.zeros((size_px, size_px), dtype=np.uint8)

    def paint(
        self,
        stencil: Stencil,
        colour: Colour,
        *,
        owner: int,
        rim_px: float = 0.0,
    ) -> None:
        """Make OWNER the owner of what STENCIL covers; see the base class."""
        coverage, window = _coverage(stencil)
        self.ids[window][coverage >= 128] = owner

    def paint_detail(
        self,
        outline: Points,
        within: Stencil,
        colour: Colour,
        *,
        owner: int,
        opacity: float = 1.0,
    ) -> None:
        """Do nothing: a marking is its shape's."""


class ColourPainter(Painter):
    """Paints a picture that keeps to the ids: nobody's colour gets further than one pixel from what is theirs.

    Without that limit, slivers narrower than half a pixel (a tail between wing and trunk) would tint pixels that
    belong to others all around.

    Attributes:
        image: RGB, 0-255.
    """

    def __init__(
        self,
        image: Float32[np.ndarray, "size size 3"],
        ids: UInt8[np.ndarray, "size size"],
        shade: Float32[np.ndarray, "size size"],
    ) -> None:
        """Start from IMAGE; IDS limits, and SHADE (a brightness factor) models, the shapes that are somebody's."""
        super().__init__(image.shape[0])
        self.image = image.copy()
        self._shade = shade
        self._reach = {owner: _grown(ids == owner) for owner in np.unique(ids).tolist() if owner != 0}
        self._nowhere = np.zeros(ids.shape, dtype=np.bool_)

    def paint(
        self,
        stencil: Stencil,
        colour: Colour,
        *,
        owner: int,
        rim_px: float = 0.0,
    ) -> None:
        """Lay COLOUR over what STENCIL covers; see the base class."""
        self._blend(stencil, colour, owner, rim_px, opacity=1.0)

    def paint_detail(
        self,
        outline: Points,
        within: Stencil,
        colour: Colour,
        *,
        owner: int,
        opacity: float = 1.0,
    ) -> None:
        """Lay COLOUR over what OUTLINE covers of WITHIN; see the base class."""
        self._blend(self.stencil(outline).clipped(within), colour, owner, rim_px=0.0, opacity=opacity)

    def _blend(
        self,
        stencil: Stencil,
        colour: Colour,
        owner: int,
        rim_px: float,
        opacity: float,
    ) -> None:
        coverage, window = _coverage(stencil)
        alpha = coverage * np.float32(opacity / 255)
        factor = np.ones(coverage.shape, dtype=np.float32)
        if owner != 0:
            alpha = alpha * self._reach.get(owner, self._nowhere)[window]
            factor = self._shade[window]
        if rim_px > 0:
            factor = factor * _rim(coverage, rim_px)
        beneath = self.image[window]
        beneath += alpha[..., None] * (factor[..., None] * np.asarray(colour, dtype=np.float32) - beneath)


def _coverage(stencil: Stencil) -> tuple[UInt8[np.ndarray, "height width"], tuple[slice, slice]]:
    """Give how much of each pixel STENCIL covers (255 is all) and which window of the image these pixels are."""
    coverage = np.asarray(stencil.picture.reduce(_SUPERSAMPLING))
    height, width = coverage.shape
    return coverage, (slice(stencil.y0, stencil.y0 + height), slice(stencil.x0, stencil.x0 + width))


def _grown(mask: Bool[np.ndarray, "size size"]) -> Bool[np.ndarray, "size size"]:
    """Add the eight neighbours of every pixel in MASK."""
    padded = np.pad(mask, 1)
    tall = padded[:-2] | padded[1:-1] | padded[2:]
    grown: Bool[np.ndarray, "size size"] = tall[:, :-2] | tall[:, 1:-1] | tall[:, 2:]
    return grown


def _rim(coverage: UInt8[np.ndarray, "height width"], rim_px: float) -> Float32[np.ndarray, "height width"]:
    margin = int(np.ceil(2 * rim_px))
    soft = Image.fromarray(np.pad(coverage, margin)).filter(ImageFilter.GaussianBlur(rim_px))
    inside = np.asarray(soft, dtype=np.float32)[margin:-margin, margin:-margin] / np.float32(255)
    depth = np.clip(inside * 2 - 1, 0, 1)  # 0 on the outline, 1 from about ``rim_px`` inwards
    return np.asarray(np.float32(0.58) + np.float32(0.42) * depth ** np.float32(0.6), dtype=np.float32)
