"""What a comparison says: sentences and rendered cells that the terminal, Markdown and the page share."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.compare.differences import Comparison, MadeFrom, Name, RowChange
from pipeline.compare.image_differences import ClassChange, Flip, Flips, ImageSets
from pipeline.compare.metric_differences import MetricChange
from pipeline.compare.prototype_differences import Move, Moves
from pipeline.compare.revisions import Missing, Source
from pipeline.metrics.interface import Metric
from pipeline.metrics.uncertainty import LEVEL, Interval
from pipeline.report.tables import ABSENT, family_title, metric_title, render_value

UNCLEAR = ""
CLASS_HEADS = ("class", "images", "A %", "B %", "difference", "95 % interval")
FLIP_HEADS = ("image", "class", "predicted by A", "predicted by B")
MOVE_HEADS = ("prototype", "class", "source in A", "source in B")
METRIC_HEADS = ("metric", "A", "B", "difference", "95 % interval", "")

_MINUS = "−"
_SHORT = 7  # digits of a hash
_HEADLINE = ("balanced_accuracy", "accuracy")
_LEADING = "classification"


@dataclass(frozen=True, slots=True)
class ShownChange:
    """A metric's line, rendered; ``verdict`` is a word, or empty where no change is clear."""

    family: str
    title: str
    before: str
    after: str
    difference: str
    interval: str
    verdict: str

    @property
    def cells(self) -> tuple[str, ...]:
        """What the columns hold, those of ``METRIC_HEADS``."""
        return self.title, self.before, self.after, self.difference, self.interval, self.verdict


def label(name: Name) -> str:
    """Name a revision with the start of its commit."""
    return name.name if name.commit is None else f"{name.name} ({name.commit[:_SHORT]})"


def headline(comparison: Comparison) -> str:
    """Say in one sentence what came of it."""
    row = comparison.rows[0]
    parts = []
    leading = next((one for key in _HEADLINE for one in row.changes if one.declared.key == key), None)
    if leading is not None:
        parts.append(f"{row.title}: {_change_in_words(leading)}")
    if isinstance(comparison.flips, Flips):
        parts.append(_flips_in_words(comparison.flips))
    if isinstance(comparison.moves, Moves):
        parts.append(_moves_in_words(comparison.moves))
    return "; ".join(parts) + "." if parts else f"{row.title}: nothing that both have can be compared."


def made_from_sentence(made_from: MadeFrom) -> str:
    """Say what differs in how the revisions were made."""
    if made_from.is_code_only:
        return f"Only code differs: {_number(len(made_from.contents), 'path')}. All params are the same."
    if not (made_from.params or made_from.contents or made_from.commands):
        return "Both were made in the same way: params, code and data are equal."
    counts = (
        (made_from.params, "param"),
        (made_from.contents, "path with other content"),
        (made_from.commands, "command"),
    )
    return f"Differing: {', '.join(_number(len(changed), what) for changed, what in counts if changed)}."


def made_from_lines(made_from: MadeFrom) -> list[tuple[str, str, str]]:
    """Render what differs: key, A, B; contents by the start of their hashes."""
    lines = [(one.key, _or_absent(one.before), _or_absent(one.after)) for one in made_from.params]
    lines += [(one.key, _hash(one.before), _hash(one.after)) for one in made_from.contents]
    return lines + [
        (f"command of {one.key}", _or_absent(one.before), _or_absent(one.after)) for one in made_from.commands
    ]


def shown_change(change: MetricChange) -> ShownChange:
    """Render a metric's line."""
    declared = change.declared
    return ShownChange(
        family=family_title(declared.family),
        title=metric_title(declared),
        before=signed_value(declared, change.before),
        after=signed_value(declared, change.after),
        difference=ABSENT if change.difference is None else signed(declared, change.difference),
        interval=render_interval(declared, change.interval),
        verdict=UNCLEAR if change.verdict == "unclear" else change.verdict,
    )


def is_unchanged(row: RowChange) -> bool:
    """Whether no metric of a row differs."""
    return all(change.difference == 0 or (change.before is None and change.after is None) for change in row.changes)


def unchanged_sentence(row: RowChange) -> str:
    """Say that no metric of a row differs."""
    return f"Nothing changed: {_number(len(row.changes), 'metric')} are equal."


def leading_changes(row: RowChange, most: int) -> list[MetricChange]:
    """Choose what is shown first: how well it classifies, then clear changes, at most MOST of these."""
    own = [change for change in row.changes if change.declared.family == _LEADING]
    clear = [one for one in row.changes if one.declared.family != _LEADING and one.verdict != "unclear"]
    return own + clear[:most]


