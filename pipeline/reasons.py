"""Why an image gets a class: what each prototype adds to the score, and which view it was compared with.

A class's score is the sum over prototypes of similarity × weight (paper section 3); PIP-Net passes the sum on through a
function that grows with it. So the prototypes with the largest products are the reasons: "this view looks like that
prototype".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.model.network import BagOutput


@dataclass(frozen=True, slots=True)
class Reason:
    """What one prototype adds to the score of a class.

    Attributes:
        prototype_idx: the prototype.
        view_idx: position in the bag of the view it was compared with, the nearest one.
        place_idx: on that view's feature grid, row by row; None where whole views are compared.
        similarity: of the two, at least 0; large is close.
        distance: of the two, at least 0; small is close.
        weight: of the similarity in the score of the class.
        contribution: similarity × weight.
    """

    prototype_idx: int
    view_idx: int
    place_idx: int | None
    similarity: float
    distance: float
    weight: float
    contribution: float


@dataclass(frozen=True, slots=True)
class ClassScore:
    """A class and the reasons for it.

    Attributes:
        label: the class.
        probability: softmax of the network's scores, 0..1.
        total: sum of the contributions of all prototypes.
        reasons: those that contribute most, the largest first; equal ones by prototype.
    """

    label: int
    probability: float
    total: float
    reasons: tuple[Reason, ...]

    @property
    def rest(self) -> float:
        """What all other prototypes contribute together."""
        return self.total - sum(reason.contribution for reason in self.reasons)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a network says of an image, and why.

    Attributes:
        ranking: the most probable classes with their probabilities, 0..1; the first is the prediction.
        predicted: the predicted class.
        true: the true class, where it is known and another one; else None.
    """

    ranking: tuple[tuple[int, float], ...]
    predicted: ClassScore
    true: ClassScore | None

    @property
    def class_scores(self) -> tuple[ClassScore, ...]:
        """The classes that reasons are given for."""
        return (self.predicted,) if self.true is None else (self.predicted, self.true)


def explain_outputs(
    output: BagOutput,
    class_weights: Float[Tensor, "class prototype"],
    labels: Sequence[int | None],
    *,
    elements_per_view: int,
    top: int,
    num_ranked: int = 5,
) -> list[Explanation]:
    """Explain each bag of a batch.

    Args:
        output: of the network; ``element`` counts within each bag.
        class_weights: of the network.
        labels: the true class of each bag; None where it is not known.
        elements_per_view: 1 where views are compared, else the places of a view.
        top: how many reasons are given for a class.
        num_ranked: how many classes are ranked.
    """
    probability = torch.softmax(output.logits, dim=1)
    best, ranked = probability.sort(dim=1, descending=True, stable=True)
    explanations = []
    for idx, label in enumerate(labels):

        def score(of_class: int, idx: int = idx) -> ClassScore:
            contribution = output.similarity[idx] * class_weights[of_class]
            order = contribution.sort(descending=True, stable=True).indices[:top]
            return ClassScore(
                label=of_class,
                probability=float(probability[idx, of_class]),
                total=float(contribution.sum()),
                reasons=tuple(
                    _reason(output, class_weights[of_class], idx, p, elements_per_view) for p in order.tolist()
                ),
            )

        predicted = int(ranked[idx, 0])
        explanations.append(
            Explanation(
                ranking=tuple(zip(ranked[idx, :num_ranked].tolist(), best[idx, :num_ranked].tolist(), strict=True)),
                predicted=score(predicted),
                true=None if label is None or label == predicted else score(label),
            )
        )
    return explanations


def _reason(
    output: BagOutput, weights: Float[Tensor, " prototype"], bag_idx: int, prototype_idx: int, elements_per_view: int
) -> Reason:
    element = int(output.element[bag_idx, prototype_idx])
    similarity, weight = float(output.similarity[bag_idx, prototype_idx]), float(weights[prototype_idx])
    return Reason(
        prototype_idx=prototype_idx,
        view_idx=element // elements_per_view,
        place_idx=None if elements_per_view == 1 else element % elements_per_view,
        similarity=similarity,
        distance=float(output.distance[bag_idx, prototype_idx]),
        weight=weight,
        contribution=similarity * weight,
    )
