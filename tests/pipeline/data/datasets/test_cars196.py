from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.data.boxes import Box
from pipeline.data.datasets.cars196 import StanfordCars
from pipeline.data.datasets.interface import DatasetError

SAMPLE = Path(__file__).parents[5] / "shared" / "data" / "stanford_cars"
FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")


def write_annotations(path, rows, fields=FIELDS):
    annotations = np.zeros((1, len(rows)), dtype=[(field, object) for field in fields])
    for column, row in enumerate(rows):
        annotations[0, column] = row
    savemat(path, {"annotations": annotations})


@pytest.fixture
def source(tmp_path):
    """Classes 1 to 3 are named; class 2 has no image."""
    source = tmp_path / "cars"
    for folder in ("devkit", "cars_train", "cars_test"):
        (source / folder).mkdir(parents=True)
    names = np.array([["Audi S4 2012", "BMW M3 2012", "Fiat 500 Abarth 2012"]], dtype=object)
    savemat(source / "devkit/cars_meta.mat", {"class_names": names})
    train = [(2, 3, 5, 7, 3, "00002.jpg"), (np.uint8(0), np.uint8(0), np.uint8(255), np.uint8(9), 1, "00001.jpg")]
    write_annotations(source / "devkit/cars_train_annos.mat", train)
    write_annotations(source / "devkit/cars_test_annos_withlabels.mat", [(1, 1, 4, 3, 3, "00001.jpg")])
    (source / "cars_train/00001.jpg").write_text("train 1")
    (source / "cars_train/00002.jpg").write_text("train 2")
    (source / "cars_test/00001.jpg").write_text("test 1")
    return source


def test_classes_without_an_image_are_left_out_and_the_others_numbered_anew(source):
    listing = StanfordCars(source).listing()
    assert listing.class_names == ["Audi S4 2012", "Fiat 500 Abarth 2012"]
    assert [(r.image_key, r.label) for r in listing.records] == [
        ("train-00001", 0),
        ("train-00002", 1),
        ("test-00001", 1),
    ]


def test_train_and_test_files_of_the_same_name_stay_apart(source):
    dataset = StanfordCars(source)
    contents = {r.image_key: dataset.image_bytes(r) for r in dataset.listing().records}
    assert contents == {"train-00001": b"train 1", "train-00002": b"train 2", "test-00001": b"test 1"}


def test_corners_that_count_from_1_and_are_inclusive_become_half_open(source):
    boxes = {r.image_key: r.object_box for r in StanfordCars(source).listing().records}
    assert boxes["train-00002"] == Box(1, 2, 5, 7)
    assert boxes["test-00001"] == Box(0, 0, 4, 3)


def test_a_corner_stored_as_uint8_does_not_wrap_around(source):
    assert StanfordCars(source).listing().records[0].object_box == Box(-1, -1, 255, 9)


def test_test_labels_may_lie_beside_the_devkit(source):
    before = StanfordCars(source).listing()
    (source / "devkit/cars_test_annos_withlabels.mat").rename(source / "cars_test_annos_withlabels.mat")
    assert StanfordCars(source).listing() == before


def test_a_devkit_without_test_labels_asks_for_the_file_that_has_them(source):
    unlabelled = tuple(field for field in FIELDS if field != "class")
    (source / "devkit/cars_test_annos_withlabels.mat").unlink()
    write_annotations(source / "devkit/cars_test_annos.mat", [(1, 1, 4, 3, "00001.jpg")], unlabelled)
    with pytest.raises(DatasetError, match=r"devkit/cars_test_annos_withlabels\.mat does not exist"):
        StanfordCars(source).listing()
    write_annotations(source / "devkit/cars_test_annos_withlabels.mat", [(1, 1, 4, 3, "00001.jpg")], unlabelled)
    with pytest.raises(DatasetError, match=r"cars_test_annos_withlabels\.mat: the annotations have no field `class`"):
        StanfordCars(source).listing()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 1, 4, 3, 4, "00001.jpg")], "image 00001.jpg has class 4, unknown to cars_meta.mat"),
        ([(1, 1, 4, 3, 1, "00001.jpg")] * 2, "image 00001.jpg is listed twice"),
        ([(1, "one", 4, 3, 1, "00001.jpg")], "image 00001.jpg has a corner or class that is no number"),
    ],
)
def test_contradicting_annotations_are_named_with_the_image(source, rows, message):
    write_annotations(source / "devkit/cars_train_annos.mat", rows)
    with pytest.raises(DatasetError) as caught:
        StanfordCars(source).listing()
    assert f"cars_train_annos.mat: {message}" in str(caught.value)


@pytest.mark.parametrize("name", ["cars_meta.mat", "cars_train_annos.mat", "cars_test_annos_withlabels.mat"])
def test_a_damaged_or_foreign_mat_file_is_named(source, name):
    path = source / "devkit" / name
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DatasetError, match=rf"{name} cannot be read"):
        StanfordCars(source).listing()
    savemat(path, {"other": 1})
    with pytest.raises(DatasetError, match=rf"{name} holds no variable"):
        StanfordCars(source).listing()


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the sample of Stanford Cars does not lie beside the repository")
def test_the_sample_lists_its_12_classes_with_whole_image_boxes():
    listing = StanfordCars(SAMPLE).listing()
    assert (len(listing.class_names), len(listing.records)) == (12, 481)
    assert listing.class_names[0] == "AM General Hummer SUV 2000"
    first = listing.records[0]  # 00001.jpg of cars_train: corners 1, 1, 832, 471, class 3
    assert (first.image_key, first.label, first.object_box) == ("train-00001", 2, Box(0, 0, 832, 471))
