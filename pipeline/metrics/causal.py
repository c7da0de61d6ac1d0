"""Causal checks: whether parts matter to a network as much as its explanations say, where parts can be left out.

The checks are part-based protocols of FunnyBirds (Hesse, Schaub-Meyer and Roth 2023, ICCV; named as in
``evaluation_protocols.py`` of its code), as far as scenes with one part less, with one part only, and without parts can
answer them. Only parts that are seen count.

Deviation: importance is what the explanation claims for the predicted class; the authors take the true class in single
deletion (DEVIATIONS.md FunnyBirds: class).
"""

import math

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from pipeline.metrics.interface import Evidence, Metric, Need, Scenes

_FAMILY = "causal"
_NEEDS: tuple[Need, ...] = ("prototypes", "maps", "parts", "scenes")


def single_deletion(evidence: Evidence) -> Float64[Tensor, " image"]:
    """Correlate what the explanation claims for each part with the drop of the score when the part is left out.

    Spearman's rank correlation over the parts, equal values sharing their ranks; -1..1. NaN for fewer than two parts,
    and where all drops or all claims are equal.

    Deviation: as it is; the authors map it to 0..1 (DEVIATIONS.md FunnyBirds: single deletion).
    """
    scenes = _scenes(evidence)
    whole, predicted = evidence.look.logits.double(), _predicted(evidence)
    of_predicted = predicted[:, None, None].expand(-1, scenes.without.shape[1], 1)
    drop = whole.gather(1, predicted[:, None]) - scenes.without.double().gather(2, of_predicted)[..., 0]
    return _rank_correlation(drop, scenes.claimed.double(), scenes.visible)


def deletion_check(evidence: Evidence) -> Float64[Tensor, " image"]:
    """Say whether the prediction changes when the part is left out for which the explanation claims most.

    1 or 0; the mean over parts with equal claims. NaN where nothing is claimed, and where the prediction is the same
    without any part: then no part could change it.

    Deviation: one part is left out, the authors leave out all important ones at several thresholds; and images that
    are predicted without any part do not count (DEVIATIONS.md FunnyBirds: checks).
    """
    scenes, predicted = _scenes(evidence), _predicted(evidence)
    changes = scenes.without.argmax(dim=2) != predicted[:, None]
    return _mean_over(changes, _claimed_most(scenes) & _is_decided_by_parts(evidence)[:, None])


def preservation_check(evidence: Evidence) -> Float64[Tensor, " image"]:
    """Say whether the prediction stays when only that part is left for which the explanation claims most.

    1 or 0; the mean over parts with equal claims. NaN as in :func:`deletion_check`.

    Deviation: one part is kept, the authors keep all important ones at several thresholds; and images that are
    predicted without any part do not count (DEVIATIONS.md FunnyBirds: checks).
    """
    scenes, predicted = _scenes(evidence), _predicted(evidence)
    stays = scenes.only.argmax(dim=2) == predicted[:, None]
    return _mean_over(stays, _claimed_most(scenes) & _is_decided_by_parts(evidence)[:, None])


def unclaimed_parts_check(evidence: Evidence) -> Float64[Tensor, " image"]:
    """Give the share of the parts without a positive claim that can be left out, one at a time, unnoticed.

    That is, without changing the prediction. NaN where each part is claimed, and where the prediction is the same
    without any part.

    Deviation: the other half of the preservation check; the authors leave all these parts out at once
    (DEVIATIONS.md FunnyBirds: checks).
    """
    scenes, predicted = _scenes(evidence), _predicted(evidence)
    stays = scenes.without.argmax(dim=2) == predicted[:, None]
    is_unclaimed = scenes.visible & (scenes.claimed <= 0)
    return _mean_over(stays, is_unclaimed & _is_decided_by_parts(evidence)[:, None])


def target_sensitivity(evidence: Evidence) -> Float64[Tensor, " image"]:
    """Say how often parts that tell the class from another one are claimed more than parts that both have.

    For each other class, all pairs of a part that differs and one that does not, of which leaving out the first costs
    more of the lead over that class than leaving out the second: where the network itself does not use what differs,
    the explanation cannot be blamed. The share of pairs in which the first is claimed more (equal claims count half),
    averaged over the classes that have pairs. 0.5 is chance. NaN without pairs, and for wrong predictions, whose
    explanation is about a class that is not shown.

    Deviation: one explanation, that of the predicted class, is held against all other classes, part by part; the
    authors hold the explanations of two other classes against each other (DEVIATIONS.md FunnyBirds: target
    sensitivity).
    """
    scenes, predicted = _scenes(evidence), _predicted(evidence)
    drop = evidence.look.logits.double()[:, None] - scenes.without.double()  # [image, part, class]
    own = drop.gather(2, predicted[:, None, None].expand(-1, drop.shape[1], 1))
    lead_lost = (own - drop).transpose(1, 2)  # [image, class, part]
    differs, same = scenes.differs & scenes.visible[:, None], ~scenes.differs & scenes.visible[:, None]
    # [image, class, part that differs, part that does not]
    is_pair = differs[..., None] & same[..., None, :] & (lead_lost[..., None] > lead_lost[..., None, :])
    claimed = scenes.claimed.double()
    first, second = claimed[:, None, :, None], claimed[:, None, None, :]
    in_order = (first > second).double() + 0.5 * (first == second)
    num_pairs = is_pair.sum(dim=(2, 3))
    of_class = torch.where(is_pair, in_order, 0.0).sum(dim=(2, 3)) / num_pairs  # [image, class]
    is_right = predicted == evidence.labels
    return _mean_over(of_class, (num_pairs > 0) & is_right[:, None])


