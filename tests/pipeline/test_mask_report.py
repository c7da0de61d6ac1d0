import json

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts import IMAGES, write_table
from pipeline.data.boxes import Box, box_of_mask
from pipeline.data.datasets.synthetic import SyntheticBirds
from pipeline.data.masks import MaskTableWriter, StoredMask, encode_mask
from pipeline.errors import PipelineError
from pipeline.mask_report import mask_quality
from pipeline.params import SyntheticParams
from pipeline.runtime import Runtime

HERE = Runtime(workers=1)
SPLITS = ("train", "val", "test")


class Folder:
    """A data set of any masks, without pictures: the report looks at none."""

    def __init__(self, folder, part_names=("beak", "tail"), num_classes=2):
        self.dataset, self.masks = folder / "dataset", folder / "masks"
        self.part_names, self.num_classes = part_names, num_classes
        (self.dataset / "object_masks").mkdir(parents=True)
        self.masks.mkdir()
        self._rows, self._masks = [], []

    def add(self, masks, *, size=(8, 10), label=0, split="train", parts=(), object_mask=None):
        """SIZE is height and width; PARTS are (part_idx, x, y)."""
        key = f"image_{len(self._rows):03d}"
        if object_mask is not None:
            Image.fromarray(object_mask.astype(np.uint8) * 255).save(self.dataset / f"object_masks/{key}.png")
        self._rows.append(
            {
                "image_key": key,
                "path": f"images/{key}.jpg",
                "sha256": "",
                "width": size[1],
                "height": size[0],
                "label": label,
                "class_name": f"class {label}",
                "split": split,
                "object_box": None,
                "parts": [{"part_idx": part_idx, "x": x, "y": y} for part_idx, x, y in parts],
                "object_mask": None if object_mask is None else f"object_masks/{key}.png",
                "part_mask": None,
            }
        )
        self._masks.append((key, [StoredMask(encode_mask(m), box_of_mask(m), int(m.sum()), 0.5) for m in masks]))

    def write(self):
        names = [f"class {label}" for label in range(self.num_classes)]
        write_table(
            self.dataset / "images.parquet", self._rows, IMAGES, class_names=names, part_names=list(self.part_names)
        )
        with MaskTableWriter(self.masks / "masks.parquet") as table:
            for key, masks in self._masks:
                table.add(key, masks)

    def quality(self, runtime=HERE):
        self.write()
        return mask_quality(self.dataset, self.masks, runtime)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def rectangle(x0, y0, x1, y1, size=(8, 10)):
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_known_masks_have_known_figures(folder):
    corner = rectangle(8, 6, 10, 8)
    holed = rectangle(0, 0, 5, 4)
    holed[1, 1] = False
    folder.add(
        [holed, corner],
        parts=[(0, 1.9, 1.2), (1, 9.0, 7.0)],  # the first lies in the hole, the second in the corner
        object_mask=rectangle(0, 0, 5, 8),
    )
    folder.add([], label=1, split="test", parts=[(0, 0.0, 0.0)], object_mask=corner)
    quality = folder.quality()
    every = quality["all"]
    assert (every["num_images"], every["num_masks"]) == (2, 2)
    assert every["masks_per_image"] == {
        "min": 0, "q05": 0.1, "q25": 0.5, "median": 1, "q75": 1.5, "q95": 1.9, "max": 2, "mean": 1
    }  # fmt: skip
    assert (every["area_frac"]["min"], every["area_frac"]["max"]) == (4 / 80, round(19 / 80, 6))
    assert every["area_histogram"]["num_masks"] == [0, 0, 0, 0, 0, 0, 1, 1, 0]
    assert (every["box_frac"]["min"], every["box_frac"]["max"]) == (4 / 80, 20 / 80)
    assert (every["box_fill"]["min"], every["box_fill"]["max"]) == (19 / 20, 1)
    assert (every["covered_frac"]["min"], every["covered_frac"]["max"]) == (0, round(23 / 80, 6))
    assert every["object_iou"]["max"] == 19 / 40
    assert every["object_iou"]["mean"] == round(19 / 80, 6)
    assert every["object_iou"]["num_images"] == 2
    assert every["parts"] == {"num_visible": 3, "in_a_mask": round(1 / 3, 6), "in_a_box": round(2 / 3, 6)}
    assert quality["train"]["num_images"] == quality["test"]["num_images"] == 1
    assert quality["test"]["area_frac"] is quality["test"]["box_fill"] is None
    assert quality["test"]["object_iou"]["max"] == 0
    assert "val" not in quality
    assert quality["mask_consistency"] == {
        "mean": 1.0,
        "mean_without_no_part": 1.0,
        "classes": {
            "class 0": {
                "num_images": 1,
                "num_patterns": 2,
                "no_part": 1.0,
                "most_frequent": [{"parts": ["tail"], "frequency": 1.0}],
            },
            "class 1": {"num_images": 1, "num_patterns": 0, "no_part": 0.0, "most_frequent": []},
        },
    }


