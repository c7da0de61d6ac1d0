"""How the metrics of a row of metrics.json differ between two revisions, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.compare.image_differences import ImagePairs
from pipeline.compare.revisions import Missing, Predictions, Revision
from pipeline.metrics.classification import (
    CalibrationError,
    MeanOfClassScores,
    OfEqualClasses,
    f1_of,
    precision_of,
    recall_of,
)
from pipeline.metrics.interface import Metric
from pipeline.metrics.statistics import MeanOverClasses, MeanOverImages, Statistic
from pipeline.metrics.uncertainty import Difference, Interval

_TOLERANCE = 1e-6  # between a stored value and the same from the values of images
_NOT_KEPT = "what it is computed from is not kept image by image"
_NOT_ABOUT_IMAGES = "not about images"
_UNEQUAL = "the values of images do not give the stored number"
_NO_INTERVAL = "too many resamples have no value, or it hangs on how many different images there are"

Verdict = Literal["better", "worse", "changed", "unclear"]


@dataclass(frozen=True, slots=True)
class MetricChange:
    """A metric of both revisions.

    Attributes:
        declared: the metric.
        before: of A: on the shared images where there is an interval, else on all test images of A; None without value.
        after: of B, likewise.
        difference: B less A; None where one has no value.
        interval: of the difference; None where there is none.
        note: why there is no value or no interval; else None.
    """

    declared: Metric
    before: float | None
    after: float | None
    difference: float | None
    interval: Interval | None
    note: str | None

    @property
    def verdict(self) -> Verdict:
        """What the difference means: ``unclear`` where its interval holds 0, or where there is none."""
        if self.difference is None or self.interval is None or not Difference(0.0, self.interval).is_significant:
            return "unclear"
        if self.declared.direction == "neither":
            return "changed"
        return "better" if (self.difference > 0) == (self.declared.direction == "higher") else "worse"


def compare_metrics(
    sides: tuple[Revision, Revision], row: tuple[str, str], images: ImagePairs | Missing, metrics: Sequence[Metric]
) -> tuple[MetricChange, ...]:
    """Compare the metrics of a row, those that A or B has.

    Args:
        sides: A and B.
        row: its name in A and in B.
        images: its test images, or why they are not known.
        metrics: those to compare.
    """
    changes: list[MetricChange] = []
    rebuilt: dict[int, tuple[Statistic, Statistic]] = {}  # by position in `changes`
    for declared in metrics:
        stored = [_stored(side, name, declared) for side, name in zip(sides, row, strict=True)]
        if all(one is None for one in stored):
            continue
        before, after = (None if one is None else one.value for one in stored)
        if before is None or after is None:
            changes.append(MetricChange(declared, before, after, None, None, _why_no_value(sides, stored)))
            continue
        statistics = _rebuilt(declared, stored, (before, after), images)
        note = statistics if isinstance(statistics, str) else _NO_INTERVAL
        if not isinstance(statistics, str):
            rebuilt[len(changes)] = statistics
        changes.append(MetricChange(declared, before, after, after - before, None, note))
    if rebuilt:
        assert isinstance(images, ImagePairs)
        nums = [len(used.labels) for used in images.used]
        found = images.differences(list(rebuilt.values()))
        for (position, pair), difference in zip(rebuilt.items(), found, strict=True):
            if difference is not None:
                before, after = (statistic.value(num) for statistic, num in zip(pair, nums, strict=True))
                changes[position] = MetricChange(
                    changes[position].declared, before, after, difference.value, difference.interval, None
                )
    return tuple(changes)


def _why_no_value(sides: Sequence[Revision], stored: Sequence["_Stored | None"]) -> str:
    names = [side.name for side, one in zip(sides, stored, strict=True) if one is None or one.value is None]
    reasons = [one.reason for one in stored if one is not None and one.value is None and one.reason is not None]
    return f"no value in {' and '.join(names)}" + (f": {reasons[0]}" if reasons else "")


def _rebuilt(
    declared: Metric, stored: Sequence["_Stored | None"], values: tuple[float, float], images: ImagePairs | Missing
) -> tuple[Statistic, Statistic] | str:
    """Build a metric from the images that are used; or say why the values of images do not give what is stored."""
    if any(one is not None and one.num_images == 0 for one in stored):
        return _NOT_ABOUT_IMAGES
    if isinstance(images, Missing):
        return images.reason
    for whole, value in zip(images.whole, values, strict=True):
        statistic = _statistic(declared, whole)
        if statistic is None:
            return _NOT_KEPT
        if not np.isclose(statistic.value(len(whole.labels)), value, rtol=_TOLERANCE, atol=_TOLERANCE):
            return _UNEQUAL
    before, after = (_statistic(declared, used) for used in images.used)
    assert before is not None
    assert after is not None
    return before, after


def _statistic(declared: Metric, predictions: Predictions) -> Statistic | None:
    """Build the statistic of a metric from what is kept of each image; None where that is not enough."""
    values = predictions.values.get(f"{declared.family}.{declared.key}")
    if values is not None:
        return MeanOverImages(values)
    build = _FROM_PREDICTIONS.get((declared.family, declared.key))
    return None if build is None else build(predictions)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A number as its revision has it; ``num_images`` is None where that is not known."""

    value: float | None
    num_images: int | None
    reason: str | None


def _stored(side: Revision, row: str, declared: Metric) -> _Stored | None:
    """Look a number up; None where the revision was not asked for it."""
    if not isinstance(side.details, Missing):
        detail = side.details.get((row, declared.family, declared.key))
        return None if detail is None else _Stored(detail.value, detail.num_images, detail.reason)
    family = side.metrics[row].get(declared.family, {})
    return _Stored(family[declared.key], None, None) if declared.key in family else None


def _balanced_accuracy(predictions: Predictions) -> Statistic:
    return MeanOverClasses((predictions.predicted == predictions.labels).astype(np.float64), predictions.labels)


def _mean_of(score: Callable[..., np.ndarray]) -> Callable[[Predictions], Statistic]:
    def build(predictions: Predictions) -> Statistic:
        labels, predicted = predictions.labels, predictions.predicted
        num_classes = int(max(labels.max(initial=-1), predicted.max(initial=-1))) + 1  # others have no part in it
        return OfEqualClasses(MeanOfClassScores(labels, predicted, num_classes, score), labels)

    return build


def _calibration_error(predictions: Predictions) -> Statistic:
    return CalibrationError(predictions.confidence, predictions.predicted == predictions.labels)


_FROM_PREDICTIONS: Mapping[tuple[str, str], Callable[[Predictions], Statistic]] = {
    ("classification", "balanced_accuracy"): _balanced_accuracy,
    ("classification", "precision"): _mean_of(precision_of),
    ("classification", "recall"): _mean_of(recall_of),
    ("classification", "f1"): _mean_of(f1_of),
    ("classification", "calibration_error"): _calibration_error,
}
"""Metrics that are no means over images, from labels, predictions and confidences."""
