"""Continuity: whether explanations and scores stay as they are when the image changes in ways that do not matter."""

import math

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from pipeline.metrics.change import activation_change, change_metrics, mean_over_ranks, rank_of
from pipeline.metrics.interface import Evidence, Metric

_FAMILY = "continuity"


def score_change(
    before: Float[Tensor, "image class"], after: Float[Tensor, "image class"]
) -> Float64[Tensor, " image"]:
    """Compare the class scores of two looks, whatever classes they are of: 1 - sum of smaller / sum of larger ones.

    Scores are sorted first. A share only where no score is below 0; elsewhere a larger change may give less.
    """
    return activation_change(before[:, None], after[:, None])


def prediction_rank(before: Float[Tensor, "image class"], after: Float[Tensor, "image class"]) -> Int[Tensor, " image"]:
    """Find the place of the class that was predicted before among the new scores; 0 where it is still the first."""
    return rank_of(after, before.argmax(dim=1, keepdim=True))[:, 0]


def stability(
    before: Bool[Tensor, "image rank part"], after: Bool[Tensor, "image rank part"]
) -> Float64[Tensor, "image rank"]:
    """Divide the number of parts that are covered both times by those covered either time; NaN where none is."""
    return (before & after).sum(dim=2).double() / (before | after).sum(dim=2)


def _score_change(evidence: Evidence) -> Float64[Tensor, " image"]:
    assert evidence.changed is not None
    before, after = evidence.look.logits, evidence.changed.logits
    is_share = (before >= 0).all(dim=1) & (after >= 0).all(dim=1)
    return torch.where(is_share, score_change(before, after), torch.nan)


def _prediction_rank(evidence: Evidence) -> Float64[Tensor, " image"]:
    assert evidence.changed is not None
    return prediction_rank(evidence.look.logits, evidence.changed.logits).double()


def _stability(evidence: Evidence) -> Float64[Tensor, " image"]:
    assert evidence.changed is not None
    assert evidence.changed.covered is not None
    assert evidence.look.covered is not None
    return mean_over_ranks(stability(evidence.look.covered, evidence.changed.covered))


METRICS = (
    *change_metrics(_FAMILY, "changed", lambda evidence: evidence.changed, "before and after the change of the image"),
    Metric(
        key="score_change",
        family=_FAMILY,
        title="Class score change (CAC)",
        unit="fraction",
        direction="lower",
        formula="1 - sum of the smaller / sum of the larger class scores, sorted, before and after the change of the"
        " image (QuanProto); none where a score is negative",
        needs=("prototypes", "changed"),
        of_image=_score_change,
    ),
    Metric(
        key="prediction_rank",
        family=_FAMILY,
        title="Class rank change (CRC)",
        unit="count",
        direction="lower",
        formula="place among the new class scores of the class that was predicted, from 0 (QuanProto)",
        high=math.inf,
        needs=("prototypes", "changed"),
        of_image=_prediction_rank,
    ),
    Metric(
        key="stability",
        family=_FAMILY,
        title="Stability",
        unit="fraction",
        direction="higher",
        formula="parts covered before and after the change of the image / parts covered before or after; mean over the"
        " top prototypes that cover any (QuanProto)",
        needs=("prototypes", "changed", "maps", "parts"),
        of_image=_stability,
    ),
)
