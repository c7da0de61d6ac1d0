"""Draws a synthetic bird: any species in any scene, whole or without some of its parts.

A scene (pose, scenery, light, noise) is drawn from its seed alone. So two species in one scene, or one species with
and without a part, differ at the pixels of the parts in question and nowhere else, but for the anti-aliased border.

Lengths of the body plan are in body units (a bird is about two units long), the bird looks to the right, x runs to
the right and y down; the middle of the trunk is the origin.
"""

import colorsys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from pipeline.data.datasets.bird_backdrop import add_light_and_noise, draw_backdrop, leaf_outline
from pipeline.data.datasets.bird_painter import (
    Colour,
    ColourPainter,
    IdPainter,
    Painter,
    Points,
    Stencil,
    ellipse,
    ribbon,
    smooth_outline,
)
from pipeline.data.datasets.bird_species import PART_NAMES, Species

BODY = "body"
"""The bird but for its parts, as a layer that can be left out."""
ALL_LAYERS = frozenset({*PART_NAMES, BODY})
"""Everything of a bird that can be drawn or left out."""

_OWNER = {layer: layer_idx + 1 for layer_idx, layer in enumerate((*PART_NAMES, BODY))}
_NOBODY = 0  # perch and leaves


@dataclass(frozen=True, slots=True)
class Rendering:
    """One picture and its truth.

    Attributes:
        image: RGB.
        part_ids: ``part_idx + 1`` where a part is the topmost thing that covers half of the pixel or more, else 0.
        object_mask: the whole bird, parts and body, as far as it is seen.
    """

    image: UInt8[np.ndarray, "size size 3"]
    part_ids: UInt8[np.ndarray, "size size"]
    object_mask: Bool[np.ndarray, "size size"]


def render(
    species: Species, scene_seed: Sequence[int], size_px: int, layers: Collection[str] = ALL_LAYERS
) -> Rendering:
    """Draw SPECIES in the scene of SCENE_SEED.

    Args:
        species: what the parts look like.
        scene_seed: non-negative integers; equal seeds give the same pose, scenery, light and noise.
        size_px: side of the square image.
        layers: names of the parts to draw, and ``BODY``; what is left out uncovers what lies behind it.
    """
    pose = _draw_pose(scene_seed)
    ids = _draw_ids(species, pose, size_px, layers)
    painter = ColourPainter(backdrop_of(scene_seed, size_px), ids, _body_shade(pose, size_px))
    _Bird(species, pose, painter, layers).paint()
    image = add_light_and_noise(painter.image, np.random.default_rng([*scene_seed, 2]))
    return Rendering(image, *_truth(ids))


def render_masks(
    species: Species, scene_seed: Sequence[int], size_px: int, layers: Collection[str] = ALL_LAYERS
) -> tuple[UInt8[np.ndarray, "size size"], Bool[np.ndarray, "size size"]]:
    """Give ``part_ids`` and ``object_mask`` of :func:`render`, in a fraction of its time."""
    return _truth(_draw_ids(species, _draw_pose(scene_seed), size_px, layers))


def paint_bird(
    species: Species, scene_seed: Sequence[int], painter: Painter, layers: Collection[str] = ALL_LAYERS
) -> None:
    """Let PAINTER have the shapes of the bird, its perch and the leaves before it, from back to front."""
    _Bird(species, _draw_pose(scene_seed), painter, layers).paint()


def backdrop_of(scene_seed: Sequence[int], size_px: int) -> Float32[np.ndarray, "size size 3"]:
    """Draw what lies behind the bird in the scene of SCENE_SEED: RGB, 0-255 but for overshoots."""
    return draw_backdrop(np.random.default_rng([*scene_seed, 0]), size_px)


def _draw_ids(species: Species, pose: "_Pose", size_px: int, layers: Collection[str]) -> UInt8[np.ndarray, "size size"]:
    painter = IdPainter(size_px)
    _Bird(species, pose, painter, layers).paint()
    return painter.ids


def _truth(
    ids: UInt8[np.ndarray, "size size"],
) -> tuple[UInt8[np.ndarray, "size size"], Bool[np.ndarray, "size size"]]:
    return np.where(ids == _OWNER[BODY], 0, ids).astype(np.uint8), ids > 0


