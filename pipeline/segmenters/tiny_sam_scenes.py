"""The scenes on which the tiny SAM is trained: synthetic birds, of which every thing that one can point at is known."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image, ImageFilter
from scipy.ndimage import label

from pipeline.data.datasets.bird_painter import Colour, IdPainter, Points, Stencil
from pipeline.data.datasets.bird_renderer import backdrop_of, paint_bird, render
from pipeline.data.datasets.bird_species import PART_NAMES, SPECIES
from pipeline.engine import map_in_order
from pipeline.io import progress
from pipeline.runtime import Runtime
from pipeline.segmenters.tiny_sam import TINY_SAM_SIZE_PX

# first number of a scene's seed, where a data set has its own seed: training never sees a scene of a data set
TRAINING, EVALUATION = 730_001, 730_002
_SIZE_PX = TINY_SAM_SIZE_PX
LOW_RES_PX = _SIZE_PX // 4  # side of the masks as the decoder gives them
_MIN_AREA_PX = 24  # what has fewer pixels is no target
_GROUPS = (("head", "crown", "beak", "eye"), ("trunk", "breast", "wing"))  # between the parts and the whole bird
CLASSES = ("backdrop", "clutter", "perch", "leaf", "trunk", "head", *PART_NAMES)
_OPAQUE = 0.65  # markings fainter than that are texture
_CONTRAST = 32  # grey levels by which a thing of the backdrop differs from what surrounds it
_SURROUNDINGS_PX = (44, 128)  # windows of the median: leaves and twigs stand out of the first, blurred blobs of both
_WINDOW = 11  # the same windows, in cells of the reduced picture


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and the things in it, as far as they are seen.

    Attributes:
        image: RGB.
        things: one row per thing, the pixels of the picture row by row, eight to a byte (``np.packbits``).
        coverage: how many of the 16 image pixels of each low-resolution pixel belong to the thing.
        kinds: of each thing: ``object``, ``part``, ``shape`` (another single shape of bird or perch) or ``other``.
        classes: position in ``CLASSES`` of what is seen in the middle of each low-resolution pixel.
    """

    image: UInt8[np.ndarray, "size size 3"]
    things: UInt8[np.ndarray, "thing bytes"]
    coverage: UInt8[np.ndarray, "thing low low"]
    kinds: tuple[str, ...]
    classes: UInt8[np.ndarray, "low low"]


class _ShapePainter(IdPainter):
    """Gives every shape an id of its own, from back to front, and every opaque marking one in ``markings``."""

    def __init__(self, size_px: int) -> None:
        super().__init__(size_px)
        self.owners: list[int] = []
        self.markings = IdPainter(size_px)
        self._num_markings = 0

    def paint(self, stencil: Stencil, colour: Colour, *, owner: int, rim_px: float = 0.0) -> None:
        self.owners.append(owner)
        super().paint(stencil, colour, owner=len(self.owners))
        self.markings.paint(stencil, colour, owner=0)

    def paint_detail(
        self, outline: Points, within: Stencil, colour: Colour, *, owner: int, opacity: float = 1.0
    ) -> None:
        if opacity >= _OPAQUE:
            self._num_markings += 1
            self.markings.paint(self.stencil(outline).clipped(within), colour, owner=self._num_markings)

    def names(self) -> list[str]:
        """Name the shapes; only the perch and the leaves are nobody's, and the trunk lies behind the head."""
        names = {owner: iter([name]) for owner, name in enumerate(PART_NAMES, start=1)}
        names[0] = itertools.chain(["perch"], itertools.repeat("leaf"))
        names[len(PART_NAMES) + 1] = iter(["trunk", "head"])
        return [next(names[owner]) for owner in self.owners]


def draw_scene(scene_seed: tuple[int, int, int]) -> Scene:
    """Draw the scene of SCENE_SEED with the species that its last number says, and find its things."""
    species = SPECIES[scene_seed[-1] % len(SPECIES)]
    painter = _ShapePainter(_SIZE_PX)
    paint_bird(species, scene_seed, painter)
    backdrop = backdrop_of(scene_seed, _SIZE_PX)
    clutter = list(_of_the_backdrop(backdrop, painter.ids == 0))
    found = [*_of_the_bird(painter), *clutter]
    kinds, masks = zip(*((kind, mask) for kind, mask in found if mask.sum() >= _MIN_AREA_PX), strict=True)
    things = np.stack(masks)
    class_of_shape = np.array([0, *(CLASSES.index(name) for name in painter.names())], dtype=np.uint8)
    classes = class_of_shape[painter.ids]
    classes[np.any([mask for _, mask in clutter], axis=0)] = 1
    cells = things.reshape(len(things), LOW_RES_PX, 4, LOW_RES_PX, 4)
    return Scene(
        image=render(species, scene_seed, _SIZE_PX).image,
        things=np.packbits(things.reshape(len(things), -1), axis=1),
        coverage=cells.sum(axis=(2, 4), dtype=np.uint8),
        kinds=kinds,
        classes=classes[2::4, 2::4],
    )


def _of_the_bird(painter: _ShapePainter) -> Iterator[tuple[str, Bool[np.ndarray, "size size"]]]:
    """Find the bird, its parts, groups of them and their markings, the perch and the leaves before it."""
    names = painter.names()
    shapes = [(name, painter.ids == shape_id) for shape_id, name in enumerate(names, start=1)]
    seen = dict(shapes)
    scenery = np.any([mask for name, mask in shapes if name in ("perch", "leaf")], axis=0)
    yield "object", (painter.ids > 0) & ~scenery
    for name, mask in shapes:
        yield "part" if name in PART_NAMES else "shape", mask
    for group in _GROUPS:
        yield "other", np.any([seen[name] for name in group], axis=0)
    yield "other", scenery
    for marking_id in range(1, int(painter.markings.ids.max()) + 1):
        yield "other", painter.markings.ids == marking_id


def _of_the_backdrop(
    backdrop: Float32[np.ndarray, "size size 3"], unhidden: Bool[np.ndarray, "size size"]
) -> Iterator[tuple[str, Bool[np.ndarray, "size size"]]]:
    """Find what stands out of the scenery around it: leaves, twigs and spots, then blurred blobs."""
    for window_px in _SURROUNDINGS_PX:
        side = round(_SIZE_PX * _WINDOW / window_px)
        small = Image.fromarray(np.clip(backdrop, 0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BOX)
        calm = small.filter(ImageFilter.MedianFilter(_WINDOW)).resize((_SIZE_PX, _SIZE_PX), Image.Resampling.BILINEAR)
        surroundings = np.asarray(calm, dtype=np.float32)
        stands_out = np.abs(backdrop - surroundings).max(axis=2) > _CONTRAST
        pieces, num_pieces = label(stands_out & unhidden)
        for piece_idx in range(1, num_pieces + 1):
            yield "other", pieces == piece_idx
        backdrop = surroundings


def draw_scenes(purpose: int, seed: int, count: int, runtime: Runtime) -> list[Scene]:
    """Draw COUNT scenes in worker processes; each depends on PURPOSE, SEED and its position only."""
    seeds = [(purpose, seed, scene_idx) for scene_idx in range(count)]
    drawn = map_in_order(draw_scene, seeds, runtime=runtime)
    return list(progress(drawn, what="drawing scenes", total=count, unit="scene"))