def render_interval(declared: Metric, interval: Interval | None) -> str:
    """Write an interval of a difference."""
    if interval is None:
        return ABSENT
    return f"[{signed(declared, interval.low)}, {signed(declared, interval.high)}]"


def signed(declared: Metric, difference: float) -> str:
    """Write a difference with its sign; fractions in percentage points."""
    text = render_value(declared, abs(difference))
    if not text.strip("0."):  # nothing is left after rounding
        return text
    return f"{'+' if difference > 0 else _MINUS}{text}"


def signed_value(declared: Metric, value: float | None) -> str:
    """Write a value, with a minus that is as wide as a plus."""
    return render_value(declared, value).replace("-", _MINUS)


def class_cells(change: ClassChange) -> tuple[str, ...]:
    """Render a class for the columns of ``CLASS_HEADS``."""
    num = (
        str(change.num_before) if change.num_before == change.num_after else f"{change.num_before} / {change.num_after}"
    )
    interval = (
        ABSENT if change.interval is None else f"[{_points(change.interval.low)}, {_points(change.interval.high)}]"
    )
    return (
        change.class_name,
        num,
        f"{100 * change.before:.1f}",
        f"{100 * change.after:.1f}",
        _points(change.difference),
        interval,
    )


def changed_classes(classes: Sequence[ClassChange]) -> list[ClassChange]:
    """Keep the classes whose recall changed."""
    return [change for change in classes if change.difference != 0]


def classes_sentence(classes: Sequence[ClassChange]) -> str:
    """Say how many classes changed."""
    changed = changed_classes(classes)
    better = sum(change.difference > 0 for change in changed)
    return (
        f"Of {_number(len(classes), 'class')}, {better} gained recall, {len(changed) - better} lost some and "
        f"{len(classes) - len(changed)} kept theirs."
    )


def flips_sentence(flips: Flips) -> str:
    """Say how many images flipped, and whether that may be chance."""
    return (
        f"{_flips_in_words(flips)}; {flips.num_both_right} are right in both, {flips.num_both_wrong} wrong in both. "
        "McNemar's exact test asks whether images flip one way more often than the other."
    )


def flip_cells(flip: Flip) -> tuple[str, ...]:
    """Render an image for the columns of ``FLIP_HEADS``."""
    return (
        flip.image_key,
        flip.class_name,
        f"{flip.predicted_before} ({100 * flip.confidence_before:.0f}\u00a0%)",
        f"{flip.predicted_after} ({100 * flip.confidence_after:.0f}\u00a0%)",
    )


def moves_sentence(moves: Moves) -> str:
    """Say how many prototypes moved, came and went."""
    others = [
        f"{_number(num, 'slot')} {where}"
        for num, where in ((moves.num_added, "only in B"), (moves.num_removed, "only in A"))
        if num
    ]
    replaced = sum(move.is_replaced for move in moves.moved)
    same_name = f", {replaced} of these to another picture of the same name" if replaced else ""
    return f"{_moves_in_words(moves)}{same_name}{'; ' if others else ''}{', '.join(others)}."


def move_cells(move: Move) -> tuple[str, ...]:
    """Render a prototype for the columns of ``MOVE_HEADS``."""
    after = render_source(move.after) + (" (another picture)" if move.is_replaced else "")
    return str(move.prototype_idx), move.class_name, render_source(move.before), after


def render_source(source: Source | None) -> str:
    """Name the view, or the place, that shows a prototype."""
    if source is None:
        return "no source"
    if source.place_idx is None and source.mask_idx < 0:
        return f"{source.image_key}, whole image"
    what = f"mask {source.mask_idx}" if source.place_idx is None else f"place {source.place_idx}"
    box = source.box
    return f"{source.image_key}, {what} at {box.x0},{box.y0}–{box.x1},{box.y1}"


