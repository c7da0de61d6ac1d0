"""The test images of a row of metrics.json in two revisions: which are the same, and how they were classified.

Two images are the same where they have one image_key, one class and, as far as both data sets can be read, one hash.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from scipy.stats import binomtest

from pipeline.compare.revisions import Missing, Predictions, Revision
from pipeline.metrics.statistics import MeanOverImages, Statistic, Values, Weights
from pipeline.metrics.uncertainty import Bootstrap, Difference, Interval

_LEAST_SHARED = 2  # one image has no interval


@dataclass(frozen=True, slots=True)
class ImageSets:
    """The test images of a row.

    Attributes:
        num_before: test images of A.
        num_after: test images of B.
        num_shared: images that are the same in both.
        num_replaced: images of one name and class whose pictures differ.
        is_checked: whether the hashes of the pictures were compared.
    """

    num_before: int
    num_after: int
    num_shared: int
    num_replaced: int
    is_checked: bool

    @property
    def is_paired(self) -> bool:
        """Whether differences are about shared images."""
        return self.num_shared >= _LEAST_SHARED

    @property
    def is_equal(self) -> bool:
        """Whether all test images are shared."""
        return self.num_shared == self.num_before == self.num_after


@dataclass(frozen=True, slots=True)
class ClassChange:
    """The recall of a class: the share of its test images that are classified right.

    Attributes:
        class_name: the class.
        num_before: its images in A; where images are paired, the shared ones.
        num_after: its images in B, likewise.
        before: recall of A, 0..1.
        after: recall of B, 0..1.
        interval: of the difference, from resamples of these images; None for fewer than two.
    """

    class_name: str
    num_before: int
    num_after: int
    before: float
    after: float
    interval: Interval | None

    @property
    def difference(self) -> float:
        """B less A."""
        return self.after - self.before

    @property
    def is_significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval is not None and Difference(0.0, self.interval).is_significant


@dataclass(frozen=True, slots=True)
class Flip:
    """An image that one revision classifies right and the other wrong.

    Attributes:
        image_key: the image.
        class_name: its class.
        predicted_before: class found by A.
        predicted_after: class found by B.
        confidence_before: probability of it, 0..1.
        confidence_after: likewise.
    """

    image_key: str
    class_name: str
    predicted_before: str
    predicted_after: str
    confidence_before: float
    confidence_after: float


@dataclass(frozen=True, slots=True)
class Flips:
    """Shared test images whose outcome changed, the most confident ones of B first.

    Attributes:
        broken: right before, wrong after.
        mended: wrong before, right after.
        num_both_right: right in both.
        num_both_wrong: wrong in both.
        p_value: of McNemar's exact test: how likely a split of the flips is that is at least as uneven, if an image
            were as likely to flip one way as the other.
    """

    broken: tuple[Flip, ...]
    mended: tuple[Flip, ...]
    num_both_right: int
    num_both_wrong: int
    p_value: float


class _OfOwnSet(Statistic):
    """A statistic of one of two sets of images, as one of both sets laid end to end."""

    def __init__(self, statistic: Statistic, images: slice) -> None:
        self._statistic = statistic
        self._images = images
        self.num_images = statistic.num_images

    def __call__(self, weights: Weights) -> Values:
        """Compute it for each draw of weights."""
        return self._statistic(weights[:, self._images])


class _Resamples:
    """Differences of statistics of two sets of images: of the same ones, image by image, or of two sets."""

    def __init__(self, num_before: int, num_after: int, *, is_paired: bool, num_draws: int, seed: int) -> None:
        assert not is_paired or num_before == num_after
        self._is_paired = is_paired
        self._num_before = num_before
        num = num_before if is_paired else num_before + num_after
        self._bootstrap = Bootstrap(num, num_draws=num_draws, seed=seed)

    def differences(self, pairs: Sequence[tuple[Statistic, Statistic]]) -> list[Difference | None]:
        """Give B less A of each pair with an interval; None where there is none."""
        if not self._is_paired:
            own, other = slice(None, self._num_before), slice(self._num_before, None)
            pairs = [(_OfOwnSet(before, own), _OfOwnSet(after, other)) for before, after in pairs]
        return self._bootstrap.differences(pairs)


class ImagePairs:
    """The test images of a row in A and in B.

    Attributes:
        sets: how many there are.
        whole: all of A and all of B.
        used: those that differences are about: the shared ones, in one order, where they are paired, else all.
    """

    def __init__(
        self, sides: tuple[Revision, Revision], whole: tuple[Predictions, Predictions], *, num_draws: int, seed: int
    ) -> None:
        """Find the shared images.

        Args:
            sides: A and B.
            whole: what the row is made from in A and in B.
            num_draws: resamples behind each interval.
            seed: start of the resampling.
        """
        self._sides = sides
        self._num_draws, self._seed = num_draws, seed
        own, other = whole
        at_before, at_after, num_replaced, is_checked = _shared(*sides, own, other)
        self.sets = ImageSets(len(own.labels), len(other.labels), len(at_before), num_replaced, is_checked)
        self.whole = whole
        self.used = (own.at(at_before), other.at(at_after)) if self.sets.is_paired else whole

    def differences(self, pairs: Sequence[tuple[Statistic, Statistic]]) -> list[Difference | None]:
        """Compare statistics of the images that are used: each of A's with its one of B."""
        own, other = self.used
        return self._resamples(len(own.labels), len(other.labels)).differences(pairs)

    def classes(self) -> tuple[ClassChange, ...]:
        """Compare the recall of each class that both have images of, the largest changes first."""
        rights, names = zip(
            *(_outcomes(side, used) for side, used in zip(self._sides, self.used, strict=True)), strict=True
        )
        changes = []
        for name in sorted(set(names[0]) & set(names[1])):
            own, other = (right[of_class == name] for right, of_class in zip(rights, names, strict=True))
            interval = None
            if min(len(own), len(other)) >= _LEAST_SHARED:
                pair = MeanOverImages(own.astype(np.float64)), MeanOverImages(other.astype(np.float64))
                (found,) = self._resamples(len(own), len(other)).differences([pair])
                interval = None if found is None else found.interval
            changes.append(ClassChange(name, len(own), len(other), float(own.mean()), float(other.mean()), interval))
        return tuple(sorted(changes, key=lambda change: (-abs(change.difference), change.class_name)))

    def flips(self) -> Flips | Missing:
        """Find the shared images whose outcome changed."""
        if not self.sets.is_paired:
            before, after = self._sides
            return Missing(f"{before.name} and {after.name} were not tested on the same images")
        own, other = self.used
        right_before, right_after = own.labels == own.predicted, other.labels == other.predicted
        broken, mended = (
            tuple(
                self._flip(idx)
                for idx in sorted(np.flatnonzero(which).tolist(), key=lambda idx: -other.confidence[idx])
            )
            for which in (right_before & ~right_after, ~right_before & right_after)
        )
        num = len(broken) + len(mended)
        return Flips(
            broken,
            mended,
            num_both_right=int((right_before & right_after).sum()),
            num_both_wrong=int((~right_before & ~right_after).sum()),
            p_value=float(binomtest(len(mended), num, 0.5).pvalue) if num else 1.0,
        )

    def _flip(self, idx: int) -> Flip:
        before, after = self._sides
        own, other = self.used
        return Flip(
            own.image_keys[idx],
            before.class_name(int(own.labels[idx])),
            before.class_name(int(own.predicted[idx])),
            after.class_name(int(other.predicted[idx])),
            float(own.confidence[idx]),
            float(other.confidence[idx]),
        )

    def _resamples(self, num_before: int, num_after: int) -> _Resamples:
        is_paired = self.sets.is_paired
        return _Resamples(num_before, num_after, is_paired=is_paired, num_draws=self._num_draws, seed=self._seed)