@dataclass(frozen=True, slots=True)
class _Pose:
    """Everything random about the bird and its perch; angles in radians, lengths as shares of the image side."""

    facing: int  # 1 to the right, -1 to the left
    angle: float
    unit: float  # one body unit
    stretch: float  # length of the body against its height
    x: float
    y: float
    head_angle: float
    head_turn: float  # 1 in profile, smaller when turned towards the viewer
    tail_angle: float
    wing_angle: float
    perch_angle: float
    perch_bend: float
    perch_width: float
    light_angle: float
    texture_phase: float
    tints: Float[np.ndarray, "layer 3"]  # shifts of hue, and factors of saturation and value; perch is the last layer
    leaves: Float[np.ndarray, "leaf 4"]  # in front of the perch: place along it, side, length, direction


def _draw_pose(scene_seed: Sequence[int]) -> _Pose:
    rng = np.random.default_rng([*scene_seed, 1])
    num_layers = len(PART_NAMES) + 2
    return _Pose(
        facing=int(rng.choice((-1, 1))),
        angle=np.radians(rng.uniform(-25, 25)),
        unit=rng.uniform(0.28, 0.34),
        stretch=rng.uniform(0.96, 1.05),
        x=rng.uniform(0.46, 0.54),
        y=rng.uniform(0.46, 0.54),
        head_angle=np.radians(rng.uniform(-13, 13)),
        head_turn=rng.uniform(0.86, 1.0),
        tail_angle=np.radians(rng.uniform(-13, 13)),
        wing_angle=np.radians(rng.uniform(-6, 6)),
        perch_angle=np.radians(rng.uniform(-20, 20)),
        perch_bend=rng.uniform(-0.12, 0.12),
        perch_width=rng.uniform(0.03, 0.055),
        light_angle=np.radians(rng.uniform(-140, -40)),
        texture_phase=rng.uniform(0, 2 * np.pi),
        tints=np.stack([rng.uniform(-0.012, 0.012, num_layers), *rng.uniform(0.88, 1.1, (2, num_layers))], axis=1),
        leaves=rng.uniform((-0.5, 0.4, 0.07, 0.6), (0.5, 1.0, 0.13, 2.6), (rng.integers(0, 4), 4)),
    )


_PLUMAGE: Colour = (150, 126, 100)
_HORN: Colour = (62, 58, 56)
_WHITE: Colour = (244, 240, 228)
_BLACK: Colour = (30, 28, 32)
_BREASTS: dict[str, Colour] = {
    "cream": (226, 210, 178),
    "red": (205, 62, 38),
    "yellow": (240, 198, 48),
    "spots": (232, 222, 198),
    "band": (236, 228, 208),
}
_CROWNS: dict[str, Colour] = {"plain": (122, 92, 64), "cap": _BLACK, "crest": (214, 84, 36)}
_WINGS: dict[str, Colour] = {"plain": (112, 88, 66), "bars": (84, 70, 60), "blue": (52, 100, 188)}
_LEGS: dict[str, Colour] = {"dark": (72, 58, 52), "orange": (238, 128, 30)}
_BEAKS: dict[str, Colour] = {"cone": _HORN, "long": (48, 44, 44), "hooked": (232, 176, 52)}
_TAIL: Colour = (96, 76, 60)
_BARK: Colour = (112, 88, 66)
_LEAF: Colour = (96, 138, 58)

_NECK = np.array([0.24, -0.38])
_TAIL_BASE = np.array([-0.62, 0.30])
_SHOULDER = np.array([0.16, -0.14])
_FEET = np.array([0.08, 0.90])
_MIDDLE = np.array([-0.20, 0.0])  # of beak, tail and feet: what stands near the middle of the image

