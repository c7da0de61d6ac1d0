import hashlib
import io
import logging
import multiprocessing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.boxes import Box
from pipeline.data.catalogue import load_images
from pipeline.data.collect import write_dataset
from pipeline.data.datasets.folder import ImageFolder
from pipeline.data.datasets.interface import Dataset, DatasetError, ImageRecord, Listing, Part
from pipeline.data.images import UnreadableImageError
from pipeline.errors import PipelineError
from pipeline.params import DatasetParams
from pipeline.runtime import Runtime

WIDTH, HEIGHT = 8, 6


def png(grey):
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (grey, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Memory(Dataset):
    """Two classes of four images, all in memory; tests replace what they are about."""

    records: list[ImageRecord] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    object_masks: dict[str, np.ndarray] = field(default_factory=dict)
    part_masks: dict[str, np.ndarray] = field(default_factory=dict)
    class_names: tuple[str, ...] = ("Great auk/1", "Wren")

    def __post_init__(self):
        for label in (0, 1):
            for i, split in enumerate(("train", "train", "train", "test")):
                key = f"{'xb'[label]}{i}"
                self.records.append(ImageRecord(key, f"raw/{key}.PNG", label, split))
                self.contents[key] = png(10 * label + i)

    def alter(self, key, **changes):
        self.records = [replace(r, **changes) if r.image_key == key else r for r in self.records]

    def listing(self):
        return Listing(self.class_names, self.records, ("beak", "tail"), dropped={"blurred": 2})

    def image_bytes(self, record):
        return self.contents[record.image_key]

    def object_mask(self, record):
        return self.object_masks.get(record.image_key)

    def part_mask(self, record):
        return self.part_masks.get(record.image_key)


@pytest.fixture
def dataset():
    return Memory()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "dataset"


def run(dataset, out, workers=1, val_frac=0.34):
    params = DatasetParams(val_frac=val_frac)
    return write_dataset(dataset, out, params=params, seed=0, runtime=Runtime(workers=workers))


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_rows_are_sorted_by_key_and_lead_to_the_unchanged_files(dataset, out):
    run(dataset, out)
    table = load_images(out)
    assert [row.image_key for row in table.rows] == ["b0", "b1", "b2", "b3", "x0", "x1", "x2", "x3"]
    assert table.class_names == ("Great auk/1", "Wren")
    assert table.part_names == ("beak", "tail")
    assert table.rows[4].path == out / "images" / "Great-auk-1" / "x0.png"
    for row in table.rows:
        assert row.path.read_bytes() == dataset.contents[row.image_key]
        assert row.sha256 == hashlib.sha256(dataset.contents[row.image_key]).hexdigest()
        assert (row.width, row.height) == (WIDTH, HEIGHT)
        assert row.class_name == table.class_names[row.label]


def test_every_image_is_accounted_for(dataset, out):
    summary = run(dataset, out)
    assert summary["num_in"] == 10
    assert summary["num_out"] == 8
    assert summary["dropped"] == {"blurred": 2}
    assert summary["num_per_split"] == {"train": 4, "val": 2, "test": 2}
    table = load_images(out)
    assert {split: len(table.of_split(split)) for split in ("train", "val", "test")} == summary["num_per_split"]


def test_two_runs_with_any_number_of_workers_give_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "source" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(path)
    dataset = ImageFolder(tmp_path / "source", seed=0)
    summaries = [run(dataset, tmp_path / f"out{workers}", workers) for workers in (1, 2)]
    assert summaries[0] == summaries[1]
    files = files_of(tmp_path / "out1")
    assert len(files) == 13
    assert files_of(tmp_path / "out2") == files
    assert multiprocessing.active_children() == []


def test_boxes_are_cut_to_the_image(dataset, out):
    dataset.alter("b0", object_box=Box(-2, 1, 99, 5))
    assert run(dataset, out)["num_object_boxes"] == 1
    boxes = [row.object_box for row in load_images(out).rows]
    assert boxes == [Box(0, 1, 8, 5), *[None] * 7]


@pytest.mark.parametrize("box", [Box(8, 0, 12, 4), Box(3, 3, 3, 5), Box(-4, 0, 0, 6)])
def test_a_box_without_a_pixel_of_the_image_stops_with_the_images_name(dataset, out, box):
    dataset.alter("b0", object_box=box)
    with pytest.raises(DatasetError, match=r"raw/b0\.PNG: the object's box .* covers no pixel"):
        run(dataset, out)


def test_parts_outside_the_image_are_dropped_and_counted(dataset, out):
    inside = (Part(0, 0.0, 5.5), Part(1, 7.5, 0.0))
    dataset.alter("b0", parts=(*inside, Part(0, 8.0, 1.0), Part(0, 1.0, 6.0), Part(1, -0.5, 1.0)))
    summary = run(dataset, out)
    assert summary["num_parts"] == 2
    assert summary["dropped_parts"] == {"outside_image": 3}
    assert load_images(out).rows[0].parts == inside


def test_masks_come_back_as_they_were_given(dataset, out):
    object_mask = np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.5
    part_mask = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8)
    dataset.object_masks["b0"] = object_mask
    dataset.part_masks["x1"] = part_mask
    summary = run(dataset, out)
    assert (summary["num_object_masks"], summary["num_part_masks"]) == (1, 1)
    rows = {row.image_key: row for row in load_images(out).rows}
    assert [key for key, row in rows.items() if row.object_mask] == ["b0"]
    assert [key for key, row in rows.items() if row.part_mask] == ["x1"]
    assert (np.asarray(Image.open(rows["b0"].object_mask)) == object_mask * 255).all()
    assert (np.asarray(Image.open(rows["x1"].part_mask)) == part_mask).all()


