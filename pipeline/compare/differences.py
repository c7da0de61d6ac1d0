"""Two revisions compared: numbers only, no files and no words.

Differences are B less A throughout. Where both revisions were tested on the same pictures, their differences and
intervals are about these, and paired: an image that is hard for both moves neither. Two images are the same where they
have one image_key, one class and, as far as both data sets can be read, one hash. Without shared images, intervals come
from resamples of both sets together, each image with a number of its own set.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int
from scipy.stats import binomtest

from pipeline.compare.revisions import Missing, Predictions, Prototype, Revision, Source
from pipeline.errors import PipelineError
from pipeline.io import progress
from pipeline.metrics.classification import (
    CalibrationError,
    MeanOfClassScores,
    OfEqualClasses,
    f1_of,
    precision_of,
    recall_of,
)
from pipeline.metrics.interface import Metric
from pipeline.metrics.statistics import MeanOverClasses, MeanOverImages, Statistic, Values, Weights
from pipeline.metrics.uncertainty import Bootstrap, Difference, Interval
from pipeline.report.tables import BLACKBOX, FULL_TITLES, HEAD_TITLES, ROW_TITLES
from pipeline.selection import listed_names

_CODE = ("pipeline", "stages")
_LEAST_SHARED = 2  # one image has no interval
_TOLERANCE = 1e-6  # between a stored value and the same from the values of images
_NOT_KEPT = "what it is computed from is not kept image by image"
_NOT_ABOUT_IMAGES = "not about images"
_UNEQUAL = "the values of images do not give the stored number"
_NO_INTERVAL = "too many resamples have no value, or it hangs on how many different images there are"

Verdict = Literal["better", "worse", "changed", "unclear"]


@dataclass(frozen=True, slots=True)
class Name:
    """A revision: what the user calls it, and its commit, None for the workspace."""

    name: str
    commit: str | None


@dataclass(frozen=True, slots=True)
class Changed:
    """A key that differs; None where a side does not have it."""

    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class MadeFrom:
    """What differs in how the revisions were made, up to their metrics, sorted by keys.

    Attributes:
        params: by dotted key.
        contents: files that were read and that no stage wrote: by path, their hashes.
        commands: by stage.
    """

    params: tuple[Changed, ...]
    contents: tuple[Changed, ...]
    commands: tuple[Changed, ...]

    @property
    def is_code_only(self) -> bool:
        """Whether code differs, and nothing else."""
        paths = [changed.key for changed in self.contents]
        is_code = all(path.split("/", 1)[0] in _CODE for path in paths)
        return bool(paths) and is_code and not self.params and not self.commands


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
class MetricChange:
    """A metric of both revisions.

    Attributes:
        declared: the metric.
        before: of A: on the shared images where there is an interval, else on all test images of A; None without value.
        after: of B, likewise.
        difference: B less A; None where one has no value.
        interval: of the difference; None where there is none.
        note: why there is no value or no interval; else None.
    """

    declared: Metric
    before: float | None
    after: float | None
    difference: float | None
    interval: Interval | None
    note: str | None

    @property
    def verdict(self) -> Verdict:
        """What the difference means: ``unclear`` where its interval holds 0, or where there is none."""
        if self.difference is None or self.interval is None or not Difference(0.0, self.interval).is_significant:
            return "unclear"
        if self.declared.direction == "neither":
            return "changed"
        return "better" if (self.difference > 0) == (self.declared.direction == "higher") else "worse"


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row of metrics.json in both revisions; of two kinds of networks, each one's own row.

    Attributes:
        title: what it is called.
        row_before: its name in A.
        row_after: its name in B.
        image_sets: its images, or why they are not known.
        changes: of its metrics that one of them has.
    """

    title: str
    row_before: str
    row_after: str
    image_sets: ImageSets | Missing
    changes: tuple[MetricChange, ...]


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


