"""Tables between stages: what is written is read back, and nothing else is accepted."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import IMAGES, MASKS, PROTOTYPES, VIEWS, metadata_of, read_table, write_table
from pipeline.errors import PipelineError

IMAGE_ROWS = [
    {
        "image_key": "tern-1",
        "path": "images/tern-1.jpg",
        "sha256": "0" * 64,
        "width": 640,
        "height": 480,
        "label": 0,
        "class_name": "Tern",
        "split": "train",
        "object_box": [1, 2, 30, 40],
        "parts": [{"part_idx": 0, "x": 3.5, "y": 4.25}, {"part_idx": 7, "x": 0.0, "y": 479.0}],
        "object_mask": "object_masks/tern-1.png",
        "part_mask": None,
    },
    {
        "image_key": "tern-2",
        "path": "images/tern-2.jpg",
        "sha256": "f" * 64,
        "width": 1,
        "height": 1,
        "label": 0,
        "class_name": "Tern",
        "split": "test",
        "object_box": None,
        "parts": [],
        "object_mask": None,
        "part_mask": None,
    },
]
MASK_ROW = {
    "image_key": "tern-1",
    "mask_idx": 0,
    "rle": b"\x00\xff`1",
    "box": [0, 0, 5, 6],
    "area_px": 2**40,
    "score": 0.5,
    "stability": None,
}


def test_rows_come_back_as_they_were_written(tmp_path):
    write_table(tmp_path / "images.parquet", IMAGE_ROWS, IMAGES)
    assert read_table(tmp_path / "images.parquet", IMAGES).to_pylist() == IMAGE_ROWS
    write_table(tmp_path / "masks.parquet", [MASK_ROW], MASKS)
    assert read_table(tmp_path / "masks.parquet", MASKS).to_pylist() == [MASK_ROW]


def test_a_table_is_written_like_its_rows(tmp_path):
    write_table(tmp_path / "a.parquet", IMAGE_ROWS, IMAGES)
    write_table(tmp_path / "b.parquet", pa.Table.from_pylist(IMAGE_ROWS, schema=IMAGES), IMAGES)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize("schema", [IMAGES, MASKS, VIEWS, PROTOTYPES])
def test_a_table_may_have_no_rows(tmp_path, schema):
    write_table(tmp_path / "empty.parquet", [], schema)
    table = read_table(tmp_path / "empty.parquet", schema)
    assert table.num_rows == 0
    assert table.schema.equals(schema)


def test_metadata_comes_back_as_it_was_given(tmp_path):
    names = ["Säbelschnäbler", "Black Tern"]
    write_table(tmp_path / "images.parquet", IMAGE_ROWS, IMAGES, class_names=names, size_px=224)
    table = read_table(tmp_path / "images.parquet", IMAGES)
    assert metadata_of(table, "class_names") == names
    assert metadata_of(table, "size_px") == 224


def test_equal_content_gives_equal_bytes_whatever_the_order_of_keys(tmp_path):
    write_table(tmp_path / "a.parquet", IMAGE_ROWS, IMAGES, class_names=["Tern"], part_names={"b": 1, "a": 2})
    turned = [dict(reversed(row.items())) for row in IMAGE_ROWS]
    write_table(tmp_path / "b.parquet", turned, IMAGES, part_names={"a": 2, "b": 1}, class_names=["Tern"])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    write_table(tmp_path / "b.parquet", turned[:1], IMAGES)
    assert (tmp_path / "a.parquet").read_bytes() != (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize("key", [field.name for field in IMAGES if not field.nullable])
def test_a_null_in_a_required_column_is_refused_and_the_old_file_stays(tmp_path, key):
    path = tmp_path / "images.parquet"
    write_table(path, IMAGE_ROWS, IMAGES)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"images\.parquet: .*{key}"):
        write_table(path, [IMAGE_ROWS[0], {**IMAGE_ROWS[1], key: None}], IMAGES)
    absent = {name: value for name, value in IMAGE_ROWS[0].items() if name != key}
    with pytest.raises(ValueError, match=rf"images\.parquet: .*{key}"):
        write_table(path, [absent], IMAGES)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["images.parquet"]


@pytest.mark.parametrize("extra", [{"lable": 3}, {"box": [0, 0, 1, 1]}])
def test_a_column_the_schema_does_not_have_is_refused(tmp_path, extra):
    with pytest.raises(ValueError, match=next(iter(extra))):
        write_table(tmp_path / "images.parquet", [{**IMAGE_ROWS[0], **extra}], IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_a_table_with_another_schema_is_refused_when_writing(tmp_path):
    with pytest.raises(ValueError, match=r"images\.parquet: rows do not fit the schema"):
        write_table(tmp_path / "images.parquet", pa.table({"image_key": ["a"]}), IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_a_box_of_three_numbers_is_refused(tmp_path):
    with pytest.raises(pa.ArrowInvalid):
        write_table(tmp_path / "masks.parquet", [{**MASK_ROW, "box": [0, 0, 5]}], MASKS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "other",
    [
        pa.schema([field for field in MASKS if field.name != "stability"]),
        MASKS.set(MASKS.get_field_index("area_px"), pa.field("area_px", pa.int32(), nullable=False)),
        MASKS.append(pa.field("colour", pa.string())),
    ],
    ids=["column missing", "type differs", "column too many"],
)
def test_a_file_with_another_schema_is_refused_when_reading(tmp_path, other):
    path = tmp_path / "masks.parquet"
    pq.write_table(pa.Table.from_pylist([], schema=other), path)
    with pytest.raises(PipelineError, match=r"masks\.parquet was written by another version .*dvc repro"):
        read_table(path, MASKS)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no parquet at all"])
def test_a_damaged_file_is_named_in_one_line(tmp_path, damage):
    path = tmp_path / "masks.parquet"
    write_table(path, [MASK_ROW], MASKS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PipelineError, match="is damaged") as raised:
        read_table(path, MASKS)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PipelineError, match=r"masks\.parquet does not exist: .*dvc repro"):
        read_table(tmp_path / "masks.parquet", MASKS)


def test_metadata_is_readable_json_for_other_parquet_readers(tmp_path):
    write_table(tmp_path / "images.parquet", IMAGE_ROWS, IMAGES, class_names=["Tern"])
    stored = pq.read_schema(tmp_path / "images.parquet").metadata
    assert json.loads(stored[b"class_names"]) == ["Tern"]