def test_an_object_mask_without_foreground_is_dropped_and_counted(dataset, out):
    dataset.object_masks["b0"] = np.zeros((HEIGHT, WIDTH), dtype=bool)
    assert run(dataset, out)["dropped_object_masks"] == {"empty": 1}
    assert load_images(out).rows[0].object_mask is None
    assert sorted(path.name for path in out.iterdir()) == ["images", "images.parquet"]


def test_a_mask_of_another_size_stops_with_the_images_name(dataset, out):
    dataset.object_masks["b0"] = np.ones((WIDTH, HEIGHT), dtype=bool)
    with pytest.raises(DatasetError, match=r"raw/b0\.PNG: its object mask is 6 x 8 pixels, but the image is 8 x 6"):
        run(dataset, out)


def test_a_part_mask_with_an_unknown_part_stops_with_the_images_name(dataset, out):
    dataset.part_masks["b0"] = np.full((HEIGHT, WIDTH), 3, dtype=np.uint8)
    with pytest.raises(DatasetError, match=r"raw/b0\.PNG: its part mask has the value 3, but there are 2 parts"):
        run(dataset, out)


def test_a_truncated_picture_stops_and_leaves_the_older_folder_whole(dataset, out):
    run(dataset, out)
    before = files_of(out)
    dataset.contents["x3"] = dataset.contents["x3"][:-40]
    with pytest.raises(UnreadableImageError, match=r"raw/x3\.PNG: cannot be decoded"):
        run(dataset, out)
    assert files_of(out) == before
    assert list(out.parent.iterdir()) == [out]


def test_a_new_run_replaces_the_older_folder_whole(dataset, out):
    out.mkdir()
    (out / "stale.txt").write_text("old")
    run(dataset, out)
    assert not (out / "stale.txt").exists()


def test_a_test_image_that_is_also_a_training_image_is_warned_of_but_kept(dataset, out, caplog):
    dataset.contents["b3"] = dataset.contents["x0"]
    dataset.contents["x3"] = dataset.contents["x1"]
    with caplog.at_level(logging.WARNING):
        summary = run(dataset, out)
    assert (summary["num_test_duplicates"], summary["num_out"]) == (2, 8)
    (record,) = caplog.records
    assert record.getMessage().startswith("2 test image(s)")
    assert record.getMessage().endswith("raw/b3.PNG = raw/x0.PNG")


def test_equal_pictures_within_the_training_part_are_no_matter(dataset, out, caplog):
    dataset.contents["b0"] = dataset.contents["x0"]
    with caplog.at_level(logging.WARNING):
        assert run(dataset, out)["num_test_duplicates"] == 0
    assert caplog.records == []


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda d: d.alter("b0", image_key="x0"), r"raw/b0\.PNG and raw/x0\.PNG would have the same key `x0`"),
        (lambda d: d.alter("b0", image_key="b.0"), r"raw/b0\.PNG: `b\.0` cannot be a key"),
        (lambda d: d.records.clear(), "the data set lists no image"),
        (lambda d: setattr(d, "class_names", ("Wren",)), "the only class is `Wren`"),
        (lambda d: setattr(d, "class_names", ("Wren", "Wren")), "2 classes are called `Wren`"),
    ],
)
def test_a_list_that_later_stages_could_not_rely_on_is_refused(dataset, out, alter, message):
    alter(dataset)
    with pytest.raises(DatasetError, match=message):
        run(dataset, out)
    assert not out.exists()


def test_a_source_inside_the_target_is_not_overwritten(tmp_path, dataset):
    source = tmp_path / "data" / "raw"
    source.mkdir(parents=True)
    with pytest.raises(DatasetError, match="move the source elsewhere"):
        write_dataset(
            dataset, tmp_path / "data", params=DatasetParams(source=str(source)), seed=0, runtime=Runtime(workers=1)
        )
    assert source.is_dir()


def test_reading_a_folder_that_no_stage_wrote_says_what_to_run():
    with pytest.raises(PipelineError, match=r"images\.parquet does not exist: run the stage"):
        load_images(Path("nowhere"))
