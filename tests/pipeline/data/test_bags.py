import io
import tarfile

import numpy as np
import pytest
import simplejpeg

from pipeline.artifacts import VIEWS, write_table
from pipeline.data.bags import BagReader, filled_up
from pipeline.errors import PipelineError

SIDE_PX = 16
LENGTHS = {"train": {"c": 2, "a": 3}, "val": {"b": 1}, "test": {"d": 4}}  # views of each image


def write_crops(folder, *, first_pixel=0):
    """Views of one grey each; FIRST_PIXEL changes one value of the first view, and neither its size nor its place."""
    folder.mkdir()
    rows = []
    for split, images in LENGTHS.items():
        with tarfile.open(folder / f"{split}-00000.tar", "w") as tar:
            for number, (key, length) in enumerate(sorted(images.items())):
                for view_idx in range(length):
                    pixels = np.full((SIDE_PX, SIDE_PX, 3), 10 * number + view_idx, dtype=np.uint8)
                    content = bytearray(simplejpeg.encode_jpeg(pixels, 95, "RGB", "444"))
                    if split == "train" and not rows:
                        content[-3] ^= first_pixel
                    member = tarfile.TarInfo(f"{key}.{view_idx:02d}.jpg")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(bytes(content)))
                    row = dict.fromkeys(VIEWS.names)
                    row |= {
                        "image_key": key,
                        "view_idx": view_idx,
                        "split": split,
                        "label": number,
                        "mask_idx": view_idx,
                    }
                    row |= {"mask_box": [0, 0, 9, 9], "box": [0, 0, 9, 9], "area_px": 81, "in_bag": True}
                    row |= {"shard": f"{split}-00000.tar", "jpeg_offset": member.name, "jpeg_size": len(content)}
                    rows.append(row)
        with tarfile.open(folder / f"{split}-00000.tar") as tar:
            offsets = {member.name: member.offset_data for member in tar}
        for row in rows:
            row["jpeg_offset"] = offsets.get(row["jpeg_offset"], row["jpeg_offset"])
    rows.sort(key=lambda row: (row["split"], row["image_key"], row["view_idx"]))
    write_table(folder / "views.parquet", rows, VIEWS, class_names=["x", "y"], size_px=SIDE_PX)
    return folder


@pytest.fixture
def crops(tmp_path):
    return write_crops(tmp_path / "crops")


def test_several_splits_are_read_as_one_in_the_order_of_their_keys(crops):
    reader = BagReader(crops, "train", "val")
    assert reader.image_keys == ["a", "b", "c"]
    assert reader.lengths == [3, 1, 2]


def test_a_split_that_is_not_there_is_one_line_that_names_it(crops):
    with pytest.raises(PipelineError, match=r"no image in the dev or prod split"):
        BagReader(crops, "dev", "prod")


def test_bags_of_equal_length_hold_copies_after_the_views(crops):
    plain, equal = BagReader(crops, "train", "val"), BagReader(crops, "train", "val", equal_lengths=True)
    assert equal.lengths == [3, 3, 3]
    for bag_idx, order in enumerate([[0, 1, 2], [0, 0, 0], [0, 1, 0]]):
        assert np.array_equal(equal.views(bag_idx), plain.views(bag_idx)[order])
        assert [row.view_idx for row in equal.rows(bag_idx)] == order


@pytest.mark.parametrize(
    ("num_views", "length", "order"),
    [(2, 5, [0, 1, 0, 0, 1]), (3, 3, [0, 1, 2]), (1, 4, [0, 0, 0, 0]), (3, 7, [0, 1, 2, 0, 0, 1, 2])],
)
def test_copies_are_full_rounds_and_one_more_of_the_first_views_grouped_by_view(num_views, length, order):
    assert filled_up(num_views, length) == order


def test_the_fingerprint_hangs_on_the_bytes_and_on_which_views_are_asked_for(tmp_path, crops):
    reference = BagReader(crops, "train").fingerprint()
    assert BagReader(crops, "train").fingerprint() == reference
    others = [
        BagReader(crops, "val"),
        BagReader(crops, "train", "val"),
        BagReader(crops, "train", equal_lengths=True),
        BagReader(write_crops(tmp_path / "other", first_pixel=1), "train"),
    ]
    assert len({reference, *(other.fingerprint() for other in others)}) == 5
    # where the shards lie does not matter
    assert BagReader(write_crops(tmp_path / "copy"), "train").fingerprint() == reference


def test_a_shard_that_is_missing_is_one_line(crops):
    (crops / "train-00000.tar").unlink()
    with pytest.raises(PipelineError, match=r"train-00000.tar does not fit views.parquet"):
        BagReader(crops, "train").fingerprint()
