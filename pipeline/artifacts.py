"""The tables that pass between stages: their schemas, written and checked in one place.

Boxes are ``x0, y0, x1, y1``, half-open, pixels of the original image. Rows have a fixed order and the files carry no
clock, so equal content gives equal bytes.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.io import new_file

BOX = pa.list_(pa.int32(), 4)
PART = pa.struct([("part_idx", pa.int32()), ("x", pa.float32()), ("y", pa.float32())])


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


IMAGES = pa.schema(
    [
        _required("image_key", pa.string()),  # no dot, unique, stable
        _required("path", pa.string()),  # relative to the folder of the table
        _required("sha256", pa.string()),  # of the file's bytes
        _required("width", pa.int32()),  # as a viewer shows it: EXIF orientation applied
        _required("height", pa.int32()),
        _required("label", pa.int32()),
        _required("class_name", pa.string()),
        _required("split", pa.string()),  # train, val or test
        pa.field("object_box", BOX),
        _required("parts", pa.list_(PART)),  # visible ones only
        pa.field("object_mask", pa.string()),  # PNG, 255 on the object; relative path
        pa.field("part_mask", pa.string()),  # PNG, part_idx + 1 on each part; relative path
    ]
)
"""``data/dataset/images.parquet``, sorted by image_key. Metadata: class_names, part_names (JSON lists)."""

MASKS = pa.schema(
    [
        _required("image_key", pa.string()),
        _required("mask_idx", pa.int32()),  # 0, 1, ... per image, best score first
        _required("rle", pa.binary()),  # COCO compressed counts; size is the image's
        _required("box", BOX),
        _required("area_px", pa.int64()),
        _required("score", pa.float32()),  # the segmenter's own ranking, larger is better
        pa.field("stability", pa.float32()),  # SAM's stability score; null elsewhere
    ]
)
"""``data/masks/masks.parquet``, sorted by image_key and mask_idx."""

VIEWS_TABLE = "views.parquet"
WHOLE_IMAGE = -1  # the mask_idx of a view that shows the whole image

VIEWS = pa.schema(
    [
        _required("image_key", pa.string()),
        _required("view_idx", pa.int32()),  # position in the bag
        _required("split", pa.string()),
        _required("label", pa.int32()),
        _required("mask_idx", pa.int32()),  # or WHOLE_IMAGE
        _required("mask_box", BOX),  # box of the mask
        _required("box", BOX),  # what the view shows: mask_box, grown as params say
        _required("area_px", pa.int64()),
        _required("shard", pa.string()),  # file in the folder of the table
        _required("jpeg_offset", pa.int64()),  # where the view's bytes lie in the shard
        _required("jpeg_size", pa.int64()),
        pa.field("mask_offset", pa.int64()),  # the mask inside the crop (PNG); null for the whole image
        pa.field("mask_size", pa.int64()),
        _required("in_bag", pa.bool_()),  # false: whole image kept for the black box, not a view of the bag
    ]
)
"""``data/crops/views.parquet``, sorted by split, image_key and view_idx. Metadata: class_names, size_px."""

PROTOTYPES = pa.schema(
    [
        _required("prototype_idx", pa.int32()),
        _required("label", pa.int32()),  # its owner; of a shared one, the class whose score it moves most
        _required("class_name", pa.string()),
        _required("weight", pa.float32()),  # of its similarity in the score of that class
        pa.field("image_key", pa.string()),  # source of the projection; null where the class has no training view
        pa.field("view_idx", pa.int32()),
        pa.field("place_idx", pa.int32()),  # on the view's feature grid, row by row; null where views are compared
        pa.field("mask_idx", pa.int32()),
        pa.field("box", BOX),  # what the view shows; or what lies under the place
        pa.field("distance_before", pa.float32()),  # from the learned vector to the source; ProtoMask: squared L2
        pa.field("distance_after", pa.float32()),  # from the new vector to the source
    ]
)
"""``prototypes.parquet`` in ``models/projected`` and ``models/final``, sorted by prototype_idx; empty for a black box.

