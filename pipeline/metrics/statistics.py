"""Statistics of a set of images that can be computed again with other weights: what a bootstrap resamples.

A statistic maps weights of images to its value. Weights of one give the value itself; how often each image was drawn
gives the value of a resample. So an estimate and its interval are one formula.
"""

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array

Weights = Float[np.ndarray, "draw image"]
Values = Float[np.ndarray, " draw"]


class Statistic(ABC):
    """A number about a set of images.

    Attributes:
        num_images: how many images have a part in it; 0 where it is not about images at all.
    """

    num_images: int

    @abstractmethod
    def __call__(self, weights: Weights) -> Values:
        """Compute it for each draw of weights, all at least 0; NaN where a draw has no value."""

    def value(self, num_images: int) -> float:
        """Compute it for a set of NUM_IMAGES in which each image counts once."""
        return float(self(np.ones((1, num_images)))[0])


class Constant(Statistic):
    """A number that does not depend on images, such as a property of the weights of a network."""

    num_images = 0

    def __init__(self, value: float) -> None:
        self._value = value

    def __call__(self, weights: Weights) -> Values:
        """Give it for each draw of weights."""
        return np.full(len(weights), self._value)


class MeanOverImages(Statistic):
    """The mean of a value over the images that have one; infinite as soon as one of them is.

    Attributes:
        values: of each image; NaN where it has none.
    """

    def __init__(self, values: Float[np.ndarray, " image"]) -> None:
        self.values = values.astype(np.float64)
        self._counts = ~np.isnan(self.values)
        self._is_infinite = np.isinf(self.values)
        self.num_images = int(self._counts.sum())

    def __call__(self, weights: Weights) -> Values:
        """Compute it for each draw of weights."""
        total = weights @ np.where(np.isfinite(self.values), self.values, 0.0)
        if self._is_infinite.any():  # 0 x infinity would be no number
            total[weights @ self._is_infinite > 0] = np.inf
        return quotient(total, weights @ self._counts)


class MeanOverClasses(Statistic):
    """The mean over classes of the mean of a value over the images of the class; classes without images do not count.

    Attributes:
        values: of each image.
    """

    def __init__(self, values: Float[np.ndarray, " image"], labels: Int[np.ndarray, " image"]) -> None:
        self.values = values.astype(np.float64)
        self._is_class = labels[:, None] == np.unique(labels)  # [image, class]
        self.num_images = len(values)

    def __call__(self, weights: Weights) -> Values:
        """Compute it for each draw of weights."""
        of_class = quotient(weights @ (self._is_class * self.values[:, None]), weights @ self._is_class)
        return mean_of_present(of_class)


def mean_of_present(values: Float[np.ndarray, "draw item"]) -> Values:
    """Average over the items that are not NaN; NaN where none is left."""
    is_present = np.isfinite(values)
    return quotient(np.where(is_present, values, 0.0).sum(axis=1), is_present.sum(axis=1))


def sums_of_groups(
    weights: Weights,
    groups: Int[np.ndarray, " image"],
    num_groups: int,
    values: Float[np.ndarray, " image"] | None = None,
) -> Float[np.ndarray, "draw group"]:
    """Add up, for each draw, what the images of each group weigh; quickest where weights are in Fortran's order.

    Args:
        weights: of each draw.
        groups: of each image, counted from 0.
        num_groups: how many there are; empty ones sum to 0.
        values: of each image, a factor of its weights.
    """
    factors = np.ones(len(groups)) if values is None else values
    of_group = csr_array((factors, (groups, np.arange(len(groups)))), shape=(num_groups, len(groups)))
    sums: np.ndarray = (of_group @ weights.T).T
    return sums


def quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        quotient: np.ndarray = np.where(denominator > 0, numerator / denominator, np.nan)
    return quotient
