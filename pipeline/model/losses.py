"""The terms of the training loss (paper section 3), each a function on tensors."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from pipeline.model.prototypes import nearest_of
from pipeline.params import LossParams

DIVERSITY_SCALE = 1e-3  # as in the authors' code


def cluster_loss(
    distance: Float[Tensor, "bag prototype"], labels: Int[Tensor, " bag"], prototype_labels: Int[Tensor, " prototype"]
) -> Float[Tensor, ""]:
    """Mean over images of the squared distance to the nearest prototype of their own class (smaller is better).

    Deviation: a true masked minimum; the authors' code saturates at the feature dimension (DEVIATIONS.md A17).
    """
    own = labels[:, None] == prototype_labels
    return nearest_of(distance, own).mean()


def separation_loss(
    distance: Float[Tensor, "bag prototype"], labels: Int[Tensor, " bag"], prototype_labels: Int[Tensor, " prototype"]
) -> Float[Tensor, ""]:
    """Mean over images of the squared distance to the nearest prototype of another class (larger is better)."""
    foreign = labels[:, None] != prototype_labels
    return nearest_of(distance, foreign).mean()


def diversity_loss(
    prototypes: Float[Tensor, "prototype dim"],
    labels: Int[Tensor, " bag"],
    prototype_labels: Int[Tensor, " prototype"],
) -> Float[Tensor, ""]:
    """Mean over images of exp(-0.001 * S), S the sum of ||p_i - p_j|| over ordered pairs of the class's prototypes.

    Near 1 when the prototypes of the labelled classes coincide, towards 0 as they spread. Classes may own different
    numbers of prototypes.

    Deviation: the term has a gradient; the authors' code turns it into a number (DEVIATIONS.md A3).
    """
    same = (prototype_labels[:, None] == prototype_labels).fill_diagonal_(False)
    one, other = torch.nonzero(same, as_tuple=True)  # [pair], [pair]
    square = (prototypes[one] - prototypes[other]).square().sum(dim=1)  # [pair]
    # the norm has no gradient at 0: coincident prototypes count 0, with gradient 0
    pairwise = torch.where(square > 0, square, 1.0).sqrt() * (square > 0)  # [pair]
    classes = torch.zeros(int(max(labels.max(), prototype_labels.max())) + 1, device=square.device, dtype=square.dtype)
    by_class = classes.index_add(0, prototype_labels[one], pairwise)
    return torch.exp(-DIVERSITY_SCALE * by_class[labels]).mean()


def foreign_weight_l1(
    last_layer: Float[Tensor, "class prototype"], prototype_labels: Int[Tensor, " prototype"]
) -> Float[Tensor, ""]:
    """Sum of |w| over the weights that connect a prototype to a class other than its own."""
    classes = torch.arange(len(last_layer), device=last_layer.device)
    return last_layer.abs()[classes[:, None] != prototype_labels].sum()


def joint_loss(
    logits: Float[Tensor, "bag class"],
    distance: Float[Tensor, "bag prototype"],
    prototypes: Float[Tensor, "prototype dim"],
    labels: Int[Tensor, " bag"],
    prototype_labels: Int[Tensor, " prototype"],
    *,
    class_weights: Float[Tensor, " class"] | None,
    weights: LossParams,
    constant_diversity: bool = False,
    largest_distance: float | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Compute the loss of the warm-up and joint phases and its terms.

    Args:
        logits: class scores, unnormalised.
        distance: squared distance of each image to each prototype.
        prototypes: the vectors.
        labels: class of each image.
        prototype_labels: class of each prototype.
        class_weights: of the cross entropy; None weighs classes equally.
        weights: of the terms.
        constant_diversity: the diversity term has no gradient (``compat.constant_diversity``, DEVIATIONS.md A3).
        largest_distance: cluster and separation terms end there, without a gradient beyond
            (``compat.saturating_distances``, DEVIATIONS.md A17); None lets them grow.

    Returns:
        ``loss`` = cross_entropy + cluster - separation + diversity, each times its weight; and the terms, unweighted.
    """
    if largest_distance is not None:
        distance = distance.clamp_max(largest_distance)
    terms = {
        "cross_entropy": functional.cross_entropy(logits, labels, weight=class_weights),
        "cluster": cluster_loss(distance, labels, prototype_labels),
        "separation": separation_loss(distance, labels, prototype_labels),
        "diversity": diversity_loss(
            prototypes.detach() if constant_diversity else prototypes, labels, prototype_labels
        ),
    }
    total = (
        weights.cross_entropy * terms["cross_entropy"]
        + weights.cluster * terms["cluster"]
        - weights.separation * terms["separation"]
        + weights.diversity * terms["diversity"]
    )
    return {"loss": total, **terms}


def finetune_loss(
    logits: Float[Tensor, "bag class"],
    last_layer: Float[Tensor, "class prototype"],
    labels: Int[Tensor, " bag"],
    prototype_labels: Int[Tensor, " prototype"],
    *,
    class_weights: Float[Tensor, " class"] | None,
    l1: float,
) -> dict[str, Float[Tensor, ""]]:
    """Compute the loss of the fine-tune phase: cross entropy + l1 * |weights to other classes|."""
    terms = {
        "cross_entropy": functional.cross_entropy(logits, labels, weight=class_weights),
        "foreign_weight_l1": foreign_weight_l1(last_layer, prototype_labels),
    }
    return {"loss": terms["cross_entropy"] + l1 * terms["foreign_weight_l1"], **terms}
