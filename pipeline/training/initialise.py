"""Where prototypes start."""

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor

_RESTARTS = 4


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
