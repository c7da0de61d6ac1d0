"""Compactness: how much there is to read in an explanation."""

import math
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from pipeline.metrics.interface import Evidence, Metric
from pipeline.metrics.statistics import Constant, Statistic


def global_size(last_layer: Float[Tensor, "class prototype"], epsilon: float) -> float:
    """Count the prototypes with a weight above EPSILON to any class."""
    return float((last_layer > epsilon).any(dim=0).sum())


def sparsity(last_layer: Float[Tensor, "class prototype"], epsilon: float) -> float:
    """Share of weights whose size is at most EPSILON; NaN without weights."""
    return float((last_layer.abs() <= epsilon).double().mean())


def negative_positive_ratio(last_layer: Float[Tensor, "class prototype"], epsilon: float) -> float:
    """Weights below -EPSILON over weights above EPSILON: infinite without the latter, NaN without either."""
    num_negative, num_positive = int((last_layer < -epsilon).sum()), int((last_layer > epsilon).sum())
    if num_positive == 0:
        return math.inf if num_negative else math.nan
    return num_negative / num_positive


def local_size(similarity: Float[Tensor, "image prototype"], threshold: float) -> Float[Tensor, " image"]:
    """Count, per image, the prototypes with similarity / largest similarity > THRESHOLD; 0 where all are 0."""
    largest = similarity.amax(dim=1, keepdim=True)
    return (similarity / largest > threshold).sum(dim=1).double()


def _of_weights(
    measured: Callable[[Float[Tensor, "class prototype"], float], float],
) -> Callable[[Evidence], Statistic]:
    def of_set(evidence: Evidence) -> Statistic:
        assert evidence.last_layer is not None
        return Constant(measured(evidence.last_layer, evidence.params.weight_epsilon))

    return of_set


_FAMILY = "compactness"

METRICS = (
    Metric(
        key="global_size",
        family=_FAMILY,
        title="Global size",
        unit="count",
        direction="lower",
        formula="prototypes with a weight above evaluate.weight_epsilon to any class",
        high=math.inf,
        needs=("prototypes",),
        of_set=_of_weights(global_size),
    ),
    Metric(
        key="sparsity",
        family=_FAMILY,
        title="Sparsity",
        unit="fraction",
        direction="higher",
        formula="last-layer weights with |w| <= evaluate.weight_epsilon / weights",
        needs=("prototypes",),
        of_set=_of_weights(sparsity),
    ),
    Metric(
        key="negative_positive_ratio",
        family=_FAMILY,
        title="Negative-positive ratio",
        unit="ratio",
        direction="lower",
        formula="weights below -evaluate.weight_epsilon / weights above it",
        high=math.inf,
        needs=("prototypes",),
        of_set=_of_weights(negative_positive_ratio),
    ),
    Metric(
        key="local_size",
        family=_FAMILY,
        title="Local size",
        unit="count",
        direction="lower",
        formula="mean over images of the prototypes whose similarity exceeds a share of the image's largest "
        "(evaluate.local_size_threshold)",
        high=math.inf,
        needs=("prototypes",),
        of_image=lambda evidence: local_size(evidence.look.similarity, evidence.params.local_size_threshold),
    ),
)
