from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

from pipeline.artifacts import MASKS
from pipeline.data.boxes import Box, box_of_mask
from pipeline.data.catalogue import ImageRow
from pipeline.data.masks import (
    MaskTableWriter,
    StoredMask,
    decode_mask,
    encode_mask,
    iterate_masks,
    join_masks,
    pairwise_iou,
)
from pipeline.errors import PipelineError
from tests.pipeline.data.plain_runs import plain_runs

HEIGHT, WIDTH = 11, 17


def random_masks(count, *, seed=0, density=0.3):
    rng = np.random.default_rng(seed)
    return [rng.random((HEIGHT, WIDTH)) < density for _ in range(count)]


def one_pixel(row, column):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[row, column] = True
    return mask


def stored(mask, score=0.5, stability=None):
    return StoredMask(encode_mask(mask), box_of_mask(mask), int(mask.sum()), score, stability)


def coco_counts(mask):
    """COCO's compressed counts, written down plainly: run lengths down the columns, the first one of background."""
    runs = plain_runs(mask)
    text = ""
    for i, run in enumerate(runs):
        number = run - runs[i - 2] if i > 2 else run  # the run before last is a good guess
        more = True
        while more:  # five bits at a time, the lowest first; the sixth says that there are more
            bits, number = number & 0x1F, number >> 5
            more = number != (-1 if bits & 0x10 else 0)
            text += chr(48 + (bits | 0x20 if more else bits))
    return text.encode()


def assert_one_line(error, *names):
    message = str(error.value)
    assert "\n" not in message
    for name in names:
        assert str(name) in message


SHAPES = {
    "empty": np.zeros((HEIGHT, WIDTH), dtype=bool),
    "full": np.ones((HEIGHT, WIDTH), dtype=bool),
    "first pixel": one_pixel(0, 0),
    "last pixel": one_pixel(HEIGHT - 1, WIDTH - 1),
    "a row": np.arange(HEIGHT)[:, None].repeat(WIDTH, axis=1) == 4,
    "noise": random_masks(1)[0],
    "dense noise": random_masks(1, seed=1, density=0.9)[0],
    "long runs": np.arange(300 * 200).reshape(300, 200) % 7000 > 2500,
}


@pytest.mark.parametrize("mask", SHAPES.values(), ids=SHAPES)
def test_the_code_of_a_mask_is_cocos_column_by_column_run_lengths(mask):
    assert encode_mask(mask) == coco_counts(mask)
    assert encode_mask(np.asfortranarray(mask)) == coco_counts(mask)


@pytest.mark.parametrize("mask", SHAPES.values(), ids=SHAPES)
def test_decoding_gives_the_mask_back_as_bool(mask):
    height, width = mask.shape
    decoded = decode_mask(encode_mask(mask), height=height, width=width)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, mask)
    assert coco.area({"size": [height, width], "counts": encode_mask(mask)}) == mask.sum()


@pytest.mark.parametrize("name", ["empty", "full", "noise"])
@pytest.mark.parametrize(
    ("height", "width"), [(HEIGHT + 1, WIDTH), (HEIGHT, WIDTH + 1), (HEIGHT - 1, WIDTH), (2 * HEIGHT, 2 * WIDTH)]
)
def test_a_mask_of_another_size_is_refused_and_not_filled_with_what_the_memory_holds(name, height, width):
    with pytest.raises(ValueError, match="mask"):
        decode_mask(encode_mask(SHAPES[name]), height=height, width=width)


def test_pairwise_iou_is_intersection_over_union_of_every_two_masks():
    masks = [*random_masks(4), *random_masks(2, seed=1, density=0.05), one_pixel(3, 4), one_pixel(3, 5), SHAPES["full"]]
    masks.append(masks[0])
    iou = pairwise_iou([stored(mask) for mask in masks], height=HEIGHT, width=WIDTH)
    expected = [[(one & other).sum() / (one | other).sum() for other in masks] for one in masks]
    assert iou.shape == (10, 10)
    assert iou.dtype == np.float64
    np.testing.assert_allclose(iou, expected, rtol=1e-12)
    assert iou[0, 9] == iou[9, 0] == 1  # exactly, so that a limit of 1 removes equal masks
    assert iou[6, 7] == 0  # neighbours do not overlap


def image_row(key):
    return ImageRow(key, Path(f"{key}.png"), "0" * 64, WIDTH, HEIGHT, 0, "wren", "test", None, (), None, None)


def test_no_masks_have_no_pairs():
    assert pairwise_iou([], height=HEIGHT, width=WIDTH).shape == (0, 0)


def table_of(path, num_images, seed=0):
    """Write a table in which every image has 0 to 3 masks; give back what was written, images without masks too."""
    rng = np.random.default_rng(seed)
    written = []
    with MaskTableWriter(path) as table:
        for i in range(num_images):
            masks = [
                stored(rng.random((HEIGHT, WIDTH)) < 0.4, float(np.float32(rng.random())), (None, 0.5)[j % 2])
                for j in range(i % 4)
            ]
            table.add(f"image_{i:04d}", masks)
            written.append((f"image_{i:04d}", masks))
    return written


def test_a_table_of_several_row_groups_reads_back_in_order_without_the_images_that_have_no_masks(tmp_path):
    path = tmp_path / "masks.parquet"
    written = table_of(path, 600)
    parquet = pq.ParquetFile(path)
    assert parquet.metadata.num_row_groups == 3
    assert parquet.schema_arrow.equals(MASKS)
    read = list(iterate_masks(path))
    assert len(read) == 450
    assert read == [(key, masks) for key, masks in written if masks]


