"""Mean and standard deviation of every metric over runs that differ in nothing but their seed, also side by side."""

import csv
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool
from typer import Option

from pipeline.cli import command_line
from pipeline.errors import PipelineError
from pipeline.io import new_file
from pipeline.metrics.interface import Metric
from pipeline.recorded_runs import Recipe, Run, runs_at, runs_here
from pipeline.repeat import repeat
from pipeline.report.tables import (
    ABSENT,
    BLACKBOX,
    FULL_TITLES,
    HEAD_TITLES,
    ROW_TITLES,
    best_text,
    latex,
    markdown,
    metric_title,
    render_value,
)
from pipeline.selection import chosen_metrics, listed_names

_CSV_COLUMNS = ("group", "row", "family", "metric", "unit", "direction", "mean", "std", "n", "seeds")
_NUM_TEXT_COLUMNS = 2  # family and metric; values after them
_NUM_SHOWN = 6  # params that a group's title names; more would bury the table

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Statistic:
    """A metric over runs.

    Attributes:
        mean: over the runs that have the metric.
        std: their sample standard deviation (n - 1 in the denominator), None for one run.
        n: how many they are.
    """

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
        title: what sets the group apart from the others; empty where there is one group only.
        runs: in the order of their seeds.
    """

    title: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> list[int]:
        """The seeds, ascending."""
        return [run.seed for run in self.runs]


@dataclass(frozen=True, slots=True)
class Column:
    """A row of metrics.json over the runs of a group.

    Attributes:
        title: its head.
        group: position of the group.
        row: as in metrics.json.
    """

    title: str
    group: int
    row: str


@dataclass(frozen=True, slots=True)
class Table:
    """Columns that are shown together, below a caption."""

    caption: str
    columns: tuple[Column, ...]


def statistic(values: Iterable[float | None]) -> Statistic | None:
    """Take the mean and the sample standard deviation of the VALUES there are; None without any."""
    found = np.array([value for value in values if value is not None], dtype=np.float64)
    if not found.size:
        return None
    return Statistic(float(found.mean()), float(found.std(ddof=1)) if found.size > 1 else None, found.size)


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Put runs with equal recipes together; groups come in the order of their first runs."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(sorted(run.recipe.items())), []).append(run)
    titles = titles_of([members[0].recipe for members in groups.values()])
    return [
        Group(title, tuple(sorted(members, key=lambda run: run.seed)))
        for title, members in zip(titles, groups.values(), strict=True)
    ]


def titles_of(recipes: Sequence[Recipe]) -> list[str]:
    """Name each recipe by the values in which they differ: params as they are, files and commands by a hash."""
    keys = sorted(set().union(*recipes))
    differing = [key for key in keys if len({recipe.get(key) for recipe in recipes}) > 1]
    shown = sorted(differing, key=lambda key: not _is_param(key))[:_NUM_SHOWN]  # params say more than hashes
    more = f", and {len(differing) - len(shown)} more" if len(differing) > len(shown) else ""
    return [
        ", ".join(f"{key}={_shown(key, recipe.get(key))}" for key in shown) + more if shown else ""
        for recipe in recipes
    ]


def chosen_rows(names: str | None, groups: Sequence[Group]) -> list[str]:
    """Find the rows of metrics.json that NAMES lists with commas, in the order of the table; None is all.

    Raises:
        PipelineError: no run has a row of that name.
    """
    present = {row for group in groups for run in group.runs for row in run.metrics}
    wanted = present if names is None else listed_names(names, present, "--rows")
    return [row for row in (*ROW_TITLES, *sorted(present - set(ROW_TITLES))) if row in wanted]


def rows_across(names: str | None, rows: Sequence[str]) -> list[str]:
    """Choose from ROWS what is compared across groups: what NAMES asked for, else all but variants of a network."""
    variants = ROW_TITLES.keys() - HEAD_TITLES.keys()
    return [row for row in rows if names is not None or row not in variants]


def parse_seeds(text: str) -> list[int]:
    """Read ``4`` as the seeds 0 to 3, and ``4871,7579`` (or ``7,`` for a single one) as these seeds.

    Raises:
        PipelineError: no whole numbers from 0 on, or one twice.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isascii() and part.isdigit() for part in parts):
        raise PipelineError(f"--seeds {text}: expected a number of runs (4) or seeds with commas (0,1,2,3)")
    seeds = list(map(int, parts)) if "," in text else list(range(int(parts[0])))
    if not seeds or len(set(seeds)) < len(seeds):
        raise PipelineError(f"--seeds {text}: " + ("a seed is there twice" if seeds else "at least one run is needed"))
    return seeds


