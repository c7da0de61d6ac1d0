"""All declared metrics from evidence: which can be had, their values, and why the others cannot."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from pipeline.metrics.interface import Evidence, Metric, Need
from pipeline.metrics.statistics import MeanOverImages, Statistic

UNDEFINED = "no image has a value (0 / 0)"
INFINITE = "infinite for an image"


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of one metric.

    Attributes:
        declared: the metric.
        statistic: None where something that the metric needs is absent.
        value: None where there is none.
        reason: why there is no value.
    """

    declared: Metric
    statistic: Statistic | None
    value: float | None
    reason: str | None

    @property
    def name(self) -> tuple[str, str]:
        """Family and key."""
        return self.declared.family, self.declared.key


@dataclass(frozen=True, slots=True)
class Batch:
    """Evidence about some images.

    Attributes:
        positions: of the images in the set.
        evidence: what is known of them; batches may differ in what is absent.
    """

    positions: Int[np.ndarray, " image"]
    evidence: Evidence


def measure(metrics: Sequence[Metric], batches: Iterable[Batch], whole: Callable[[], Evidence]) -> list[Measured]:
    """Compute metrics for a set of images.

    Args:
        metrics: those wanted.
        batches: together all images of the set, each once; consumed once. Metrics of images are computed batch by
            batch, so saliency maps need to exist for one batch at a time. Where none has a metric, the first says why.
        whole: gives the evidence about all images, in the order of their positions, without maps; called after the last
            batch.
    """
    by_image: dict[tuple[str, str], list[np.ndarray]] = {}
    absent: dict[tuple[str, str], str] = {}
    was_asked: set[tuple[str, str]] = set()
    positions: list[np.ndarray] = []
    of_image = [declared for declared in metrics if declared.of_image is not None]
    for batch in batches:
        positions.append(batch.positions)
        for declared in of_image:
            name = declared.family, declared.key
            reason = missing(declared, batch.evidence.absent)
            if reason is None:
                assert declared.of_image is not None
                values = declared.of_image(batch.evidence).double().cpu().numpy()
                was_asked.add(name)
            else:
                absent.setdefault(name, reason)
                values = np.full(len(batch.positions), np.nan)
            by_image.setdefault(name, []).append(values)
    order = np.argsort(np.concatenate(positions), kind="stable")
    everything = whole()
    measured = []
    for declared in metrics:
        name = declared.family, declared.key
        if declared.of_image is not None:
            statistic: Statistic | None
            statistic = MeanOverImages(np.concatenate(by_image[name])[order])
            reason = None
            if statistic.num_images == 0:
                reason = UNDEFINED if name in was_asked else absent[name]
        else:
            assert declared.of_set is not None
            reason = missing(declared, everything.absent)
            statistic = None if reason is not None else declared.of_set(everything)
        measured.append(_measured(declared, statistic, reason, num_images=len(order)))
    return measured


def missing(declared: Metric, absent: Mapping[Need, str]) -> str | None:
    """Say why a metric cannot be had from evidence in which some things are absent; None where it can."""
    return next((absent[need] for need in declared.needs if need in absent), None)


def _measured(declared: Metric, statistic: Statistic | None, reason: str | None, *, num_images: int) -> Measured:
    if statistic is None or reason is not None:
        return Measured(declared, None, None, reason)
    value = statistic.value(num_images)
    if np.isfinite(value):
        return Measured(declared, statistic, value, None)
    return Measured(declared, statistic, None, UNDEFINED if np.isnan(value) else INFINITE)
