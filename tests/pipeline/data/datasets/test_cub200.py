from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.boxes import Box
from pipeline.data.datasets.cub200 import Cub200
from pipeline.data.datasets.interface import DatasetError, Part

SAMPLE = Path(__file__).parents[5] / "shared" / "data" / "CUB_200_2011"


@pytest.fixture
def source(tmp_path):
    """Images 7 (class 3, test) and 9 (class 12, train): a subset with gaps in both numberings."""
    files = {
        "images.txt": "7 003.Gull/Gull_0007_1.jpg\n9 012.Wren/Wren_0009_2.jpg\n",
        "classes.txt": "3 003.Gull\n5 005.Kite\n12 012.Wren\n",
        "image_class_labels.txt": "7 3\n9 12\n",
        "train_test_split.txt": "7 0\n9 1\n",
        "bounding_boxes.txt": "7 1.5 2.0 3.2 4.0\n9 0.0 0.0 8.0 6.0\n",
        "parts/parts.txt": "1 back\n2 left eye\n",
        "parts/part_locs.txt": "7 1 2.5 3.0 1\n7 2 0.0 0.0 0\n9 2 4.0 5.0 1\n",
        "images/003.Gull/Gull_0007_1.jpg": "gull",
        "images/012.Wren/Wren_0009_2.jpg": "wren",
    }
    for name, content in files.items():
        path = tmp_path / "cub" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "cub"


def test_a_subset_keeps_its_keys_and_numbers_only_the_classes_that_have_images(source):
    listing = Cub200(source).listing()
    assert listing.class_names == ["003.Gull", "012.Wren"]
    assert [(r.image_key, r.label, r.split) for r in listing.records] == [
        ("003-Gull-Gull_0007_1", 0, "test"),
        ("012-Wren-Wren_0009_2", 1, "train"),
    ]


def test_boxes_cover_every_pixel_they_touch(source):
    gull, wren = Cub200(source).listing().records
    assert gull.object_box == Box(1, 2, 5, 6)  # 1.5 + 3.2 = 4.7: column 4 is touched, column 5 is the first outside
    assert wren.object_box == Box(0, 0, 8, 6)


def test_only_visible_parts_are_listed_and_their_idx_counts_from_0(source):
    listing = Cub200(source).listing()
    assert listing.part_names == ["back", "left eye"]
    assert [r.parts for r in listing.records] == [(Part(0, 2.5, 3.0),), (Part(1, 4.0, 5.0),)]


def test_the_first_visible_line_of_a_repeated_part_counts(source):
    (source / "parts/part_locs.txt").write_text("7 1 0.0 0.0 0\n7 1 2.0 3.0 1\n7 1 4.0 5.0 1\n")
    assert Cub200(source).listing().records[0].parts == (Part(0, 2.0, 3.0),)


def test_image_bytes_are_those_of_the_file(source):
    dataset = Cub200(source)
    assert [dataset.image_bytes(record) for record in dataset.listing().records] == [b"gull", b"wren"]


def test_without_segmentations_there_are_no_object_masks(source):
    dataset = Cub200(source)
    assert dataset.object_mask(dataset.listing().records[0]) is None


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_an_object_pixel_is_one_that_most_annotators_marked_whatever_the_mode_and_alpha(source, mode):
    grey = np.array([[0, 51, 102], [153, 204, 255]], dtype=np.uint8)
    clear = np.zeros_like(grey)  # fully transparent: must not turn background white
    channels = {"L": [grey], "LA": [grey, clear], "RGB": [grey] * 3, "RGBA": [grey, grey, grey, clear]}[mode]
    path = source / "segmentations/003.Gull/Gull_0007_1.png"
    path.parent.mkdir(parents=True)
    Image.merge(mode, [Image.fromarray(channel) for channel in channels]).save(path)
    dataset = Cub200(source)
    mask = dataset.object_mask(dataset.listing().records[0])
    assert mask.tolist() == [[False, False, False], [True, True, True]]


def test_a_segmentation_that_is_missing_or_no_picture_is_named(source):
    folder = source / "segmentations/003.Gull"
    folder.mkdir(parents=True)
    dataset = Cub200(source)
    gull = dataset.listing().records[0]
    with pytest.raises(DatasetError, match=r"Gull_0007_1\.png does not exist: unpack segmentations\.tgz"):
        dataset.object_mask(gull)
    (folder / "Gull_0007_1.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"Gull_0007_1\.png cannot be decoded"):
        dataset.object_mask(gull)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("images.txt", "7 a/x.jpg\n7 a/y.jpg\n", "images.txt line 2: id 7 is listed twice"),
        ("images.txt", "seven a/x.jpg\n", "images.txt line 1 (`seven a/x.jpg`): `seven` is no whole number"),
        ("image_class_labels.txt", "7 3\n", "image_class_labels.txt: no line for image 9 of images.txt"),
        ("image_class_labels.txt", "7 3\n9 12\n10 3\n", "image_class_labels.txt: a line for image 10, which"),
        ("image_class_labels.txt", "7 3\n9 4\n", "image_class_labels.txt: image 9 has class 4, unknown to classes.txt"),
        ("image_class_labels.txt", "7\n9 12\n", "image_class_labels.txt line 1 (`7`): expected 2 fields"),
        ("train_test_split.txt", "9 1\n", "train_test_split.txt: no line for image 7 of images.txt"),
        ("train_test_split.txt", "7 0\n9 2\n", "train_test_split.txt line 2 (`9 2`): `2` is neither 0 nor 1"),
        ("bounding_boxes.txt", "7 1 2 3 four\n", "bounding_boxes.txt line 1 (`7 1 2 3 four`): `four` is no number"),
        ("bounding_boxes.txt", "7 1 2 3 nan\n", "bounding_boxes.txt line 1 (`7 1 2 3 nan`): `nan` is no number"),
        ("bounding_boxes.txt", "7 1 2 3 4\n", "bounding_boxes.txt: no line for image 9"),
        ("classes.txt", "3 003.Gull\n3 012.Wren\n", "classes.txt line 2: id 3 is listed twice"),
        ("parts/part_locs.txt", "8 1 2 3 1\n", "part_locs.txt line 1: image 8 is not listed in images.txt"),
        ("parts/part_locs.txt", "7 4 2 3 1\n", "part_locs.txt line 1: part 4 is not listed in parts.txt"),
    ],
)
def test_contradicting_lists_are_named_with_file_and_line_or_id(source, file, content, message):
    (source / file).write_text(content)
    with pytest.raises(DatasetError) as caught:
        Cub200(source).listing()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample of CUB-200-2011 does not lie beside the repository")
def test_the_sample_lists_its_20_classes_with_boxes_and_15_parts():
    listing = Cub200(SAMPLE).listing()
    assert (len(listing.class_names), len(listing.records), len(listing.part_names)) == (20, 1115, 15)
    assert len({r.image_key for r in listing.records}) == 1115
    first = listing.records[0]  # image 1: `1 60.0 27.0 325.0 304.0` in bounding_boxes.txt, beak at 312, 182
    assert first.object_box == Box(60, 27, 385, 331)
    assert first.parts[0] == Part(1, 312.0, 182.0)
    assert all(0 <= part.part_idx < 15 for r in listing.records for part in r.parts)
