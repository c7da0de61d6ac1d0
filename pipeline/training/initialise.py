"""Where training starts: the add-on layer, and the prototypes in its space."""

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor

_RESTARTS = 4
_LEAST_SPREAD = 1e-4  # of the largest, or of 1; directions in which views hardly differ are not blown up further


def whitening(
    pooled: Float[Tensor, "view channel"], dim: int
) -> tuple[Float[Tensor, "component channel"], Float[Tensor, " component"]]:
    """Find weights and biases of a linear layer that gives the training views zero mean and unit variance.

    Its outputs are the first principal components of the pooled features, each divided by its standard deviation. A
    randomly started layer barely tells views of one data set apart: behind the sigmoid all features nearly coincide.

    Args:
        pooled: features of all training views.
        dim: how many components are wanted; there are at most as many as channels.
    """
    centred = pooled.double() - pooled.double().mean(dim=0)
    variance, directions = torch.linalg.eigh(centred.T @ centred / len(centred))  # ascending
    variance, directions = variance.flip(0)[:dim].clamp_min(0), directions.flip(1)[:, :dim].T  # [component, channel]
    # an eigenvector's sign is arbitrary: let its largest entry be positive
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    deviation = variance.sqrt().clamp_min(_LEAST_SPREAD * max(1.0, float(variance[0].sqrt())))
    weight = directions * largest.sign() / deviation[:, None]
    return weight.float(), -(weight @ pooled.double().mean(dim=0)).float()


def prototypes_from_features(
    features: Float[Tensor, "view dim"],
    view_labels: Int[Tensor, " view"],
    prototype_labels: Int[Tensor, " prototype"],
    *,
    seed: int,
) -> Float[Tensor, "prototype dim"]:
    """Spread the prototypes of each class over the features of its training views.

    k-means of the class's features, then for every centre the feature nearest to it: each prototype starts on a real
    view. A class with fewer views than prototypes uses views more than once.

    Args:
        features: of all training views.
        view_labels: class of the image of each view.
        prototype_labels: class of each prototype.
        seed: of k-means.
    """
    prototypes = torch.empty(len(prototype_labels), features.shape[1])
    for label in sorted(set(prototype_labels.tolist())):
        own = features[view_labels == label].double().numpy()
        slots = torch.nonzero(prototype_labels == label).flatten()
        num_centres = min(len(slots), len(np.unique(own, axis=0)))
        centres = KMeans(num_centres, n_init=_RESTARTS, random_state=seed).fit(own).cluster_centers_
        nearest = ((own[None] - centres[:, None]) ** 2).sum(axis=2).argmin(axis=1)  # [centre]
        chosen = nearest[np.arange(len(slots)) % num_centres]
        prototypes[slots] = torch.from_numpy(own[chosen]).float()
    return prototypes
