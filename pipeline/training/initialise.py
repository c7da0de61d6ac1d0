"""Where training starts: the add-on layer, and the prototypes in its space."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor

from pipeline.model.network import PrototypeNetwork
from pipeline.model.prototypes import squared_distance

_RESTARTS = 4
_LEAST_SPREAD = 1e-4  # of the largest, or of 1; directions in which views hardly differ are not blown up further
_VIEWS_PER_STEP = 256
_SHARED_ELEMENTS = 20_000  # of which the prototypes that classes share are spread; more take minutes and change little


def whitening(
    encoded: Float[Tensor, "view channel *place"], dim: int
) -> tuple[Float[Tensor, "component channel"], Float[Tensor, " component"]]:
    """Find weights and biases of a linear layer that gives the training views zero mean and unit variance.

    Its outputs are the first principal components of the encoded views (or of all their places), each divided by its
    standard deviation. A randomly started layer barely tells views of one data set apart: behind the sigmoid all
    features nearly coincide.

    Args:
        encoded: all training views.
        dim: how many components are wanted; there are at most as many as channels.
    """
    mean = torch.stack([rows.sum(dim=0) for rows in _rows(encoded)]).sum(dim=0) / _num_rows(encoded)
    square = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for rows in _rows(encoded):
        centred = rows - mean
        square += centred.T @ centred
    variance, directions = torch.linalg.eigh(square / _num_rows(encoded))  # ascending
    variance, directions = variance.flip(0)[:dim].clamp_min(0), directions.flip(1)[:, :dim].T  # [component, channel]
    # an eigenvector's sign is arbitrary: let its largest entry be positive
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    deviation = variance.sqrt().clamp_min(_LEAST_SPREAD * max(1.0, float(variance[0].sqrt())))
    weight = directions * largest.sign() / deviation[:, None]
    return weight.float(), -(weight @ mean).float()


def _rows(encoded: Float[Tensor, "view channel *place"]) -> Iterator[Tensor]:
    """Go through the views, or their places, in float64: [row, channel], a bounded number at a time."""
    for views in torch.split(encoded, _VIEWS_PER_STEP):
        yield views.flatten(2).transpose(1, 2).flatten(0, 1).double() if views.dim() > 2 else views.double()


def _num_rows(encoded: Float[Tensor, "view channel *place"]) -> int:
    return encoded[:, 0].numel()


@torch.no_grad()
def features_of_views(
    network: PrototypeNetwork, encoded: Float[Tensor, "view channel *place"], lengths: Sequence[int], labels: list[int]
) -> tuple[Float[Tensor, "element dim"], Int[Tensor, " element"]]:
    """Embed all elements of the training views, and name the class of each one's image."""
    features = torch.cat([network.features_of(views) for views in torch.split(encoded, _VIEWS_PER_STEP)])
    of_view = torch.tensor(labels).repeat_interleave(torch.tensor(lengths))
    return features, of_view.repeat_interleave(len(features) // len(of_view))


def prototypes_from_features(
    features: Float[Tensor, "element dim"],
    element_labels: Int[Tensor, " element"],
    prototype_labels: Int[Tensor, " prototype"],
    *,
    is_shared: bool = False,
    seed: int,
) -> Float[Tensor, "prototype dim"]:
    """Spread the prototypes of each class over the features of its training images.

    k-means of the class's features, then for every centre the feature nearest to it: each prototype starts on a real
    view (or place). A class with fewer of them than prototypes uses some more than once. Prototypes that classes share
    are spread over the features of all classes, or a draw of them.

    Args:
        features: of all training images.
        element_labels: class of the image of each element.
        prototype_labels: class of each prototype.
        is_shared: classes share the prototypes, whatever their labels.
        seed: of k-means and of the draw.
    """
    prototypes = features.new_empty(len(prototype_labels), features.shape[1])
    if is_shared:
        drawn = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:_SHARED_ELEMENTS]
        prototypes[:] = _spread(features[drawn.sort().values], len(prototype_labels), seed=seed, restarts=1)
        return prototypes
    for label in sorted(set(prototype_labels.tolist())):
        slots = torch.nonzero(prototype_labels == label).flatten()
        prototypes[slots] = _spread(features[element_labels == label], len(slots), seed=seed, restarts=_RESTARTS)
    return prototypes


def _spread(
    features: Float[Tensor, "element dim"], num: int, *, seed: int, restarts: int
) -> Float[Tensor, "chosen dim"]:
    """Choose NUM features that lie nearest to the centres of as many clusters."""
    num_centres = min(num, len(torch.unique(features, dim=0)))
    clusters = KMeans(num_centres, n_init=restarts, random_state=seed).fit(features.double().numpy())
    centres = torch.from_numpy(clusters.cluster_centers_)  # float64
    nearest = squared_distance(features.double(), centres).argmin(dim=0)  # [centre]
    return features[nearest[torch.arange(num) % num_centres]]
