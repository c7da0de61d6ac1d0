"""All metrics there are, in the order of the table."""

from pipeline.metrics import (
    causal,
    classification,
    compactness,
    complexity,
    continuity,
    contrastivity,
    deletion,
    mask_consistency,
    output_completeness,
)
from pipeline.metrics.interface import Metric

METRICS: tuple[Metric, ...] = (
    *classification.METRICS,
    *compactness.METRICS,
    *contrastivity.METRICS,
    *continuity.METRICS,
    *complexity.METRICS,
    *output_completeness.METRICS,
    *mask_consistency.METRICS,
    *deletion.METRICS,
    *causal.METRICS,
)


def metric(family: str, key: str) -> Metric:
    """Find the declaration of a metric.

    Raises:
        KeyError: there is none.
    """
    for declared in METRICS:
        if (declared.family, declared.key) == (family, key):
            return declared
    raise KeyError(f"{family}.{key}")
