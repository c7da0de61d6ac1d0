from dataclasses import dataclass

import numpy as np
import pytest

from pipeline.data.datasets.cars196 import StanfordCars
from pipeline.data.datasets.cub200 import Cub200
from pipeline.data.datasets.dogs import StanfordDogs
from pipeline.data.datasets.folder import ImageFolder
from pipeline.data.datasets.interface import Dataset, DatasetError, ImageRecord, Listing
from pipeline.data.datasets.registry import ClassSubset, open_dataset
from pipeline.data.datasets.synthetic import SyntheticBirds
from pipeline.params import DatasetParams


@dataclass
class Lettered(Dataset):
    """Classes a, b, c with two images each."""

    def listing(self):
        records = [
            ImageRecord(f"{name}{i}", f"{name}{i}.png", "abc".index(name), "train") for name in "abc" for i in "01"
        ]
        return Listing(["a", "b", "c"], records, dropped={"blurred": 1})

    def image_bytes(self, record):
        return record.file_name.encode()

    def object_mask(self, record):
        return np.ones((1, 2), dtype=bool)

    def part_mask(self, record):
        return np.ones((2, 1), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("synthetic", SyntheticBirds),
        ("cub200", Cub200),
        ("dogs", StanfordDogs),
        ("cars196", StanfordCars),
        ("folder", ImageFolder),
    ],
)
def test_each_name_opens_its_reader_without_reading_anything(name, reader):
    assert type(open_dataset(DatasetParams(name=name, source="nowhere"), seed=0)) is reader


def test_kept_classes_are_numbered_anew_in_the_data_sets_order_and_the_rest_is_counted():
    listing = ClassSubset(Lettered(), ["c", "a"]).listing()
    assert listing.class_names == ["a", "c"]
    assert [(r.image_key, r.label) for r in listing.records] == [("a0", 0), ("a1", 0), ("c0", 1), ("c1", 1)]
    assert listing.dropped == {"blurred": 1, "other_class": 2}


def test_pictures_and_masks_of_kept_classes_are_those_of_the_whole():
    subset = ClassSubset(Lettered(), ["c"])
    record = subset.listing().records[0]
    assert subset.image_bytes(record) == b"c0.png"
    assert subset.object_mask(record).shape == (1, 2)
    assert subset.part_mask(record).shape == (2, 1)


def test_an_unknown_class_is_named_with_the_most_similar_one(tmp_path):
    for name in ("gull", "wren"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").touch()
    params = DatasetParams(name="folder", source=str(tmp_path), classes=("gull", "wern"))
    with pytest.raises(DatasetError, match=r"dataset\.classes names `wern`, .* 2 classes; did you mean `wren`\?"):
        open_dataset(params, seed=0).listing()
