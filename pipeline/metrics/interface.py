"""How a metric is declared, and what it is computed from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from pipeline.metrics.statistics import Statistic
from pipeline.params import EvaluateParams

Need = Literal[
    "prototypes",  # the network has some: `look`, `top`, `vectors`, `features`, `last_layer`
    "maps",  # saliency: `look.maps`, `look.salient`
    "object_masks",
    "parts",
    "changed",
    "noised",
    "patterns",
    "deletion",
    "scenes",
]
"""What a metric cannot do without; where evidence lacks it, ``Evidence.absent`` says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How images look to a network, as seen through the prototypes that explain them.

    An element is what is compared with prototypes: a view, or a place of a view's feature grid. Ranks are those of
    ``Evidence.top``.

    Attributes:
        logits: class scores.
        similarity: of every prototype to the image. Where each rank had an image of its own (``Evidence.noised``),
            there is an axis of ranks after that of images.
        elements: similarity of each element to the prototype of the rank; NaN beyond the elements of the image.
        centre: of the box of the nearest element: x and y, shares of the image's sides.
        maps: saliency; bool, or float of any sign. The frame is the whole image.
        salient: where the map is salient: the map itself where it is bool.
        covered: whether the salient pixels hold the part; False for parts that are not visible.
    """

    logits: Float[Tensor, "image *rank class"]
    similarity: Float[Tensor, "image *rank prototype"]
    elements: Float[Tensor, "image rank element"]
    centre: Float[Tensor, "image rank 2"]
    maps: Shaped[Tensor, "image rank height width"] | None = None
    salient: Bool[Tensor, "image rank height width"] | None = None
    covered: Bool[Tensor, "image rank part"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """What the views of a bag are worth: the predicted class when views are taken out, or put in, one after the other.

    Attributes:
        removed: probability of the predicted class after the share of views of each step was taken out, most important
            first; from the whole bag to the empty one.
        inserted: the same for bags that start empty and get the most important view first.
        removed_at_random: as ``removed``, averaged over random orders.
        inserted_at_random: as ``inserted``, averaged over random orders.
    """

    removed: Float[Tensor, "image step"]
    inserted: Float[Tensor, "image step"]
    removed_at_random: Float[Tensor, "image step"]
    inserted_at_random: Float[Tensor, "image step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenes:
    """What a network says of scenes in which parts of the object were left out: only where images are rendered.

    Attributes:
        visible: whether the part is seen in the image.
        claimed: how much the explanation says that the part matters: the summed contributions (similarity x weight) to
            the predicted class of the top prototypes whose saliency covers the part.
        without: class scores of the same scene without the part.
        only: class scores of the same scene with no part but this one.
        none: class scores of the same scene without any part.
        differs: whether the part looks different in the class of the second axis than in the image's own.
    """

    visible: Bool[Tensor, "image part"]
    claimed: Float[Tensor, "image part"]
    without: Float[Tensor, "image part class"]
    only: Float[Tensor, "image part class"]
    none: Float[Tensor, "image class"]
    differs: Bool[Tensor, "image class part"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that metrics are computed from, for some test images or for all.

    Attributes:
        labels: true classes.
        look: the images as they are; of a black box only the logits are anything.
        top: the prototypes that explain each image, most similar first, equal ones by index.
        vectors: the learned vectors of the top prototypes.
        features: the embedding of the element nearest to each of them.
        last_layer: weight of each prototype's similarity in each class's score.
        object_mask: in the frame of the maps.
        parts: x and y in the frame of the maps, in its pixels; NaN for parts that are not visible.
        changed: the images after a change that should not matter (``evaluate.perturbation``), seen through the same top
            prototypes.
        noised: each rank's image after noise outside the box of its saliency.
        patterns: of the masks of each image; see :mod:`pipeline.metrics.part_patterns`.
        deletion: views taken out and put in.
        scenes: parts taken out and put in.
        params: thresholds.
        absent: why something is not there, by need.
    """

    labels: Int[Tensor, " image"]
    look: Look
    top: Int[Tensor, "image rank"] | None = None
    vectors: Float[Tensor, "image rank dim"] | None = None
    features: Float[Tensor, "image rank feature"] | None = None
    last_layer: Float[Tensor, "class prototype"] | None = None
    object_mask: Bool[Tensor, "image height width"] | None = None
    parts: Float[Tensor, "image part 2"] | None = None
    changed: Look | None = None
    noised: Look | None = None
    patterns: tuple[frozenset[int], ...] | None = None
    deletion: Deletion | None = None
    scenes: Scenes | None = None
    params: EvaluateParams = field(default_factory=EvaluateParams)
    absent: Mapping[Need, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What a number in the metrics table means, and how it is had.

    A metric is either a mean over images (``of_image``) or something else (``of_set``).

    Attributes:
        key: its name in metrics.json, inside its family.
        family: classification, compactness, contrastivity, ...
        title: its name in rendered tables.
        unit: ``fraction`` (0..1; percent in rendered tables), ``count``, ``ratio``, ``distance``, ``bits``, ``score``.
        direction: which change is an improvement.
        formula: definition and source, one line.
        low: least possible value.
        high: largest possible value.
        needs: what it cannot do without.
        of_image: the value of each image; NaN where an image has none, and then it does not count. It must not depend
            on which other images are asked about at the same time.
        of_set: of all images together; sees no maps.
    """

    key: str
    family: str
    title: str
    unit: Literal["fraction", "count", "ratio", "distance", "bits", "score"]
    direction: Literal["higher", "lower", "neither"]
    formula: str
    low: float = 0.0
    high: float = 1.0
    needs: tuple[Need, ...] = ()
    of_image: Callable[[Evidence], Float[Tensor, " image"]] | None = None
    of_set: Callable[[Evidence], Statistic] | None = None

    def __post_init__(self) -> None:
        if (self.of_image is None) == (self.of_set is None):
            raise ValueError(f"{self.family}.{self.key} must have either of_image or of_set")
