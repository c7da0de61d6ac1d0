"""What is compared of a revision: how it was made and what came out, read through DVC.

Without its lock file and its metrics a revision cannot be compared. All other files are optional: where one is missing,
its place holds the reason.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from pipeline.artifacts import METRICS_DETAIL, metadata_of
from pipeline.data.boxes import Box
from pipeline.errors import PipelineError
from pipeline.metrics.registry import METRICS
from pipeline.recorded_runs import WORKSPACE, RevisionFiles, check_project, read_stages, run_of
from pipeline.report.tables import Detail, Metrics

DETAILS_FILE = "results/metrics_detail.parquet"
PER_IMAGE_FILE = "results/per_image.parquet"
PROTOTYPES_FILE = "models/final/prototypes.parquet"
DATASET_FOLDER = "data/dataset"
MASKS_FILE = "data/masks/masks.parquet"

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class Missing:
    """Stands where something should be that cannot be had.

    Attributes:
        reason: one line; names the file and the command that brings it.
    """

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What a row of metrics.json is made from, image by image.

    Attributes:
        image_keys: of its test images.
        labels: their classes.
        predicted: the classes found.
        confidence: probability of the predicted class, 0..1.
        values: by ``family.metric``, the value of each image; NaN where it has none.
    """

    image_keys: tuple[str, ...]
    labels: Int[np.ndarray, " image"]
    predicted: Int[np.ndarray, " image"]
    confidence: Float[np.ndarray, " image"]
    values: Mapping[str, Float[np.ndarray, " image"]]

    def at(self, positions: Int[np.ndarray, " position"]) -> "Predictions":
        """Keep the images at POSITIONS, in their order."""
        return Predictions(
            image_keys=tuple(self.image_keys[position] for position in positions),
            labels=self.labels[positions],
            predicted=self.predicted[positions],
            confidence=self.confidence[positions],
            values={key: values[positions] for key, values in self.values.items()},
        )


@dataclass(frozen=True, slots=True)
class Source:
    """The view, or the place of a view, that a prototype was projected to.

    Attributes:
        image_key: the training image.
        mask_idx: the mask; -1 for the whole image.
        place_idx: on the view's feature grid; None where whole views are compared.
        box: what the view shows, or what lies under the place; half-open, image pixels.
    """

    image_key: str
    mask_idx: int
    place_idx: int | None
    box: Box


