import json

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts import IMAGES, write_table
from pipeline.data.bags import BagReader
from pipeline.data.masks import MaskTableWriter, segmentation_of
from pipeline.data.preparation import Preparation
from pipeline.data.segmentation import fingerprint, write_masks
from pipeline.data.shards import write_crops
from pipeline.errors import PipelineError
from pipeline.io import sha256_of_file
from pipeline.params import CompatParams, CropsParams, MasksParams
from pipeline.runtime import Runtime
from pipeline.segmenters import settings_of

SIDE_PX = 40
CROPS = CropsParams(size_px=32, padding_frac=0.25, whole_image=False)
GRID = {"segmenter": "grid", "weights": "pipeline/segmenters/grid.py", "grid": {"rows": 3}}


def write_images(dataset):
    rows = []
    for label, split in enumerate(("train", "val", "test")):
        path = dataset / f"image{label}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(label).integers(256, size=(SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        row = {"image_key": path.stem, "path": path.name, "sha256": sha256_of_file(path), "split": split, "parts": []}
        rows.append(row | {"width": SIDE_PX, "height": SIDE_PX, "label": 0, "class_name": "wren"})
    write_table(dataset / "images.parquet", rows, IMAGES, class_names=["wren"], part_names=[])


def cropped(folder, masks, compat):
    write_images(folder / "dataset")
    store = folder / "store.sqlite"
    write_masks(folder / "dataset", folder / "masks", store=store, params=masks, runtime=Runtime(workers=1))
    inputs = (folder / "dataset", folder / "masks", folder / "crops")
    write_crops(*inputs, params=CROPS, runtime=Runtime(workers=1), compat=compat)
    return Preparation.model_validate(BagReader(folder / "crops", "train").preparation)


def test_bags_know_what_made_their_masks_and_their_views(tmp_path):
    masks = MasksParams.model_validate(GRID)
    found = cropped(tmp_path, masks, CompatParams(clipped_boxes=True))
    assert found.segmentation.params == masks
    assert fingerprint(found.segmentation.params) == fingerprint(masks)
    assert found.crops == CROPS
    assert (found.clipped_boxes, found.aliased_resizing, found.segmentation.bgr) == (True, False, False)
    assert Preparation.model_validate(json.loads(json.dumps(found.model_dump(mode="json")))) == found


@pytest.mark.parametrize("bgr", [False, True])
def test_a_profile_and_exchanged_colours_are_noted_as_what_they_do(bgr, tmp_path):
    masks = MasksParams.model_validate({"segmenter": "sam", "weights": "sam.pth", "profile": "fast"})
    noted = {"weights": masks.weights, **settings_of(masks, bgr=bgr)}
    with MaskTableWriter(tmp_path / "masks.parquet", segmentation=noted):
        pass
    found = Preparation.of(segmentation_of(tmp_path / "masks.parquet"), CROPS, CompatParams()).segmentation
    assert settings_of(found.params, bgr=found.bgr) == settings_of(masks, bgr=bgr)
    assert found.params.sam.points_per_side == 16
    assert found.bgr is bgr


def test_masks_of_which_nothing_is_noted_prepare_nothing(tmp_path):
    with MaskTableWriter(tmp_path / "masks.parquet"):
        pass
    assert segmentation_of(tmp_path / "masks.parquet") is None
    assert Preparation.of(None, CROPS, CompatParams()).segmentation is None


def test_a_missing_or_damaged_table_is_named(tmp_path):
    path = tmp_path / "masks.parquet"
    with pytest.raises(PipelineError, match="does not exist: run `dvc repro masks`"):
        segmentation_of(path)
    path.write_bytes(b"no table")
    with pytest.raises(PipelineError, match="is damaged"):
        segmentation_of(path)
