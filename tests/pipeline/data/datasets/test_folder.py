from collections import Counter

import pytest

from pipeline.data.datasets.folder import ImageFolder
from pipeline.data.datasets.interface import DatasetError


def write(source, *names):
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)


@pytest.fixture
def source(tmp_path):
    return tmp_path / "pictures"


def test_split_folders_give_the_split_and_class_folders_the_class(source):
    write(source, "train/wren/1.jpg", "train/gull/2.png", "val/gull/3.jpg", "test/wren/4.jpg", "test/gull/5.jpg")
    listing = ImageFolder(source, seed=0).listing()
    assert listing.class_names == ["gull", "wren"]
    assert [(r.file_name, r.label, r.split) for r in listing.records] == [
        ("train/gull/2.png", 0, "train"),
        ("train/wren/1.jpg", 1, "train"),
        ("val/gull/3.jpg", 0, "val"),
        ("test/gull/5.jpg", 0, "test"),
        ("test/wren/4.jpg", 1, "test"),
    ]


def test_without_a_test_folder_three_tenths_of_each_class_become_test(source):
    write(source, *(f"gull/{i}.jpg" for i in range(10)), *(f"wren/{i}.jpg" for i in range(20)))
    listing = ImageFolder(source, seed=0).listing()
    count = Counter((r.label, r.split) for r in listing.records)
    assert count == {(0, "train"): 7, (0, "test"): 3, (1, "train"): 14, (1, "test"): 6}


def test_the_test_share_depends_on_the_seed_alone(source):
    write(source, *(f"{name}/{i}.jpg" for name in ("gull", "wren") for i in range(10)))
    splits = [[r.split for r in ImageFolder(source, seed).listing().records] for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_pictures_are_known_by_suffix_in_any_case_and_the_rest_is_accounted_for(source):
    names = ["a.jpg", "b.JPEG", "c.png", "d.WebP", "e.bmp", "f.tif", "g.TIFF"]
    others = ["test/gull/notes.txt", "test/gull/scan.gif", "train/gull/.hidden.jpg", "train/.cache/x.jpg"]
    write(source, *(f"train/gull/{name}" for name in names), "test/gull/a.jpg", "train/loose.jpg", "README", *others)
    listing = ImageFolder(source, seed=0).listing()
    assert [r.file_name for r in listing.records] == [f"train/gull/{name}" for name in names] + ["test/gull/a.jpg"]
    assert listing.dropped == {"other_suffix": 2, "no_class": 1}


def test_names_that_look_the_same_without_special_characters_have_different_safe_keys(source):
    names = ["gull/a b.jpg", "gull/a.b.jpg", "gull/a b.png", "gull/ä.jpg", "gull/" + "x" * 200 + ".jpg"]
    write(source, *names)
    keys = [r.image_key for r in ImageFolder(source, seed=0).listing().records]
    assert len(set(keys)) == len(names)
    assert all(key.isascii() and key.replace("-", "").replace("_", "").isalnum() for key in keys)
    assert max(map(len, keys)) < 120  # a file name made of it fits every file system


def test_a_key_stays_the_same_when_other_pictures_come(source):
    write(source, "gull/a b.jpg")
    (before,) = ImageFolder(source, seed=0).listing().records
    write(source, "gull/a.b.jpg", "auk/a b.jpg")
    after = {r.file_name: r.image_key for r in ImageFolder(source, seed=0).listing().records}
    assert len(after) == 3
    assert after["gull/a b.jpg"] == before.image_key


def test_image_bytes_are_those_of_the_file(source):
    write(source, "gull/a b.jpg", "gull/c.jpg")
    dataset = ImageFolder(source, seed=0)
    assert sorted(dataset.image_bytes(r) for r in dataset.listing().records) == [b"gull/a b.jpg", b"gull/c.jpg"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "pictures is not there"),
        (["1.jpg", "2.jpg"], "pictures holds no class folder"),
        (["train/1.jpg", "test/gull/2.jpg"], "pictures/train holds no class folder"),
        (["train/gull/1.jpg", "test/gull/2.jpg", "wren/3.jpg"], "pictures/wren lies beside the split folder train"),
        (["val/gull/1.jpg", "test/gull/2.jpg"], "pictures/train is missing beside val"),
        (["gull/1.jpg", "wren/notes.txt"], "pictures/wren holds no picture"),
        (["gull/1.jpg", "wren/.hidden.jpg"], "pictures/wren holds no picture"),
        (["gull/1.jpg", "gull/young/2.jpg"], "pictures/gull/young is a folder inside a class folder"),
    ],
)
def test_other_arrangements_are_refused_by_name(source, names, message):
    write(source, *names)
    with pytest.raises(DatasetError) as caught:
        ImageFolder(source, seed=0).listing()
    assert message in str(caught.value)