def notes(comparison: Comparison) -> list[str]:
    """Say how to read the numbers, sentence by sentence."""
    sentences = [
        f"A is {label(comparison.before)}, B is {label(comparison.after)}. Differences are B less A, of fractions in "
        "percentage points.",
        f"Intervals: {100 * LEVEL:g} % bootstrap, {comparison.num_draws:,} resamples of the test images; what varies "
        "is the choice of test images, not the training. A change has a word where its interval leaves out 0.",
    ]
    by_sets: dict[str, list[str]] = {}
    for row in comparison.rows:
        by_sets.setdefault(_image_sets_in_words(row.image_sets), []).append(row.title)
    several = len(by_sets) > 1
    sentences += [f"{', '.join(titles)}: {words}" if several else words for words, titles in by_sets.items()]
    sentences += _no_intervals(comparison.rows)
    looked_at = [one for row in comparison.rows for one in row.changes if _may_differ(one.interval)]
    if looked_at:
        found = sum(one.verdict != "unclear" for one in looked_at)
        sentences.append(_by_chance(len(looked_at), found, "metrics"))
    if not isinstance(comparison.classes, Missing):
        of_classes = [one for one in comparison.classes if _may_differ(one.interval)]
        if of_classes:
            found = sum(one.is_significant for one in of_classes)
            sentences.append(
                f"{_by_chance(len(of_classes), found, 'classes')} Intervals from few images are too narrow."
            )
    if comparison.details is not None:
        sentences.append(f"Reasons for missing values are not known: {comparison.details.reason}.")
    return sentences


def _no_intervals(rows: Sequence[RowChange]) -> list[str]:
    by_note: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        for change in row.changes:
            if change.note is not None:
                titles = by_note.setdefault(change.note, {}).setdefault(row.title, [])
                titles.append(change.declared.title)
    sentences = []
    for note, by_row in by_note.items():
        several = len(rows) > 1
        places = "; ".join(f"{', '.join(titles)}{f' ({row})' if several else ''}" for row, titles in by_row.items())
        sentences.append(f"No interval ({note}): {places}.")
    return sentences


def _may_differ(interval: Interval | None) -> bool:
    """Whether there is an interval of something that is not equal in every image."""
    return interval is not None and (interval.low, interval.high) != (0, 0)


def _by_chance(num: int, found: int, what: str) -> str:
    expected = (1 - LEVEL) * num
    return (
        f"0 lies outside {found} of {num} intervals of {what}; by chance alone it would lie outside about "
        f"{expected:.1f} of them."
    )


def _image_sets_in_words(sets: ImageSets | Missing) -> str:
    if isinstance(sets, Missing):
        return f"No intervals, classes and flips: {sets.reason}."
    unchecked = "" if sets.is_checked else " Whether equal names stand for equal pictures could not be checked."
    replaced = f", {sets.num_replaced} have equal names but other pictures" if sets.num_replaced else ""
    if sets.is_equal:
        return f"Both were tested on the same {sets.num_shared} images; differences are paired.{unchecked}"
    counts = f"A has {sets.num_before} test images, B has {sets.num_after}; {sets.num_shared} are shared{replaced}."
    if sets.is_paired:
        rest = "Where there is an interval, A, B and their difference are about the shared ones; else about all."
    else:
        rest = "So differences are not paired: intervals are wider, and no image can flip."
    return f"{counts} {rest}{unchecked}"


def _change_in_words(change: MetricChange) -> str:
    declared = change.declared
    unit = " %" if declared.unit == "fraction" else ""
    values = " → ".join(f"{signed_value(declared, value)}{unit}" for value in (change.before, change.after))
    name = declared.title[0].lower() + declared.title[1:]
    if change.difference is None:
        return f"{name} {values}"
    words = {"better": "better", "worse": "worse", "changed": "changed", "unclear": "no clear change"}[change.verdict]
    if change.interval is None:
        return f"{name} {values} ({signed(declared, change.difference)}, without an interval)"
    interval = render_interval(declared, change.interval)
    return f"{name} {values} ({signed(declared, change.difference)} {interval}, {words})"


def _flips_in_words(flips: Flips) -> str:
    counts = f"{_number(len(flips.mended), 'image')} became right and {len(flips.broken)} wrong"
    return f"{counts} (McNemar p = {flips.p_value:.2g})"


def _moves_in_words(moves: Moves) -> str:
    return f"{len(moves.moved)} of {_number(moves.num_compared, 'prototype')} moved"


def _points(fraction: float) -> str:
    text = f"{abs(100 * fraction):.1f}"
    return text if not text.strip("0.") else f"{'+' if fraction > 0 else _MINUS}{text}"


def _number(num: int, what: str) -> str:
    if num == 1:
        return f"1 {what}"
    head, _, rest = what.partition(" ")
    plural = f"{head}es" if head.endswith("s") else f"{head}s"
    return f"{num} {plural}{' ' if rest else ''}{rest}"


def _or_absent(text: str | None) -> str:
    return "(absent)" if text is None else text


def _hash(digest: str | None) -> str:
    return "(absent)" if digest is None else digest[:_SHORT]
