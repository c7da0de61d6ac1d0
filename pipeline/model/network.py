"""What all networks share: a backbone, and how a head on top of it is asked, trained and tuned."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from pipeline.model.backbone import Backbone

Terms = dict[str, Float[Tensor, ""]]
"""The terms of a loss by name; ``loss`` is their weighted sum, the others are unweighted."""


class Network(nn.Module, ABC):
    """A backbone and a head.

    Work is cut in two: :meth:`encode` is the backbone's, which is the same in every epoch while the backbone rests and
    then is done once; all other methods start from what it gives.

    Attributes:
        head: name of the head, as in ``model.head`` and as the row of metrics.json.
        views: which views of an image it is asked about: those of its bag, or only the whole image.
        grid: whether the head needs the places of the feature grid, or their average.
        num_versions: how many versions of every training view :meth:`training_terms` wants.
    """

    head: ClassVar[str]
    views: ClassVar[Literal["bag", "whole"]]
    grid: ClassVar[bool]
    num_versions: ClassVar[int] = 1

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Say, JSON-like, what beside backbone and classes rebuilds the network; see :mod:`pipeline.model.heads`."""

    def encode(self, views: Shaped[Tensor, "view 3 side_px side_px"]) -> Float[Tensor, "view channel *place"]:
        """Run the backbone: the feature grid of each view [view, channel, height, width], or its average.

        Args:
            views: RGB, uint8 0..255 or float 0..1.
        """
        return self.backbone(views) if self.grid else self.backbone.pooled(views)

    @abstractmethod
    def logits_of(
        self, encoded: Float[Tensor, "view channel *place"], lengths: Int[Tensor, " bag"]
    ) -> Float[Tensor, "bag class"]:
        """Give class scores, unnormalised.

        Args:
            encoded: of the views of all bags, one bag after the other; see :meth:`encode`.
            lengths: views of each bag, at least 1.
        """

    @abstractmethod
    def training_terms(
        self,
        encoded: Float[Tensor, "view channel *place"],
        lengths: Int[Tensor, " bag"],
        labels: Int[Tensor, " bag"],
        *,
        class_weights: Float[Tensor, " class"] | None,
        other_version: Float[Tensor, "view channel *place"] | None = None,
    ) -> tuple[Terms, Float[Tensor, "bag class"]]:
        """Compute the loss of the warm-up and joint phases, and the class scores.

        Args:
            encoded: see :meth:`logits_of`.
            lengths: see :meth:`logits_of`.
            labels: class of each bag.
            class_weights: of the classification term; None weighs classes equally.
            other_version: the same views with other colours; only for networks with ``num_versions`` 2, and for those
                only in training.
        """

    @abstractmethod
    def learning(self) -> Mapping[Literal["addon", "prototypes"], list[nn.Parameter]]:
        """Say what learns beside the backbone, by the learning rate it takes (``lr_addon``, ``lr_prototypes``)."""

    def start_epoch(self, epoch: int, *, is_first_phase: bool) -> None:
        """Take note that an epoch of a phase begins (0 is the first): for terms that follow a schedule."""

    def after_step(self) -> None:
        """Bring parameters back to where they are allowed, after each step of the optimiser."""


@dataclass(frozen=True, slots=True)
class BagOutput:
    """What a network with prototypes says of a batch of bags.

    An element is what is compared with prototypes: a view (ProtoMask), or a place of a view's feature grid.

    Attributes:
        logits: class scores, unnormalised.
        similarity: of each prototype to the bag, at least 0; large is close.
        distance: of each prototype to the bag, at least 0; small is close.
        element: position of the nearest element on the packed axis, the first where several are equally near.
    """

    logits: Float[Tensor, "bag class"]
    similarity: Float[Tensor, "bag prototype"]
    distance: Float[Tensor, "bag prototype"]
    element: Int[Tensor, "bag prototype"]


class PrototypeNetwork(Network):
    """A network whose class scores come from a weighted sum of its similarities to prototypes.

    Attributes:
        prototypes: the learned vectors.
        is_projected: whether projection replaces the vectors; otherwise each prototype is only shown by its nearest
            element.
        is_shared: whether several classes may have one prototype; otherwise each is owned by one.
    """

    is_projected: ClassVar[bool] = True
    is_shared: ClassVar[bool] = False

    add_on: nn.Linear
    prototypes: Tensor

    @abstractmethod
    def features_of(self, encoded: Float[Tensor, "view channel *place"]) -> Float[Tensor, "element dim"]:
        """Embed the elements of encoded views: one per view, or the places of each view row by row."""

    def elements_per_view(self, encoded: Float[Tensor, "view channel *place"]) -> int:
        """Count the elements that :meth:`features_of` makes of one view."""
        return encoded[0, 0].numel()

    @abstractmethod
    def classify(self, features: Float[Tensor, "element dim"], lengths: Int[Tensor, " bag"]) -> BagOutput:
        """Classify bags of embedded elements.

        Args:
            features: all elements of all bags, one bag after the other.
            lengths: elements (not views) of each bag, at least 1.
        """

    @abstractmethod
    def distances(self, features: Float[Tensor, "element dim"]) -> Float[Tensor, "element prototype"]:
        """Measure how far each element is from each prototype; at least 0, small is close."""

    @abstractmethod
    def similarities(self, features: Float[Tensor, "element dim"]) -> Float[Tensor, "element prototype"]:
        """Say how similar each element by itself is to each prototype; large is close.

        The nearest element of a bag has the largest.
        """

    @abstractmethod
    def class_weights(self) -> Float[Tensor, "class prototype"]:
        """Give the weight of each prototype's similarity in each class's score."""

    @abstractmethod
    def owners(self) -> Tensor:
        """Say which class may have which prototype: bool [prototype, class]; a prototype is projected on these."""

    @abstractmethod
    def prototype_classes(self) -> Int[Tensor, " prototype"]:
        """Name the class of each prototype: the one that owns it, or the one whose score it moves most."""

    @abstractmethod
    def tuning_terms(
        self,
        output: BagOutput,
        labels: Int[Tensor, " bag"],
        *,
        class_weights: Float[Tensor, " class"] | None,
        l1: float,
    ) -> Terms:
        """Compute the loss of the fine-tune phase, in which only :meth:`tuned` learns."""

    @abstractmethod
    def tuned(self) -> nn.Parameter:
        """Give what learns in the fine-tune phase: the weights of the last layer."""

    def logits_of(
        self, encoded: Float[Tensor, "view channel *place"], lengths: Int[Tensor, " bag"]
    ) -> Float[Tensor, "bag class"]:
        """Give class scores, unnormalised; see :meth:`Network.logits_of`."""
        return self.classify(self.features_of(encoded), lengths * self.elements_per_view(encoded)).logits

    def forward(self, views: Tensor, lengths: Int[Tensor, " bag"]) -> BagOutput:
        """Encode, embed and classify packed views: [view, 3, side, side], RGB, uint8 or float 0..1."""
        encoded = self.encode(views)
        return self.classify(self.features_of(encoded), lengths * self.elements_per_view(encoded))