@dataclass(frozen=True, slots=True)
class Prototype:
    """A prototype's slot and what is in it; ``source`` is None where no training view shows it."""

    prototype_idx: int
    class_name: str
    source: Source | None


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A picture of the data set.

    Attributes:
        path: relative to the project's folder.
        sha256: of the file's bytes.
        width: pixels, as a viewer shows it.
        height: pixels, likewise.
    """

    path: str
    sha256: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, eq=False)
class Revision:
    """One side of a comparison.

    Attributes:
        files: where all of it was read, and more can be; its ``name`` is what the user calls the revision.
        commit: hash; None for the workspace.
        made_from: params by their dotted keys, ``content of PATH`` and ``command of STAGE``, as the lock file tells.
        metrics: content of metrics.json.
        details: what stands behind each number.
        predictions: by row of metrics.json.
        prototypes: by prototype_idx.
        images: by image_key.
        class_names: in label order; empty where nothing names the classes.
    """

    files: RevisionFiles
    commit: str | None
    made_from: Mapping[str, str]
    metrics: Metrics
    details: Mapping[tuple[str, str, str], Detail] | Missing
    predictions: Mapping[str, Predictions] | Missing
    prototypes: tuple[Prototype, ...] | Missing
    images: Mapping[str, ImageFile] | Missing
    class_names: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.files.name

    def class_name(self, label: int) -> str:
        """Name a class; by its number where nothing names it."""
        return self.class_names[label] if label < len(self.class_names) else f"class {label}"


def read_revision(root: Path, name: str) -> Revision:
    """Read what is compared of a revision.

    Args:
        root: the project's folder.
        name: a branch, tag, commit or experiment, or ``workspace``.

    Raises:
        PipelineError: there is no such revision, or it holds no finished run.
    """
    check_project(root)
    files = RevisionFiles(root, name, None if name == WORKSPACE else name)
    stages = read_stages(files)
    run = run_of(files, stages)
    outs = {path: digest for stage in stages.values() for path, digest in stage.outs.items()}
    table = _or_missing(lambda: _read_table(files, f"{DATASET_FOLDER}/images.parquet", outs, _IMAGE_COLUMNS))
    prototypes = _or_missing(lambda: _read_table(files, PROTOTYPES_FILE, outs, _PROTOTYPE_COLUMNS))
    class_names = () if isinstance(table, Missing) else tuple(metadata_of(table, "class_names") or ())
    if not class_names and not isinstance(prototypes, Missing):
        class_names = _names_by_label(prototypes)
    return Revision(
        files=files,
        commit=files.commit(),
        made_from={**run.recipe, "seed": str(run.seed)},
        metrics=run.metrics,
        details=_or_missing(lambda: _details(_read_table(files, DETAILS_FILE, outs, METRICS_DETAIL.names))),
        predictions=_or_missing(
            lambda: _PredictionsByRow(_read_table(files, PER_IMAGE_FILE, outs, _PER_IMAGE_COLUMNS))
        ),
        prototypes=prototypes if isinstance(prototypes, Missing) else _prototypes(prototypes),
        images=table if isinstance(table, Missing) else _images(table),
        class_names=class_names,
    )


def read_masks(files: RevisionFiles, image_keys: set[str]) -> dict[tuple[str, int], bytes]:
    """Read the masks of some images, as they are stored, by image_key and mask_idx.

    Raises:
        PipelineError: they cannot be had.
    """
    wanted = pa.array(sorted(image_keys), pa.string())
    columns = ("image_key", "mask_idx", "rle")
    with files.open(MASKS_FILE) as file:  # sorted by image_key: row groups without these images are not read
        table = _checked(files, MASKS_FILE, file, columns, filters=pa.compute.field("image_key").isin(wanted))
    return {(row["image_key"], row["mask_idx"]): row["rle"] for row in table.to_pylist()}


_IMAGE_COLUMNS = ("image_key", "path", "sha256", "width", "height")
_PROTOTYPE_COLUMNS = ("prototype_idx", "label", "class_name", "image_key", "mask_idx", "place_idx", "box")
_PER_IMAGE_COLUMNS = ("row", "image_key", "label", "predicted", "confidence", "values")


def _or_missing(read: Callable[[], Content]) -> Content | Missing:
    try:
        return read()
    except PipelineError as error:
        return Missing(str(error))


def _read_table(files: RevisionFiles, path: str, outs: Mapping[str, str], columns: Sequence[str]) -> pa.Table:
    content = files.read(path)
    if path in outs and outs[path] != hashlib.md5(content).hexdigest():
        raise PipelineError(f"{files.name}: {path} is not the one that dvc.lock records: `dvc repro` mends it")
    return _checked(files, path, io.BytesIO(content), columns)


def _checked(files: RevisionFiles, path: str, file: Any, columns: Sequence[str], **options: Any) -> pa.Table:
    try:
        if absent := [column for column in columns if column not in pq.read_schema(file).names]:
            raise PipelineError(
                f"{files.name}: {path} has no column {', '.join(absent)}, because another version of the pipeline "
                "wrote it: run `dvc repro` there"
            )
        file.seek(0)
        return pq.read_table(file, columns=list(columns), **options)
    except (pa.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())
        raise PipelineError(f"{files.name}: {path} is damaged ({reason}): delete it and `dvc repro`") from None


def _details(table: pa.Table) -> dict[tuple[str, str, str], Detail]:
    known = {(declared.family, declared.key) for declared in METRICS}
    details = (Detail(**row) for row in table.to_pylist())
    return {
        (detail.row, detail.family, detail.metric): detail
        for detail in details
        if (detail.family, detail.metric) in known
    }


class _PredictionsByRow(Mapping[str, Predictions]):
    """What rows of metrics.json are made from; a row is unpacked when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._rows: list[str] = table["row"].unique().to_pylist()
        self._unpacked: dict[str, Predictions] = {}

    def __getitem__(self, row: str) -> Predictions:
        if row not in self._rows:
            raise KeyError(row)
        if row not in self._unpacked:
            self._unpacked[row] = _predictions(self._table.filter(pa.compute.field("row") == row))
        return self._unpacked[row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _predictions(table: pa.Table) -> Predictions:
    """Unpack the images of one row."""
    entries = table["values"].combine_chunks()
    offsets = entries.offsets.to_numpy()
    images = np.repeat(np.arange(len(entries)), np.diff(offsets))
    kept = slice(offsets[0], offsets[-1])
    names = entries.keys[kept].dictionary_encode()
    by_key = np.full((len(names.dictionary), len(entries)), np.nan)
    by_key[names.indices.to_numpy(), images] = entries.items[kept].to_numpy(zero_copy_only=False)
    return Predictions(
        image_keys=tuple(table["image_key"].to_pylist()),
        labels=table["label"].to_numpy().astype(np.int64),
        predicted=table["predicted"].to_numpy().astype(np.int64),
        confidence=table["confidence"].to_numpy().astype(np.float64),
        values=dict(zip(names.dictionary.to_pylist(), by_key, strict=True)),
    )


def _prototypes(table: pa.Table) -> tuple[Prototype, ...]:
    return tuple(
        Prototype(
            row["prototype_idx"],
            row["class_name"],
            None
            if row["image_key"] is None
            else Source(row["image_key"], row["mask_idx"], row["place_idx"], Box(*row["box"])),
        )
        for row in table.to_pylist()
    )


def _names_by_label(table: pa.Table) -> tuple[str, ...]:
    names = {row["label"]: row["class_name"] for row in table.select(["label", "class_name"]).to_pylist()}
    return tuple(names.get(label, f"class {label}") for label in range(max(names, default=-1) + 1))


def _images(table: pa.Table) -> dict[str, ImageFile]:
    return {
        row["image_key"]: ImageFile(f"{DATASET_FOLDER}/{row['path']}", row["sha256"], row["width"], row["height"])
        for row in table.to_pylist()
    }