@pytest.mark.parametrize("wanted", [(), (1,), (0, 4), (255, 256, 257), (511, 599), (3, 999), tuple(range(0, 600, 7))])
def test_the_masks_of_some_images_are_those_that_reading_all_gives(wanted, tmp_path):
    path = tmp_path / "masks.parquet"
    written = dict(table_of(path, 600))
    keys = {f"image_{i:04d}" for i in wanted}
    assert list(iterate_masks(path, keys)) == [(key, masks) for key, masks in written.items() if masks and key in keys]


def test_groups_of_rows_without_wanted_masks_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "masks.parquet"
    table_of(path, 600)
    asked = []
    plain = pq.ParquetFile.iter_batches

    def noting(table, *args, **kwargs):
        asked.append(kwargs["row_groups"])
        return plain(table, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noting)
    assert [key for key, _ in iterate_masks(path, {"image_0001", "image_0599"})] == ["image_0001", "image_0599"]
    assert asked == [[0, 2]]


def test_some_images_are_joined_without_the_masks_of_others(tmp_path):
    written = table_of(tmp_path / "masks.parquet", 20)
    rows = [image_row(key) for key, _ in written[2:9:3]]
    joined = list(join_masks(rows, tmp_path / "masks.parquet", are_all=False))
    assert joined == list(zip(rows, [masks for _, masks in written[2:9:3]], strict=True))
    with pytest.raises(PipelineError, match="is no image of the data set"):
        list(join_masks(rows, tmp_path / "masks.parquet"))


def test_a_row_says_which_mask_of_which_image_it_is(tmp_path):
    path = tmp_path / "masks.parquet"
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[2:5, 3:9] = True
    with MaskTableWriter(path) as table:
        table.add("a", [stored(mask, 0.75, 0.5), stored(SHAPES["full"], 0.25)])
        table.add("b", [])
        table.add("c", [stored(one_pixel(10, 16), 0.125)])
    rows = pq.read_table(path).to_pylist()
    assert [(row["image_key"], row["mask_idx"]) for row in rows] == [("a", 0), ("a", 1), ("c", 0)]
    assert rows[0] == {
        "image_key": "a",
        "mask_idx": 0,
        "rle": coco_counts(mask),
        "box": [3, 2, 9, 5],
        "area_px": 18,
        "score": 0.75,
        "stability": 0.5,
    }
    assert rows[2]["box"] == [16, 10, 17, 11]
    assert rows[2]["stability"] is None


def test_equal_masks_give_equal_files(tmp_path):
    table_of(tmp_path / "one.parquet", 300)
    table_of(tmp_path / "two.parquet", 300)
    table_of(tmp_path / "other.parquet", 300, seed=1)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert (tmp_path / "one.parquet").read_bytes() != (tmp_path / "other.parquet").read_bytes()


def test_a_table_without_any_mask_reads_as_no_images(tmp_path):
    with MaskTableWriter(tmp_path / "masks.parquet") as table:
        table.add("a", [])
    assert list(iterate_masks(tmp_path / "masks.parquet")) == []


def test_a_missing_table_names_the_file_and_the_stage_that_writes_it(tmp_path):
    path = tmp_path / "masks.parquet"
    with pytest.raises(PipelineError) as error:
        list(iterate_masks(path))
    assert_one_line(error, path, "dvc repro masks")


@pytest.mark.parametrize("damage", ["nothing in it", "text", "first half", "without its end", "middle overwritten"])
def test_a_damaged_table_is_one_line_that_names_the_file(tmp_path, damage):
    path = tmp_path / "masks.parquet"
    table_of(path, 300)
    content = path.read_bytes()
    middle = len(content) // 3
    path.write_bytes(
        {
            "nothing in it": b"",
            "text": b"image_key,mask_idx\n" * 50,
            "first half": content[: len(content) // 2],
            "without its end": content[:-1],
            "middle overwritten": content[:middle] + bytes(range(200)) + content[middle + 200 :],
        }[damage]
    )
    with pytest.raises(PipelineError) as error:
        list(iterate_masks(path))
    assert_one_line(error, path, "dvc repro")


def test_no_flipped_bit_gives_other_masks(tmp_path):
    path, damaged = tmp_path / "masks.parquet", tmp_path / "damaged.parquet"
    table_of(path, 300)
    content, expected = path.read_bytes(), list(iterate_masks(path))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        changed = bytearray(content)
        changed[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        damaged.write_bytes(changed)
        try:
            assert list(iterate_masks(damaged)) == expected  # bits that mean nothing, as in a comment of the footer
        except PipelineError:
            refused += 1
    assert refused > 40


def test_a_foreign_table_is_refused(tmp_path):
    path = tmp_path / "masks.parquet"
    pq.write_table(pa.table({"image_key": ["a"], "rle": [b"0"]}), path)
    with pytest.raises(PipelineError) as error:
        list(iterate_masks(path))
    assert_one_line(error, path, "dvc repro masks")


def test_a_box_read_back_is_a_box(tmp_path):
    table_of(tmp_path / "masks.parquet", 4)
    boxes = [mask.box for _, masks in iterate_masks(tmp_path / "masks.parquet") for mask in masks]
    assert len(boxes) == 6
    assert all(isinstance(box, Box) for box in boxes)
