"""What surrounds a synthetic bird: the blurred scenery behind it, and the light and sensor of the picture.

Neither knows the species. Scenery takes its colours from the same range as plumage, so colour alone gives no bird away.
"""

import colorsys

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageDraw, ImageFilter

from pipeline.data.datasets.bird_painter import Colour, Points, smooth_outline

# far and near end of a gradient: sky, foliage, autumn, dusk, haze, water, meadow
_MOODS: tuple[tuple[Colour, Colour], ...] = (
    ((120, 170, 225), (225, 235, 245)),
    ((40, 80, 38), (150, 185, 95)),
    ((120, 78, 40), (222, 178, 100)),
    ((105, 85, 140), (238, 170, 150)),
    ((140, 145, 145), (215, 215, 205)),
    ((45, 90, 115), (140, 190, 195)),
    ((95, 125, 50), (225, 215, 130)),
)
_WOOD: tuple[Colour, ...] = (
    (95, 70, 48), (125, 100, 75), (60, 48, 40), (160, 120, 80), (150, 140, 125), (70, 110, 45), (225, 215, 195),
)  # fmt: skip
# leaves, stones and flowers, among them the red, yellow, blue, orange, black and white of the birds
_CLUTTER: tuple[Colour, ...] = (
    *_WOOD, (70, 110, 45), (105, 145, 60), (45, 75, 40), (150, 170, 80), (190, 50, 40), (230, 190, 50),
    (55, 95, 185), (235, 140, 40), (30, 28, 30), (240, 238, 228),
)  # fmt: skip


def draw_backdrop(rng: np.random.Generator, size_px: int) -> Float32[np.ndarray, "size size 3"]:
    """Draw scenery: a gradient with blurred blobs, before it leaves, twigs and spots, more or less out of focus.

    Returns:
        RGB, 0-255.
    """
    far = Image.fromarray(_gradient(rng))
    draw = ImageDraw.Draw(far)
    for _ in range(rng.integers(5, 14)):
        x, y = rng.uniform(0, far.width, 2)
        radius_x, radius_y = rng.uniform(3, 14, 2)
        draw.ellipse((x - radius_x, y - radius_y, x + radius_x, y + radius_y), fill=_clutter_colour(rng))
    far = far.filter(ImageFilter.GaussianBlur(rng.uniform(2.0, 4.0)))
    picture = far.resize((2 * size_px, 2 * size_px), Image.Resampling.BILINEAR)

    draw = ImageDraw.Draw(picture)
    unit = 2.0 * size_px
    for _ in range(rng.integers(1, 5)):
        _draw_twig(draw, rng, unit)
    for _ in range(rng.integers(8, 30)):
        if rng.random() < 0.75:
            leaf = leaf_outline(rng.uniform(0, 1, 2), rng.uniform(0.04, 0.15), rng.uniform(0, 2 * np.pi)) * unit
            draw.polygon(leaf.ravel().tolist(), fill=_clutter_colour(rng))
        else:
            (x, y), radius = rng.uniform(0, unit, 2), rng.uniform(0.01, 0.05) * unit
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_clutter_colour(rng))
    picture = picture.reduce(2).filter(ImageFilter.BoxBlur(rng.uniform(0.002, 0.016) * size_px))
    return np.asarray(picture, dtype=np.float32)


def leaf_outline(tip: Float[np.ndarray, " 2"], length: float, direction: float) -> Points:
    """Give the outline of a leaf of LENGTH whose tip points in DIRECTION (radians, from x to y)."""
    shape = np.array([[0, 0], [-0.3, 0.17], [-0.65, 0.2], [-1, 0], [-0.65, -0.2], [-0.3, -0.17]], dtype=np.float64)
    cos, sin = np.cos(direction), np.sin(direction)
    outline: Points = tip + length * smooth_outline(shape, samples=5) @ np.array([[cos, sin], [-sin, cos]])
    return outline


def add_light_and_noise(
    image: Float32[np.ndarray, "size size 3"], rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """Photograph IMAGE (RGB, 0-255): soft shadows, colour temperature, contrast, brightness, slight blur, noise.

    No draw depends on what the image shows, and the blur reaches one pixel far: where two images agree, so do their
    photographs, but for that one pixel.
    """
    size_px = image.shape[0]
    shadows = Image.fromarray(rng.uniform(0.72, 1.12, (4, 4)).astype(np.float32))
    light = np.asarray(shadows.resize((size_px, size_px), Image.Resampling.BICUBIC))
    warmth, contrast, brightness = rng.uniform(-0.09, 0.09), rng.uniform(0.85, 1.15), rng.uniform(-14, 14)
    gains = np.array([1 + warmth, 1, 1 - warmth], dtype=np.float32) * np.float32(contrast)
    lit = image * light[..., None] * gains + np.float32(128 * (1 - contrast) + brightness)

    side = np.float32(rng.uniform(0, 0.2))  # weight of each neighbour
    rows = np.pad(lit, ((1, 1), (0, 0), (0, 0)), mode="edge")
    lit = lit * (1 - 2 * side) + side * (rows[:-2] + rows[2:])
    columns = np.pad(lit, ((0, 0), (1, 1), (0, 0)), mode="edge")
    lit = lit * (1 - 2 * side) + side * (columns[:, :-2] + columns[:, 2:])

    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.5, 5))
    return np.asarray(np.clip(np.rint(lit + noise), 0, 255), dtype=np.uint8)


def _gradient(rng: np.random.Generator) -> UInt8[np.ndarray, "64 64 3"]:
    mood = np.array(_MOODS[rng.integers(len(_MOODS))])
    mood = mood[:: rng.choice((-1, 1))] + rng.uniform(-20, 20, (2, 3))
    direction = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[-1:1:64j, -1:1:64j]
    share = 0.5 + 0.5 * (rows * np.sin(direction) + columns * np.cos(direction)) / np.sqrt(2)
    mixed = mood[0] + share[..., None] * (mood[1] - mood[0])
    return np.asarray(np.clip(mixed, 0, 255), dtype=np.uint8)


def _clutter_colour(rng: np.random.Generator, palette: tuple[Colour, ...] = _CLUTTER) -> Colour:
    red, green, blue = np.array(palette[rng.integers(len(palette))]) / 255
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    hue, factors = hue + rng.uniform(-0.03, 0.03), rng.uniform(0.75, 1.15, 2)
    mixed = colorsys.hsv_to_rgb(hue % 1, min(1, saturation * factors[0]), min(1, value * factors[1]))
    return round(mixed[0] * 255), round(mixed[1] * 255), round(mixed[2] * 255)


def _draw_twig(draw: ImageDraw.ImageDraw, rng: np.random.Generator, unit: float) -> None:
    start, direction = rng.uniform(0, 1, 2), rng.uniform(0, np.pi)
    steps = np.linspace(-1.2, 1.2, 12)
    bend = rng.uniform(-0.15, 0.15)
    path = start + np.stack(
        [steps * np.cos(direction) - bend * steps**2 * np.sin(direction),
         steps * np.sin(direction) + bend * steps**2 * np.cos(direction)], axis=1,
    )  # fmt: skip
    width = round(rng.uniform(0.008, 0.03) * unit)
    draw.line((path * unit).ravel().tolist(), fill=_clutter_colour(rng, _WOOD), width=width, joint="curve")
