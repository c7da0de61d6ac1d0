"""What networks share whose prototypes are owned by one class each: the layers, and all that follows from owning."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.backbone import Backbone
from pipeline.model.losses import finetune_loss
from pipeline.model.network import BagOutput, PrototypeNetwork, Terms
from pipeline.model.prototypes import log_similarity, squared_distance


class OwnedPrototypes(PrototypeNetwork):
    """A 1x1 convolution to the space of the prototypes, the prototypes, and a linear layer over their similarities."""

    prototypes: nn.Parameter
    prototype_labels: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        dim: int,
        prototype_labels: Int[Tensor, " prototype"],
        num_classes: int,
        epsilon: float,
        foreign_weight: float,
    ) -> None:
        """Build the layers; prototypes start uniform in (0, 1), own-class weights at 1.

        Args:
            backbone: encodes views.
            dim: length of features and prototypes.
            prototype_labels: the class that owns each prototype.
            num_classes: rows of the last layer.
            epsilon: of the log similarity.
            foreign_weight: where the weights to other classes start.
        """
        super().__init__(backbone)
        self.add_on = nn.Linear(backbone.num_channels, dim)
        self.prototypes = nn.Parameter(torch.rand(len(prototype_labels), dim))
        self.last_layer = nn.Linear(len(prototype_labels), num_classes, bias=False)
        self.epsilon = epsilon
        self.register_buffer("prototype_labels", prototype_labels.long())
        with torch.no_grad():
            self.last_layer.weight.copy_(torch.where(self.owners().T, 1.0, foreign_weight))

    def settings(self) -> dict[str, Any]:
        """Dimension, owners of the prototypes and epsilon."""
        return {
            "dim": self.prototypes.shape[1],
            "prototype_labels": self.prototype_labels.tolist(),
            "similarity_epsilon": self.epsilon,
        }

    def distances(self, features: Float[Tensor, "element dim"]) -> Float[Tensor, "element prototype"]:
        """Squared distances."""
        return squared_distance(features, self.prototypes)

    def similarities(self, features: Float[Tensor, "element dim"]) -> Float[Tensor, "element prototype"]:
        """Logarithmic; see :func:`pipeline.model.prototypes.log_similarity`."""
        return log_similarity(self.distances(features), self.epsilon)

    def tuning_terms(
        self,
        output: BagOutput,
        labels: Int[Tensor, " bag"],
        *,
        class_weights: Float[Tensor, " class"] | None,
        l1: float,
    ) -> Terms:
        """See :func:`pipeline.model.losses.finetune_loss`."""
        return finetune_loss(
            output.logits,
            self.last_layer.weight,
            labels,
            self.prototype_labels,
            class_weights=class_weights,
            l1=l1,
        )

    def tuned(self) -> nn.Parameter:
        """The weights of the last layer."""
        [weight] = self.last_layer.parameters()
        return weight

    def learning(self) -> Mapping[Literal["addon", "prototypes"], list[nn.Parameter]]:
        """The add-on layer and the prototypes; the last layer rests until it is tuned."""
        return {"addon": list(self.add_on.parameters()), "prototypes": [self.prototypes]}

    def class_weights(self) -> Float[Tensor, "class prototype"]:
        """The weights of the last layer."""
        return self.last_layer.weight.detach()

    def owners(self) -> Tensor:
        """One class per prototype."""
        return functional.one_hot(self.prototype_labels, self.last_layer.out_features).bool()

    def prototype_classes(self) -> Int[Tensor, " prototype"]:
        """The class that owns each prototype."""
        return self.prototype_labels