@dataclass(frozen=True, slots=True)
class Move:
    """A prototype's slot whose source changed; a source is None where no training view shows the prototype.

    ``is_replaced`` says that both sources have one name, mask and box, and that the picture is another one.
    """

    prototype_idx: int
    class_name: str
    before: Source | None
    after: Source | None
    is_replaced: bool


@dataclass(frozen=True, slots=True)
class Moves:
    """Prototypes, by slot: index and class.

    Attributes:
        moved: slots in both whose source differs.
        num_unmoved: slots in both with the same source.
        num_added: slots of B only.
        num_removed: slots of A only.
    """

    moved: tuple[Move, ...]
    num_unmoved: int
    num_added: int
    num_removed: int

    @property
    def num_compared(self) -> int:
        """Slots in both."""
        return len(self.moved) + self.num_unmoved


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that changed from A to B.

    Attributes:
        before: A.
        after: B.
        made_from: how they were made.
        rows: metrics; the first row is the one that ``classes`` and ``flips`` are about.
        classes: the largest changes first.
        flips: test images.
        moves: prototypes.
        num_draws: resamples behind each interval.
        details: why what stands behind the metrics is not known; None where it is.
    """

    before: Name
    after: Name
    made_from: MadeFrom
    rows: tuple[RowChange, ...]
    classes: tuple[ClassChange, ...] | Missing
    flips: Flips | Missing
    moves: Moves | Missing
    num_draws: int
    details: Missing | None


def compare(
    before: Revision, after: Revision, *, rows: str | None, metrics: Sequence[Metric], num_draws: int, seed: int
) -> Comparison:
    """Compare two revisions.

    Args:
        before: A.
        after: B.
        rows: of metrics.json, with commas; None is the networks and the black box.
        metrics: those to compare.
        num_draws: resamples behind each interval.
        seed: start of the resampling.

    Raises:
        PipelineError: they have no row in common, or not the ROWS.
    """
    pairs = _row_pairs(before, after, rows)
    compared = [_Row(before, after, *pair, num_draws=num_draws, seed=seed) for pair in pairs]
    total = len(compared) * len(metrics)
    asked = ((row, declared) for row in compared for declared in metrics)
    found: dict[_Row, list[MetricChange]] = {row: [] for row in compared}
    for row, declared in progress(asked, what="metrics, intervals", total=total, unit="metric"):
        if (change := row.change(declared)) is not None:
            found[row].append(change)
    first = compared[0]
    return Comparison(
        before=Name(before.name, before.commit),
        after=Name(after.name, after.commit),
        made_from=_made_from(before.made_from, after.made_from),
        rows=tuple(
            RowChange(row.title, row.name_before, row.name_after, row.image_sets, tuple(changes))
            for row, changes in found.items()
        ),
        classes=first.classes(),
        flips=first.flips(),
        moves=_moves(before, after),
        num_draws=num_draws,
        details=next((side.details for side in (before, after) if isinstance(side.details, Missing)), None),
    )


def _made_from(before: Mapping[str, str], after: Mapping[str, str]) -> MadeFrom:
    changed = [
        Changed(key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]

    def of(prefix: str) -> tuple[Changed, ...]:
        return tuple(
            Changed(one.key.removeprefix(prefix), one.before, one.after)
            for one in changed
            if one.key.startswith(prefix)
        )

    params = tuple(one for one in changed if " " not in one.key)  # what has spaces is a content or a command
    return MadeFrom(params, of("content of "), of("command of "))


def _row_pairs(before: Revision, after: Revision, names: str | None) -> list[tuple[str, str]]:
    """Choose the rows of A and of B that are compared, the networks' first."""
    common = before.metrics.keys() & after.metrics.keys()
    ordered = [row for row in (*ROW_TITLES, *sorted(common - ROW_TITLES.keys())) if row in common]
    if names is not None:
        wanted = listed_names(names, ordered, "--rows")
        return [(row, row) for row in ordered if row in wanted]
    heads = [
        next((row for row in HEAD_TITLES if row in side.metrics and row != BLACKBOX), None) for side in (before, after)
    ]
    pairs = [(row, row) for row in ordered if row in HEAD_TITLES]
    if heads[0] is not None and heads[1] is not None and heads[0] != heads[1]:
        pairs.insert(0, (heads[0], heads[1]))
    if not pairs:
        raise PipelineError(
            f"{before.name} and {after.name} have no network in common: {before.name} has the rows "
            f"{', '.join(before.metrics)}, {after.name} has {', '.join(after.metrics)}"
        )
    return pairs


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

    def difference(self, before: Statistic, after: Statistic) -> Difference | None:
        """Give B less A with an interval; None where there is none."""
        if not self._is_paired:
            before = _OfOwnSet(before, slice(None, self._num_before))
            after = _OfOwnSet(after, slice(self._num_before, None))
        return self._bootstrap.difference(before, after)


