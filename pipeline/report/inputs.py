"""What the stages report of a run, read and checked before anything is drawn."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipeline.errors import PipelineError
from pipeline.io import read_json
from pipeline.validation import first_problem

Content = TypeVar("Content")

MetricsContent = dict[str, dict[str, dict[str, float | None]]]
"""``metrics.json``: row, family, metric."""


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class PhaseReport(_Report):
    """One phase of training; ``best_epoch`` is the one that was kept, 0 the state before the first."""

    epochs: int
    best_epoch: int
    val_accuracy: float | None = None  # 0..1; None where the phase was skipped


class DistanceReport(_Report):
    """Squared distances of the learned prototypes to the views that replaced them."""

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
    """``project.json``."""

    num_prototypes: int
    num_projected: int
    num_distinct_views: int
    distance_before: DistanceReport
    val_accuracy: BeforeAfter
    prune: PruneReport | None = None


class NetworkDescription(_Report):
    """What the page needs of ``model.json``."""

    backbone: str
    class_names: list[str]
    dim: int


TrainSummary = dict[str, dict[str, PhaseReport]]
"""``train/summary.json``: network (protomask, blackbox), phase (warmup, joint)."""


def read_metrics(path: Path) -> MetricsContent:
    """Read ``metrics.json``.

    Raises:
        PipelineError: missing, damaged, or without the row ``protomask``.
    """
    metrics = _checked(path, TypeAdapter(MetricsContent).validate_python)
    if "protomask" not in metrics:
        raise PipelineError(f"{path} has no row `protomask`: run `dvc repro evaluate`")
    return metrics


def read_train_summary(path: Path) -> TrainSummary:
    """Read ``train/summary.json``.

    Raises:
        PipelineError: missing, damaged, or without the network ``protomask``.
    """
    summary = _checked(path, TypeAdapter(TrainSummary).validate_python)
    if "protomask" not in summary:
        raise PipelineError(f"{path} has no network `protomask`: run `dvc repro train`")
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
    """Read ``model.json`` of a ProtoMask network.

    Raises:
        PipelineError: missing, damaged, or of another kind of network.
    """
    return _checked(path, TypeAdapter(NetworkDescription).validate_python)


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


def _checked(path: Path, check: Callable[[Any], Content]) -> Content:
    try:
        return check(read_json(path))
    except ValidationError as error:
        raise PipelineError(
            f"{path} was written by another version of the pipeline ({first_problem(error)}): run `dvc repro` again"
        ) from None