_TRUNK = np.array(
    [[0.10, -0.68], [-0.16, -0.40], [-0.48, -0.06], [-0.76, 0.24], [-0.72, 0.40], [-0.44, 0.52], [-0.10, 0.60],
     [0.22, 0.52], [0.46, 0.26], [0.56, -0.06], [0.58, -0.38], [0.40, -0.66]]
)  # fmt: skip
_BREAST = np.array(
    [[0.70, -0.40], [0.68, 0.1], [0.44, 0.56], [0.06, 0.72], [-0.34, 0.66], [-0.22, 0.42], [0.10, 0.20],
     [0.26, -0.08], [0.36, -0.34], [0.52, -0.44]]
)  # fmt: skip
_WING = np.array(
    [[0.27, -0.10], [0.12, -0.27], [-0.16, -0.20], [-0.46, 0.04], [-0.76, 0.34], [-0.94, 0.52], [-0.70, 0.45],
     [-0.44, 0.41], [-0.12, 0.33], [0.16, 0.15]]
)  # fmt: skip
_CAP = np.array(
    [[0.66, -0.66], [0.60, -0.84], [0.42, -0.94], [0.20, -0.90], [0.04, -0.76], [0.00, -0.56], [0.10, -0.56],
     [0.26, -0.68], [0.48, -0.72]]
)  # fmt: skip
_CREST = np.array(
    [[0.64, -0.66], [0.60, -0.82], [0.42, -0.98], [0.14, -1.13], [-0.18, -1.26], [-0.12, -1.12], [-0.24, -1.06],
     [-0.10, -0.94], [-0.12, -0.84], [0.04, -0.72], [0.26, -0.72], [0.48, -0.73]]
)  # fmt: skip


