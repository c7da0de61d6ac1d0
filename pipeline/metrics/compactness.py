"""Compactness: how much there is to read in an explanation."""

import numpy as np
from jaxtyping import Float, Int

from pipeline.metrics.interface import Metric

_FAMILY = "compactness"

METRICS = (
    Metric(
        "global_size", _FAMILY, "Global size", "count", "lower", "prototypes with a weight above epsilon to any class"
    ),
    Metric("sparsity", _FAMILY, "Sparsity", "fraction", "higher", "last-layer weights with |w| <= epsilon / weights"),
    Metric(
        "negative_positive_ratio",
        _FAMILY,
        "Negative-positive ratio",
        "ratio",
        "lower",
        "weights below -epsilon / weights above epsilon",
    ),
    Metric(
        "local_size",
        _FAMILY,
        "Local size",
        "count",
        "lower",
        "mean over images of the prototypes whose similarity exceeds a share of the image's largest",
    ),
)


def weight_metrics(last_layer: Float[np.ndarray, "class prototype"], *, epsilon: float) -> dict[str, float | None]:
    """Compute global size, sparsity and negative-positive ratio (None without a positive weight)."""
    num_positive, num_negative = int((last_layer > epsilon).sum()), int((last_layer < -epsilon).sum())
    return {
        "global_size": float((last_layer > epsilon).any(axis=0).sum()),
        "sparsity": float((np.abs(last_layer) <= epsilon).mean()),
        "negative_positive_ratio": num_negative / num_positive if num_positive else None,
    }


def local_size(similarity: Float[np.ndarray, "image prototype"], *, threshold: float) -> Int[np.ndarray, " image"]:
    """Count, per image, the prototypes with similarity / largest similarity > threshold; 0 where all are 0."""
    largest = similarity.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):  # 0 / 0, where all are 0
        count: np.ndarray = (similarity / largest > threshold).sum(axis=1)
    return count
