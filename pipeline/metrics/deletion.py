"""Deletion: whether the views that the explanation calls important carry the prediction.

The deletion and insertion metrics of RISE (Petsiuk, Das and Saenko 2018, BMVC), for bags of views.

Deviation: whole views leave the bag, so nothing is painted over; RISE removes pixels and has to choose what stands in
their place (DEVIATIONS.md deletion).
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pipeline.metrics.interface import Deletion, Evidence, Metric, Need

_FAMILY = "deletion"
_NEEDS: tuple[Need, ...] = ("prototypes", "deletion")


def area(curve: Float[Tensor, "image step"]) -> Float64[Tensor, " image"]:
    """Compute the area under curves over shares from 0 to 1, by trapezoids.

    Args:
        curve: values at equally spaced shares, at least two.
    """
    return torch.trapezoid(curve.double(), dim=1) / (curve.shape[1] - 1)


def removed(evidence: Evidence) -> Float64[Tensor, " image"]:
    """Compute the area under the probability of the predicted class while views are taken out, most important first."""
    return area(_deletion(evidence).removed)


def inserted(evidence: Evidence) -> Float64[Tensor, " image"]:
    """Compute the area under the probability of the predicted class while views are put in, most important first."""
    return area(_deletion(evidence).inserted)


def removal_gain(evidence: Evidence) -> Float64[Tensor, " image"]:
    """Say how much smaller the area is than when views are taken out in random order; -1..1, 0 is chance."""
    return area(_deletion(evidence).removed_at_random) - area(_deletion(evidence).removed)


def insertion_gain(evidence: Evidence) -> Float64[Tensor, " image"]:
    """Say how much larger the area is than when views are put in in random order; -1..1, 0 is chance."""
    return area(_deletion(evidence).inserted) - area(_deletion(evidence).inserted_at_random)


METRICS = (
    Metric(
        key="removed",
        family=_FAMILY,
        title="Deletion",
        unit="fraction",
        direction="lower",
        formula="area under the probability of the predicted class over the share of views taken out, most important"
        " first; RISE, deletion",
        needs=_NEEDS,
        of_image=removed,
    ),
    Metric(
        key="inserted",
        family=_FAMILY,
        title="Insertion",
        unit="fraction",
        direction="higher",
        formula="area under the probability of the predicted class over the share of views put in, most important"
        " first; RISE, insertion",
        needs=_NEEDS,
        of_image=inserted,
    ),
    Metric(
        key="removal_gain",
        family=_FAMILY,
        title="Deletion gain",
        unit="score",
        direction="higher",
        formula="deletion in random order - deletion",
        low=-1.0,
        needs=_NEEDS,
        of_image=removal_gain,
    ),
    Metric(
        key="insertion_gain",
        family=_FAMILY,
        title="Insertion gain",
        unit="score",
        direction="higher",
        formula="insertion - insertion in random order",
        low=-1.0,
        needs=_NEEDS,
        of_image=insertion_gain,
    ),
)


def _deletion(evidence: Evidence) -> Deletion:
    assert evidence.deletion is not None
    return evidence.deletion