class Summary:
    """The statistics of groups of runs, ready to be rendered."""

    def __init__(
        self,
        groups: Sequence[Group],
        metrics: Sequence[Metric],
        rows: Sequence[str],
        *,
        across: Sequence[str] | None = None,
    ) -> None:
        """Take the statistics.

        Args:
            groups: of runs.
            metrics: those to show; what no run has is left out.
            rows: of metrics.json, in the order of the table.
            across: those of the rows that one table shows of all groups; None makes a table for each group.
        """
        self.groups, self.rows = groups, rows
        self.metrics = [
            declared
            for declared in metrics
            if any(
                declared.key in run.metrics.get(row, {}).get(declared.family, {})
                for group in groups
                for run in group.runs
                for row in rows
            )
        ]
        self._statistics = {
            (idx, row, declared): statistic(
                run.metrics.get(row, {}).get(declared.family, {}).get(declared.key) for run in group.runs
            )
            for idx, group in enumerate(groups)
            for row in rows
            for declared in self.metrics
        }
        self._tables = self._tables_by_group() if across is None else [self._table_across(across)]
        self._best = {declared: self._best_of(declared) for declared in self.metrics}

    def markdown(self) -> str:
        """Render a captioned table per group, or the one across groups."""
        return "\n".join(
            f"{table.caption}\n\n{markdown(*self._laid_out(table), num_text_columns=_NUM_TEXT_COLUMNS)}"
            for table in self._tables
        )

    def latex(self) -> str:
        r"""Render the same for LaTeX; the document needs ``\usepackage{booktabs}``."""
        return "\n".join(
            latex(*self._laid_out(table), num_text_columns=_NUM_TEXT_COLUMNS, caption=table.caption)
            for table in self._tables
        )

    def csv(self) -> str:
        """Write a line per group, row and metric: numbers as they are, fractions in 0 to 1."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(_CSV_COLUMNS)
        for (idx, row, declared), found in self._statistics.items():
            group = self.groups[idx]
            numbers = (found.mean, found.std, found.n) if found else (None, None, 0)
            names = (group.title, row, declared.family, declared.key, declared.unit, declared.direction)
            writer.writerow([*names, *numbers, " ".join(map(str, group.seeds))])
        return buffer.getvalue()

    def _tables_by_group(self) -> list[Table]:
        """Make a table of each group that has one of the rows."""
        tables = []
        for idx, group in enumerate(self.groups):
            columns = tuple(Column(ROW_TITLES.get(row, row), idx, row) for row in self.rows if self._has_row(idx, row))
            if columns:
                title = f"{group.title}. " if group.title else ""
                tables.append(Table(f"{title}{_runs_in_words(group)}{self._note(columns)}", columns))
        return tables

    def _table_across(self, rows: Iterable[str]) -> Table:
        """Make one table with a column for each of the ROWS and each group that has values there."""
        columns: list[Column] = []
        for row in rows:
            having = [idx for idx in range(len(self.groups)) if self._has_values(idx, row)]
            if row == BLACKBOX and len({self._values(idx, row) for idx in having}) == 1:
                having = having[:1]  # one black box, trained beside several networks
            title = FULL_TITLES.get(row, row)
            differences = titles_of([self.groups[idx].runs[0].recipe for idx in having])
            columns += [
                Column(f"{title} ({difference})" if difference else title, idx, row)
                for idx, difference in zip(having, differences, strict=True)
            ]
        if not columns:
            raise PipelineError("--across: no run has a value of these metrics in these rows")
        shown = [self.groups[idx] for idx in dict.fromkeys(column.group for column in columns)]
        if all(group.seeds == shown[0].seeds for group in shown):
            runs = _runs_in_words(shown[0], each=len(shown) > 1)
        else:
            by_column = (f"{column.title}: {_seeds_in_words(self.groups[column.group])}" for column in columns)
            runs = f"Mean ± sample standard deviation over runs. {'; '.join(by_column)}"
        return Table(f"{runs}{self._note(columns)}", tuple(columns))

    def _has_row(self, idx: int, row: str) -> bool:
        return any(row in run.metrics for run in self.groups[idx].runs)

    def _values(self, idx: int, row: str) -> tuple[Statistic | None, ...]:
        return tuple(self._statistics[idx, row, declared] for declared in self.metrics)

    def _has_values(self, idx: int, row: str) -> bool:
        return any(found is not None for found in self._values(idx, row))

    def _note(self, columns: Iterable[Column]) -> str:
        """Say what n means, where one of the COLUMNS shows it."""
        fewer = any(
            found and found.n < len(self.groups[column.group].runs)
            for column in columns
            for found in self._values(column.group, column.row)
        )
        return "; where fewer runs have a metric, n says how many" if fewer else ""

    def _laid_out(self, table: Table) -> tuple[pd.DataFrame, Bool[np.ndarray, "line column"]]:
        """Lay a table out, a line per metric, and say which cells hold the best value of all tables."""
        lines, bold = [], []
        for declared in self.metrics:
            found = [self._statistics[column.group, column.row, declared] for column in table.columns]
            cells = [
                render_statistic(declared, value, len(self.groups[column.group].runs))
                for column, value in zip(table.columns, found, strict=True)
            ]
            lines.append([declared.family, metric_title(declared), *cells])
            best = self._best[declared]
            bold.append([False, False, *(best is not None and _mean_text(declared, value) == best for value in found)])
        heads = ["family", "metric", *(column.title for column in table.columns)]
        return pd.DataFrame(lines, columns=heads), np.array(bold, dtype=bool).reshape(-1, len(heads))

    def _best_of(self, declared: Metric) -> str | None:
        """Find the best mean as it is rendered; None where no direction is better or nothing stands out."""
        shown = [
            self._statistics[column.group, column.row, declared] for table in self._tables for column in table.columns
        ]
        return best_text(declared, (None if found is None else found.mean for found in shown))


def _runs_in_words(group: Group, *, each: bool = False) -> str:
    num = f"{len(group.runs)} run{'s' if len(group.runs) > 1 else ''}{' each' if each else ''}"
    of_several = "Mean ± sample standard deviation of " if len(group.runs) > 1 else ""
    return f"{of_several}{num} ({_seeds_in_words(group)})"


def _seeds_in_words(group: Group) -> str:
    return f"seed{'s' if len(group.runs) > 1 else ''} {', '.join(map(str, group.seeds))}"


def render_statistic(declared: Metric, found: Statistic | None, num_runs: int) -> str:
    """Write ``mean ± std``, without ``±`` for one run, with n where fewer than NUM_RUNS have the metric."""
    if found is None:
        return ABSENT
    spread = "" if found.std is None else f" ± {render_value(declared, found.std)}"
    return f"{_mean_text(declared, found)}{spread}" + (f" (n={found.n})" if found.n < num_runs else "")


def _mean_text(declared: Metric, found: Statistic | None) -> str | None:
    return None if found is None else render_value(declared, found.mean)


def _is_param(key: str) -> bool:
    return " " not in key  # else `content of PATH` or `command of STAGE`


def _shown(key: str, value: str | None) -> str:
    if value is None:
        return "(absent)"
    return value[:6] if key.startswith("content of ") else value


def _runs(seeds: Sequence[int] | None, overrides: Sequence[str], revs: Sequence[str]) -> tuple[list[Run], list[int]]:
    """Collect or make the runs that were asked for; also say which seeds failed."""
    root = Path()
    if seeds is not None:
        runs, failures = repeat(root, seeds, overrides)
        return runs, [failure.seed for failure in failures]
    return (runs_at(root, revs) if revs else runs_here(root)), []


def _write(out: Path, summary: Summary) -> None:
    contents = {"table.csv": summary.csv(), "table.md": summary.markdown(), "table.tex": summary.latex()}
    for name, content in contents.items():
        with new_file(out / name) as work:
            work.write_text(content, encoding="utf-8")
    _log.info("written: %s", ", ".join(str(out / name) for name in contents))


def main(
    seeds: str | None = Option(
        None, help="Run what is missing: a number of runs (4 is the seeds 0 to 3), or seeds with commas (4871,7579)."
    ),
    overrides: list[str] = Option(
        [], "-S", metavar="KEY=VALUE", help="With --seeds: override one param; can be repeated."
    ),
    revs: list[str] = Option(
        [], "--rev", metavar="REV", help="Take this branch, tag, commit or experiment instead; can be repeated."
    ),
    rows: str | None = Option(None, help="Rows to show, with commas, such as protomask,blackbox. Default: all."),
    metrics: str | None = Option(None, help="Metrics or families to show, with commas. Default: all."),
    across: bool = Option(
        False,
        "--across",
        help="One table with a column per group. Earlier states and other saliency only where --rows names them.",
    ),
    out: Path | None = Option(None, help="Folder for table.md, table.csv and table.tex; without it, print Markdown."),
) -> None:
    """Show mean ± standard deviation of the metrics over runs that differ only in `seed`.

    The runs are those of the workspace, of the last commit and of the DVC experiments derived from it. Runs that differ
    in more than the seed make groups, a table each, titled by what differs. The best value of a metric is bold.

    With --seeds the table holds exactly these runs of the experiment that the workspace describes; those that are not
    there yet are run one after the other as DVC experiments, in a copy of the project: the workspace stays as it is.
    Interrupt it when you like; the same command goes on.

    To compare networks: `python -m pipeline.table --seeds 3 -S model.head=pipnet` runs one, and so for each head;
    then `python -m pipeline.table --across` puts what is there into one table.
    """
    if seeds is not None and revs:
        raise PipelineError("--seeds runs the workspace's experiment, --rev takes runs that exist: give one of them")
    if overrides and seeds is None:
        raise PipelineError(f"-S {overrides[0]} changes a run that is yet to be made: give --seeds, too")
    selected = chosen_metrics(metrics)
    runs, failed = _runs(None if seeds is None else parse_seeds(seeds), overrides, revs)
    if runs:
        groups = group_runs(runs)
        shown = chosen_rows(rows, groups)
        summary = Summary(groups, selected, shown, across=rows_across(rows, shown) if across else None)
        if out is None:
            print(summary.markdown(), end="")
        else:
            _write(out, summary)
    if failed:
        raise PipelineError(f"not in the table, because their runs failed: seeds {', '.join(map(str, failed))}")
    if not runs:
        raise PipelineError("no run to show: `dvc repro` makes one, --seeds 4 makes four")


app = command_line(main)

if __name__ == "__main__":
    app()
