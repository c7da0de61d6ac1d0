"""What the stages report of a run, read and checked before anything is drawn."""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipeline.artifacts import METRICS_DETAIL, read_table
from pipeline.errors import PipelineError
from pipeline.io import read_json
from pipeline.metrics.registry import METRICS
from pipeline.report.tables import HEAD_TITLES, Detail
from pipeline.validation import first_problem

Content = TypeVar("Content")


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class PhaseReport(_Report):
    """One phase of training; ``best_epoch`` is the one that was kept, 0 the state before the first."""

    epochs: int
    best_epoch: int
    val_accuracy: float | None = None  # 0..1; None where the phase was skipped


class DistanceReport(_Report):
    """Distances of the learned prototypes to the views or places that they are shown by."""

    mean: float
    max: float


class BeforeAfter(_Report):
    """A number before and after projection."""

    before: float
    after: float


class PruneReport(_Report):
    """The pruning in ``project.json``."""

    num_kept: int
    num_pruned: int
    classes_without_prototypes: list[str]
    val_accuracy: float


class ProjectionReport(_Report):
    """``project.json``; of a black box, all counts are 0."""

    num_prototypes: int
    num_projected: int
    num_distinct_views: int  # or distinct places, for networks that compare places
    distance_before: DistanceReport | None  # None where nothing was projected
    val_accuracy: BeforeAfter | None  # None for a black box
    prune: PruneReport | None = None


class NetworkSettings(_Report):
    """What the page needs of the settings of a head."""

    dim: int | None = None  # of prototypes that live in a space of features


class NetworkDescription(_Report):
    """What the page needs of ``model.json``."""

    head: str
    backbone: str
    settings: NetworkSettings


TrainSummary = dict[str, dict[str, PhaseReport]]
"""``train/summary.json``: role (network; blackbox for one that was trained beside it), phase (warmup, joint)."""


def read_details(path: Path, head: str) -> list[Detail]:
    """Read ``metrics_detail.parquet`` of a network with HEAD.

    Raises:
        PipelineError: missing, damaged, without the row of that head, or with a metric that the report does not know.
    """
    details = [Detail(**row) for row in read_table(path, METRICS_DETAIL).to_pylist()]
    if all(detail.row != head for detail in details):
        raise PipelineError(f"{path} has no row `{head}`: run `dvc repro evaluate`")
    known = {(declared.family, declared.key) for declared in METRICS}
    for detail in details:
        name = detail.family, detail.metric
        if name not in known:
            raise PipelineError(f"{path} has a metric `{'.'.join(name)}`, which is not known here: run `dvc repro`")
    return details


def read_train_summary(path: Path) -> TrainSummary:
    """Read ``train/summary.json``.

    Raises:
        PipelineError: missing, damaged, or without the entry ``network``.
    """
    summary = _checked(path, TypeAdapter(TrainSummary).validate_python)
    if "network" not in summary:
        raise PipelineError(f"{path} has no entry `network`: run `dvc repro train`")
    return summary


def read_projection(path: Path) -> ProjectionReport:
    """Read ``project.json``.

    Raises:
        PipelineError: missing or damaged.
    """
    return _checked(path, TypeAdapter(ProjectionReport).validate_python)


def read_finetune(path: Path) -> PhaseReport:
    """Read ``finetune.json``.

    Raises:
        PipelineError: missing or damaged.
    """
    return _checked(path, TypeAdapter(PhaseReport).validate_python)


def read_network(path: Path) -> NetworkDescription:
    """Read ``model.json``.

    Raises:
        PipelineError: missing, damaged, or of a kind of network that the report does not know.
    """
    network = _checked(path, TypeAdapter(NetworkDescription).validate_python)
    if network.head not in HEAD_TITLES:
        raise PipelineError(f"{path} is of a network `{network.head}`, which the report does not know: run `dvc repro`")
    return network


def read_curve(path: Path) -> list[tuple[int, float]]:
    """Read one of DVCLive's curves as (epoch, value), the first epoch being 1; values that are no number are left out.

    Raises:
        PipelineError: missing or damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        points = [(int(row["step"]) + 1, float(row[path.stem])) for row in rows]
    except FileNotFoundError:
        raise PipelineError(f"{path} does not exist: run `dvc repro train`") from None
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise PipelineError(f"{path} is damaged ({reason}): run `dvc checkout` or `dvc repro -f -s train`") from None
    return [(epoch, value) for epoch, value in points if math.isfinite(value)]


def read_plot(path: Path, *, texts: Sequence[str] = (), numbers: Sequence[str] = ()) -> pd.DataFrame:
    """Read a plot of the evaluation; a number may be missing (NaN), a text is what it is, ``NA`` included.

    Args:
        path: a file of ``results/plots``.
        texts: columns that it must have.
        numbers: likewise.

    Raises:
        PipelineError: missing, damaged or without a row.
    """
    try:
        frame: pd.DataFrame = pd.read_csv(path, dtype=str, keep_default_na=False)[[*texts, *numbers]]
        for name in numbers:
            frame[name] = pd.to_numeric(frame[name].where(frame[name] != ""))
    except FileNotFoundError:
        raise PipelineError(f"{path} does not exist: run `dvc repro evaluate`") from None
    except (KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise PipelineError(f"{path} is damaged ({reason}): run `dvc checkout` or `dvc repro -f -s evaluate`") from None
    if frame.empty:
        raise PipelineError(f"{path} has no row: run `dvc checkout` or `dvc repro -f -s evaluate`")
    return frame


def _checked(path: Path, check: Callable[[Any], Content]) -> Content:
    try:
        return check(read_json(path))
    except ValidationError as error:
        raise PipelineError(
            f"{path} was written by another version of the pipeline ({first_problem(error)}): run `dvc repro` again"
        ) from None
