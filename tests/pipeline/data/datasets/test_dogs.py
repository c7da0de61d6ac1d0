import numpy as np
import pytest
from scipy.io import savemat

from pipeline.data.boxes import Box
from pipeline.data.datasets.dogs import StanfordDogs
from pipeline.data.datasets.interface import DatasetError

PUG, CORGI = "n1-pug", "n2-corgi"


def write_list(path, names, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.array([[name] for name in names], dtype=object)
    savemat(path, {"file_list": cells, "labels": np.array(labels, dtype=float).reshape(-1, 1)})


def write_annotation(source, name, *boxes):
    path = source / "Annotation" / name.removesuffix(".jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for x0, y0, x1, y1 in boxes
    )
    path.write_text(f"<annotation>{objects}</annotation>")


@pytest.fixture
def source(tmp_path):
    source = tmp_path / "dogs"
    train = [f"{PUG}/n1_1.jpg", f"{CORGI}/n2_1.jpg", f"{PUG}/n1_3.jpg"]
    write_list(source / "lists/train_list.mat", train, [1, 2, 1])
    write_list(source / "lists/test_list.mat", [f"{PUG}/n1_2.jpg"], [1])
    for name in (*train, f"{PUG}/n1_2.jpg"):
        (source / "Images" / name).parent.mkdir(parents=True, exist_ok=True)
        (source / "Images" / name).write_text(name)
        write_annotation(source, name, (1, 1, 4, 3))
    return source


def test_classes_are_the_folders_in_the_order_of_the_labels_and_lists_give_the_split(source):
    listing = StanfordDogs(source).listing()
    assert listing.class_names == [PUG, CORGI]
    assert [(r.image_key, r.label, r.split) for r in listing.records] == [
        ("n1_1", 0, "train"),
        ("n1_2", 0, "test"),
        ("n1_3", 0, "train"),
        ("n2_1", 1, "train"),
    ]


def test_corners_that_count_from_1_and_are_inclusive_become_half_open(source):
    assert StanfordDogs(source).listing().records[0].object_box == Box(0, 0, 4, 3)


def test_the_box_holds_all_annotated_dogs(source):
    write_annotation(source, f"{PUG}/n1_1.jpg", (3, 5, 10, 9), (2, 7, 6, 20))
    assert StanfordDogs(source).listing().records[0].object_box == Box(1, 4, 10, 20)


def test_image_bytes_are_those_of_the_file(source):
    dataset = StanfordDogs(source)
    assert dataset.image_bytes(dataset.listing().records[3]) == b"n2-corgi/n2_1.jpg"


def test_lists_are_also_found_where_the_official_archive_unpacks_them(source):
    before = StanfordDogs(source).listing()
    for path in list((source / "lists").iterdir()):
        path.rename(source / path.name)
    assert StanfordDogs(source).listing() == before


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        ([f"{PUG}/n1_1.jpg"], [1], "test_list.mat: image n1-pug/n1_1.jpg is listed twice"),
        ([f"{CORGI}/n2_9.jpg"], [1], "test_list.mat: image n2-corgi/n2_9.jpg has label 1, which stands for n1-pug"),
        ([f"{PUG}/n1_9.jpg"], [3], "the images in n1-pug have several labels"),
        ([f"{PUG}/n1_9.jpg"], [1, 1], "test_list.mat lists 1 images but 2 labels"),
        (["n1_9.jpg"], [1], "test_list.mat: image `n1_9.jpg` is not of the form FOLDER/FILE"),
        ([f"{PUG}/n1_9.jpg"], [float("nan")], "test_list.mat: image n1-pug/n1_9.jpg has the label `nan`"),
    ],
)
def test_contradicting_lists_are_named_with_the_image(source, names, labels, message):
    write_list(source / "lists/test_list.mat", names, labels)
    with pytest.raises(DatasetError) as caught:
        StanfordDogs(source).listing()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation><obj", "cannot be read"),
        ("<annotation/>", "holds no object"),
        ("<annotation><object><bndbox><xmin>a</xmin></bndbox></object></annotation>", "cannot be read"),
    ],
)
def test_a_damaged_annotation_is_named(source, content, message):
    (source / "Annotation" / PUG / "n1_1").write_text(content)
    with pytest.raises(DatasetError, match=rf"n1-pug/n1_1 {message}"):
        StanfordDogs(source).listing()


def test_a_missing_annotation_is_named(source):
    (source / "Annotation" / PUG / "n1_1").unlink()
    with pytest.raises(DatasetError, match=r"n1-pug/n1_1 does not exist: unpack images\.tar, annotation\.tar"):
        StanfordDogs(source).listing()


def test_a_damaged_list_is_named(source):
    path = source / "lists/train_list.mat"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"train_list\.mat cannot be read"):
        StanfordDogs(source).listing()
