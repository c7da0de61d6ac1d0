"""A comparison as tables in a terminal, readable in 100 columns."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.compare.differences import Comparison, RowChange
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

_WIDTH = 100  # where there is no terminal that has a width
_STYLES = {"better": "green", "worse": "red", "changed": "yellow"}

Item = TypeVar("Item")


def print_comparison(comparison: Comparison, *, most: int, all_metrics: bool, console: Console | None = None) -> None:
    """Print a comparison.

    Args:
        comparison: what to print.
        most: entries of a list; the rest is counted.
        all_metrics: print metrics without a clear change, too.
        console: where to; standard output if None.
    """
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_WIDTH)
    printer = _Printer(console, most)
    printer.title(f"{label(comparison.before)} → {label(comparison.after)}")
    printer.text(headline(comparison))
    printer.title("How they were made")
    printer.text(made_from_sentence(comparison.made_from))
    printer.table(("key", "A", "B"), made_from_lines(comparison.made_from), lambda line: line)
    for row in comparison.rows:
        printer.title(f"Metrics of {row.title}")
        printer.metrics(row, all_metrics=all_metrics)
    name = comparison.rows[0].title
    printer.title(f"Recall by class, {name}")
    if isinstance(comparison.classes, Missing):
        printer.text(comparison.classes.reason)
    else:
        printer.text(classes_sentence(comparison.classes))
        printer.table(CLASS_HEADS, changed_classes(comparison.classes), class_cells, right=range(1, 6))
    printer.title(f"Images that flipped, {name}")
    if isinstance(comparison.flips, Missing):
        printer.text(comparison.flips.reason)
    else:
        printer.text(flips_sentence(comparison.flips))
        printer.table(FLIP_HEADS, comparison.flips.broken, flip_cells, caption="right before, wrong now")
        printer.table(FLIP_HEADS, comparison.flips.mended, flip_cells, caption="wrong before, right now")
    printer.title("Prototypes that moved")
    if isinstance(comparison.moves, Missing):
        printer.text(comparison.moves.reason)
    else:
        printer.text(moves_sentence(comparison.moves))
        printer.table(MOVE_HEADS, comparison.moves.moved, move_cells)
    printer.title("Notes")
    for sentence in notes(comparison):
        printer.text(f"- {sentence}")


class _Printer:
    """Prints texts of other people as they stand: none of it is markup."""

    def __init__(self, console: Console, most: int) -> None:
        self._console = console
        self._most = most

    def title(self, text: str) -> None:
        self._console.print()
        self._console.print(Text(text, style="bold"))

    def text(self, text: str) -> None:
        self._console.print(Text(text))

    def table(
        self,
        heads: Sequence[str],
        items: Sequence[Item],
        cells_of: Callable[[Item], Sequence[str]],
        *,
        right: Iterable[int] = (),
        caption: str | None = None,
    ) -> None:
        """Print the first items of a list as a table, and count the rest."""
        if not items:
            return
        table = _table(heads, right, caption)
        for item in items[: self._most]:
            table.add_row(*map(Text, cells_of(item)))
        self._console.print(table)
        self._more(len(items) - self._most)

    def metrics(self, row: RowChange, *, all_metrics: bool) -> None:
        if is_unchanged(row):
            self.text(unchanged_sentence(row))
            return
        shown = list(row.changes) if all_metrics else leading_changes(row, self._most)
        table = _table(METRIC_HEADS, range(1, 5), None)
        family = None
        for change in map(shown_change, shown):
            if change.family != family:
                family = change.family
                table.add_row(Text(family, style="italic"))
            style = _STYLES.get(change.verdict, "")
            table.add_row(*(Text(cell, style=style if idx >= 3 else "") for idx, cell in enumerate(change.cells)))
        self._console.print(table)
        self._more(len(row.changes) - len(shown), "; --all shows them")

    def _more(self, num: int, hint: str = "; --most shows more") -> None:
        if num > 0:
            self._console.print(Text(f"... and {num} more{hint}"))


def _table(heads: Sequence[str], right: Iterable[int], caption: str | None) -> Table:
    table = Table(box=None, pad_edge=False, title=None if caption is None else Text(caption), title_justify="left")
    to_the_right = set(right)
    for idx, head in enumerate(heads):
        table.add_column(Text(head, style="dim"), justify="right" if idx in to_the_right else "left", overflow="fold")
    return table
