import io
import itertools
import json
import pickle
import re
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.artifacts import IMAGES, VIEWS, WHOLE_IMAGE, metadata_of, read_table, write_table
from pipeline.data.bags import BagReader
from pipeline.data.boxes import Box, box_of_mask
from pipeline.data.masks import MaskTableWriter, StoredMask, encode_mask
from pipeline.data.shards import write_crops
from pipeline.data.views import EmptyBagError, box_of_view
from pipeline.errors import PipelineError
from pipeline.io import sha256_of
from pipeline.params import CompatParams, CropsParams
from pipeline.runtime import Runtime

HERE = Runtime(workers=1)
SIZE = 32
LONG_KEY = "z" * 150  # longer than the 100 characters of a plain tar header
# key: (width, height, label, split, boxes of the masks, best score first)
IMAGES_MADE = {
    "a": (40, 30, 0, "train", [(0, 0, 20, 15), (10, 10, 35, 28), (0, 0, 20, 15)]),
    "b_1": (30, 40, 1, "train", [(5, 5, 25, 30)]),
    "c-2": (33, 33, 0, "test", [(1, 1, 11, 11), (12, 12, 30, 30)]),
    "d": (50, 36, 1, "train", []),
    "e": (40, 40, 0, "val", [(0, 0, 40, 40), (3, 3, 4, 20)]),
    "f": (40, 41, 1, "test", [(7, 7, 39, 40)]),
    LONG_KEY: (37, 35, 1, "val", [(2, 3, 30, 31)]),
}
CLASSES = ["gull", "wren – the loud one"]
SPLITS = {"train": ["a", "b_1", "d"], "val": ["e", LONG_KEY], "test": ["c-2", "f"]}


def params(**changed):
    plain = {"size_px": SIZE, "jpeg_quality": 95, "padding_frac": 0, "min_extent_px": 3, "bags_per_shard": 2}
    return CropsParams(**{**plain, **changed})


