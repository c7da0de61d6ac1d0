"""Pictures of synthetic birds with parts left out, and in which parts species differ: what a data set cannot know.

A picture is made as that of :class:`~pipeline.data.datasets.synthetic.SyntheticBirds` is, so with all layers it has the
same bytes.
"""

import io
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Bool
from PIL import Image

from pipeline.data.datasets.bird_renderer import ALL_LAYERS, BODY, render
from pipeline.data.datasets.bird_species import PART_NAMES, SPECIES, Species, differing_parts
from pipeline.data.datasets.interface import DatasetError

JPEG_QUALITY = 92
NO_PARTS = frozenset({BODY})
"""The layers of a bird without its parts."""


def picture_bytes(
    species: Species, scene_seed: Sequence[int], size_px: int, layers: Collection[str] = ALL_LAYERS
) -> bytes:
    """Draw SPECIES in the scene of SCENE_SEED as JPEG; see :func:`~pipeline.data.datasets.bird_renderer.render`."""
    # full-resolution colour: beaks, eyes and wing bars are a few pixels wide
    content = io.BytesIO()
    image = render(species, scene_seed, size_px, layers).image
    Image.fromarray(image).save(content, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return content.getvalue()


def without_part(part_idx: int) -> frozenset[str]:
    """Name the layers of a bird without one of its parts."""
    return ALL_LAYERS - {PART_NAMES[part_idx]}


def only_part(part_idx: int) -> frozenset[str]:
    """Name the layers of a bird that has one part only: this one, and the body."""
    return NO_PARTS | {PART_NAMES[part_idx]}


def differing(class_names: Sequence[str]) -> Bool[np.ndarray, "class class part"]:
    """Say which parts look different in every two classes.

    Args:
        class_names: of species, in label order.

    Raises:
        DatasetError: a class is no species of the synthetic birds.
    """
    by_name = {species.name: species for species in SPECIES}
    if unknown := [name for name in class_names if name not in by_name]:
        raise DatasetError(f"`{unknown[0]}` is no species of the synthetic birds: run `dvc repro dataset`")
    chosen = [by_name[name] for name in class_names]
    return np.array([[[part in differing_parts(a, b) for part in PART_NAMES] for b in chosen] for a in chosen])
