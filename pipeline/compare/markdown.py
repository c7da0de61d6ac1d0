"""A comparison as Markdown, for a comment on a pull request: the outcome first, long tables folded."""

import html
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from pipeline.compare.differences import Comparison, RowChange
from pipeline.compare.revisions import Missing
from pipeline.compare.wording import (
    CLASS_HEADS,
    FLIP_HEADS,
    METRIC_HEADS,
    MOVE_HEADS,
    ShownChange,
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

_LIMIT = 200  # lines of a table: a comment on GitHub holds 65,536 characters
# what starts markup; an underscore inside a word, and a bracket that no link follows, are themselves
_MARKS = re.compile(r"[\\`*|~#@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=\])[(\[:]")


def render_markdown(comparison: Comparison, *, most: int) -> str:
    """Render a comparison.

    Args:
        comparison: what to render.
        most: clear changes of metrics that stand outside the folded table.
    """
    name = escaped(comparison.rows[0].title)
    parts = [
        f"## {escaped(label(comparison.before))} → {escaped(label(comparison.after))}",
        f"**{escaped(headline(comparison))}**",
        escaped(made_from_sentence(comparison.made_from)),
    ]
    made_from = made_from_lines(comparison.made_from)
    if made_from:
        parts.append(_folded("Params, code and data that differ", _table(("key", "A", "B"), made_from)))
    for row in comparison.rows:
        parts += _metrics(row, most)
    parts.append(f"### Recall by class, {name}")
    if isinstance(comparison.classes, Missing):
        parts.append(escaped(comparison.classes.reason))
    else:
        parts.append(escaped(classes_sentence(comparison.classes)))
        cells = [class_cells(change) for change in changed_classes(comparison.classes)]
        parts += _list("Classes, the largest changes first", CLASS_HEADS, cells)
    parts.append(f"### Images that flipped, {name}")
    if isinstance(comparison.flips, Missing):
        parts.append(escaped(comparison.flips.reason))
    else:
        flips = comparison.flips
        parts.append(escaped(flips_sentence(flips)))
        parts += _list("Right before, wrong now", FLIP_HEADS, [flip_cells(flip) for flip in flips.broken])
        parts += _list("Wrong before, right now", FLIP_HEADS, [flip_cells(flip) for flip in flips.mended])
    parts.append("### Prototypes that moved")
    if isinstance(comparison.moves, Missing):
        parts.append(escaped(comparison.moves.reason))
    else:
        parts.append(escaped(moves_sentence(comparison.moves)))
        parts += _list("Sources before and after", MOVE_HEADS, [move_cells(move) for move in comparison.moves.moved])
    parts.append("### Notes")
    parts.append("\n".join(f"- {escaped(sentence)}" for sentence in notes(comparison)))
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Write TEXT so that Markdown shows it as it stands: no markup, no table cell, no mention of a person."""
    one_line = html.escape(" ".join(text.split()), quote=False)
    return _MARKS.sub(lambda mark: f"&#{ord(mark.group())};", one_line)


def _metrics(row: RowChange, most: int) -> list[str]:
    title = f"### Metrics of {escaped(row.title)}"
    if is_unchanged(row):
        return [title, unchanged_sentence(row)]
    leading = leading_changes(row, most)
    parts = [title, _metrics_table(map(shown_change, leading))]
    if len(leading) < len(row.changes):
        every = f"All {len(row.changes)} metrics of {row.title}"
        parts.append(_folded(every, _metrics_table(map(shown_change, row.changes))))
    return parts


def _metrics_table(changes: Iterable[ShownChange]) -> str:
    cells = [(f"{change.family}: {change.title}", *change.cells[1:]) for change in changes]
    return _table((*METRIC_HEADS[:-1], "change"), cells, num_text_columns=1)


def _list(title: str, heads: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    if not cells:
        return []
    more = len(cells) - _LIMIT
    table = _table(heads, cells[:_LIMIT]) + (f"\nand {more} more\n" if more > 0 else "")
    return [_folded(f"{title} ({len(cells)})", table)]


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], num_text_columns: int | None = None) -> str:
    """Lay a table out; all columns hold text if NUM_TEXT_COLUMNS is None."""
    num = len(heads) if num_text_columns is None else num_text_columns
    frame = pd.DataFrame([[escaped(cell) for cell in line] for line in lines], columns=list(heads))
    return markdown(frame, np.zeros(frame.shape, dtype=bool), num_text_columns=num).rstrip()


def _folded(title: str, content: str) -> str:
    return f"<details>\n<summary>{escaped(title)}</summary>\n\n{content}\n\n</details>"
