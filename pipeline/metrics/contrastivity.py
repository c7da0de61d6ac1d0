"""Contrastivity: how different the prototypes are that explain one image, or images of different classes."""

import numpy as np
from jaxtyping import Float, Int

from pipeline.metrics.interface import Metric

_FAMILY = "contrastivity"

METRICS = (
    Metric(
        "intra_prototype_distance",
        _FAMILY,
        "Intra prototype distance",
        "distance",
        "higher",
        "mean over images of the mean cosine distance between their top prototypes",
    ),
    Metric(
        "inter_prototype_distance",
        _FAMILY,
        "Inter prototype distance",
        "distance",
        "higher",
        "mean over classes of the mean cosine distance of their images' top prototypes to those of other classes",
    ),
)


def intra_distance(vectors: Float[np.ndarray, "image rank dim"]) -> Float[np.ndarray, " image"]:
    """Mean cosine distance between the vectors of each image, over pairs; NaN for a single vector.

    Args:
        vectors: the top prototypes of each image, none of length 0.
    """
    unit = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    cosine = np.einsum("nid,njd->nij", unit, unit)  # [image, rank, rank]
    num = vectors.shape[1]
    if num == 1:
        return np.full(len(vectors), np.nan)
    off_diagonal = ~np.eye(num, dtype=bool)
    distance: np.ndarray = (1 - cosine)[:, off_diagonal].mean(axis=1)
    return distance


def inter_distance(vectors: Float[np.ndarray, "image rank dim"], labels: Int[np.ndarray, " image"]) -> dict[int, float]:
    """Mean cosine distance, per class, of every vector of its images to every vector of all other images.

    Only classes with images occur, and only where another class has images. The mean over pairs is
    1 - (mean unit vector of the class) . (mean unit vector of the rest), so the cost is linear in images.

    Deviation: the authors' code compares equal ranks only and counts absent classes as 0 (DEVIATIONS.md B9).
    """
    unit = (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float64)
    by_image = unit.sum(axis=1)  # [image, dim]
    num_ranks = vectors.shape[1]
    distance: dict[int, float] = {}
    for label in np.unique(labels):
        own = labels == label
        if own.all():
            continue
        mean_own = by_image[own].sum(axis=0) / (own.sum() * num_ranks)
        mean_rest = by_image[~own].sum(axis=0) / ((~own).sum() * num_ranks)
        distance[int(label)] = float(1 - mean_own @ mean_rest)
    return distance
