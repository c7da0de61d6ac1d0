"""The black box that networks with prototypes are compared with."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.backbone import Backbone
from pipeline.model.network import Network, Terms


class BlackBox(Network):
    """A linear layer on the pooled features of the whole image: no prototypes."""

    head: ClassVar[str] = "blackbox"
    views: ClassVar[Literal["bag", "whole"]] = "whole"
    grid: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, *, num_classes: int) -> None:
        """Build the network; the linear layer starts at zero, so that all classes are equally likely."""
        super().__init__(backbone)
        self.classifier = nn.Linear(backbone.num_channels, num_classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def settings(self) -> dict[str, Any]:
        """Nothing but backbone and classes."""
        return {}

    def logits_of(
        self, encoded: Float[Tensor, "view channel"], lengths: Int[Tensor, " bag"]
    ) -> Float[Tensor, "bag class"]:
        """Give class scores, unnormalised; the views are whole images, one per bag."""
        scores: Tensor = self.classifier(encoded)
        return scores

    def training_terms(
        self,
        encoded: Float[Tensor, "view channel"],
        lengths: Int[Tensor, " bag"],
        labels: Int[Tensor, " bag"],
        *,
        class_weights: Float[Tensor, " class"] | None,
        other_version: Tensor | None = None,
    ) -> tuple[Terms, Float[Tensor, "bag class"]]:
        """Cross entropy."""
        logits = self.logits_of(encoded, lengths)
        return {"loss": functional.cross_entropy(logits, labels, weight=class_weights)}, logits

    def learning(self) -> Mapping[Literal["addon", "prototypes"], list[nn.Parameter]]:
        """The linear layer, at the add-on layer's rate."""
        return {"addon": list(self.classifier.parameters())}
