"""Two revisions compared: numbers only, no files and no words.

Differences are B less A throughout. Where both revisions were tested on the same pictures, their differences and
intervals are about these, and paired: an image that is hard for both moves neither. Without shared images, intervals
come from resamples of both sets together, each image with a number of its own set.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.compare.image_differences import ClassChange, Flips, ImagePairs, ImageSets, pair_images
from pipeline.compare.metric_differences import MetricChange, compare_metrics
from pipeline.compare.prototype_differences import Moves, compare_prototypes
from pipeline.compare.revisions import Missing, Revision
from pipeline.errors import PipelineError
from pipeline.io import progress
from pipeline.metrics.interface import Metric
from pipeline.report.tables import BLACKBOX, FULL_TITLES, HEAD_TITLES, ROW_TITLES
from pipeline.selection import listed_names

_CODE = ("pipeline", "stages")
_CELLS_OF_SECONDS = 1_000_000_000  # images of both sides x draws x metrics: more take some seconds


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
    sides = before, after
    pairs = _row_pairs(before, after, rows)
    images = [pair_images(sides, pair, num_draws=num_draws, seed=seed) for pair in pairs]
    first = images[0]
    num_images = sum(len(used.labels) for one in images if not isinstance(one, Missing) for used in one.used)
    asked: Iterable[tuple[tuple[str, str], ImagePairs | Missing]] = list(zip(pairs, images, strict=True))
    if num_images * num_draws * len(metrics) > _CELLS_OF_SECONDS:
        asked = progress(asked, what="metrics, intervals", total=len(pairs), unit="row")
    return Comparison(
        before=Name(before.name, before.commit),
        after=Name(after.name, after.commit),
        made_from=_made_from(before.made_from, after.made_from),
        rows=tuple(
            RowChange(
                title=" → ".join(FULL_TITLES.get(name, name) for name in dict.fromkeys(pair)),
                row_before=pair[0],
                row_after=pair[1],
                image_sets=paired if isinstance(paired, Missing) else paired.sets,
                changes=compare_metrics(sides, pair, paired, metrics),
            )
            for pair, paired in asked
        ),
        classes=first if isinstance(first, Missing) else first.classes(),
        flips=first if isinstance(first, Missing) else first.flips(),
        moves=compare_prototypes(before, after),
        num_draws=num_draws,
        details=next((side.details for side in sides if isinstance(side.details, Missing)), None),
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