class _Row:
    """A row of metrics.json of two revisions, its images paired."""

    def __init__(
        self, before: Revision, after: Revision, name_before: str, name_after: str, *, num_draws: int, seed: int
    ) -> None:
        self.name_before, self.name_after = name_before, name_after
        titles = [FULL_TITLES.get(name, name) for name in dict.fromkeys((name_before, name_after))]
        self.title = " → ".join(titles)
        self._before, self._after = before, after
        self._num_draws, self._seed = num_draws, seed
        self._whole: tuple[Predictions, Predictions] | Missing = _predictions(before, after, name_before, name_after)
        if isinstance(self._whole, Missing):
            self.image_sets: ImageSets | Missing = self._whole
            return
        own, other = self._whole
        at_before, at_after, num_replaced, is_checked = _shared(before, after, own, other)
        num_shared = len(at_before)
        self.image_sets = ImageSets(len(own.labels), len(other.labels), num_shared, num_replaced, is_checked)
        if self.image_sets.is_paired:
            own, other = own.at(at_before), other.at(at_after)
        self._used = own, other
        self._resamples = self._resample(len(own.labels), len(other.labels))

    def change(self, declared: Metric) -> MetricChange | None:
        """Compare a metric; None where neither revision has it."""
        stored = [
            _stored(self._before, self.name_before, declared),
            _stored(self._after, self.name_after, declared),
        ]
        if all(one is None for one in stored):
            return None
        values = [None if one is None else one.value for one in stored]
        before, after = values
        if before is None or after is None:
            reasons = [one.reason for one in stored if one is not None and one.value is None and one.reason is not None]
            sides = [
                side.name for side, value in zip((self._before, self._after), values, strict=True) if value is None
            ]
            note = f"no value in {' and '.join(sides)}" + (f": {reasons[0]}" if reasons else "")
            return MetricChange(declared, before, after, None, None, note)
        why_not = self._why_not_rebuilt(declared, stored, before, after)
        if why_not is None:
            own, other = (self._statistic(declared, idx, used) for idx, used in enumerate(self._used))
            assert own is not None
            assert other is not None
            found = self._resamples.difference(own, other)
            if found is not None:
                before, after = (
                    one.value(len(used.labels)) for one, used in zip((own, other), self._used, strict=True)
                )
                return MetricChange(declared, before, after, found.value, found.interval, None)
        return MetricChange(declared, before, after, after - before, None, why_not or _NO_INTERVAL)

    def classes(self) -> tuple[ClassChange, ...] | Missing:
        """Compare the recall of each class that both have images of, the largest changes first."""
        if isinstance(self.image_sets, Missing):
            return self.image_sets
        rights, names = zip(
            *(_outcomes(side, used) for side, used in zip(self._sides, self._used, strict=True)), strict=True
        )
        changes = []
        for name in sorted(set(names[0]) & set(names[1])):
            own, other = (right[of_class == name] for right, of_class in zip(rights, names, strict=True))
            interval = None
            if min(len(own), len(other)) >= _LEAST_SHARED:
                found = self._resample(len(own), len(other)).difference(
                    MeanOverImages(own.astype(np.float64)), MeanOverImages(other.astype(np.float64))
                )
                interval = None if found is None else found.interval
            changes.append(ClassChange(name, len(own), len(other), float(own.mean()), float(other.mean()), interval))
        return tuple(sorted(changes, key=lambda change: (-abs(change.difference), change.class_name)))

    def flips(self) -> Flips | Missing:
        """Find the shared images whose outcome changed."""
        if isinstance(self.image_sets, Missing):
            return self.image_sets
        if not self.image_sets.is_paired:
            return Missing(f"{self._before.name} and {self._after.name} were not tested on the same images")
        own, other = self._used
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

    @property
    def _sides(self) -> tuple[Revision, Revision]:
        return self._before, self._after

    def _flip(self, idx: int) -> Flip:
        own, other = self._used
        return Flip(
            own.image_keys[idx],
            self._before.class_name(int(own.labels[idx])),
            self._before.class_name(int(own.predicted[idx])),
            self._after.class_name(int(other.predicted[idx])),
            float(own.confidence[idx]),
            float(other.confidence[idx]),
        )

    def _resample(self, num_before: int, num_after: int) -> _Resamples:
        assert isinstance(self.image_sets, ImageSets)
        is_paired = self.image_sets.is_paired
        return _Resamples(num_before, num_after, is_paired=is_paired, num_draws=self._num_draws, seed=self._seed)

    def _why_not_rebuilt(
        self, declared: Metric, stored: Sequence["_Stored | None"], before: float, after: float
    ) -> str | None:
        """Say why the values of images do not give the metric; None where they do, in both revisions."""
        if any(one is not None and one.num_images == 0 for one in stored):
            return _NOT_ABOUT_IMAGES
        if isinstance(self._whole, Missing):
            return self._whole.reason
        for idx, (whole, value) in enumerate(zip(self._whole, (before, after), strict=True)):
            statistic = self._statistic(declared, idx, whole)
            if statistic is None:
                return _NOT_KEPT
            if not np.isclose(statistic.value(len(whole.labels)), value, rtol=_TOLERANCE, atol=_TOLERANCE):
                return _UNEQUAL
        return None

    def _statistic(self, declared: Metric, idx: int, predictions: Predictions) -> Statistic | None:
        """Build the statistic of a metric from what is kept of each image; None where that is not enough."""
        values = predictions.values.get(f"{declared.family}.{declared.key}")
        if values is not None:
            return MeanOverImages(values)
        build = _FROM_PREDICTIONS.get((declared.family, declared.key))
        return None if build is None else build(predictions)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A number as its revision has it; ``num_images`` is None where that is not known."""

    value: float | None
    num_images: int | None
    reason: str | None


def _stored(side: Revision, row: str, declared: Metric) -> _Stored | None:
    """Look a number up; None where the revision was not asked for it."""
    if not isinstance(side.details, Missing):
        detail = side.details.get((row, declared.family, declared.key))
        return None if detail is None else _Stored(detail.value, detail.num_images, detail.reason)
    family = side.metrics[row].get(declared.family, {})
    return _Stored(family[declared.key], None, None) if declared.key in family else None


def _balanced_accuracy(predictions: Predictions) -> Statistic:
    return MeanOverClasses((predictions.predicted == predictions.labels).astype(np.float64), predictions.labels)


def _mean_of(score: Callable[..., np.ndarray]) -> Callable[[Predictions], Statistic]:
    def build(predictions: Predictions) -> Statistic:
        labels, predicted = predictions.labels, predictions.predicted
        num_classes = int(max(labels.max(initial=-1), predicted.max(initial=-1))) + 1  # others have no part in it
        return OfEqualClasses(MeanOfClassScores(labels, predicted, num_classes, score), labels)

    return build


def _calibration_error(predictions: Predictions) -> Statistic:
    return CalibrationError(predictions.confidence, predictions.predicted == predictions.labels)


_FROM_PREDICTIONS: Mapping[tuple[str, str], Callable[[Predictions], Statistic]] = {
    ("classification", "balanced_accuracy"): _balanced_accuracy,
    ("classification", "precision"): _mean_of(precision_of),
    ("classification", "recall"): _mean_of(recall_of),
    ("classification", "f1"): _mean_of(f1_of),
    ("classification", "calibration_error"): _calibration_error,
}
"""Metrics that are no means over images, from labels, predictions and confidences."""


def _predictions(
    before: Revision, after: Revision, name_before: str, name_after: str
) -> tuple[Predictions, Predictions] | Missing:
    found: list[Predictions] = []
    for side, name in ((before, name_before), (after, name_after)):
        if isinstance(side.predictions, Missing):
            return side.predictions
        if name not in side.predictions:
            return Missing(f"{side.name}: per_image.parquet has no row `{name}`: run `dvc repro` there")
        found.append(side.predictions[name])
    return found[0], found[1]


def _shared(
    before: Revision, after: Revision, own: Predictions, other: Predictions
) -> tuple[Int[np.ndarray, " shared"], Int[np.ndarray, " shared"], int, bool]:
    """Find the images that are the same, sorted by image_key.

    Returns:
        Their positions in OWN and in OTHER; how many have one name and class but other pictures; whether hashes of the
        pictures were compared.
    """
    hashes = _hashes(before, after)
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


def _hashes(before: Revision, after: Revision) -> tuple[Mapping[str, str], Mapping[str, str]] | None:
    """Give the hashes of both data sets' pictures; None where one cannot be read."""
    if isinstance(before.images, Missing) or isinstance(after.images, Missing):
        return None
    own, other = ({key: image.sha256 for key, image in images.items()} for images in (before.images, after.images))
    return own, other


