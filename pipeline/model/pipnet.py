"""PIP-Net: each place is shared out among prototypes by a softmax.

Nauta et al. 2023, "PIP-Net: Patch-Based Intuitive Prototypes for Interpretable Image Classification", CVPR, pages 2744
to 2753. Numbers that the paper leaves open are those of the authors' code.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.backbone import Backbone
from pipeline.model.network import BagOutput, PrototypeNetwork, Terms
from pipeline.model.places import places_of
from pipeline.model.prototypes import nearest_view
from pipeline.params import PipNetLossParams

_WEIGHT_MEAN, _WEIGHT_STD = 1.0, 0.1  # authors' code: where the last layer starts
_ALIGNMENT_EPSILON, _PRESENCE_EPSILON = 1e-12, 1e-8  # authors' code


def alignment_loss(
    one: Float[Tensor, "element prototype"], other: Float[Tensor, "element prototype"]
) -> Float[Tensor, ""]:
    """Mean over places of -log(z' . z''): 0 where both versions have one and the same prototype.

    Each version learns towards the other as it stands, and the two losses are averaged, as in the authors' code: the
    value is that of either, the gradient half that of the formula.

    Args:
        one: a softmax over prototypes at each place.
        other: the same places of the other version.
    """
    value = -torch.log((one * other).sum(dim=1) + _ALIGNMENT_EPSILON).mean()
    return (value + value.detach()) / 2


def presence_loss(similarity: Float[Tensor, "bag prototype"]) -> Float[Tensor, ""]:
    """Mean over prototypes of -log(tanh(sum of p over the batch)): small when each is present in some image."""
    return -torch.log(torch.tanh(similarity.sum(dim=0)) + _PRESENCE_EPSILON).mean()


class PipNet(PrototypeNetwork):
    """A scoring sheet over prototypes that need no distance (section 3).

    image -> backbone -> 1x1 convolution to prototypes -> softmax over the prototypes at each place; maximum over the
    places; linear layer with weights of at least 0, without bias. The score of a class is log((w . p)^2 + 1): its
    softmax is what the paper trains, its order that of w . p, which the paper predicts by.

    All classes share all prototypes, and a prototype is a direction of the grid's channels, not the feature of a
    training image: projection shows it and does not replace it.

    Deviation: the convolution to prototypes has no bias, and is always there (the authors recommend none, with as many
    prototypes as channels).
    Deviation: similarities below 0.1 count in prediction, too (authors' code: not), so that what is evaluated is what
    is trained.
    Deviation: weights are cut at 0; the authors' code also takes 0.001 off each after every step.
    Deviation: alignment and presence have the same weights in all epochs; in the authors' pretraining the first grows
    from 0 to 1 and the second is 5.
    """

    head: ClassVar[str] = "pipnet"
    views: ClassVar[Literal["bag", "whole"]] = "whole"
    grid: ClassVar[bool] = True
    num_versions: ClassVar[int] = 2
    is_projected: ClassVar[bool] = False
    is_shared: ClassVar[bool] = True

    def __init__(
        self, backbone: Backbone, *, num_prototypes: int, num_classes: int, loss: PipNetLossParams | None = None
    ) -> None:
        """Build the network; the weights of the last layer start near 1, normally distributed.

        Args:
            backbone: gives the grid of features.
            num_prototypes: of all classes together.
            num_classes: rows of the last layer.
            loss: weights of the terms; None takes the paper's. Only training needs them.
        """
        super().__init__(backbone)
        self.add_on = nn.Linear(backbone.num_channels, num_prototypes, bias=False)
        self.last_layer = nn.Linear(num_prototypes, num_classes, bias=False)
        self._loss = loss or PipNetLossParams()
        self._is_pretraining = False
        with torch.no_grad():
            nn.init.xavier_uniform_(self.add_on.weight)
            self.last_layer.weight.normal_(_WEIGHT_MEAN, _WEIGHT_STD).clamp_(min=0)

    @property
    def prototypes(self) -> Float[Tensor, "prototype channel"]:  # type: ignore[override]  # elsewhere an attribute
        """The rows of the 1x1 convolution."""
        [weight] = self.add_on.parameters()
        return weight

    def settings(self) -> dict[str, Any]:
        """The number of prototypes."""
        return {"num_prototypes": len(self.add_on.weight)}

    def features_of(self, encoded: Float[Tensor, "view channel *place"]) -> Float[Tensor, "element prototype"]:
        """Share out each place of encoded views among the prototypes: at least 0, a place adds up to 1."""
        scores: Tensor = self.add_on(places_of(encoded))
        return scores.softmax(dim=1)

    def classify(self, features: Float[Tensor, "element prototype"], lengths: Int[Tensor, " bag"]) -> BagOutput:
        """Classify bags of embedded places by the place that has most of each prototype.

        Args:
            features: all places of all bags, one bag after the other.
            lengths: places of each bag, at least 1.
        """
        # not 1 - features: that has no digits for the small shares that the presence term lets grow
        least, place = nearest_view(-features, lengths)
        similarity = -least
        logits = torch.log1p(self.last_layer(similarity).square())
        return BagOutput(logits, similarity, 1 - similarity, place)

    def distances(self, features: Float[Tensor, "element prototype"]) -> Float[Tensor, "element prototype"]:
        """What a place's share of each prototype lacks of 1."""
        return 1 - features

    def similarities(self, features: Float[Tensor, "element prototype"]) -> Float[Tensor, "element prototype"]:
        """A place's share of each prototype."""
        return features

    def start_epoch(self, epoch: int, *, is_first_phase: bool) -> None:
        """Leave classification out of the loss in the first epochs of the first phase: the paper's pretraining."""
        self._is_pretraining = is_first_phase and epoch < self._loss.pretraining_epochs

    def training_terms(
        self,
        encoded: Float[Tensor, "view channel *place"],
        lengths: Int[Tensor, " bag"],
        labels: Int[Tensor, " bag"],
        *,
        class_weights: Float[Tensor, " class"] | None,
        other_version: Float[Tensor, "view channel *place"] | None = None,
    ) -> tuple[Terms, Float[Tensor, "bag class"]]:
        """Compute classification + alignment + presence, each times its weight, and the scores.

        Classification and presence are averaged over the two versions. Without another version the alignment is 0 and
        no part of the loss. In evaluation mode classification always counts: losses of all epochs can be compared.
        """
        lengths = lengths * self.elements_per_view(encoded)
        versions = [encoded] if other_version is None else [encoded, other_version]
        features = [self.features_of(version) for version in versions]
        outputs = [self.classify(of_version, lengths) for of_version in features]
        logits = torch.cat([output.logits for output in outputs])
        terms = {
            "classification": functional.cross_entropy(logits, labels.repeat(len(versions)), weight=class_weights),
            "presence": torch.stack([presence_loss(output.similarity) for output in outputs]).mean(),
            "alignment": alignment_loss(*features) if len(versions) == 2 else logits.new_zeros(()),
        }
        classification = 0.0 if self.training and self._is_pretraining else self._loss.classification
        total = (
            classification * terms["classification"]
            + self._loss.presence * terms["presence"]
            + self._loss.alignment * terms["alignment"]
        )
        return {"loss": total, **terms}, outputs[0].logits

    def tuning_terms(
        self,
        output: BagOutput,
        labels: Int[Tensor, " bag"],
        *,
        class_weights: Float[Tensor, " class"] | None,
        l1: float,
    ) -> Terms:
        """Compute the classification loss.

        ``l1`` has no effect: a prototype is of no class, so none of its weights is foreign. Few weights stay above 0
        by the form of the scores, which gain less from a weight the higher they are, and by the cut.
        """
        classification = functional.cross_entropy(output.logits, labels, weight=class_weights)
        return {"loss": classification, "classification": classification}

    def tuned(self) -> nn.Parameter:
        """The weights of the last layer."""
        [weight] = self.last_layer.parameters()
        return weight

    def learning(self) -> Mapping[Literal["addon", "prototypes"], list[nn.Parameter]]:
        """The 1x1 convolution, at the add-on layer's rate, and the last layer, at the prototypes' higher one."""
        return {"addon": list(self.add_on.parameters()), "prototypes": list(self.last_layer.parameters())}

    @torch.no_grad()
    def after_step(self) -> None:
        """Cut the weights of the last layer at 0: prototypes speak for classes, never against them."""
        self.last_layer.weight.clamp_(min=0)

    def class_weights(self) -> Float[Tensor, "class prototype"]:
        """The weights of the last layer."""
        return self.last_layer.weight.detach()

    def owners(self) -> Tensor:
        """Every class may have every prototype."""
        return torch.ones_like(self.last_layer.weight.T, dtype=torch.bool)

    def prototype_classes(self) -> Int[Tensor, " prototype"]:
        """The class for which a prototype counts most, the first of several."""
        return self.class_weights().argmax(dim=0)