def pixels_of(key, width, height):
    """A smooth picture that hangs on the key: JPEG keeps it closely."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    return np.stack([x, y, np.full_like(x, 20 * (ord(key[0]) - 90))], axis=2).astype(np.uint8)


def mask_of(box, width, height):
    """An ellipse in BOX, so that the mask is not its box."""
    x0, y0, x1, y1 = box
    rows, columns = np.mgrid[:height, :width] + 0.5
    across = ((columns - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((rows - (y0 + y1) / 2) / (y1 - y0)) ** 2
    return across <= 0.25


def write_inputs(folder, chosen=tuple(IMAGES_MADE)):
    dataset, masks = folder / "dataset", folder / "masks"
    (dataset / "images").mkdir(parents=True)
    masks.mkdir()
    rows = []
    with MaskTableWriter(masks / "masks.parquet") as table:
        for key in chosen:
            width, height, label, split, boxes = IMAGES_MADE[key]
            path = dataset / "images" / f"{key}.png"
            Image.fromarray(pixels_of(key, width, height)).save(path)
            rows.append(
                {
                    "image_key": key,
                    "path": f"images/{key}.png",
                    "sha256": sha256_of(path.read_bytes()),
                    "width": width,
                    "height": height,
                    "label": label,
                    "class_name": CLASSES[label],
                    "split": split,
                    "object_box": None,
                    "parts": [],
                    "object_mask": None,
                    "part_mask": None,
                }
            )
            drawn = [mask_of(box, width, height) for box in boxes]
            table.add(
                key,
                [
                    StoredMask(encode_mask(mask), box_of_mask(mask), int(mask.sum()), 1 / (1 + i))
                    for i, mask in enumerate(drawn)
                ],
            )
    write_table(dataset / "images.parquet", rows, IMAGES, class_names=CLASSES, part_names=[])


class Crops:
    """The folder that a run writes, and its counts."""

    def __init__(self, folder, name="crops"):
        self.inputs, self.path = folder, folder / name

    def write(self, runtime=HERE, compat=None, **changed):
        self.summary = write_crops(
            self.inputs / "dataset",
            self.inputs / "masks",
            self.path,
            params=params(**changed),
            runtime=runtime,
            compat=CompatParams(**(compat or {})),
        )
        return self

    @property
    def tars(self):
        return sorted(path.name for path in self.path.glob("*.tar"))

    @property
    def bytes(self):
        return {path.name: path.read_bytes() for path in sorted(self.path.iterdir())}

    @property
    def rows(self):
        return read_table(self.path / "views.parquet", VIEWS).to_pylist()

    def samples(self, split=""):
        """The samples as plain webdataset reads them, by key."""
        urls = [str(self.path / name) for name in self.tars if name.startswith(split)]
        listed = [(sample["__key__"], sample) for sample in webdataset.WebDataset(urls, shardshuffle=False)]
        assert len({key for key, _ in listed}) == len(listed)
        return dict(listed)


@pytest.fixture
def crops(tmp_path):
    write_inputs(tmp_path)
    return Crops(tmp_path)


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("bags_per_shard", [1, 2, 256])
def test_every_image_is_in_exactly_one_shard_of_its_split(crops, bags_per_shard):
    crops.write(bags_per_shard=bags_per_shard)
    for split, keys in SPLITS.items():
        num_shards = -(-len(keys) // bags_per_shard)
        names = [f"{split}-{number:05d}.tar" for number in range(num_shards)]
        assert [name for name in crops.tars if name.startswith(split)] == names
        in_shards = []
        for name in names:
            in_shard = list(crops.samples(name))
            assert len(in_shard) <= bags_per_shard
            in_shards += in_shard
        assert in_shards == sorted(keys)
    assert {row["image_key"]: row["split"] for row in crops.rows} == {
        key: split for split, keys in SPLITS.items() for key in keys
    }
    for row in crops.rows:
        assert row["image_key"] in crops.samples(row["shard"])


def test_keys_have_no_dot_so_that_webdataset_cuts_members_where_we_do(crops):
    crops.write()
    num_members = 0
    for name in crops.tars:
        with tarfile.open(crops.path / name) as tar:
            for member in tar:
                key, extension = member.name.split(".", 1)
                assert key in IMAGES_MADE
                assert re.fullmatch(r"json|whole\.jpg|\d\d\.jpg|\d\d\.mask\.png", extension)
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                num_members += 1
    # a json and a whole image each; a view and a mask for each of the 8 masks that are neither equal nor thin
    assert num_members == 7 * 2 + 8 * 2


def test_a_member_costs_no_more_than_its_bytes_and_one_header(crops):
    crops.write(bags_per_shard=256)
    with tarfile.open(crops.path / "train-00000.tar") as tar:
        members = tar.getmembers()
    assert len(members) == 12
    for member, following in itertools.pairwise(members):
        assert member.offset_data == member.offset + 512
        assert following.offset == member.offset_data + -(-member.size // 512) * 512


def test_plain_webdataset_reads_what_the_reader_of_bags_gives(crops):
    crops.write()
    num_views = num_masks = 0
    for split, keys in SPLITS.items():
        samples, reader = crops.samples(split), BagReader(crops.path, split)
        assert reader.image_keys == keys == list(samples)
        assert len(reader) == len(keys)
        assert reader.class_names == CLASSES
        assert reader.size_px == SIZE
        for bag_idx, key in enumerate(keys):
            width, height, label, _, _ = IMAGES_MADE[key]
            sample, rows, views = samples[key], reader.rows(bag_idx), reader.views(bag_idx)
            described = json.loads(sample["json"])
            listed = described.pop("views")
            assert described == {
                "image_key": key,
                "label": label,
                "class_name": CLASSES[label],
                "width": width,
                "height": height,
            }
            assert reader.labels[bag_idx] == label
            assert reader.lengths[bag_idx] == len(rows) == len(listed) == len(views)
            assert views.dtype == np.uint8
            for view_idx, (row, view, entry) in enumerate(zip(rows, views, listed, strict=True)):
                assert (row.image_key, row.view_idx, row.label) == (key, view_idx, label)
                assert entry == {
                    "member": entry["member"],
                    "mask_idx": row.mask_idx,
                    "mask_box": list(row.mask_box),
                    "box": list(row.box),
                    "area_px": row.area_px,
                }
                np.testing.assert_array_equal(view, decoded(sample[entry["member"]]))
                num_views += 1
                if row.mask_idx == WHOLE_IMAGE:
                    assert entry["member"] == "whole.jpg"
                    assert reader.mask(row).shape == (SIZE, SIZE)
                    assert reader.mask(row).all()
                else:
                    assert entry["member"] == f"{view_idx:02d}.jpg"
                    mask_png = decoded(sample[f"{view_idx:02d}.mask.png"])
                    assert mask_png.dtype == bool
                    np.testing.assert_array_equal(reader.mask(row), mask_png)
                    num_masks += 1
    assert (num_views, num_masks) == (15, 8)


def test_a_view_shows_the_image_inside_its_box_and_the_mask_inside_it(crops):
    crops.write(padding_frac=0.1)
    reader = BagReader(crops.path, "train")
    width, height, _, _, boxes = IMAGES_MADE["a"]
    image = pixels_of("a", width, height)
    rows, views = reader.rows(0), reader.views(0)
    assert [row.mask_idx for row in rows] == [0, 1, WHOLE_IMAGE]  # mask 2 equals mask 0
    for row, view in zip(rows[:2], views[:2], strict=True):
        mask = mask_of(boxes[row.mask_idx], width, height)
        assert row.mask_box == box_of_mask(mask) == Box(*boxes[row.mask_idx])
        assert row.box == box_of_view(row.mask_box, height=height, width=width, params=params(padding_frac=0.1))
        assert row.area_px == mask.sum()
        cropped = (slice(row.box.y0, row.box.y1), slice(row.box.x0, row.box.x1))
        expected = Image.fromarray(image[cropped]).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        assert abs(view.astype(int) - np.asarray(expected)).max() <= 8  # JPEG
        nearest = Image.fromarray(mask[cropped]).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(reader.mask(row), np.asarray(nearest))
    whole = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert abs(views[2].astype(int) - np.asarray(whole)).max() <= 8
    assert rows[2].box == rows[2].mask_box == Box(0, 0, width, height)
    assert rows[2].area_px == width * height


def test_clipped_views_show_the_box_without_its_last_row_and_column_and_the_table_says_so(crops):
    crops.write(compat={"clipped_boxes": True})
    reader = BagReader(crops.path, "train")
    width, height, _, _, boxes = IMAGES_MADE["a"]
    image = pixels_of("a", width, height)
    rows, views = reader.rows(0), reader.views(0)
    assert [row.mask_idx for row in rows] == [0, 1, WHOLE_IMAGE]
    for row, view in zip(rows[:2], views[:2], strict=True):
        x0, y0, x1, y1 = boxes[row.mask_idx]
        assert row.mask_box == Box(x0, y0, x1, y1)
        assert row.box == Box(x0, y0, x1 - 1, y1 - 1)
        mask = mask_of(boxes[row.mask_idx], width, height)
        assert row.area_px == mask.sum()
        expected = Image.fromarray(image[y0 : y1 - 1, x0 : x1 - 1]).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        assert abs(view.astype(int) - np.asarray(expected)).max() <= 8  # JPEG
        nearest = Image.fromarray(mask[y0 : y1 - 1, x0 : x1 - 1]).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(reader.mask(row), np.asarray(nearest))
    assert rows[2].box == rows[2].mask_box == Box(0, 0, width, height)


def test_aliased_resizing_reaches_the_views_of_masks_and_of_whole_images(tmp_path, monkeypatch):
    def noise(key, width, height):
        return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)

    monkeypatch.setattr(f"{__name__}.pixels_of", noise)  # smooth pictures are resized alike
    write_inputs(tmp_path / "noise")
    plain = Crops(tmp_path / "noise", "plain").write()
    aliased = Crops(tmp_path / "noise", "aliased").write(compat={"aliased_resizing": True})
    assert [row["box"] for row in plain.rows] == [row["box"] for row in aliased.rows]
    num_of_masks = num_whole = 0
    for split in SPLITS:
        reader, other = BagReader(plain.path, split), BagReader(aliased.path, split)
        for bag_idx in range(len(reader)):
            for row, *views in zip(reader.rows(bag_idx), reader.views(bag_idx), other.views(bag_idx), strict=True):
                if row.box.width_px > SIZE:  # it shrinks
                    assert abs(views[0].astype(int) - views[1]).mean() > 2
                    num_whole += row.mask_idx == WHOLE_IMAGE
                    num_of_masks += row.mask_idx != WHOLE_IMAGE
    assert num_of_masks >= 1
    assert num_whole >= 5


def test_the_table_says_where_in_the_shard_the_bytes_lie(crops):
    crops.write(bags_per_shard=1)
    samples = crops.samples()
    assert len(crops.rows) == 15
    for row in crops.rows:
        sample = samples[row["image_key"]]
        content = (crops.path / row["shard"]).read_bytes()
        name = "whole" if row["mask_idx"] == WHOLE_IMAGE else f"{row['view_idx']:02d}"
        jpeg = content[row["jpeg_offset"] :][: row["jpeg_size"]]
        assert jpeg == sample[f"{name}.jpg"]
        if row["mask_idx"] == WHOLE_IMAGE:
            assert row["mask_offset"] is row["mask_size"] is None
        else:
            assert content[row["mask_offset"] :][: row["mask_size"]] == sample[f"{name}.mask.png"]


def test_the_table_is_sorted_and_carries_class_names_and_size(crops):
    crops.write()
    order = [(row["split"], row["image_key"], row["view_idx"]) for row in crops.rows]
    assert order == sorted(order)
    table = read_table(crops.path / "views.parquet", VIEWS)
    assert metadata_of(table, "class_names") == CLASSES
    assert metadata_of(table, "size_px") == SIZE


def test_counts_add_up(crops):
    summary = crops.write(max_area_frac=0.7, max_views=1, whole_image=False).summary
    assert summary == {
        "num_in": 7,
        "num_out": 7,
        "dropped": {"empty_bag": 0},
        "whole_image_instead_of_masks": 2,  # d has no masks, e's are too large and too thin
        "num_per_split": {"train": 3, "val": 2, "test": 2},
        "masks": {
            "num_in": 10,
            "num_out": 5,
            "dropped": {"duplicate": 1, "over_max_views": 2, "too_large": 1, "too_thin": 1},
        },
        "num_views": 7,
    }
    assert summary["num_views"] == sum(row["in_bag"] for row in crops.rows)


def test_two_runs_give_the_same_bytes_and_so_do_two_workers(crops, tmp_path):
    one = crops.write().bytes
    assert len(one) == 5
    assert crops.write().bytes == one  # over the old folder
    assert Crops(tmp_path, "again").write(Runtime(workers=2)).bytes == one
    assert Crops(tmp_path, "other").write(jpeg_quality=50).bytes != one


def test_a_new_run_leaves_no_shard_of_the_old_one(crops):
    crops.write(bags_per_shard=1)
    assert len(crops.tars) == 7
    crops.write(bags_per_shard=256)
    assert len(crops.tars) == 3


@pytest.mark.parametrize("whole_image", [True, False])
def test_the_whole_image_is_the_last_view_of_the_bag_or_beside_it(crops, whole_image):
    crops.write(whole_image=whole_image)
    reader, whole = BagReader(crops.path, "train"), BagReader(crops.path, "train", views="whole")
    assert [[row.mask_idx for row in reader.rows(bag)] for bag in range(3)] == (
        [[0, 1, -1], [0, -1], [-1]] if whole_image else [[0, 1], [0], [-1]]
    )
    listed = {key: json.loads(sample["json"])["views"] for key, sample in crops.samples("train").items()}
    assert [len(listed[key]) for key in ("a", "b_1", "d")] == reader.lengths
    # whatever the bags are, a black box finds the whole image of each
    assert whole.image_keys == reader.image_keys
    assert whole.labels == reader.labels
    assert whole.lengths == [1, 1, 1]
    assert [[row.mask_idx for row in whole.rows(bag)] for bag in range(3)] == [[WHOLE_IMAGE]] * 3
    samples = crops.samples("train")
    for bag_idx, key in enumerate(whole.image_keys):
        np.testing.assert_array_equal(whole.views(bag_idx)[0], decoded(samples[key]["whole.jpg"]))


def test_an_empty_bag_takes_the_whole_image_and_is_counted(crops):
    crops.write(whole_image=False, empty_bag="whole_image")
    assert crops.summary["whole_image_instead_of_masks"] == 1
    assert crops.summary["dropped"] == {"empty_bag": 0}
    reader = BagReader(crops.path, "train")
    assert [row.mask_idx for row in reader.rows(reader.image_keys.index("d"))] == [WHOLE_IMAGE]


def test_an_empty_bag_is_left_out_and_counted(crops):
    summary = crops.write(whole_image=False, empty_bag="drop", max_area_frac=0.7).summary
    assert summary["num_in"] == 7
    assert summary["num_out"] == 5
    assert summary["dropped"] == {"empty_bag": 2}
    assert summary["num_per_split"] == {"train": 2, "val": 1, "test": 2}
    masks = summary["masks"]
    assert masks["num_in"] == 10 == masks["num_out"] + sum(masks["dropped"].values())
    assert set(crops.samples()) == set(IMAGES_MADE) - {"d", "e"}
    assert BagReader(crops.path, "train").image_keys == ["a", "b_1"]
    assert BagReader(crops.path, "train", views="whole").image_keys == ["a", "b_1"]


def test_an_empty_bag_stops_the_run_and_leaves_the_old_folder_whole(crops):
    old = crops.write().bytes
    with pytest.raises(EmptyBagError) as error:
        crops.write(whole_image=False, empty_bag="error")
    assert str(crops.inputs / "dataset" / "images" / "d.png") in str(error.value)
    assert crops.bytes == old
    assert sorted(path.name for path in crops.inputs.iterdir()) == ["crops", "dataset", "masks"]


@pytest.mark.parametrize("empty_bag", ["drop", "error"])
def test_with_the_whole_image_in_every_bag_none_is_empty(crops, empty_bag):
    assert crops.write(whole_image=True, empty_bag=empty_bag).summary["num_out"] == 7


def assert_one_line(error, *names):
    assert "\n" not in str(error.value)
    for name in names:
        assert str(name) in str(error.value)


@pytest.mark.parametrize("first", ["a", "c-2", LONG_KEY])
def test_masks_of_an_image_that_is_not_in_the_data_set_are_refused(tmp_path, first):
    """Before the first image, between two, and after the last."""
    write_inputs(tmp_path / "all")
    write_inputs(tmp_path / "fewer", tuple(key for key in IMAGES_MADE if key != first))
    with pytest.raises(PipelineError) as error:
        write_crops(
            tmp_path / "fewer/dataset", tmp_path / "all/masks", tmp_path / "crops", params=params(), runtime=HERE
        )
    assert_one_line(error, tmp_path / "all/masks/masks.parquet", first, "run `dvc repro")
    assert not (tmp_path / "crops").exists()


@pytest.mark.parametrize("size", [(40, 31), (41, 30), (30, 40), (39, 30), (80, 60)])
def test_masks_of_an_image_that_had_another_size_are_refused(crops, size, monkeypatch):
    monkeypatch.setitem(IMAGES_MADE, "a", (*size, *IMAGES_MADE["a"][2:]))
    write_inputs(crops.inputs / "later")
    with pytest.raises(PipelineError) as error:
        write_crops(
            crops.inputs / "later" / "dataset",
            crops.inputs / "masks",
            crops.path,
            params=params(),
            runtime=HERE,
        )
    assert_one_line(error, "a.png", "dvc repro")


def test_an_image_that_is_not_as_large_as_its_table_says_is_refused(crops):
    path = crops.inputs / "dataset/images/c-2.png"
    Image.new("RGB", (20, 20)).save(path)
    with pytest.raises(PipelineError) as error:
        crops.write()
    assert_one_line(error, path, "20x20", "33x33")


@pytest.mark.parametrize("missing", ["dataset/images.parquet", "masks/masks.parquet", "dataset/images/f.png"])
def test_a_missing_input_is_one_line_that_names_it(crops, missing):
    (crops.inputs / missing).unlink()
    with pytest.raises(PipelineError) as error:
        crops.write()
    assert_one_line(error, crops.inputs / missing)
    assert not crops.path.exists()


def test_a_split_without_images_is_named(tmp_path):
    write_inputs(tmp_path, ("a", "c-2"))
    crops = Crops(tmp_path).write()
    assert crops.summary["num_per_split"] == {"train": 1, "val": 0, "test": 1}
    for views in ("bag", "whole"):
        with pytest.raises(PipelineError) as error:
            BagReader(crops.path, "val", views=views)
        assert_one_line(error, crops.path / "views.parquet", "val split", "dataset.val_frac")


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(PipelineError) as error:
        BagReader(tmp_path, "train")
    assert_one_line(error, tmp_path / "views.parquet")


def read_everything(crops):
    reader = BagReader(crops.path, "train")
    for bag_idx in range(len(reader)):
        reader.views(bag_idx)
        for row in reader.rows(bag_idx):
            reader.mask(row)


def test_a_missing_shard_is_named(crops):
    crops.write(bags_per_shard=256)
    (crops.path / "train-00000.tar").unlink()
    with pytest.raises(PipelineError) as error:
        read_everything(crops)
    assert_one_line(error, crops.path / "train-00000.tar", "does not exist", "dvc")


def test_a_truncated_shard_is_named(crops):
    crops.write(bags_per_shard=256)
    path = crops.path / "train-00000.tar"
    path.write_bytes(path.read_bytes()[:8000])
    with pytest.raises(PipelineError) as error:
        read_everything(crops)
    assert_one_line(error, path, "ends early")


def test_a_shard_of_another_run_is_named(crops, tmp_path):
    crops.write(bags_per_shard=256)
    Crops(tmp_path, "other").write(bags_per_shard=256, size_px=40)
    path = crops.path / "train-00000.tar"
    path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    with pytest.raises(PipelineError) as error:
        read_everything(crops)
    assert_one_line(error, path, "views.parquet")


@pytest.mark.parametrize("what", ["jpeg", "mask"])
@pytest.mark.parametrize("damage", ["zeros", "second half zeros", "another picture"])
def test_a_changed_member_is_named(crops, what, damage):
    crops.write(bags_per_shard=256)
    path = crops.path / "train-00000.tar"
    row = BagReader(crops.path, "train").rows(0)[1]
    start, size = (row.jpeg_offset, row.jpeg_size) if what == "jpeg" else (row.mask_offset, row.mask_size)
    picture = io.BytesIO()
    Image.new("1" if what == "mask" else "RGB", (2, 2)).save(picture, format="PNG" if what == "mask" else "JPEG")
    content = bytearray(path.read_bytes())
    if damage == "zeros":
        content[start : start + size] = bytes(size)
    elif damage == "second half zeros":
        content[start + size // 2 : start + size] = bytes(size - size // 2)
    else:
        content[start : start + size] = picture.getvalue()[:size].ljust(size, b"\0")
    path.write_bytes(content)
    with pytest.raises(PipelineError) as error:
        read_everything(crops)
    assert_one_line(error, path, "view 1 of a", "dvc")


def test_a_reader_can_be_pickled_before_and_after_reading(crops):
    crops.write()
    reader = BagReader(crops.path, "train")
    fresh = pickle.loads(pickle.dumps(reader))
    views = reader.views(0)
    used = pickle.loads(pickle.dumps(reader))
    del reader  # closes its files; the copies have their own
    for copy in (used, fresh):
        np.testing.assert_array_equal(copy.views(0), views)
        assert copy.image_keys == SPLITS["train"]
        assert copy.mask(copy.rows(0)[0]).shape == (SIZE, SIZE)


def test_bags_can_be_read_in_any_order(crops):
    crops.write(bags_per_shard=1)
    forwards, backwards = BagReader(crops.path, "train"), BagReader(crops.path, "train")
    views = [forwards.views(bag) for bag in (0, 1, 2)]
    for bag in (2, 0, 1):
        np.testing.assert_array_equal(backwards.views(bag), views[bag])
