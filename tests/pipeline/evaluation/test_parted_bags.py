import shutil

import numpy as np
import pytest
import torch

from pipeline.artifacts import IMAGES, WHOLE_IMAGE, metadata_of, read_table, write_table
from pipeline.data.bags import BagReader
from pipeline.data.boxes import box_of_mask
from pipeline.data.catalogue import load_images
from pipeline.data.collect import write_dataset
from pipeline.data.datasets.bird_renderer import ALL_LAYERS
from pipeline.data.datasets.bird_species import PART_NAMES, SPECIES
from pipeline.data.datasets.interface import DatasetError, ImageRecord
from pipeline.data.datasets.scenes import NO_PARTS, only_part, picture_bytes, without_part
from pipeline.data.datasets.synthetic import SyntheticBirds
from pipeline.data.images import decode_image
from pipeline.data.masks import MaskTableWriter, StoredMask, decode_mask, encode_mask, iterate_masks
from pipeline.data.shards import write_crops
from pipeline.errors import PipelineError
from pipeline.evaluation.parted_bags import PartedBags, parted_bags, views_of
from pipeline.params import Params
from pipeline.runtime import Runtime

HERE = Runtime(workers=1)
SEED = 4
SIZE_PX = 96
CHOSEN = [7, 2]  # bags of the test split, in the order in which they are asked for
LOOKS = {
    "original": {"crops": {"background": "original"}},
    "zero": {"crops": {"background": "zero", "jpeg_quality": 60}},
    "mean": {"crops": {"background": "mean"}, "compat": {"aliased_resizing": True, "clipped_boxes": True}},
}


def params_of(look):
    changed = LOOKS[look]
    return Params.model_validate(
        {
            "seed": SEED,
            "dataset": {
                "synthetic": {
                    "num_species": 10,
                    "train_per_species": 4,
                    "test_per_species": 1,
                    "image_size_px": SIZE_PX,
                }
            },
            "crops": {"size_px": 40, "max_views": 4, "bags_per_shard": 4, **changed["crops"]},
            "compat": changed.get("compat", {}),
        }
    )


def birds():
    return SyntheticBirds(params_of("original").dataset.synthetic, SEED)


