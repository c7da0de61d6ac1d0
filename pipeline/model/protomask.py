"""ProtoMask: prototypes of views (paper section 3)."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.model.backbone import Backbone
from pipeline.model.losses import joint_loss
from pipeline.model.network import BagOutput, Terms
from pipeline.model.owned import OwnedPrototypes
from pipeline.model.prototypes import Pooling, log_similarity, pooled_distance
from pipeline.params import CompatParams, LossParams


class ProtoMask(OwnedPrototypes):
    """A case-based classifier of bags of views (paper section 3).

    view -> backbone -> 1x1 convolution to ``dim`` -> average pool -> sigmoid -> z in (0, 1)^dim; squared distance to
    each prototype; minimum over the views of the bag; log similarity; linear layer without bias.

    Convolution by 1x1 and average pooling commute, so pooling comes first here: the same numbers for a fraction of
    the work, and what is before the add-on layer can be computed once for a frozen backbone.
    """

    head: ClassVar[str] = "protomask"
    views: ClassVar[Literal["bag", "whole"]] = "bag"
    grid: ClassVar[bool] = False

    def __init__(
        self,
        backbone: Backbone,
        *,
        dim: int,
        prototype_labels: Int[Tensor, " prototype"],
        num_classes: int,
        epsilon: float,
        pooling: Pooling | None = None,
        loss: LossParams | None = None,
        compat: CompatParams | None = None,
    ) -> None:
        """Build the network; prototypes start uniform in (0, 1), own-class weights at 1, all others at 0.

        Args:
            backbone: embeds views.
            dim: length of features and prototypes.
            prototype_labels: the class that owns each prototype.
            num_classes: rows of the last layer.
            epsilon: of the log similarity.
            pooling: how the distances of a bag's views become one; None takes the least, as the paper does.
            loss: weights of the terms; None takes the paper's. Only training needs them, and so the next one.
            compat: departures of the authors' code; None has none.
        """
        super().__init__(
            backbone,
            dim=dim,
            prototype_labels=prototype_labels,
            num_classes=num_classes,
            epsilon=epsilon,
            foreign_weight=0.0,
        )
        self.pooling = pooling or Pooling()
        self._loss = loss or LossParams()
        self._compat = compat or CompatParams()

    def settings(self) -> dict[str, Any]:
        """Dimension, owners of the prototypes, epsilon and pooling."""
        return super().settings() | {"pooling": asdict(self.pooling)}

    def features_of(self, encoded: Float[Tensor, "view channel"]) -> Float[Tensor, "view dim"]:
        """Embed encoded views; values in (0, 1)."""
        return torch.sigmoid(self.add_on(encoded))

    def classify(self, features: Float[Tensor, "view dim"], lengths: Int[Tensor, " bag"]) -> BagOutput:
        """Classify bags of embedded views.

        Args:
            features: all views of all bags, one bag after the other.
            lengths: views of each bag, at least 1.
        """
        distance, view = pooled_distance(self.distances(features), lengths, self.pooling)
        similarity = log_similarity(distance, self.epsilon)
        return BagOutput(self.last_layer(similarity), similarity, distance, view)

    def training_terms(
        self,
        encoded: Float[Tensor, "view channel"],
        lengths: Int[Tensor, " bag"],
        labels: Int[Tensor, " bag"],
        *,
        class_weights: Float[Tensor, " class"] | None,
        other_version: Tensor | None = None,
    ) -> tuple[Terms, Float[Tensor, "bag class"]]:
        """See :func:`pipeline.model.losses.joint_loss`."""
        output = self.classify(self.features_of(encoded), lengths)
        terms = joint_loss(
            output.logits,
            output.distance,
            self.prototypes,
            labels,
            self.prototype_labels,
            class_weights=class_weights,
            weights=self._loss,
            constant_diversity=self._compat.constant_diversity,
            largest_distance=float(self.prototypes.shape[1]) if self._compat.saturating_distances else None,
        )
        return terms, output.logits

    def learning(self) -> Mapping[Literal["addon", "prototypes"], list[nn.Parameter]]:
        """The add-on layer and the prototypes; the last layer rests until it is tuned."""
        learning = super().learning()
        return {**learning, "addon": []} if self._compat.frozen_addon else learning
