"""What a bag would look like if parts of the synthetic bird were not there.

The scene is drawn again with other layers, stored and read as the data set stores pictures, and cut and compressed as
the views of the bag were: from the same boxes, with the same masks. So nothing but the parts differs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from pipeline.artifacts import WHOLE_IMAGE
from pipeline.data.bags import BagReader, ViewRow
from pipeline.data.catalogue import ImageRow, load_images
from pipeline.data.datasets.bird_renderer import ALL_LAYERS
from pipeline.data.datasets.bird_species import PART_NAMES
from pipeline.data.datasets.interface import ImageRecord
from pipeline.data.datasets.scenes import NO_PARTS, only_part, picture_bytes, without_part
from pipeline.data.datasets.synthetic import SyntheticBirds
from pipeline.data.images import decode_image
from pipeline.data.masks import decode_mask, iterate_masks
from pipeline.data.views import as_stored, cut_view
from pipeline.errors import PipelineError
from pipeline.params import CompatParams, CropsParams, Params, SyntheticParams

Masks = dict[int, Bool[np.ndarray, "height width"]]
"""Masks of an image by mask_idx."""


@dataclass(frozen=True, slots=True)
class PartedBags:
    """The bag of one image in scenes without some parts; ordered: without each visible part, only each, without any.

    Most views of most scenes do not show what was left out, so only those that do are here.

    Attributes:
        bag_idx: position of the image's bag in the reader.
        parts: part_idx of the parts that are visible in the image, ascending.
        is_changed: which views look different than in the whole scene.
        views: those views, RGB, scene by scene.
    """

    bag_idx: int
    parts: Int[Tensor, " part"]
    is_changed: Bool[Tensor, "scene view"]
    views: UInt8[Tensor, "changed 3 side side"]

    def completed(
        self, whole: Float[Tensor, "view channel *place"], changed: Float[Tensor, "changed channel *place"]
    ) -> Float[Tensor, "scene view channel *place"]:
        """Put the encoded views together.

        Args:
            whole: the bag of the whole scene.
            changed: of ``views``.
        """
        encoded = whole.expand(len(self.is_changed), *whole.shape).clone()
        encoded[self.is_changed] = changed
        return encoded

    def by_part(
        self, scores: Float[Tensor, "scene class"]
    ) -> tuple[Float[Tensor, "all_parts class"], Float[Tensor, "all_parts class"], Float[Tensor, " class"]]:
        """Sort class scores by part: without each, with only each (NaN for parts that are not visible), without any."""
        num = len(self.parts)
        without, only = (scores.new_full((len(PART_NAMES), scores.shape[1]), torch.nan) for _ in range(2))
        without[self.parts] = scores[:num]
        only[self.parts] = scores[num : 2 * num]
        return without, only, scores[2 * num]


def parted_bags(
    dataset: Path, masks: Path, reader: BagReader, bag_idxs: Sequence[int], params: Params
) -> Iterator[PartedBags]:
    """Leave parts out of some images of the synthetic birds.

    Args:
        dataset: folder with ``images.parquet``.
        masks: folder with ``masks.parquet``; only read where views are cut out along masks.
        reader: the bags.
        bag_idxs: which of them.
        params: ``dataset.synthetic``, ``seed``, ``crops`` and ``compat.aliased_resizing`` are used.

    Raises:
        PipelineError: a bag is not of an image of the synthetic birds as the params describe them, or its masks are
            missing or damaged.
    """
    rows = {row.image_key: row for row in load_images(dataset).rows}
    images = [rows[reader.image_keys[bag_idx]] for bag_idx in bag_idxs]
    birds = SyntheticBirds(params.dataset.synthetic, params.seed)
    masks_of = _masks_of(images, reader, bag_idxs, masks / "masks.parquet", params.crops)
    for bag_idx, image, own_masks in zip(bag_idxs, images, masks_of, strict=True):
        parts = sorted(part.part_idx for part in image.parts)
        scenes = [ALL_LAYERS, *map(without_part, parts), *map(only_part, parts), NO_PARTS]
        whole, *others = (
            views_of(
                _picture(birds, image, layers, params.dataset.synthetic),
                reader.rows(bag_idx),
                own_masks,
                params.crops,
                params.compat,
            )
            for layers in scenes
        )
        stacked = np.stack(others)  # [scene, view, side, side, 3]
        is_changed = (stacked != whole).any(axis=(2, 3, 4))
        yield PartedBags(
            bag_idx=bag_idx,
            parts=torch.tensor(parts, dtype=torch.long),
            is_changed=torch.from_numpy(is_changed),
            views=torch.from_numpy(stacked[is_changed]).permute(0, 3, 1, 2),
        )


def views_of(
    picture: UInt8[np.ndarray, "height width 3"],
    rows: Sequence[ViewRow],
    masks: Masks,
    params: CropsParams,
    compat: CompatParams,
) -> UInt8[np.ndarray, "view side side 3"]:
    """Cut the views of a bag out of PICTURE, as if they came from the shards.

    Args:
        picture: RGB, in the size of the image.
        rows: what the views show.
        masks: those of the views; the others show all of their boxes.
        params: the look of views.
        compat: ``aliased_resizing``.
    """
    everything = np.ones(picture.shape[:2], dtype=bool)
    views = []
    for row in rows:
        mask = masks.get(row.mask_idx, everything)
        view, _ = cut_view(picture, mask, row.box, params, aliased=compat.aliased_resizing)
        views.append(as_stored(view, params))
    return np.stack(views)


def _picture(
    birds: SyntheticBirds, image: ImageRow, layers: frozenset[str], params: SyntheticParams
) -> UInt8[np.ndarray, "height width 3"]:
    species, scene_seed = birds.scene(ImageRecord(image.image_key, image.path.name, image.label, image.split))
    picture = decode_image(picture_bytes(species, scene_seed, params.image_size_px, layers), image.path)
    if picture.shape[:2] != (image.height, image.width):
        raise PipelineError(
            f"{image.path} is {image.width}x{image.height}, but dataset.synthetic.image_size_px is"
            f" {params.image_size_px}: run `dvc repro dataset`"
        )
    return picture


def _masks_of(
    images: Sequence[ImageRow], reader: BagReader, bag_idxs: Sequence[int], path: Path, params: CropsParams
) -> list[Masks]:
    """Decode the masks of the views; none where views show all of their boxes."""
    if params.background == "original":
        return [{} for _ in images]
    wanted = {image.image_key for image in images}
    stored = dict(iterate_masks(path, wanted))
    found: list[Masks] = []
    for image, bag_idx in zip(images, bag_idxs, strict=True):
        own: Masks = {}
        for mask_idx in {row.mask_idx for row in reader.rows(bag_idx)} - {WHOLE_IMAGE}:
            try:
                own[mask_idx] = decode_mask(
                    stored[image.image_key][mask_idx].rle, height=image.height, width=image.width
                )
            except (KeyError, IndexError, ValueError):
                raise PipelineError(
                    f"{path}: mask {mask_idx} of {image.image_key} is not the one that its view was cut from:"
                    " run `dvc repro crops`"
                ) from None
        found.append(own)
    return found
