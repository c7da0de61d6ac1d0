"""ProtoPNet: prototypes of places (Chen et al. 2019, "This Looks Like That", arXiv 1806.10574)."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from pipeline.model.backbone import Backbone
from pipeline.model.losses import cluster_loss, separation_loss
from pipeline.model.network import BagOutput, Terms
from pipeline.model.owned import OwnedPrototypes
from pipeline.model.places import places_of
from pipeline.model.prototypes import log_similarity, nearest_view
from pipeline.params import ProtoPNetLossParams

_FOREIGN_WEIGHT = -0.5  # section 2.2: where the weights to other classes start


class ProtoPNet(OwnedPrototypes):
    """A case-based classifier of whole images whose prototypes are places of the feature grid (section 2.1).

    image -> backbone -> 1x1 convolution to ``dim`` -> sigmoid -> z in (0, 1)^dim at each place; squared distance to
    each prototype; minimum over the places; log similarity; linear layer without bias.

    Deviation: one 1x1 convolution instead of two with a ReLU between them, as ProtoMask has. Prototypes are 1 x 1 in
    space, as in the paper's experiments.
    """

    head: ClassVar[str] = "protopnet"
    views: ClassVar[Literal["bag", "whole"]] = "whole"
    grid: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        dim: int,
        prototype_labels: Int[Tensor, " prototype"],
        num_classes: int,
        epsilon: float,
        loss: ProtoPNetLossParams | None = None,
    ) -> None:
        """Build the network; prototypes start uniform in (0, 1), own-class weights at 1, all others at -0.5.

        Args:
            backbone: gives the grid of features.
            dim: length of features and prototypes.
            prototype_labels: the class that owns each prototype.
            num_classes: rows of the last layer.
            epsilon: of the log similarity (authors' code: 1e-4).
            loss: weights of the terms; None takes the paper's. Only training needs them.
        """
        super().__init__(
            backbone,
            dim=dim,
            prototype_labels=prototype_labels,
            num_classes=num_classes,
            epsilon=epsilon,
            foreign_weight=_FOREIGN_WEIGHT,
        )
        self._loss = loss or ProtoPNetLossParams()

    def features_of(self, encoded: Float[Tensor, "view channel *place"]) -> Float[Tensor, "element dim"]:
        """Embed the places of encoded views; values in (0, 1)."""
        return torch.sigmoid(self.add_on(places_of(encoded)))

    def classify(self, features: Float[Tensor, "element dim"], lengths: Int[Tensor, " bag"]) -> BagOutput:
        """Classify bags of embedded places by the nearest place to each prototype (section 2.1).

        Args:
            features: all places of all bags, one bag after the other.
            lengths: places of each bag, at least 1.
        """
        distance, place = nearest_view(self.distances(features), lengths)
        similarity = log_similarity(distance, self.epsilon)
        return BagOutput(self.last_layer(similarity), similarity, distance, place)

    def training_terms(
        self,
        encoded: Float[Tensor, "view channel *place"],
        lengths: Int[Tensor, " bag"],
        labels: Int[Tensor, " bag"],
        *,
        class_weights: Float[Tensor, " class"] | None,
        other_version: Tensor | None = None,
    ) -> tuple[Terms, Float[Tensor, "bag class"]]:
        """Compute cross entropy + cluster - separation, each times its weight (section 2.2), and the scores."""
        output = self.classify(self.features_of(encoded), lengths * self.elements_per_view(encoded))
        terms = {
            "cross_entropy": functional.cross_entropy(output.logits, labels, weight=class_weights),
            "cluster": cluster_loss(output.distance, labels, self.prototype_labels),
            "separation": separation_loss(output.distance, labels, self.prototype_labels),
        }
        total = (
            self._loss.cross_entropy * terms["cross_entropy"]
            + self._loss.cluster * terms["cluster"]
            - self._loss.separation * terms["separation"]
        )
        return {"loss": total, **terms}, output.logits