def pair_images(
    sides: tuple[Revision, Revision], row: tuple[str, str], *, num_draws: int, seed: int
) -> ImagePairs | Missing:
    """Pair the test images of a row.

    Args:
        sides: A and B.
        row: its name in A and in B.
        num_draws: resamples behind each interval.
        seed: start of the resampling.
    """
    found: list[Predictions] = []
    for side, name in zip(sides, row, strict=True):
        if isinstance(side.predictions, Missing):
            return side.predictions
        if name not in side.predictions:
            return Missing(f"{side.name}: per_image.parquet has no row `{name}`: run `dvc repro` there")
        found.append(side.predictions[name])
    return ImagePairs(sides, (found[0], found[1]), num_draws=num_draws, seed=seed)


def _shared(
    before: Revision, after: Revision, own: Predictions, other: Predictions
) -> tuple[Int[np.ndarray, " shared"], Int[np.ndarray, " shared"], int, bool]:
    """Find the images that are the same, sorted by image_key.

    Returns:
        Their positions in OWN and in OTHER; how many have one name and class but other pictures; whether hashes of the
        pictures were compared.
    """
    hashes = hashes_of_pictures(before, after)
    position_of = {key: position for position, key in enumerate(other.image_keys)}
    positions: list[tuple[int, int]] = []
    num_replaced = 0
    for key, position in sorted((key, position) for position, key in enumerate(own.image_keys)):
        match = position_of.get(key)
        if match is None or before.class_name(int(own.labels[position])) != after.class_name(int(other.labels[match])):
            continue
        if hashes is not None and hashes[0].get(key) != hashes[1].get(key):
            num_replaced += 1
        else:
            positions.append((position, match))
    found = np.array(positions, dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1], num_replaced, hashes is not None


def hashes_of_pictures(before: Revision, after: Revision) -> tuple[Mapping[str, str], Mapping[str, str]] | None:
    """Give the hashes of both data sets' pictures; None where one cannot be read."""
    if isinstance(before.images, Missing) or isinstance(after.images, Missing):
        return None
    own, other = ({key: image.sha256 for key, image in images.items()} for images in (before.images, after.images))
    return own, other


def _outcomes(side: Revision, used: Predictions) -> tuple[Bool[np.ndarray, " image"], np.ndarray]:
    """Say of each image whether it is classified right, and of which class it is."""
    return used.labels == used.predicted, np.array([side.class_name(int(label)) for label in used.labels], dtype=object)