def test_the_share_of_images_with_a_good_mask_counts_the_limit_itself(folder):
    target = rectangle(0, 0, 10, 8)
    for width in (4, 5, 9, 10):  # IoU 0.4, 0.5, 0.9, 1
        folder.add([rectangle(0, 0, width, 8), rectangle(0, 0, 1, 1)], object_mask=target)
    assert folder.quality()["all"]["object_iou"]["share_at_least"] == {"0.5": 0.75, "0.75": 0.5, "0.9": 0.5}


def test_part_patterns_are_told_by_part_idx_and_counted_over_all_splits(folder):
    left, right = rectangle(0, 0, 5, 8), rectangle(5, 0, 10, 8)
    for split in SPLITS:
        folder.add([left, right], split=split, parts=[(0, 1, 1), (1, 8, 1)])
    folder.add([left, right], parts=[(1, 1, 1)])  # the tail alone: never to be taken for the beak
    classes = folder.quality()["mask_consistency"]["classes"]
    assert classes["class 0"]["most_frequent"] == [
        {"parts": ["tail"], "frequency": 1.0},
        {"parts": ["beak"], "frequency": 0.75},
    ]
    assert classes["class 0"]["no_part"] == 0.25
    assert classes["class 1"]["num_images"] == 0


def test_what_the_data_set_cannot_tell_is_null_with_a_reason(tmp_path):
    folder = Folder(tmp_path, part_names=())
    folder.add([rectangle(0, 0, 2, 2)])
    quality = folder.quality()
    assert quality["all"]["object_iou"] is quality["all"]["parts"] is quality["mask_consistency"] is None
    assert set(quality["all"]["reasons"]) == set(quality["train"]["reasons"]) == {"object_iou", "parts"}
    assert "part" in quality["reasons"]["mask_consistency"]


def test_images_without_an_object_mask_do_not_count_in_its_figures(folder):
    folder.add([rectangle(0, 0, 2, 2)], split="val")
    folder.add([rectangle(0, 0, 2, 2)], object_mask=rectangle(0, 0, 2, 2))
    quality = folder.quality()
    assert (quality["all"]["object_iou"]["num_images"], quality["all"]["object_iou"]["mean"]) == (1, 1.0)
    assert quality["val"]["object_iou"] is None
    assert set(quality["val"]["reasons"]) == {"object_iou", "parts"}
    assert "object_iou" not in quality["all"]["reasons"]


def test_the_part_masks_of_the_synthetic_birds_hold_every_part_and_their_object_mask_is_the_object(tmp_path):
    birds = SyntheticBirds(SyntheticParams(num_species=10, train_per_species=4, image_size_px=96), seed=0)
    listing = birds.listing()
    records = [record for record in listing.records if record.split == "train" and record.label in (0, 7)]
    folder = Folder(tmp_path, listing.part_names, num_classes=10)
    for record in records:
        part_ids, bird = birds.part_mask(record), birds.object_mask(record)
        masks = [part_ids == part.part_idx + 1 for part in record.parts]
        parts = [(part.part_idx, part.x, part.y) for part in record.parts]
        folder.add([bird, *masks], size=bird.shape, label=record.label, parts=parts, object_mask=bird)
    quality = folder.quality()
    assert quality["all"]["num_images"] == len(records) == 8
    assert quality["all"]["object_iou"]["min"] == 1.0
    assert quality["all"]["object_iou"]["share_at_least"] == {"0.5": 1.0, "0.75": 1.0, "0.9": 1.0}
    assert quality["all"]["parts"]["num_visible"] == sum(len(record.parts) for record in records) > 50
    assert quality["all"]["parts"]["in_a_mask"] == quality["all"]["parts"]["in_a_box"] == 1.0
    of_class = quality["mask_consistency"]["classes"]["class 0"]
    assert {len(entry["parts"]) for entry in of_class["most_frequent"][:5]} == {1}  # each part has its own mask
    assert of_class["no_part"] == 0