class _Bird:
    """One species in one pose on one painter."""

    def __init__(self, species: Species, pose: _Pose, painter: Painter, layers: Collection[str]) -> None:
        self._species = species
        self._pose = pose
        self._painter = painter
        self._layers = layers
        self._trunk = _placement(pose, painter.size_px)
        self._head = self._trunk @ _turned(_NECK, pose.head_angle) @ _squeezed(_NECK[0], pose.head_turn)
        self._tail = self._trunk @ _turned(_TAIL_BASE, pose.tail_angle)
        self._wing = self._trunk @ _turned(_SHOULDER, pose.wing_angle)

    def paint(self) -> None:
        """Paint the perch and the bird on it, from back to front."""
        self._paint_perch()
        self._paint_tail()
        self._paint_legs()
        self._paint_body_and_breast()
        self._paint_crown()
        self._paint_beak()
        self._paint_eye()
        self._paint_wing()
        self._paint_leaves()

    def _tint(self, colour: Colour, layer: int) -> Colour:
        """Vary COLOUR a little, in the same way for every species of this scene."""
        hue_shift, saturation_factor, value_factor = self._pose.tints[layer]
        hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
        mixed = colorsys.hsv_to_rgb((hue + hue_shift) % 1, min(1, saturation * saturation_factor), value * value_factor)
        return round(mixed[0] * 255), round(mixed[1] * 255), round(mixed[2] * 255)

    def _paint(self, stencil: Stencil, colour: Colour, layer: str, rim: float = 0.0) -> None:
        """Paint STENCIL as LAYER, with a RIM in body units."""
        owner, rim_px = _OWNER[layer], rim * self._pose.unit * self._painter.size_px
        self._painter.paint(stencil, self._tint(colour, owner - 1), owner=owner, rim_px=rim_px)

    def _mark(self, outline: Points, within: Stencil, colour: Colour, layer: str, opacity: float = 1.0) -> None:
        """Paint the marking OUTLINE (image pixels) on the shape WITHIN of LAYER."""
        self._painter.paint_detail(outline, within, colour, owner=_OWNER[layer], opacity=opacity)

    def _paint_tail(self) -> None:
        if "tail" not in self._layers:
            return
        length = {"short": 0.44, "forked": 0.90, "long": 1.20}[self._species.tail]
        if self._species.tail == "forked":
            shape = [[0.10, -0.15], [-0.5 * length, -0.15], [-length, -0.36], [-0.52 * length, 0.0], [-length, 0.36],
                     [-0.5 * length, 0.15], [0.10, 0.15]]  # fmt: skip
            outline = np.array(shape)
        else:
            tip = 0.17 if self._species.tail == "short" else 0.10
            shape = [[0.10, -0.14], [-0.5 * length, -0.13], [-length, -tip], [-1.05 * length, 0.0], [-length, tip],
                     [-0.5 * length, 0.13], [0.10, 0.14]]  # fmt: skip
            outline = smooth_outline(np.array(shape), samples=6)
        frame = self._tail @ _shift(_TAIL_BASE) @ _turned(np.zeros(2), np.radians(-33))
        stencil = self._painter.stencil(_moved(outline, frame))
        self._paint(stencil, _TAIL, "tail", rim=0.02)
        for side in (-0.5, 0.0, 0.5):
            path = np.array([[0.05, 0.12 * side], [-0.5 * length, 0.16 * side], [-length, 0.3 * side]])
            self._mark(_moved(ribbon(path, (0.012, 0.018, 0.018)), frame), stencil, _BLACK, "tail", 0.45)

    def _paint_legs(self) -> None:
        if "leg" not in self._layers:
            return
        outlines = []
        for hip, foot in (((-0.06, 0.50), (0.00, 0.88)), ((0.12, 0.48), (0.17, 0.88))):
            knee = (hip[0] - 0.05, 0.70)
            outlines.append(ribbon(np.array([hip, knee, foot]), (0.09, 0.062, 0.055)))
            for toe in ((0.15, 0.05), (0.09, 0.09), (-0.11, 0.05)):
                tip = (foot[0] + toe[0], foot[1] + toe[1])
                outlines.append(ribbon(np.array([(foot[0], foot[1] - 0.03), tip]), (0.06, 0.035)))
        stencil = self._painter.stencil(*(_moved(outline, self._trunk) for outline in outlines))
        self._paint(stencil, _LEGS[self._species.leg], "leg")

    def _paint_body_and_breast(self) -> None:
        trunk = self._painter.stencil(_moved(smooth_outline(_TRUNK), self._trunk))
        head = self._painter.stencil(_moved(ellipse(0.36, -0.62, 0.31, 0.29), self._head))
        if BODY in self._layers:
            self._paint(trunk, _PLUMAGE, BODY, rim=0.05)
        if "breast" in self._layers:
            self._paint_breast(trunk)
        if BODY in self._layers:
            self._paint(head, _PLUMAGE, BODY, rim=0.0)

    def _paint_breast(self, trunk: Stencil) -> None:
        kind = self._species.breast
        stencil = self._painter.stencil(_moved(smooth_outline(_BREAST), self._trunk)).clipped(trunk)
        self._paint(stencil, _BREASTS[kind], "breast", rim=0.03)
        if kind == "spots":
            for row in range(5):
                for place in range(5):
                    x, y = 0.50 - 0.13 * place + 0.06 * (row % 2), -0.14 + 0.15 * row + 0.05 * place
                    self._mark(_moved(ellipse(x, y, 0.036, 0.046), self._trunk), stencil, (70, 48, 36), "breast")
        elif kind == "band":
            path = np.array([[0.06, -0.10], [0.28, 0.06], [0.50, 0.12], [0.74, 0.08]])
            self._mark(_moved(ribbon(path, [0.24] * 4), self._trunk), stencil, _BLACK, "breast")
        else:
            for place in range(5):
                path = np.array([[0.44 - 0.13 * place, 0.02 + 0.1 * place], [0.36 - 0.13 * place, 0.13 + 0.1 * place]])
                self._mark(_moved(ribbon(path, (0.03, 0.008)), self._trunk), stencil, _BLACK, "breast", 0.12)

    def _paint_crown(self) -> None:
        if "crown" not in self._layers:
            return
        kind = self._species.crown
        outline = smooth_outline(_CREST if kind == "crest" else _CAP, samples=6)
        stencil = self._painter.stencil(_moved(outline, self._head))
        self._paint(stencil, _CROWNS[kind], "crown", rim=0.02)
        if kind == "crest":
            for height in (0.0, 0.07, 0.14):
                path = np.array([[0.40, -0.78 - height], [0.12, -0.86 - height], [-0.20, -1.00 - height]])
                self._mark(_moved(ribbon(path, (0.01, 0.022, 0.012)), self._head), stencil, _BLACK, "crown", 0.35)

    def _paint_beak(self) -> None:
        if "beak" not in self._layers:
            return
        kind = self._species.beak
        if kind == "cone":
            corners = np.array([[0.62, -0.71], [0.80, -0.66], [0.96, -0.57], [0.78, -0.52], [0.60, -0.50]])
            outline = smooth_outline(corners, samples=6)
            gape = np.array([[0.62, -0.595], [0.80, -0.60], [0.94, -0.572]])
        elif kind == "long":
            along = np.linspace(0, 1, 10)
            gape = np.stack([0.60 + 0.84 * along, -0.62 + 0.20 * along**2], axis=1)
            outline = ribbon(gape, (0.20 - 0.17 * along).tolist())
        else:
            outline = smooth_outline(
                np.array([[0.58, -0.76], [0.78, -0.78], [0.98, -0.66], [1.02, -0.42], [0.94, -0.50], [0.84, -0.52],
                          [0.74, -0.46], [0.60, -0.47]]), samples=6
            )  # fmt: skip
            gape = np.array([[0.60, -0.59], [0.76, -0.57], [0.92, -0.55]])
        stencil = self._painter.stencil(_moved(outline, self._head))
        self._paint(stencil, _BEAKS[kind], "beak", rim=0.015)
        self._mark(_moved(ribbon(gape, [0.014] * len(gape)), self._head), stencil, _BLACK, "beak", 0.7)

    def _paint_eye(self) -> None:
        if "eye" not in self._layers:
            return
        kind, x, y = self._species.eye, 0.47, -0.64
        if kind == "mask":
            patch = smooth_outline(
                np.array([[0.66, -0.58], [0.56, -0.74], [0.38, -0.74], [0.12, -0.62], [0.02, -0.50], [0.22, -0.50],
                          [0.46, -0.53]]), samples=6
            )  # fmt: skip
            colour = _BLACK
        else:
            radius, colour = (0.115, _WHITE) if kind == "ring" else (0.075, (104, 84, 66))
            patch = ellipse(x, y, radius, radius)
        stencil = self._painter.stencil(_moved(patch, self._head))
        self._paint(stencil, colour, "eye")
        self._mark(
            _moved(ellipse(x, y, 0.064, 0.064), self._head), stencil, (118, 62, 26) if kind == "mask" else _BLACK, "eye"
        )
        self._mark(_moved(ellipse(x, y, 0.046, 0.046), self._head), stencil, (12, 10, 10), "eye")
        self._mark(_moved(ellipse(x + 0.02, y - 0.022, 0.017, 0.017), self._head), stencil, (255, 255, 255), "eye")

    def _paint_wing(self) -> None:
        if "wing" not in self._layers:
            return
        kind = self._species.wing
        stencil = self._painter.stencil(_moved(smooth_outline(_WING), self._wing))
        self._paint(stencil, _WINGS[kind], "wing", rim=0.03)
        for place in np.linspace(0, 1, 6):  # flight feathers, fanned out from the shoulder to the lower edge
            start = np.array([-0.16 - 0.16 * place, 0.30 - 0.36 * place])
            end = np.array([-0.42 - 0.50 * place, 0.46 + 0.06 * place])
            path = np.stack([start, (start + end) / 2 + (0.0, 0.03), end])
            self._mark(_moved(ribbon(path, (0.012, 0.022, 0.016)), self._wing), stencil, _BLACK, "wing", 0.5)
        angle = np.linspace(-1.1, 1.1, 12)
        for reach in (0.26, 0.42):  # the ends of the coverts, in arcs around the shoulder
            path = np.array([0.20, -0.10]) + reach * np.stack([-np.cos(angle - 0.62), np.sin(0.62 - angle)], axis=1)
            if kind == "bars":
                self._mark(_moved(ribbon(path, [0.085] * 12), self._wing), stencil, _WHITE, "wing")
            else:
                self._mark(_moved(ribbon(path, [0.02] * 12), self._wing), stencil, _BLACK, "wing", 0.35)
        if kind == "blue":
            tip = np.array([[-0.60, 0.18], [-0.98, 0.46], [-0.98, 0.62], [-0.62, 0.46]])
            self._mark(_moved(smooth_outline(tip), self._wing), stencil, _BLACK, "wing", 0.7)

    def _perch_path(self) -> Points:
        """Give the middle line of the branch under the feet, from one side of the image to the other."""
        pose, size_px = self._pose, self._painter.size_px
        feet = _moved(_FEET[None], self._trunk)[0]
        along = np.linspace(-1, 1, 15)
        cos, sin = np.cos(pose.perch_angle), np.sin(pose.perch_angle)
        bent = np.stack([along, pose.perch_bend * along**2 + pose.perch_width / 2], axis=1)
        path: Points = feet + size_px * bent @ np.array([[cos, sin], [-sin, cos]])
        return path

    def _paint_perch(self) -> None:
        pose, size_px = self._pose, self._painter.size_px
        widths = pose.perch_width * size_px * np.linspace(1.15, 0.85, 15)
        branch = self._painter.stencil(ribbon(self._perch_path(), widths.tolist()))
        self._painter.paint(branch, self._tint(_BARK, -1), owner=_NOBODY, rim_px=0.012 * size_px)

    def _paint_leaves(self) -> None:
        pose, size_px = self._pose, self._painter.size_px
        path = self._perch_path()
        for place, side, length, direction in pose.leaves.tolist():
            spot = path[round(7 + 7 * place)] + (0, side * pose.perch_width * size_px)
            leaf = self._painter.stencil(leaf_outline(spot, length * size_px, -direction))
            self._painter.paint(leaf, self._tint(_LEAF, -1), owner=_NOBODY, rim_px=0.008 * size_px)


