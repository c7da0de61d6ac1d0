import errno
import logging
import shutil
import sqlite3
import time

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts import IMAGES, write_table
from pipeline.data import segmentation
from pipeline.data.boxes import Box, box_of_mask
from pipeline.data.mask_store import MaskStore, read_contents
from pipeline.data.masks import MaskTableWriter, decode_mask, iterate_masks
from pipeline.data.segmentation import fingerprint, name_of, write_masks
from pipeline.errors import PipelineError
from pipeline.io import sha256_of
from pipeline.params import GridParams, MasksParams, SuperpixelParams
from pipeline.runtime import Runtime
from pipeline.segmenters.grid import GridSegmenter
from pipeline.segmenters.interface import Segment, Segmenter

HERE = Runtime(workers=1)
KEYS = ("a", "b", "c", "d", "e")
WIDTH, HEIGHT = 14, 9


def write_dataset(folder, keys=KEYS, object_box=None):
    """Write a data set of one picture per key: noise that hangs on the key alone."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for key in sorted(keys):
        path = folder / "images" / f"{key}.png"
        if not path.exists():
            pixels = np.random.default_rng(ord(key)).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        rows.append(
            {
                "image_key": key,
                "path": f"images/{key}.png",
                "sha256": sha256_of(path.read_bytes()),
                "width": WIDTH,
                "height": HEIGHT,
                "label": 0,
                "class_name": "gull",
                "split": "train",
                "object_box": object_box,
                "parts": [],
                "object_mask": None,
                "part_mask": None,
            }
        )
    write_table(folder / "images.parquet", rows, IMAGES, class_names=["gull"], part_names=[])


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def segmented(monkeypatch):
    """Counts what the grid segmenter does: the sum of the pixels of each image it was given, as a name of it."""
    seen = []
    segment = GridSegmenter.segment

    def counting(self, picture):
        seen.append(int(picture.image.sum()))
        return segment(self, picture)

    monkeypatch.setattr(GridSegmenter, "segment", counting)
    return seen


def grid(weights, rows=2, columns=2, **more):
    return MasksParams(segmenter="grid", weights=str(weights), grid=GridParams(rows=rows, columns=columns, **more))


class Run:
    """The stage on one data set with one store."""

    def __init__(self, folder):
        self.dataset, self.out, self.store = folder / "dataset", folder / "masks", folder / "cache" / "masks.sqlite"
        write_dataset(self.dataset)

    def __call__(self, params, runtime=HERE, bgr=False):
        return write_masks(self.dataset, self.out, store=self.store, params=params, runtime=runtime, bgr=bgr)

    @property
    def content(self):
        return (self.out / "masks.parquet").read_bytes()

    @property
    def masks(self):
        return dict(iterate_masks(self.out / "masks.parquet"))


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_the_table_holds_the_masks_of_the_segmenter_for_every_image(run, weights):
    summary = run(grid(weights, rows=2, columns=3))
    assert list(run.masks) == list(KEYS)
    for masks in run.masks.values():
        decoded = [decode_mask(mask.rle, height=HEIGHT, width=WIDTH) for mask in masks]
        np.testing.assert_array_equal(np.sum(decoded, axis=0), np.ones((HEIGHT, WIDTH)))
        assert [box_of_mask(mask) for mask in decoded] == [mask.box for mask in masks]
        assert [mask.sum() for mask in decoded] == [mask.area_px for mask in masks]
        assert masks[0].box == Box(0, 0, 4, 4)
        assert [mask.score for mask in masks] == [0] * 6
        assert [mask.stability for mask in masks] == [None] * 6
    assert summary == {
        "num_in": 5,
        "num_out": 5,
        "dropped": {},
        "num_masks": 30,
        "masks_per_image": {"min": 6, "median": 6, "max": 6},
        "images_without_masks": 0,
    }


def test_counts_add_up_where_images_have_unequal_numbers_of_masks(run, weights, monkeypatch):
    segment = GridSegmenter.segment

    def uneven(self, picture):
        return segment(self, picture)[: picture.image.sum() % 4]

    monkeypatch.setattr(GridSegmenter, "segment", uneven)
    summary = run(grid(weights))
    sums = {key: int(np.asarray(Image.open(run.dataset / f"images/{key}.png"), dtype=int).sum()) % 4 for key in KEYS}
    assert set(sums.values()) == {0, 1, 3}
    assert {key: len(run.masks.get(key, [])) for key in KEYS} == sums
    assert summary["num_in"] == summary["num_out"] + sum(summary["dropped"].values()) == 5
    assert summary["num_masks"] == sum(sums.values())
    assert summary["masks_per_image"] == {
        "min": min(sums.values()),
        "median": sorted(sums.values())[2],
        "max": max(sums.values()),
    }
    assert summary["images_without_masks"] == list(sums.values()).count(0)


def test_an_image_without_masks_is_not_segmented_again(run, weights, monkeypatch, segmented):
    monkeypatch.setattr(GridSegmenter, "segment", lambda self, picture: segmented.append(0) or [])
    assert run(grid(weights))["images_without_masks"] == 5
    assert run(grid(weights))["images_without_masks"] == 5
    assert len(segmented) == 5
    assert run.masks == {}


def test_a_second_run_segments_nothing_and_gives_the_same_bytes(run, weights, segmented):
    first_summary = run(grid(weights))
    first = run.content
    assert len(segmented) == 5
    assert run(grid(weights)) == first_summary
    assert len(segmented) == 5
    assert run.content == first
    run.store.unlink()
    run(grid(weights))
    assert len(segmented) == 10
    assert run.content == first


def test_a_run_that_failed_in_the_middle_goes_on_where_it_was(run, weights, segmented, monkeypatch):
    segment = GridSegmenter.segment

    def failing(self, picture):
        if len(segmented) == 3:
            raise RuntimeError("out of memory")
        return segment(self, picture)

    with monkeypatch.context() as patch:
        patch.setattr(GridSegmenter, "segment", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(grid(weights))
    assert len(segmented) == 3
    assert not run.out.exists()
    assert run(grid(weights))["num_out"] == 5
    assert len(segmented) == len(set(segmented)) == 5
    resumed = run.content
    run.store.unlink()
    run(grid(weights))
    assert run.content == resumed


def test_a_failing_run_leaves_the_old_table_whole_and_nothing_else(run, weights, monkeypatch):
    run(grid(weights))
    old = run.content

    def failing(self, picture):
        raise RuntimeError("broken")

    monkeypatch.setattr(GridSegmenter, "segment", failing)
    with pytest.raises(RuntimeError, match="broken"):
        run(grid(weights, rows=3))
    assert run.content == old
    assert sorted(path.name for path in run.out.parent.iterdir()) == ["cache", "dataset", "masks", "weights.pth"]


def test_images_added_later_are_the_only_ones_segmented(run, weights, segmented):
    run(grid(weights))
    before = list(segmented)
    write_dataset(run.dataset, (*KEYS, "A", "z"))  # one sorts before the others, one after
    assert run(grid(weights))["num_out"] == 7
    assert len(segmented) == 7
    assert not set(segmented[5:]) & set(before)
    assert list(run.masks) == ["A", *KEYS, "z"]


def test_images_taken_away_leave_the_table_and_come_back_without_work(run, weights, segmented):
    run(grid(weights))
    everything = run.content
    write_dataset(run.dataset, ("b", "d"))
    assert run(grid(weights))["num_in"] == 2
    assert list(run.masks) == ["b", "d"]
    write_dataset(run.dataset)
    run(grid(weights))
    assert run.content == everything
    assert len(segmented) == 5


def test_changed_settings_segment_all_images_and_going_back_none(run, weights, segmented):
    run(grid(weights))
    old = run.content
    run(grid(weights, rows=3))
    assert len(segmented) == 10
    assert run.content != old
    run(grid(weights))
    assert len(segmented) == 10
    assert run.content == old


def test_changed_weights_segment_all_images_and_the_same_ones_elsewhere_none(run, weights, segmented, tmp_path):
    run(grid(weights))
    weights.write_bytes(b"other weights")
    run(grid(weights))
    assert len(segmented) == 10
    (tmp_path / "elsewhere.pth").write_bytes(b"weights")
    run(grid(tmp_path / "elsewhere.pth"))
    assert len(segmented) == 10


def test_settings_of_segmenters_that_do_not_run_have_no_effect(weights):
    params = grid(weights)
    other = params.model_copy(update={"superpixel": SuperpixelParams(num_superpixels=7)})
    assert fingerprint(params) == fingerprint(other)
    assert fingerprint(params) != fingerprint(params.model_copy(update={"segmenter": "superpixel"}))


@pytest.mark.parametrize("segmenter", ["superpixel", "grid", "slit", "coco"])
def test_bgr_has_no_effect_on_segmenters_that_the_authors_code_gives_rgb(segmenter, weights):
    params = grid(weights).model_copy(update={"segmenter": segmenter})
    assert fingerprint(params, bgr=True) == fingerprint(params)
    assert name_of(params, bgr=True) == name_of(params)


def test_bgr_gives_masks_of_the_exchanged_picture_and_a_row_of_its_own_in_the_store(run, weights, monkeypatch):
    seen = []

    class Watching(Segmenter):
        """Stands in for SAM: keeps what it sees; one mask per picture, where the first channel is brightest."""

        holds_device, version = True, 1

        @classmethod
        def from_params(cls, params, device):
            return cls()

        def segment(self, picture):
            seen.append(picture.image)
            return [Segment(picture.image[..., 0] == picture.image[..., 0].max(), 1.0)]

    monkeypatch.setattr("pipeline.segmenters.sam.SamSegmenter", Watching)
    params = MasksParams(segmenter="sam", weights=str(weights))
    pictures = {key: np.asarray(Image.open(run.dataset / f"images/{key}.png")) for key in KEYS}
    for bgr, channel in ((False, 0), (True, 2)):
        run(params, bgr=bgr)
        for key, masks in run.masks.items():
            (mask,) = (decode_mask(mask.rle, height=HEIGHT, width=WIDTH) for mask in masks)
            np.testing.assert_array_equal(mask, pictures[key][..., channel] == pictures[key][..., channel].max())
    assert len(seen) == 10
    for bgr in (True, False):
        run(params, bgr=bgr)
    assert len(seen) == 10  # both were kept
    contents = read_contents(run.store, fingerprint(params))
    assert contents.other_settings == [(fingerprint(params, bgr=True), f"sam, {weights}, BGR", 5)]


def test_a_raised_version_of_the_segmenter_changes_the_fingerprint(weights, monkeypatch):
    before = fingerprint(grid(weights))
    monkeypatch.setattr(GridSegmenter, "version", GridSegmenter.version + 1)
    assert fingerprint(grid(weights)) != before


def test_the_fingerprint_of_a_folder_of_weights_sees_every_file_and_name(tmp_path):
    folder = tmp_path / "checkpoint"
    (folder / "inner").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "inner" / "model.bin").write_bytes(b"weights")
    seen = [fingerprint(grid(folder))]
    (folder / "inner" / "model.bin").write_bytes(b"other weights")
    seen.append(fingerprint(grid(folder)))
    (folder / "inner" / "model.bin").rename(folder / "inner" / "renamed.bin")
    seen.append(fingerprint(grid(folder)))
    assert len(set(seen)) == 3
    assert fingerprint(grid(folder)) == seen[-1]


def test_an_edited_picture_is_segmented_again_and_only_that(run, weights, segmented):
    run(grid(weights))
    Image.new("RGB", (WIDTH, HEIGHT), (1, 0, 0)).save(run.dataset / "images" / "c.png")
    write_dataset(run.dataset)
    run(grid(weights))
    assert segmented[5:] == [WIDTH * HEIGHT]


def test_a_picture_that_is_not_the_listed_one_is_refused_and_not_kept_as_it(run, weights, segmented):
    original = (run.dataset / "images" / "c.png").read_bytes()
    Image.new("RGB", (WIDTH, HEIGHT), (1, 0, 0)).save(run.dataset / "images" / "c.png")
    with pytest.raises(PipelineError, match=r"c\.png") as error:
        run(grid(weights))
    assert "\n" not in str(error.value)
    assert "dvc repro" in str(error.value)
    (run.dataset / "images" / "c.png").write_bytes(original)
    run(grid(weights))
    assert len(set(segmented)) == 5
    assert WIDTH * HEIGHT not in segmented


def test_a_moved_object_box_segments_again_only_where_it_is_divided(run, weights, segmented):
    with_box, without = grid(weights, use_object_box=True), grid(weights)
    write_dataset(run.dataset, object_box=[2, 1, 8, 7])
    run(without)
    run(with_box)
    assert len(segmented) == 10
    assert run.masks["a"][0].box == Box(2, 1, 5, 4)
    write_dataset(run.dataset, object_box=[4, 1, 8, 7])
    run(without)
    assert len(segmented) == 10
    run(with_box)
    assert len(segmented) == 15
    assert run.masks["a"][0].box == Box(4, 1, 6, 4)


def test_a_damaged_store_is_set_aside_and_everything_segmented_anew(run, weights, segmented, caplog):
    run(grid(weights))
    expected = run.content
    run.store.write_bytes(b"garbage" * 1000)
    with caplog.at_level(logging.WARNING):
        run(grid(weights))
    assert len(segmented) == 10
    assert run.content == expected
    assert "damaged" in caplog.text


def damage_row(store, image):
    """Overwrite what the store has of one image; ``image`` is its sha256."""
    database = sqlite3.connect(store)
    with database:
        assert database.execute("UPDATE masks SET masks = X'789C00' WHERE image = ?", (image,)).rowcount == 1
    database.close()


def sha256_in(run, key):
    return sha256_of((run.dataset / "images" / f"{key}.png").read_bytes())


def test_a_damaged_row_is_segmented_anew_and_only_that(run, weights, segmented, caplog):
    run(grid(weights))
    expected = run.content
    damage_row(run.store, sha256_in(run, "c"))
    with caplog.at_level(logging.WARNING):
        assert run(grid(weights))["num_out"] == 5
    assert run.content == expected
    assert segmented[5:] == [segmented[2]]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"{run.store}: the row of image {sha256_in(run, 'c'):.12} is damaged"
        " (Error -5 while decompressing data: incomplete or truncated stream) and computed anew"
    ]
    run(grid(weights))
    assert len(segmented) == 6


def test_rows_that_stay_damaged_are_one_line_and_no_endless_loop(run, weights, segmented, monkeypatch):
    monkeypatch.setattr(MaskStore, "get", lambda self, image, settings: None)
    with pytest.raises(PipelineError) as error:
        run(grid(weights))
    assert_one_line(error, run.store)
    assert len(segmented) == 10
    assert not run.out.exists()


def damaged_copies(content, rng):
    """Flipped bits in the header and in pages, heads of pages overwritten, truncations."""
    for _ in range(10):
        flipped = bytearray(content)
        flipped[int(rng.integers(100))] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)
    for _ in range(20):
        flipped = bytearray(content)
        for position in rng.integers(100, len(content), 20).tolist():
            flipped[position] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)
    for _ in range(20):
        overwritten = bytearray(content)
        start = int(rng.integers(len(content) // 4096)) * 4096
        overwritten[start : start + 12] = rng.bytes(12)
        yield bytes(overwritten)
    for size in rng.integers(0, len(content), 10).tolist():
        yield content[:size]


def test_whatever_is_damaged_in_the_store_the_table_comes_out_the_same(run, weights, segmented):
    run(grid(weights))
    expected, content = run.content, run.store.read_bytes()
    num_copies = 0
    for copy in damaged_copies(content, np.random.default_rng(0)):
        run.store.write_bytes(copy)
        run(grid(weights))
        assert run.content == expected
        num_copies += 1
    assert num_copies == 60
    assert 100 < len(segmented) < 5 * 60


def test_equal_pictures_are_segmented_once(run, weights, segmented):
    shutil.copy(run.dataset / "images" / "a.png", run.dataset / "images" / "q.png")
    write_dataset(run.dataset, (*KEYS, "q"))
    assert run(grid(weights))["num_in"] == 6
    assert len(segmented) == 5
    assert run.masks["q"] == run.masks["a"]
    run(grid(weights))
    assert len(segmented) == 5


def test_settings_that_were_changed_halfway_find_both_halves_when_they_come_back(run, weights, segmented):
    write_dataset(run.dataset, KEYS[:2])
    run(grid(weights))
    run(grid(weights, rows=3))
    write_dataset(run.dataset)
    run(grid(weights))
    assert len(segmented) == 2 + 2 + 3
    run(grid(weights, rows=3))
    assert len(segmented) == 2 + 2 + 3 + 3
    both = {len(masks) for masks in run.masks.values()}
    assert both == {6}


def test_the_progress_bar_counts_only_images_that_are_not_in_the_store(run, weights, monkeypatch):
    bars = []

    def bar(items, *, what, total):
        bars.append([total, 0])
        for item in items:
            yield item
            bars[-1][1] += 1

    monkeypatch.setattr(segmentation, "progress", bar)
    write_dataset(run.dataset, KEYS[:3])
    run(grid(weights))
    write_dataset(run.dataset)
    run(grid(weights))
    run(grid(weights))
    assert bars == [[3, 3], [2, 2]]


def test_each_image_is_logged_once_when_it_is_taken_in_hand_and_once_when_its_masks_are_there(run, weights, caplog):
    with caplog.at_level(logging.DEBUG, logger="pipeline.data.segmentation"):
        run(grid(weights))
        run(grid(weights))
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert [line for line in said if line.startswith("segmenting")] == [f"segmenting {key}" for key in KEYS]
    assert [line for line in said if line.startswith("segmented")] == [f"segmented {key}" for key in KEYS]


def test_every_image_segmented_is_timed_and_the_settings_have_a_name(run, weights):
    start = time.perf_counter()
    run(grid(weights))
    run(grid(weights))
    elapsed = time.perf_counter() - start
    contents = read_contents(run.store, fingerprint(grid(weights)))
    assert contents.timed_images == 5
    assert 0 < contents.timed_seconds < elapsed
    assert list(contents.num_masks.values()) == [4] * 5
    assert read_contents(run.store, "other").other_settings == [
        (fingerprint(grid(weights)), f"grid, {weights}", 5),
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_under_the_store_stops_the_run_at_once_and_loses_nothing(run, weights, monkeypatch, workers):
    write_dataset(run.dataset, KEYS[:1])
    run(grid(weights))
    old = run.content
    keys = [chr(code) for code in range(ord("A"), ord("A") + 200)]  # the one that is stored among them
    write_dataset(run.dataset, keys)
    opening = MaskStore._open

    def on_a_full_disk(self):
        database = opening(self)
        database.execute("PRAGMA max_page_count = 16")
        return database

    with monkeypatch.context() as patch:
        patch.setattr(MaskStore, "_open", on_a_full_disk)
        with pytest.raises(PipelineError) as error:
            run(grid(weights), Runtime(workers=workers))
    assert_one_line(error, run.store, "make room")
    assert run.content == old
    num_kept = len(read_contents(run.store, fingerprint(grid(weights))).num_masks)
    assert 5 < num_kept < 150
    assert run(grid(weights))["num_out"] == 200
    contents = read_contents(run.store, fingerprint(grid(weights)))
    assert contents.timed_images == len(contents.num_masks) == 200  # none was put twice


def test_a_disk_that_refuses_the_table_is_one_line_that_names_it_and_keeps_the_old(run, weights, monkeypatch):
    run(grid(weights))
    old = run.content

    def full(self, image_key, masks):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MaskTableWriter, "add", full)
    with pytest.raises(PipelineError) as error:
        run(grid(weights, rows=3))
    assert_one_line(error, run.out / "masks.parquet", "No space left on device", "make room")
    assert run.content == old
    monkeypatch.undo()
    assert read_contents(run.store, fingerprint(grid(weights, rows=3))).timed_images == 5


def assert_one_line(error, *names):
    assert "\n" not in str(error.value)
    for name in names:
        assert str(name) in str(error.value)


def test_missing_weights_are_named_before_anything_is_segmented(run, tmp_path, segmented):
    with pytest.raises(PipelineError) as error:
        run(grid(tmp_path / "sam_vit_b.pth"))
    assert_one_line(error, "masks.weights", tmp_path / "sam_vit_b.pth")
    assert segmented == []


def test_an_image_that_vanished_is_one_line_that_names_it(run, weights):
    (run.dataset / "images" / "b.png").unlink()
    with pytest.raises(PipelineError) as error:
        run(grid(weights))
    assert_one_line(error, run.dataset / "images" / "b.png")


def test_an_unreadable_image_is_one_line_that_names_it_and_keeps_the_ones_before(run, weights, segmented):
    (run.dataset / "images" / "d.png").write_bytes(b"no picture")
    write_dataset(run.dataset)
    with pytest.raises(PipelineError) as error:
        run(grid(weights))
    assert_one_line(error, run.dataset / "images" / "d.png")
    assert len(segmented) == 3
    (run.dataset / "images" / "d.png").unlink()
    write_dataset(run.dataset)
    run(grid(weights))
    assert len(segmented) == 5


def test_a_missing_data_set_is_one_line_that_names_the_table(tmp_path, weights):
    with pytest.raises(PipelineError) as error:
        write_masks(tmp_path, tmp_path / "masks", store=tmp_path / "s.sqlite", params=grid(weights), runtime=HERE)
    assert_one_line(error, tmp_path / "images.parquet")


def test_superpixel_masks_have_the_same_bytes_whatever_the_workers(run, weights):
    params = MasksParams(weights=str(weights), superpixel=SuperpixelParams(image_side_px=64, num_superpixels=20))
    assert run(params)["num_masks"] > 5
    here = run.content
    run.store.unlink()
    run(params, Runtime(workers=2))
    assert run.content == here
