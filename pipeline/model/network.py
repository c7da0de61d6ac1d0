"""The networks: ProtoMask, and the black box it is compared with."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.model.backbone import Backbone
from pipeline.model.prototypes import log_similarity, nearest_view, squared_distance


@dataclass(frozen=True, slots=True)
class BagOutput:
    """What ProtoMask says of a batch of bags.

    Attributes:
        logits: class scores, unnormalised.
        similarity: of each prototype to its nearest view of the bag, at least 0.
        distance: squared distance of each prototype to that view.
        view: position of that view on the packed view axis.
    """

    logits: Float[Tensor, "bag class"]
    similarity: Float[Tensor, "bag prototype"]
    distance: Float[Tensor, "bag prototype"]
    view: Int[Tensor, "bag prototype"]


class ProtoMask(nn.Module):
    """A case-based classifier of bags of views (paper section 3).

    view -> backbone -> 1x1 convolution to ``dim`` -> average pool -> sigmoid -> z in (0, 1)^dim; squared distance to
    each prototype; minimum over the views of the bag; log similarity; linear layer without bias.

    Convolution by 1x1 and average pooling commute, so pooling comes first here: the same numbers for a fraction of
    the work, and what is before the add-on layer can be computed once for a frozen backbone.
    """

    prototype_labels: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        dim: int,
        prototype_labels: Int[Tensor, " prototype"],
        num_classes: int,
        epsilon: float,
    ) -> None:
        """Build the network; prototypes start uniform in (0, 1), own-class weights at 1, all others at 0.

        Args:
            backbone: embeds views.
            dim: length of features and prototypes.
            prototype_labels: the class that owns each prototype.
            num_classes: rows of the last layer.
            epsilon: of the log similarity.
        """
        super().__init__()
        self.backbone = backbone
        self.add_on = nn.Linear(backbone.num_channels, dim)
        self.prototypes = nn.Parameter(torch.rand(len(prototype_labels), dim))
        self.last_layer = nn.Linear(len(prototype_labels), num_classes, bias=False)
        self.epsilon = epsilon
        self.register_buffer("prototype_labels", prototype_labels.long())
        with torch.no_grad():
            self.last_layer.weight.copy_(nn.functional.one_hot(self.prototype_labels, num_classes).T)

    def features_of_pooled(self, pooled: Float[Tensor, "view channel"]) -> Float[Tensor, "view dim"]:
        """Embed views of which the pooled backbone features are known; values in (0, 1)."""
        return torch.sigmoid(self.add_on(pooled))

    def features(self, views: Tensor) -> Float[Tensor, "view dim"]:
        """Embed views: [view, 3, side, side], RGB, uint8 or float 0..1."""
        return self.features_of_pooled(self.backbone.pooled(views))

    def classify(self, features: Float[Tensor, "view dim"], lengths: Int[Tensor, " bag"]) -> BagOutput:
        """Classify bags of embedded views.

        Args:
            features: all views of all bags, one bag after the other.
            lengths: views of each bag, at least 1.
        """
        distance, view = nearest_view(squared_distance(features, self.prototypes), lengths)
        similarity = log_similarity(distance, self.epsilon)
        return BagOutput(self.last_layer(similarity), similarity, distance, view)

    def forward(self, views: Tensor, lengths: Int[Tensor, " bag"]) -> BagOutput:
        """Embed and classify; see :meth:`features` and :meth:`classify`."""
        return self.classify(self.features(views), lengths)


class BlackBox(nn.Module):
    """The same backbone with a linear layer on the pooled features of the whole image: no prototypes."""

    def __init__(self, backbone: Backbone, *, num_classes: int) -> None:
        """Build the network; the linear layer starts at zero, so that all classes are equally likely."""
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.num_channels, num_classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, views: Tensor) -> Float[Tensor, "bag class"]:
        """Give class scores, unnormalised, of whole images: [bag, 3, side, side], RGB, uint8 or float 0..1."""
        scores: Tensor = self.classifier(self.backbone.pooled(views))
        return scores