def _outcomes(side: Revision, used: Predictions) -> tuple[Bool[np.ndarray, " image"], np.ndarray]:
    """Say of each image whether it is classified right, and of which class it is."""
    return used.labels == used.predicted, np.array([side.class_name(int(label)) for label in used.labels], dtype=object)


def _moves(before: Revision, after: Revision) -> Moves | Missing:
    for side in (before, after):
        if isinstance(side.prototypes, Missing):
            return side.prototypes
    assert not isinstance(before.prototypes, Missing)
    assert not isinstance(after.prototypes, Missing)
    if not before.prototypes and not after.prototypes:
        return Missing("neither revision has prototypes")
    own, other = _slots(before.prototypes), _slots(after.prototypes)
    shared = [slot for slot in own if slot in other]
    hashes = _hashes(before, after)
    moved = tuple(_moved(shared, own, other, hashes))
    return Moves(
        moved,
        num_unmoved=len(shared) - len(moved),
        num_added=len(other) - len(shared),
        num_removed=len(own) - len(shared),
    )


def _moved(
    slots: Iterable[tuple[int, str]],
    own: Mapping[tuple[int, str], Source | None],
    other: Mapping[tuple[int, str], Source | None],
    hashes: tuple[Mapping[str, str], Mapping[str, str]] | None,
) -> Iterator[Move]:
    for slot in slots:
        source, now = own[slot], other[slot]
        is_replaced = (
            source is not None
            and source == now
            and hashes is not None
            and hashes[0].get(source.image_key) != hashes[1].get(source.image_key)
        )
        if source != now or is_replaced:
            yield Move(*slot, source, now, is_replaced)


def _slots(prototypes: Iterable[Prototype]) -> dict[tuple[int, str], Source | None]:
    return {(prototype.prototype_idx, prototype.class_name): prototype.source for prototype in prototypes}
