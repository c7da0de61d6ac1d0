"""Pruning: a prototype that lies among images of other classes is dropped (authors' code: prune).

Who stays is decided after projection, on the training split; the survivors keep their order (DEVIATIONS.md A19) and
their class (A18). A class may lose all its prototypes, and with them every chance to be predicted: the caller says so.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.model.heads import make
from pipeline.model.protomask import ProtoMask
from pipeline.model.prototypes import squared_distance
from pipeline.training.nearest import EmbeddedBag, Nearest, in_batches, merge

_DISTANCES_PER_BATCH = 2**22  # views x prototypes, in float64: 32 MiB


@dataclass(frozen=True, slots=True)
class Pruning:
    """Which prototypes stay, and what lies around each.

    Attributes:
        kept: indices of the survivors, ascending.
        nearest_labels: classes of the training images nearest to each prototype, nearest first; fewer than k where
            there are fewer images.
        num_own: how many of these are the prototype's own class.
    """

    kept: Int[Tensor, " kept"]
    nearest_labels: Int[Tensor, "prototype rank"]
    num_own: Int[Tensor, " prototype"]


@torch.no_grad()
def prune(
    prototypes: Float[Tensor, "prototype dim"],
    prototype_labels: Int[Tensor, " prototype"],
    bags: Iterable[EmbeddedBag],
    *,
    k: int,
    threshold: int,
) -> Pruning:
    """Keep a prototype when at least THRESHOLD of the K training images nearest to it are of its class.

    The distance of an image is that of its nearest view. All classes take part, so all distances are needed; they are
    computed batch after batch, and per prototype only the K nearest images are kept. Equal distances go to the smaller
    image_key, so neither the order of bags nor their batching matters.

    Args:
        prototypes: the vectors, projected.
        prototype_labels: the class that owns each.
        bags: the training split, in any order, read once.
        k: how many images are asked.
        threshold: above k, nothing stays.
    """
    nearest = Nearest(
        distance=prototypes.new_empty(len(prototypes), 0),
        item=prototype_labels.new_empty(len(prototypes), 0),
        names=[],
        values=prototype_labels.new_empty(0),
    )
    for batch in in_batches(bags, _DISTANCES_PER_BATCH // max(1, len(prototypes))):
        nearest = merge(nearest, _nearest_images(batch, prototypes, k), k)
    nearest_labels = nearest.values[nearest.item]
    num_own = (nearest_labels == prototype_labels[:, None]).sum(dim=1)
    return Pruning(torch.nonzero(num_own >= threshold).flatten(), nearest_labels, num_own)


def _nearest_images(batch: list[EmbeddedBag], prototypes: Float[Tensor, "prototype dim"], k: int) -> Nearest:
    """Find the K images of one batch that are nearest to each prototype; remember their labels."""
    ordered = sorted(batch, key=lambda bag: bag.image_key)
    distance = squared_distance(torch.cat([bag.features for bag in ordered]), prototypes)  # [view, prototype]
    lengths = torch.tensor([len(bag.features) for bag in ordered], device=distance.device)
    of_image = torch.segment_reduce(distance, "min", lengths=lengths, axis=0)  # [image, prototype]
    # equal ones stay in the order of their names
    value, position = of_image.T.contiguous().sort(dim=1, stable=True)
    labels = torch.tensor([bag.label for bag in ordered], device=distance.device)
    return Nearest(value[:, :k], position[:, :k], [(bag.image_key,) for bag in ordered], labels).compact()


@torch.no_grad()
def without_pruned(network: ProtoMask, kept: Int[Tensor, " kept"]) -> ProtoMask:
    """Build the network that has only the prototypes in KEPT, in that order; its backbone is the same object.

    Their vectors, classes and columns of the last layer stay bit for bit what they are.
    """
    settings = network.settings() | {"prototype_labels": network.prototype_labels[kept].tolist()}
    smaller = make(network.head, network.backbone, len(network.last_layer.weight), settings)
    assert isinstance(smaller, ProtoMask)
    smaller = smaller.to(network.prototypes.device)
    smaller.add_on.load_state_dict(network.add_on.state_dict())
    smaller.prototypes.copy_(network.prototypes[kept])
    smaller.last_layer.weight.copy_(network.last_layer.weight[:, kept])
    return smaller.train(network.training)
