"""ProtoPool: classes choose prototypes from one pool, each for its slots.

Rymarczyk et al. 2022, "Interpretable Image Classification with Differentiable Prototypes Assignment", ECCV, arXiv
2112.02902. Numbers that the paper leaves open are those of the authors' code.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.backbone import Backbone
from pipeline.model.losses import finetune_loss
from pipeline.model.network import BagOutput, PrototypeNetwork, Terms
from pipeline.model.places import mean_of_bags, places_of
from pipeline.model.prototypes import log_similarity, nearest_of, nearest_view, squared_distance
from pipeline.params import ProtoPoolLossParams

_LAST_TEMPERATURE = 1e-3  # the paper's, reached at the end of the schedule
_GUMBEL_SOFTNESS = 0.5  # authors' code: the noisy logits are divided by it, at every temperature


def orthogonality_loss(slot_logits: Float[Tensor, "class slot prototype"]) -> Float[Tensor, ""]:
    """Mean over slots of the summed cosine similarity to the other slots of the class; 0 where none share a prototype.

    Of the slots' distributions over the pool, as the paper writes (section 3), scaled as in the authors' code. They are
    taken without noise and at temperature 1: hardened ones would have no gradient where two agree.

    Deviation: the authors' code compares the logits, whose smallest value is that of slots that are each other's
    opposite.
    """
    num_classes, num_slots, _ = slot_logits.shape
    # the square of a sum of unit vectors holds each pair twice and each vector with itself
    square = functional.normalize(slot_logits.softmax(dim=2), dim=2).sum(dim=1).square().sum()
    return square / (num_classes * num_slots) - 1


class ProtoPool(PrototypeNetwork):
    """A case-based classifier of whole images whose classes share prototypes (section 3).

    image -> backbone -> 1x1 convolution to ``dim`` -> sigmoid -> z in (0, 1)^dim at each place; squared distance to
    each prototype; focal similarity: the largest log similarity of the places minus their mean; each slot takes that
    of its prototype; linear layer without bias over all slots.

    While it is trained, a slot is a Gumbel-Softmax over the pool that hardens from epoch to epoch. Everywhere else, in
    validation, projection, tuning and prediction, it is the one prototype with the largest logit.

    Deviation: the largest of the similarities minus their mean, mixed by slot afterwards (section 3); the authors' code
    mixes distances first and takes the similarity of the mean distance.
    """

    head: ClassVar[str] = "protopool"
    views: ClassVar[Literal["bag", "whole"]] = "whole"
    grid: ClassVar[bool] = True
    is_shared: ClassVar[bool] = True

    prototypes: nn.Parameter

    def __init__(
        self,
        backbone: Backbone,
        *,
        dim: int,
        num_prototypes: int,
        slots_per_class: int,
        num_classes: int,
        epsilon: float,
        loss: ProtoPoolLossParams | None = None,
    ) -> None:
        """Build the network; prototypes start uniform in (0, 1), weights of own slots at 1, all others at 0.

        Args:
            backbone: gives the grid of features.
            dim: length of features and prototypes.
            num_prototypes: size of the pool.
            slots_per_class: prototypes that a class chooses; several slots may choose the same.
            num_classes: rows of the last layer.
            epsilon: of the log similarity (authors' code: 1e-4).
            loss: weights of the terms; None takes the paper's. Only training needs them.
        """
        super().__init__(backbone)
        self.add_on = nn.Linear(backbone.num_channels, dim)
        self.prototypes = nn.Parameter(torch.rand(num_prototypes, dim))
        # the authors' start: Xavier's for a weight [class, prototype, slot]
        deviation = math.sqrt(2 / (slots_per_class * (num_prototypes + num_classes)))
        self.slot_logits = nn.Parameter(deviation * torch.randn(num_classes, slots_per_class, num_prototypes))
        self.last_layer = nn.Linear(num_classes * slots_per_class, num_classes, bias=False)
        self.epsilon = epsilon
        self._loss = loss or ProtoPoolLossParams()
        self._temperature = _LAST_TEMPERATURE
        with torch.no_grad():
            self.last_layer.weight.copy_(functional.one_hot(self._slot_classes(), num_classes).T)

    def settings(self) -> dict[str, Any]:
        """Dimension, size of the pool, slots and epsilon."""
        return {
            "dim": self.prototypes.shape[1],
            "num_prototypes": len(self.prototypes),
            "similarity_epsilon": self.epsilon,
            "slots_per_class": self.slot_logits.shape[1],
        }

    def features_of(self, encoded: Float[Tensor, "view channel *place"]) -> Float[Tensor, "element dim"]:
        """Embed the places of encoded views; values in (0, 1)."""
        return torch.sigmoid(self.add_on(places_of(encoded)))

    def classify(self, features: Float[Tensor, "element dim"], lengths: Int[Tensor, " bag"]) -> BagOutput:
        """Classify bags of embedded places, each slot with its one prototype.

        Args:
            features: all places of all bags, one bag after the other.
            lengths: places of each bag, at least 1.
        """
        similarity, distance, place = self._compare(features, lengths)
        logits = self.last_layer(similarity[:, self.chosen().flatten()])
        return BagOutput(logits, similarity, distance, place)

    def distances(self, features: Float[Tensor, "element dim"]) -> Float[Tensor, "element prototype"]:
        """Squared distances."""
        return squared_distance(features, self.prototypes)

    def similarities(self, features: Float[Tensor, "element dim"]) -> Float[Tensor, "element prototype"]:
        """Logarithmic; what a place has by itself has no mean of its bag to be taken off."""
        return log_similarity(self.distances(features), self.epsilon)

    def chosen(self) -> Int[Tensor, "class slot"]:
        """The one prototype of each slot: the largest logit, the first of several."""
        return self.slot_logits.detach().argmax(dim=2)

    def start_epoch(self, epoch: int, *, is_first_phase: bool) -> None:
        """Lower the temperature that the slots' logits are divided by: 1 / sqrt(alpha * epoch), then 0.001.

        ``alpha`` is such that it comes to 0.001 after ``gumbel_epochs`` (paper: 30). Later phases keep it there: with
        logits that have learned when they were divided by so little, a soft choice would be an equal one.

        Deviation: the first epoch counts as 1; the authors' code passes over epoch 0.
        """
        num_epochs = self._loss.gumbel_epochs
        left = num_epochs / (epoch + 1) if is_first_phase else 1.0
        self._temperature = _LAST_TEMPERATURE * math.sqrt(max(1.0, left))

    def training_terms(
        self,
        encoded: Float[Tensor, "view channel *place"],
        lengths: Int[Tensor, " bag"],
        labels: Int[Tensor, " bag"],
        *,
        class_weights: Float[Tensor, " class"] | None,
        other_version: Tensor | None = None,
    ) -> tuple[Terms, Float[Tensor, "bag class"]]:
        """Compute cross entropy + cluster - separation + orthogonality, each times its weight, and the scores.

        Cluster and separation are ProtoPNet's, where the own prototypes of a class are those to which one of its slots
        gives its largest share in this step; an image whose class has the whole pool adds 0 to the separation.

        Deviation: the authors' code takes as many prototypes as there are slots, those with the largest summed shares:
        where two slots agree, one more that no slot has chosen.
        """
        similarity, distance, _ = self._compare(self.features_of(encoded), lengths * self.elements_per_view(encoded))
        if self.training:
            share = functional.gumbel_softmax(self.slot_logits / self._temperature, tau=_GUMBEL_SOFTNESS, dim=2)
            chosen = share.detach().argmax(dim=2)
            by_slot = similarity @ share.flatten(0, 1).T  # [bag, class x slot]
        else:
            chosen = self.chosen()
            by_slot = similarity[:, chosen.flatten()]
        logits = self.last_layer(by_slot)
        own = self._held(chosen)[labels]  # [bag, prototype]
        to_foreign = nearest_of(distance, ~own)
        terms = {
            "cross_entropy": functional.cross_entropy(logits, labels, weight=class_weights),
            "cluster": nearest_of(distance, own).mean(),
            "separation": torch.where(to_foreign.isfinite(), to_foreign, 0).mean(),
            "orthogonality": orthogonality_loss(self.slot_logits),
        }
        total = (
            self._loss.cross_entropy * terms["cross_entropy"]
            + self._loss.cluster * terms["cluster"]
            - self._loss.separation * terms["separation"]
            + self._loss.orthogonality * terms["orthogonality"]
        )
        return {"loss": total, **terms}, logits

    def tuning_terms(
        self,
        output: BagOutput,
        labels: Int[Tensor, " bag"],
        *,
        class_weights: Float[Tensor, " class"] | None,
        l1: float,
    ) -> Terms:
        """See :func:`pipeline.model.losses.finetune_loss`; foreign weights are those of other classes' slots."""
        return finetune_loss(
            output.logits,
            self.last_layer.weight,
            labels,
            self._slot_classes(),
            class_weights=class_weights,
            l1=l1,
        )

    def tuned(self) -> nn.Parameter:
        """The weights of the last layer [class, class x slot]."""
        [weight] = self.last_layer.parameters()
        return weight

    def learning(self) -> Mapping[Literal["addon", "prototypes"], list[nn.Parameter]]:
        """The add-on layer, the prototypes and the slots' logits; the last layer rests until it is tuned."""
        return {"addon": list(self.add_on.parameters()), "prototypes": [self.prototypes, self.slot_logits]}

    def class_weights(self) -> Float[Tensor, "class prototype"]:
        """The weights of the last layer, summed over the slots that hold each prototype; 0 where none does."""
        weight = self.last_layer.weight.detach()
        return weight.new_zeros(len(weight), len(self.prototypes)).index_add(1, self.chosen().flatten(), weight)

    def owners(self) -> Tensor:
        """The classes that hold a prototype in one of their slots; none for a prototype that is left over."""
        return self._held(self.chosen()).T

    def prototype_classes(self) -> Int[Tensor, " prototype"]:
        """The owner with the largest weight, the first of several; class 0 for a prototype that is left over."""
        weight, held = self.class_weights(), self.owners().T  # [class, prototype]
        return torch.where(held | ~held.any(dim=0), weight, -torch.inf).argmax(dim=0)

    def _compare(
        self, features: Float[Tensor, "element dim"], lengths: Int[Tensor, " bag"]
    ) -> tuple[Float[Tensor, "bag prototype"], Float[Tensor, "bag prototype"], Int[Tensor, "bag prototype"]]:
        """Give focal similarity, least distance and the nearest place of every prototype."""
        by_place = self.distances(features)
        distance, place = nearest_view(by_place, lengths)
        mean = mean_of_bags(log_similarity(by_place, self.epsilon), lengths)
        # where all places are alike, rounding would leave it below 0
        return (log_similarity(distance, self.epsilon) - mean).clamp_min(0), distance, place

    def _slot_classes(self) -> Int[Tensor, " class_slot"]:
        num_classes, num_slots, _ = self.slot_logits.shape
        return torch.arange(num_classes, device=self.slot_logits.device).repeat_interleave(num_slots)

    def _held(self, chosen: Int[Tensor, "class slot"]) -> Tensor:
        """Mark the prototypes that slots of each class have chosen: bool [class, prototype]."""
        held = torch.zeros(len(chosen), len(self.prototypes), dtype=torch.bool, device=chosen.device)
        return held.scatter(1, chosen, True)