def write_masks(dataset, folder):
    """Four slanted stripes across each image, and its bird: masks that are not their boxes."""
    folder.mkdir()
    rows, columns = np.mgrid[:SIZE_PX, :SIZE_PX]
    with MaskTableWriter(folder / "masks.parquet") as table:
        for number, image in enumerate(load_images(dataset).rows):
            record = ImageRecord(image.image_key, "", image.label, image.split)
            stripe = (rows + columns // 3 + 5 * number) // 20
            drawn = [birds().object_mask(record), *(stripe == stripe.min() + place for place in range(1, 5))]
            stored = [
                StoredMask(encode_mask(mask), box_of_mask(mask), int(mask.sum()), 1 / (1 + i))
                for i, mask in enumerate(drawn)
            ]
            table.add(image.image_key, stored)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("birds")
    write_dataset(birds(), folder / "dataset", params=params_of("original").dataset, seed=SEED, runtime=HERE)
    write_masks(folder / "dataset", folder / "masks")
    return folder


def crops_of(inputs, look, dataset="dataset"):
    """The bags that the stage makes."""
    params, out = params_of(look), inputs / f"crops of {dataset}, {look}"
    if not out.exists():
        write_crops(inputs / dataset, inputs / "masks", out, params=params.crops, runtime=HERE, compat=params.compat)
    return BagReader(out, "test")


def parted(inputs, look, chosen=CHOSEN, params=None):
    reader = crops_of(inputs, look)
    return list(parted_bags(inputs / "dataset", inputs / "masks", reader, chosen, params or params_of(look)))


def as_encoded(views):
    """Pixels in the place of encoded views."""
    return torch.as_tensor(views).double()


def scene_of(image):
    return birds().scene(ImageRecord(image.image_key, "", image.label, image.split))


@pytest.mark.parametrize("look", LOOKS)
def test_the_untouched_scene_gives_the_very_bytes_of_the_stored_views(inputs, look):
    reader, params = crops_of(inputs, look), params_of(look)
    images = {image.image_key: image for image in load_images(inputs / "dataset").rows}
    masks = dict(iterate_masks(inputs / "masks/masks.parquet"))
    assert len(reader) == 10
    num_masks = 0
    for bag_idx, image_key in enumerate(reader.image_keys):
        rows = reader.rows(bag_idx)
        picture = decode_image(picture_bytes(*scene_of(images[image_key]), SIZE_PX, ALL_LAYERS), image_key)
        own = {
            row.mask_idx: decode_mask(masks[image_key][row.mask_idx].rle, height=SIZE_PX, width=SIZE_PX)
            for row in rows
            if row.mask_idx != WHOLE_IMAGE
        }
        assert (views_of(picture, rows, own, params.crops, params.compat) == reader.views(bag_idx)).all()
        num_masks += len(own)
    assert num_masks > 30


@pytest.mark.parametrize("look", LOOKS)
def test_views_are_those_that_the_stage_would_have_cut_had_the_part_not_been_there(inputs, look):
    reader = crops_of(inputs, look)
    images = {image.image_key: image for image in load_images(inputs / "dataset").rows}
    bag = next(iter(parted(inputs, look, [CHOSEN[0]])))
    own_views = as_encoded(reader.views(bag.bag_idx)).permute(0, 3, 1, 2)
    completed = bag.completed(own_views, bag.views.double())
    num = len(bag.parts)
    assert num > 4
    image = images[reader.image_keys[bag.bag_idx]]
    last = int(bag.parts[-1])
    for place, layers in ((num - 1, without_part(last)), (2 * num - 1, only_part(last)), (2 * num, NO_PARTS)):
        other = inputs / f"dataset without {place}"
        if not other.exists():
            shutil.copytree(inputs / "dataset", other)
            path = other / image.path.relative_to(inputs / "dataset")
            path.write_bytes(picture_bytes(*scene_of(image), SIZE_PX, layers))
        expected = as_encoded(crops_of(inputs, look, other.name).views(bag.bag_idx)).permute(0, 3, 1, 2)
        assert (completed[place] == expected).all()
        assert (completed[place] != own_views).any()


def test_there_is_a_scene_without_and_with_only_each_visible_part_and_one_without_any(inputs):
    reader = crops_of(inputs, "original")
    images = {image.image_key: image for image in load_images(inputs / "dataset").rows}
    bags = parted(inputs, "original")
    assert [bag.bag_idx for bag in bags] == CHOSEN
    for bag in bags:
        image = images[reader.image_keys[bag.bag_idx]]
        assert bag.parts.tolist() == sorted(part.part_idx for part in image.parts)
        assert bag.is_changed.shape == (2 * len(bag.parts) + 1, reader.lengths[bag.bag_idx])
        assert len(bag.views) == bag.is_changed.sum()
        assert bag.is_changed[:, -1].all()  # the whole image shows every part
        assert not bag.is_changed.all()  # and some views do not show some


def test_a_part_that_is_not_visible_has_no_scenes(inputs, tmp_path):
    reader = crops_of(inputs, "original")
    table = read_table(inputs / "dataset/images.parquet", IMAGES)
    rows = table.to_pylist()
    (row,) = [row for row in rows if row["image_key"] == reader.image_keys[CHOSEN[0]]]
    row["parts"] = [part for part in reversed(row["parts"]) if part["part_idx"] in (1, 4, 5)]
    names = {name: metadata_of(table, name) for name in ("class_names", "part_names")}
    write_table(tmp_path / "images.parquet", rows, IMAGES, **names)
    (bag,) = parted_bags(tmp_path, inputs / "masks", reader, CHOSEN[:1], params_of("original"))
    (whole_bag,) = parted(inputs, "original", CHOSEN[:1])
    assert whole_bag.parts.tolist() == list(range(len(PART_NAMES)))
    assert bag.parts.tolist() == [1, 4, 5]
    places = [1, 4, 5, 8, 11, 12, 14]
    assert torch.equal(bag.is_changed, whole_bag.is_changed[places])


def test_scores_are_sorted_by_part():
    bag = PartedBags(
        bag_idx=0,
        parts=torch.tensor([1, 4, 5]),
        is_changed=torch.zeros(7, 2, dtype=torch.bool),
        views=torch.zeros(0, 3, 8, 8, dtype=torch.uint8),
    )
    scores = torch.arange(14.0).reshape(7, 2)
    without, only, none = bag.by_part(scores)
    assert without[[1, 4, 5]].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert only[[1, 4, 5]].tolist() == [[6, 7], [8, 9], [10, 11]]
    assert none.tolist() == [12, 13]
    for of_parts in (without, only):
        assert of_parts.shape == (len(PART_NAMES), 2)
        assert of_parts[[0, 2, 3, 6]].isnan().all()


def test_an_image_has_the_same_scenes_whatever_else_is_asked_for(inputs):
    together = parted(inputs, "zero")
    for bag in together:
        (alone,) = parted(inputs, "zero", [bag.bag_idx])
        assert torch.equal(alone.views, bag.views)
        assert torch.equal(alone.is_changed, bag.is_changed)


def test_other_images_than_the_synthetic_birds_are_refused(inputs):
    params = params_of("original")
    larger = params.model_copy(
        update={
            "dataset": params.dataset.model_copy(
                update={"synthetic": params.dataset.synthetic.model_copy(update={"image_size_px": 128})}
            )
        }
    )
    with pytest.raises(PipelineError, match=r"is 96x96, but dataset\.synthetic\.image_size_px is 128"):
        parted(inputs, "original", params=larger)
    with pytest.raises(DatasetError, match="no image of the synthetic birds"):
        birds().scene(ImageRecord("robin_1", "", 0, "test"))


def test_masks_that_are_gone_are_one_line_that_names_table_and_image(inputs, tmp_path):
    reader = crops_of(inputs, "zero")
    (tmp_path / "masks").mkdir()
    everything = np.ones((SIZE_PX, SIZE_PX), dtype=bool)
    with MaskTableWriter(tmp_path / "masks/masks.parquet") as table:
        table.add(reader.image_keys[7], [StoredMask(encode_mask(everything), box_of_mask(everything), SIZE_PX**2, 1.0)])
    for bag_idx in (7, 2):  # too few masks, none
        with pytest.raises(PipelineError, match=rf"masks\.parquet: mask \d of {reader.image_keys[bag_idx]}"):
            list(parted_bags(inputs / "dataset", tmp_path / "masks", reader, [bag_idx], params_of("zero")))


def test_species_of_the_test_images_are_those_of_their_labels(inputs):
    reader = crops_of(inputs, "original")
    images = {image.image_key: image for image in load_images(inputs / "dataset").rows}
    for image_key, label in zip(reader.image_keys, reader.labels, strict=True):
        assert scene_of(images[image_key])[0] == SPECIES[label]