def random_folder(tmp_path, num_images=40):
    folder = Folder(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(num_images):
        size = (int(rng.integers(5, 20)), int(rng.integers(5, 20)))
        masks = [mask for mask in rng.random((i % 5, *size)) < rng.choice([0.1, 0.6]) if mask.any()]
        parts = [
            (part_idx, float(rng.random() * size[1]), float(rng.random() * size[0]))
            for part_idx in range(2)
            if rng.random() < 0.8
        ]
        target = rng.random(size) < 0.5 if i % 3 else None
        folder.add(masks, size=size, label=i % 2, split=SPLITS[i % 3], parts=parts, object_mask=target)
    return folder


def test_figures_do_not_depend_on_the_number_of_workers(tmp_path):
    folder = random_folder(tmp_path)
    assert json.dumps(folder.quality()) == json.dumps(folder.quality(Runtime(workers=2)))


def test_all_splits_together_add_up(tmp_path):
    quality = random_folder(tmp_path).quality()
    for key in ("num_images", "num_masks"):
        assert quality["all"][key] == sum(quality[split][key] for split in SPLITS) > 20
    visible = [quality[split]["parts"]["num_visible"] for split in SPLITS]
    assert quality["all"]["parts"]["num_visible"] == sum(visible)
    weighted = sum(n * quality[split]["parts"]["in_a_mask"] for n, split in zip(visible, SPLITS, strict=True))
    assert quality["all"]["parts"]["in_a_mask"] == pytest.approx(weighted / sum(visible), abs=2e-6)


def assert_one_line(error, *names):
    assert "\n" not in str(error.value)
    for name in names:
        assert str(name) in str(error.value)


def test_masks_of_a_picture_of_another_size_are_refused_and_not_compared(folder):
    folder.add([rectangle(0, 0, 3, 3), rectangle(0, 0, 3, 3, size=(8, 9))])
    folder.write()
    with pytest.raises(PipelineError) as error:
        mask_quality(folder.dataset, folder.masks, HERE)
    assert_one_line(error, "image_000.jpg", "mask 1", "dvc repro masks")


def test_a_box_outside_the_picture_is_refused(folder):
    folder.add([rectangle(0, 0, 10, 1)], size=(10, 8))  # as many pixels, the other way round
    assert box_of_mask(rectangle(0, 0, 10, 1)) == Box(0, 0, 10, 1)
    folder.write()
    with pytest.raises(PipelineError) as error:
        mask_quality(folder.dataset, folder.masks, HERE)
    assert_one_line(error, "image_000.jpg", "mask 0")


@pytest.mark.parametrize("damage", ["missing", "text", "other size"])
def test_a_damaged_object_mask_is_one_line_that_names_it(folder, damage):
    folder.add([rectangle(0, 0, 3, 3)], object_mask=rectangle(0, 0, 3, 3))
    folder.write()
    path = folder.dataset / "object_masks" / "image_000.png"
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("no picture")
    else:
        Image.new("L", (9, 8)).save(path)
    with pytest.raises(PipelineError) as error:
        mask_quality(folder.dataset, folder.masks, HERE)
    assert_one_line(error, path, "dvc repro")


@pytest.mark.parametrize("key", ["another", "image_000-b", "zebra"])
def test_masks_of_an_image_that_is_none_of_the_data_sets_are_named(folder, key):
    for _ in range(3):
        folder.add([])
    folder.write()
    with MaskTableWriter(folder.masks / "masks.parquet") as table:
        mask = rectangle(0, 0, 3, 3)
        table.add(key, [StoredMask(encode_mask(mask), box_of_mask(mask), 9, 0.5)])
    with pytest.raises(PipelineError) as error:
        mask_quality(folder.dataset, folder.masks, HERE)
    assert_one_line(error, key, folder.masks / "masks.parquet")