def sufficiency(evidence: Evidence) -> Float64[Tensor, " image"]:
    """Give the share of what all parts add to the predicted class's score that the part claimed most adds alone.

    (score with only that part - score without parts) / (score of the whole scene - score without parts), cut to 0..1;
    the mean over parts with equal claims. NaN where nothing is claimed, and where the parts add nothing.
    """
    scenes, predicted = _scenes(evidence), _predicted(evidence)
    index = predicted[:, None]
    none = scenes.none.double().gather(1, index)
    gap = evidence.look.logits.double().gather(1, index) - none  # [image, 1]
    only = scenes.only.double().gather(2, index[..., None].expand(-1, scenes.only.shape[1], 1))[..., 0]
    return _mean_over(((only - none) / gap).clamp(0, 1), _claimed_most(scenes) & (gap > 0))


METRICS = (
    Metric(
        key="single_deletion",
        family=_FAMILY,
        title="Single deletion",
        unit="score",
        direction="higher",
        formula="rank correlation over parts of what is claimed with the drop of the score without the part;"
        " FunnyBirds, single deletion",
        low=-1.0,
        needs=_NEEDS,
        of_image=single_deletion,
    ),
    Metric(
        key="deletion_check",
        family=_FAMILY,
        title="Deletion check",
        unit="fraction",
        direction="higher",
        formula="images whose prediction changes without the part claimed most; FunnyBirds, deletion check",
        needs=_NEEDS,
        of_image=deletion_check,
    ),
    Metric(
        key="preservation_check",
        family=_FAMILY,
        title="Preservation check",
        unit="fraction",
        direction="higher",
        formula="images whose prediction stays with no part but the one claimed most; FunnyBirds, preservation check",
        needs=_NEEDS,
        of_image=preservation_check,
    ),
    Metric(
        key="unclaimed_parts_check",
        family=_FAMILY,
        title="Unclaimed parts check",
        unit="fraction",
        direction="higher",
        formula="parts without a claim whose absence leaves the prediction / parts without a claim",
        needs=_NEEDS,
        of_image=unclaimed_parts_check,
    ),
    Metric(
        key="target_sensitivity",
        family=_FAMILY,
        title="Target sensitivity",
        unit="fraction",
        direction="higher",
        formula="pairs of a part that differs from another class and one that does not, in which the first is claimed"
        " more, of those in which it matters more; chance is 0.5; FunnyBirds, target sensitivity",
        needs=_NEEDS,
        of_image=target_sensitivity,
    ),
    Metric(
        key="sufficiency",
        family=_FAMILY,
        title="Sufficiency",
        unit="fraction",
        direction="higher",
        formula="(score with only the part claimed most - score without parts) / (score - score without parts), 0..1",
        needs=_NEEDS,
        of_image=sufficiency,
    ),
)


def _scenes(evidence: Evidence) -> Scenes:
    assert evidence.scenes is not None
    return evidence.scenes


def _predicted(evidence: Evidence) -> Int[Tensor, " image"]:
    return evidence.look.logits.argmax(dim=1)


def _claimed_most(scenes: Scenes) -> Bool[Tensor, "image part"]:
    """Mark the visible part with the largest claim above 0; several where claims are equal."""
    claimed = torch.where(scenes.visible, scenes.claimed, -math.inf)
    return (claimed > 0) & (claimed == claimed.amax(dim=1, keepdim=True))


def _is_decided_by_parts(evidence: Evidence) -> Bool[Tensor, " image"]:
    """Say whether the bird without parts is taken for something else."""
    return _scenes(evidence).none.argmax(dim=1) != _predicted(evidence)


def _mean_over(values: Tensor, chosen: Bool[Tensor, "image item"]) -> Float64[Tensor, " image"]:
    """Average [image, item] over the chosen items; NaN where none is."""
    return torch.where(chosen, values.double(), 0.0).sum(dim=1) / chosen.sum(dim=1)


def _rank_correlation(
    one: Float[Tensor, "image item"], other: Float[Tensor, "image item"], chosen: Bool[Tensor, "image item"]
) -> Float64[Tensor, " image"]:
    """Compute Spearman's correlation over the chosen items; NaN where one side has no two different values."""
    ranks = []
    for values in (one, other):
        among = chosen[:, None, :]  # [image, item, other item]
        below = (values[:, None, :] < values[:, :, None]) & among
        equal = (values[:, None, :] == values[:, :, None]) & among
        rank = below.sum(dim=2) + 0.5 * equal.sum(dim=2).double()  # equal values: the middle of their ranks
        ranks.append(torch.where(chosen, rank - _mean_over(rank, chosen)[:, None], 0.0))
    covariance = (ranks[0] * ranks[1]).sum(dim=1)
    spread = (ranks[0].square().sum(dim=1) * ranks[1].square().sum(dim=1)).sqrt()
    return (covariance / spread).clamp(-1, 1)
