"""Bootstrap intervals: how far a number could have been another one, had other test images been drawn.

Images are resampled with replacement; what varies is the choice of test images, not the training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.metrics.statistics import Statistic, Values, Weights

LEVEL = 0.95
_LEAST_FINITE = 0.95  # share of draws that must have a value
_ROUNDING = 1e-9  # of a value that all draws share
_CELLS_PER_PART = 8_000_000  # draws are taken in parts of so many weights


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds of a percentile interval, ``LEVEL`` of the draws lie in it."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How much B is larger than A on the same images.

    Attributes:
        value: B - A.
        interval: of the difference, from resamples that both share.
    """

    value: float
    interval: Interval

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval.low > 0 or self.interval.high < 0


class Bootstrap:
    """Resamples of one set of images, the same for every statistic."""

    def __init__(self, num_images: int, *, num_draws: int, seed: int) -> None:
        """Fix the draws.

        Args:
            num_images: size of the set, and of each resample.
            num_draws: resamples.
            seed: start of the draws.
        """
        self.num_images = num_images
        self._num_draws = num_draws
        self._seed = seed
        self._only_part: Weights | None = None

    def interval(self, statistic: Statistic) -> Interval | None:
        """Give the percentile interval of a statistic.

        None where it is not about images, has no value in too many draws, or hangs on how many different images there
        are: a resample repeats some and lacks others, so such a statistic moves to one side in all of them, and its
        interval does not hold its own value.
        """
        if statistic.num_images == 0:
            return None
        interval = _interval(self._values(statistic))
        value = statistic.value(self.num_images)
        return interval if interval is not None and _holds(interval, value) else None

    def difference(self, before: Statistic, after: Statistic) -> Difference | None:
        """Compare two statistics of the same images, draw by draw; None as in :meth:`interval`.

        What varies together, such as images that are hard for both, cancels: the paired bootstrap.
        """
        (found,) = self.differences([(before, after)])
        return found

    def differences(self, pairs: Sequence[tuple[Statistic, Statistic]]) -> list[Difference | None]:
        """Compare several pairs as :meth:`difference` does, on draws that are made once for all of them.

        Args:
            pairs: the statistic before and the one after.
        """
        drawn: list[list[Values]] = [[] for _ in pairs]
        with np.errstate(invalid="ignore"):  # of two infinite values
            for weights in self._weights():
                for values, (before, after) in zip(drawn, pairs, strict=True):
                    values.append(after(weights) - before(weights))
            return [self._compared(np.concatenate(values), *pair) for values, pair in zip(drawn, pairs, strict=True)]

    def _compared(self, drawn: Values, before: Statistic, after: Statistic) -> Difference | None:
        interval = _interval(drawn)
        value = after.value(self.num_images) - before.value(self.num_images)
        return Difference(value, interval) if interval is not None and _holds(interval, value) else None

    def _values(self, statistic: Statistic) -> Values:
        return np.concatenate([statistic(weights) for weights in self._weights()])

    def _weights(self) -> Iterator[Weights]:
        """How often each image was drawn, some draws at a time: the same in every call, and kept if one part is all."""
        if self._only_part is not None:
            yield self._only_part
            return
        rng = np.random.default_rng(self._seed)
        per_part = max(1, _CELLS_PER_PART // self.num_images)
        share = np.full(self.num_images, 1 / self.num_images)
        for start in range(0, self._num_draws, per_part):
            num = min(per_part, self._num_draws - start)
            weights = rng.multinomial(self.num_images, share, size=num).astype(np.float64)
            if num == self._num_draws:
                self._only_part = weights
            yield weights


def _holds(interval: Interval, value: float) -> bool:
    return interval.low - _ROUNDING <= value <= interval.high + _ROUNDING


def _interval(values: Values) -> Interval | None:
    """Take the quantiles of the draws that have a value; None where they are too few to stand for all."""
    finite = values[np.isfinite(values)]
    if len(finite) < _LEAST_FINITE * len(values):
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
