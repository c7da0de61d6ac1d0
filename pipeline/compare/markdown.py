"""A comparison as Markdown, for a comment on a pull request: the outcome first, long tables folded."""

import html
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from pipeline.compare.differences import Comparison, RowChange
from pipeline.compare.metric_differences import MetricChange
from pipeline.compare.revisions import Missing
from pipeline.compare.wording import (
    CLASS_HEADS,
    FLIP_HEADS,
    METRIC_HEADS,
    MOVE_HEADS,
    changed_classes,
    class_cells,
    classes_sentence,
    flip_cells,
    flips_sentence,
    headline,
    is_unchanged,
    label,
    leading_changes,
    made_from_lines,
    made_from_sentence,
    move_cells,
    moves_sentence,
    notes,
    shown_change,
    unchanged_sentence,
)
from pipeline.report.tables import markdown

_MOST_CHARACTERS = 65_000  # a comment on GitHub holds 65,536
_LIMITS = (200, 50, 20, 0)  # lines of a folded table: the first that makes a text short enough
_CUT = (
    "Tables are cut to fit into a comment: the page (`--html`; beside a pull request, the artifact `comparison`) has "
    "all lines."
)
_METRIC_HEADS = (*METRIC_HEADS[:-1], "change")
# what starts markup; an underscore inside a word, and a bracket that no link follows, are themselves
_MARKS = re.compile(r"[\\`*|~#@$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=\])[(\[:]")
_SEEN_LATE = "@#$"  # people, issues and formulas are looked for in the text that is shown: in one element's text


def render_markdown(comparison: Comparison, *, most: int) -> str:
    """Render a comparison, short enough for a comment: long tables lose their last lines, as far as is needed.

    Args:
        comparison: what to render.
        most: clear changes of metrics that stand outside the folded table.
    """
    for limit in _LIMITS:
        text = _Renderer(most, limit).render(comparison)
        if len(text) < _MOST_CHARACTERS:
            break
    return text


class _Renderer:
    """Renders with at most LIMIT lines in each folded table, and none of these where that is 0."""

    def __init__(self, most: int, limit: int) -> None:
        self._most = most
        self._limit = limit
        self._is_cut = False

    def render(self, comparison: Comparison) -> str:
        name = escaped(comparison.rows[0].title)
        head = [
            f"## {escaped(label(comparison.before))} → {escaped(label(comparison.after))}",
            f"**{escaped(headline(comparison))}**",
        ]
        parts = [escaped(made_from_sentence(comparison.made_from))]
        made_from = made_from_lines(comparison.made_from)
        parts += self._folded("Params, code and data that differ", ("key", "A", "B"), made_from)
        for row in comparison.rows:
            parts += self._metrics(row)
        parts.append(f"### Recall by class, {name}")
        if isinstance(comparison.classes, Missing):
            parts.append(escaped(comparison.classes.reason))
        else:
            parts.append(escaped(classes_sentence(comparison.classes)))
            cells = [class_cells(change) for change in changed_classes(comparison.classes)]
            parts += self._list("Classes, the largest changes first", CLASS_HEADS, cells)
        parts.append(f"### Images that flipped, {name}")
        if isinstance(comparison.flips, Missing):
            parts.append(escaped(comparison.flips.reason))
        else:
            flips = comparison.flips
            parts.append(escaped(flips_sentence(flips)))
            parts += self._list("Right before, wrong now", FLIP_HEADS, [flip_cells(flip) for flip in flips.broken])
            parts += self._list("Wrong before, right now", FLIP_HEADS, [flip_cells(flip) for flip in flips.mended])
        parts.append("### Prototypes that moved")
        if isinstance(comparison.moves, Missing):
            parts.append(escaped(comparison.moves.reason))
        else:
            parts.append(escaped(moves_sentence(comparison.moves)))
            cells = [move_cells(move) for move in comparison.moves.moved]
            parts += self._list("Sources before and after", MOVE_HEADS, cells)
        parts.append("### Notes")
        parts.append("\n".join(f"- {escaped(sentence)}" for sentence in notes(comparison)))
        return "\n\n".join([*head, *([_CUT] if self._is_cut else []), *parts]) + "\n"

    def _metrics(self, row: RowChange) -> list[str]:
        title = f"### Metrics of {escaped(row.title)}"
        if is_unchanged(row):
            return [title, unchanged_sentence(row)]
        leading = leading_changes(row, self._most)
        parts = [title, _table(_METRIC_HEADS, _metric_cells(leading), num_text_columns=1)]
        if len(leading) < len(row.changes):
            every = f"All {len(row.changes)} metrics of {row.title}"
            parts += self._folded(every, _METRIC_HEADS, _metric_cells(row.changes), num_text_columns=1)
        return parts

    def _list(self, title: str, heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
        return self._folded(f"{title} ({len(cells)})", heads, cells)

    def _folded(
        self, title: str, heads: Sequence[str], cells: Sequence[Sequence[str]], num_text_columns: int | None = None
    ) -> list[str]:
        """Lay out the first lines of a table that readers unfold, and count the rest; nothing if there are no lines."""
        more = len(cells) - self._limit
        self._is_cut = self._is_cut or more > 0
        shown = cells[: self._limit]
        if not shown:
            return []
        table = _table(heads, shown, num_text_columns) + (f"\n\nand {more} more" if more > 0 else "")
        return [f"<details>\n<summary>{escaped(title)}</summary>\n\n{table}\n\n</details>"]


def escaped(text: str) -> str:
    """Write TEXT so that Markdown shows it as it stands: no markup, cell, mention or formula."""
    one_line = html.escape(" ".join(text.split()), quote=False)
    return _MARKS.sub(_written_out, one_line)


def _written_out(mark: re.Match[str]) -> str:
    entity = f"&#{ord(mark.group())};"
    return f"<span>{entity}</span>" if mark.group() in _SEEN_LATE else entity


def _metric_cells(changes: Iterable[MetricChange]) -> list[tuple[str, ...]]:
    """Render metrics for the columns of ``_METRIC_HEADS``."""
    lines = map(shown_change, changes)
    return [(f"{line.family}: {line.title}", *line.cells[1:]) for line in lines]


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], num_text_columns: int | None = None) -> str:
    """Lay a table out; all columns hold text if NUM_TEXT_COLUMNS is None."""
    num = len(heads) if num_text_columns is None else num_text_columns
    frame = pd.DataFrame([[escaped(cell) for cell in line] for line in lines], columns=list(heads))
    return markdown(frame, np.zeros(frame.shape, dtype=bool), num_text_columns=num).rstrip()