def _placement(pose: _Pose, size_px: int) -> Float[np.ndarray, "3 3"]:
    """Give the frame of the trunk: it takes points of the body plan to image pixels."""
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    turn = np.array([[cos, -sin], [sin, cos]]) * pose.unit * size_px
    linear = turn @ np.diag([pose.facing * pose.stretch, 1 / pose.stretch])
    frame = np.eye(3)
    frame[:2, :2] = linear
    frame[:2, 2] = np.array([pose.x, pose.y]) * size_px - linear @ _MIDDLE
    return frame


def _body_shade(pose: _Pose, size_px: int) -> Float32[np.ndarray, "size size"]:
    """Give a brightness factor per pixel that makes a body look round towards the light, and finely feathered."""
    centres = np.arange(size_px, dtype=np.float32) + np.float32(0.5)
    placement = _placement(pose, size_px)
    back = np.linalg.inv(placement).astype(np.float32)
    x = back[0, 0] * centres[None, :] + back[0, 1] * centres[:, None] + back[0, 2]
    y = back[1, 0] * centres[None, :] + back[1, 1] * centres[:, None] + back[1, 2]
    light = back[:2, :2] @ np.array([np.cos(pose.light_angle), np.sin(pose.light_angle)], dtype=np.float32)
    light = light / np.linalg.norm(light)
    lit = np.clip((light[0] * x + light[1] * y) / np.float32(0.8), -1, 1)
    phase = np.float32(pose.texture_phase)
    along, across = x * np.float32(0.8) - y * np.float32(0.6), x * np.float32(0.6) + y * np.float32(0.8)
    feathers = np.sin(along * 46 + 2 * np.sin(across * 17 + phase)) * np.sin(across * 31 + phase)
    return np.asarray(1 + np.float32(0.2) * lit + np.float32(0.05) * feathers, dtype=np.float32)


def _moved(points: Points, frame: Float[np.ndarray, "3 3"]) -> Points:
    moved: Points = points @ frame[:2, :2].T + frame[:2, 2]
    return moved


def _shift(by: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "3 3"]:
    frame = np.eye(3)
    frame[:2, 2] = by
    return frame


def _turned(around: Float[np.ndarray, " 2"], angle: float) -> Float[np.ndarray, "3 3"]:
    cos, sin = np.cos(angle), np.sin(angle)
    frame: Float[np.ndarray, "3 3"] = (
        _shift(around) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ _shift(-around)
    )
    return frame


def _squeezed(middle_x: float, factor: float) -> Float[np.ndarray, "3 3"]:
    return np.array([[factor, 0, middle_x * (1 - factor)], [0, 1, 0], [0, 0, 1]])