Weights, and the classes of shared prototypes, are those of the network beside it."""

PER_IMAGE = pa.schema(
    [
        _required("row", pa.string()),  # as in metrics.json
        _required("image_key", pa.string()),
        _required("label", pa.int32()),
        _required("predicted", pa.int32()),
        _required("confidence", pa.float32()),  # probability of the predicted class
        _required("label_probability", pa.float32()),  # probability of the true class
        pa.field("top_prototypes", pa.list_(pa.int32())),  # most similar first; null for a black box
        pa.field("top_similarities", pa.list_(pa.float32())),
        pa.field("top_views", pa.list_(pa.int32())),  # view_idx of the view nearest to each; or its place_idx
        _required("values", pa.map_(pa.string(), pa.float64())),  # of its metrics that are means over images
    ]
)
"""``results/per_image.parquet``: a row per row of metrics.json and test image.

Keys of ``values`` are ``family.metric``; images without a value are left out of the mean."""

METRICS_DETAIL = pa.schema(
    [
        _required("row", pa.string()),  # as in metrics.json
        _required("family", pa.string()),
        _required("metric", pa.string()),
        pa.field("value", pa.float64()),  # as in metrics.json, not rounded; null where there is none
        pa.field("low", pa.float64()),  # bounds of the 95 % bootstrap interval over test images
        pa.field("high", pa.float64()),
        _required("num_images", pa.int32()),  # that have a value; 0 where it is not about images
        pa.field("reason", pa.string()),  # why there is no value
        # randomisations after which it is no worse, beyond chance: weights, prototypes, maps; null where not tried
        pa.field("insensitive_to", pa.list_(pa.string())),
    ]
)
"""``results/metrics_detail.parquet``: a row per number of metrics.json, in the order of the table."""


def write_table(path: Path, rows: Iterable[Mapping[str, Any]] | pa.Table, schema: pa.Schema, **metadata: Any) -> None:
    """Write ROWS to PATH as parquet.

    Args:
        path: replaced in one step.
        rows: one mapping per row, or a table; checked against the schema.
        schema: one of this module's.
        metadata: JSON-like values kept in the file beside the rows.
    """
    table = rows if isinstance(rows, pa.Table) else _table_of(path, rows, schema)
    if not table.schema.equals(schema):
        raise ValueError(f"{path.name}: rows do not fit the schema:\n{table.schema}\nexpected:\n{schema}")
    for field in schema:
        if not field.nullable and table[field.name].null_count:
            raise ValueError(f"{path.name}: column {field.name} has nulls")
    with new_file(path) as work:
        pq.write_table(
            table.replace_schema_metadata(encoded_metadata(**metadata)),
            work,
            row_group_size=8192,
            compression="zstd",
            write_page_checksum=True,
        )


def _table_of(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    listed = [dict(row) for row in rows]
    for row in listed:
        if extra := row.keys() - set(schema.names):  # pyarrow would leave them out without a word
            raise ValueError(f"{path.name}: the schema has no column {', '.join(sorted(extra))}")
    return pa.Table.from_pylist(listed, schema=schema)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read PATH and check it against SCHEMA; metadata stays in ``table.schema.metadata``.

    Raises:
        PipelineError: missing, damaged, or written by another version.
    """
    path = Path(path)
    if not path.exists():
        raise PipelineError(f"{path} does not exist: run the stage that writes it (`dvc repro`)")
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise PipelineError(f"{path} is damaged ({' '.join(str(error).split())}): delete it and `dvc repro`") from None
    if not table.schema.equals(schema, check_metadata=False):
        raise PipelineError(f"{path} was written by another version of the pipeline: run `dvc repro` again")
    return table


def encoded_metadata(**values: Any) -> dict[str, str]:
    """Write JSON-like values as the metadata of a schema."""
    return {key: json.dumps(value, ensure_ascii=False, sort_keys=True) for key, value in sorted(values.items())}


def metadata_of(source: pa.Table | pa.Schema, key: str) -> Any:
    """Read back one of the values of :func:`encoded_metadata`, None where it is not there."""
    schema = source.schema if isinstance(source, pa.Table) else source
    stored: dict[bytes, bytes] = schema.metadata or {}
    return json.loads(stored.get(key.encode(), b"null"))
