"""The metrics as CSV, Markdown and LaTeX, a table for each family, rendered from the rows of metrics_detail.parquet."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from pipeline.io import new_file
from pipeline.metrics.interface import Metric
from pipeline.metrics.registry import METRICS, metric
from pipeline.metrics.uncertainty import LEVEL

HEAD_TITLES = {
    "protomask": "ProtoMask",
    "protopnet": "ProtoPNet",
    "pipnet": "PIP-Net",
    "protopool": "ProtoPool",
    "blackbox": "Black box",
}
"""What each ``model.head`` is called, in the order of tables."""
BLACKBOX = "blackbox"  # the head without prototypes, which has no variants
_VARIANTS = {
    # the same network, explained by another kind of saliency
    "view": "explained by views",
    "prp": "explained by relevance (PRP)",
    "mask": "explained by masks",
    "upsample": "explained by up-sampling",
    # its earlier states
    "projected": "before fine-tuning",
    "trained": "before projection",
}


def _titles_of_rows(form: str) -> dict[str, str]:
    """Title every row that metrics.json may have; FORM makes the titles of a network's variants."""
    titles = {}
    for head, network in HEAD_TITLES.items():
        titles[head] = network
        for variant, what in _VARIANTS.items() if head != BLACKBOX else ():
            titles[f"{head}_{variant}"] = form.format(network=network, what=what)
    return titles


ROW_TITLES = _titles_of_rows("- {what}")
"""The rows of metrics.json, in the order of tables: other saliency and earlier states stand after their network."""
FULL_TITLES = _titles_of_rows("{network} {what}")
"""The same for where they may stand elsewhere."""
ABSENT = "–"
INSENSITIVE = "†"
RANDOMISED = {
    "weights": "random weights in the backbone and the layer on it",
    "prototypes": "prototypes that have changed places",
    "maps": "saliency maps that were moved on the image",
}
"""What a sanity check does to an explanation, by its name in ``insensitive_to``."""
_FAMILY_TITLES = {"completeness": "Output completeness", "causal": "Causal checks"}
_ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
_LATEX = str.maketrans(
    {
        **{mark: rf"\{mark}" for mark in "%&#_${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "±": r"$\pm$",
        INSENSITIVE: r"$^{\dagger}$",
        ABSENT: "--",
    }
)

Metrics = Mapping[str, Mapping[str, Mapping[str, float | None]]]
"""The content of metrics.json: row, family, metric."""


@dataclass(frozen=True, slots=True)
class Detail:
    """A number of metrics.json and what stands behind it: a row of ``pipeline.artifacts.METRICS_DETAIL``."""

    row: str
    family: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    num_images: int
    reason: str | None
    insensitive_to: Sequence[str] | None

    @property
    def declared(self) -> Metric:
        """The metric."""
        return metric(self.family, self.metric)


@dataclass(frozen=True, slots=True)
class Line:
    """A metric in a table.

    Attributes:
        declared: the metric.
        details: its number in each row of metrics.json; None where it was not asked for.
        is_best: whether the number is the best of the line, as it is rendered.
    """

    declared: Metric
    details: tuple[Detail | None, ...]
    is_best: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class FamilyTable:
    """The metrics of a family.

    Attributes:
        family: its name.
        rows: of metrics.json, those that have metrics of the family: the columns.
        lines: the metrics that one of them has.
    """

    family: str
    rows: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Notes:
    """What must be said of some numbers, a line for each thing that holds for several.

    Attributes:
        absent: why there is no value, and where.
        fewer: how many test images stand behind numbers that are not about all of them, and where.
        insensitive: which sanity checks failed, and where.
    """

    absent: tuple[str, ...]
    fewer: tuple[str, ...]
    insensitive: tuple[str, ...]


def render_value(declared: Metric, value: float | None) -> str:
    """Write a value for people: fractions as percent with two decimals, counts with one, others with three."""
    if value is None:
        return ABSENT
    if declared.unit == "fraction":
        return f"{100 * value:.2f}"
    return f"{value:.1f}" if declared.unit == "count" else f"{value:.3f}"


def render_interval(detail: Detail) -> str | None:
    """Write an interval for people: as its value, percent with one decimal; None where there is none."""
    if detail.low is None or detail.high is None:
        return None
    if detail.declared.unit == "fraction":
        return f"[{100 * detail.low:.1f}, {100 * detail.high:.1f}]"
    return f"[{render_value(detail.declared, detail.low)}, {render_value(detail.declared, detail.high)}]"


def render_detail(detail: Detail | None) -> str:
    """Write a value with its interval, and a mark where it failed a sanity check."""
    if detail is None or detail.value is None:
        return ABSENT
    interval = render_interval(detail)
    value = render_value(detail.declared, detail.value)
    return f"{value}{f' {interval}' if interval else ''}{INSENSITIVE if detail.insensitive_to else ''}"


def metric_title(declared: Metric) -> str:
    """Name a metric with its unit, where that is percent, and an arrow to the better side."""
    unit = " %" if declared.unit == "fraction" else ""
    return f"{declared.title}{unit} {_ARROWS[declared.direction]}".rstrip()


def family_title(family: str) -> str:
    """Name a family of metrics."""
    return _FAMILY_TITLES.get(family, family.replace("_", " ").capitalize())


def best_text(declared: Metric, values: Iterable[float | None]) -> str | None:
    """Find the best value as it is rendered; None where no side is better or nothing stands out."""
    found = [value for value in values if value is not None]
    if declared.direction == "neither" or len({render_value(declared, value) for value in found}) < 2:
        return None
    return render_value(declared, max(found) if declared.direction == "higher" else min(found))


def family_tables(details: Iterable[Detail], order: Iterable[str]) -> list[FamilyTable]:
    """Lay numbers out, a table for each family.

    Args:
        details: all numbers.
        order: rows of metrics.json that are shown.
    """
    by_metric: dict[tuple[str, str], dict[str, Detail]] = defaultdict(dict)
    for detail in details:
        by_metric[detail.family, detail.metric][detail.row] = detail
    tables = []
    for family in dict.fromkeys(declared.family for declared in METRICS):
        found = [
            (declared, by_metric[family, declared.key])
            for declared in METRICS
            if declared.family == family and (family, declared.key) in by_metric
        ]
        rows = tuple(row for row in order if any(row in by_row for _, by_row in found))
        if rows:
            lines = (_line(declared, [by_row.get(row) for row in rows]) for declared, by_row in found)
            tables.append(FamilyTable(family, rows, tuple(line for line in lines if any(line.details))))
    return tables


def _line(declared: Metric, details: Sequence[Detail | None]) -> Line:
    """Lay a metric out; numbers about less than half as many images as others do not compete for the best."""
    most = max((detail.num_images for detail in details if detail is not None), default=0)
    values = [None if detail is None or 2 * detail.num_images < most else detail.value for detail in details]
    best = best_text(declared, values)
    is_best = (best is not None and value is not None and render_value(declared, value) == best for value in values)
    return Line(declared, tuple(details), tuple(is_best))


def notes_on(details: Sequence[Detail]) -> Notes:
    """Say what stands behind numbers: why some are missing, which are about fewer images, which mean little."""
    num_all = max((detail.num_images for detail in details), default=0)
    return Notes(
        absent=tuple(
            f"{ABSENT} in {places}: {reason}"
            for reason, places in _places(details, lambda detail: () if detail.reason is None else (detail.reason,))
        ),
        fewer=tuple(
            f"{num} of {num_all} test images: {places}"
            for num, places in _places(
                details, lambda detail: (detail.num_images,) if 0 < detail.num_images < num_all else ()
            )
        ),
        insensitive=tuple(
            f"{INSENSITIVE} with {RANDOMISED[check]}: {places}"
            for check, places in _places(details, lambda detail: detail.insensitive_to or ())
        ),
    )


def _places(details: Sequence[Detail], keys_of: Callable[[Detail], Iterable[Any]]) -> list[tuple[Any, str]]:
    """Say where each key occurs: whole families by their name, others metric by metric, and for which networks."""
    in_family: dict[tuple[str, str], int] = defaultdict(int)
    found: dict[Any, dict[str, dict[str, list[str]]]] = {}  # key, row, family, titles
    for detail in details:
        in_family[detail.row, detail.family] += 1
        for key in keys_of(detail):
            titles = found.setdefault(key, {}).setdefault(detail.row, {}).setdefault(detail.family, [])
            titles.append(detail.declared.title)
    places = []
    for key, by_row in found.items():
        networks: dict[str, list[str]] = {}
        for row, families in by_row.items():
            metrics = "; ".join(
                family_title(family) + ("" if len(titles) == in_family[row, family] else f" ({', '.join(titles)})")
                for family, titles in families.items()
            )
            networks.setdefault(metrics, []).append(FULL_TITLES.get(row, row))
        places += [(key, f"{metrics}, for {', '.join(rows)}") for metrics, rows in networks.items()]
    return places


def legend(num_draws: int) -> tuple[str, ...]:
    """Say how to read the numbers, sentence by sentence.

    Args:
        num_draws: resamples behind each interval.
    """
    return (
        f"In brackets: {100 * LEVEL:g} % bootstrap interval, from {num_draws:,} resamples of the test images; what "
        "varies is the choice of test images, not the training. A number without one is not about images, or has no "
        "value in too many resamples.",
        "Arrows point to the better side; the best value of a line is bold. A number about less than half as many "
        "images as another one of its line is not compared with it.",
        f"{INSENSITIVE}: in a sanity check on the sampled images, the number was not shown to get worse, beyond "
        "chance, when the explanations were made worthless; more images (evaluate.sample_images) show smaller "
        "changes. Numbers without a better side, of weights or of masks alone were not checked.",
        f"{ABSENT}: no value, or not asked of this network.",
    )


def write_tables(out: Path, rows: Iterable[Mapping[str, Any]], *, num_draws: int) -> None:
    """Write ``table.csv`` (numbers as they are), ``table.md`` and ``table.tex`` (rendered) into OUT.

    Args:
        out: folder.
        rows: as in metrics_detail.parquet.
        num_draws: resamples behind each interval.
    """
    details = [Detail(**row) for row in rows]
    tables = family_tables(details, [row for row in ROW_TITLES if any(detail.row == row for detail in details)])
    notes = notes_on(details)
    contents = {
        "table.csv": _csv(details),
        "table.md": _markdown_file(tables, notes, num_draws),
        "table.tex": _latex_file(tables, notes, num_draws),
    }
    for name, content in contents.items():
        with new_file(out / name) as work:
            work.write_text(content, encoding="utf-8")


def _csv(details: Iterable[Detail]) -> str:
    frame = pd.DataFrame(
        [
            {
                "row": detail.row,
                "family": detail.family,
                "metric": detail.metric,
                "value": detail.value,
                "low": detail.low,
                "high": detail.high,
                "num_images": detail.num_images,
                "reason": detail.reason,
                "insensitive_to": ";".join(detail.insensitive_to or ()),
            }
            for detail in details
        ]
    )
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text


def _laid_out(table: FamilyTable) -> tuple[pd.DataFrame, Bool[np.ndarray, "line column"]]:
    """Render a table: a line per metric, a column per row of metrics.json, and which cells stand out."""
    frame = pd.DataFrame(
        [[metric_title(line.declared), *map(render_detail, line.details)] for line in table.lines],
        columns=["metric", *(ROW_TITLES[row] for row in table.rows)],
    )
    return frame, np.array([(False, *line.is_best) for line in table.lines], dtype=bool)


def _markdown_file(tables: Iterable[FamilyTable], notes: Notes, num_draws: int) -> str:
    parts = [
        f"### {family_title(table.family)}\n\n{markdown(*_laid_out(table), num_text_columns=1)}" for table in tables
    ]
    parts.append("".join(f"- {sentence}\n" for sentence in legend(num_draws)))
    parts += [f"{title}:\n\n" + "".join(f"- {line}\n" for line in lines) for title, lines in titled(notes)]
    return "\n".join(parts)


def _latex_file(tables: Iterable[FamilyTable], notes: Notes, num_draws: int) -> str:
    parts = [latex(*_laid_out(table), num_text_columns=1, caption=family_title(table.family)) for table in tables]
    sentences = chain(legend(num_draws), (f"{title}: {'; '.join(lines)}." for title, lines in titled(notes)))
    parts += [f"{latex_text(sentence)}\n" for sentence in sentences]
    return "\n".join(parts)


def titled(notes: Notes) -> list[tuple[str, tuple[str, ...]]]:
    """Title the notes that there are."""
    named = (
        ("Numbers that failed a sanity check", notes.insensitive),
        ("Numbers that are not about all test images", notes.fewer),
        ("Why values are missing", notes.absent),
    )
    return [(title, lines) for title, lines in named if lines]


def markdown(frame: pd.DataFrame, bold: Bool[np.ndarray, "line column"], *, num_text_columns: int) -> str:
    """Write a table for people, columns straight.

    Args:
        frame: of rendered cells.
        bold: which of them stand out.
        num_text_columns: how many stand to the left; the values after them stand to the right.
    """
    cells = [[str(name) for name in frame.columns], *_emphasised(frame, bold, "**{}**").to_numpy().tolist()]
    widths = [max(len(line[column]) for line in cells) for column in range(frame.shape[1])]
    numeric = [column >= num_text_columns for column in range(frame.shape[1])]

    def line(values: list[str]) -> str:
        padded = (
            value.rjust(width) if right else value.ljust(width)
            for value, width, right in zip(values, widths, numeric, strict=True)
        )
        return "| " + " | ".join(padded) + " |"

    rule = (
        "|"
        + "|".join("-" * (width + 1) + (":" if right else "-") for width, right in zip(widths, numeric, strict=True))
        + "|"
    )
    return "\n".join([line(cells[0]), rule, *(line(values) for values in cells[1:])]) + "\n"


def latex(frame: pd.DataFrame, bold: Bool[np.ndarray, "line column"], *, num_text_columns: int, caption: str) -> str:
    """Write the same for LaTeX with the package booktabs, as a floating table with a CAPTION."""
    escaped = frame.map(latex_text).rename(columns=latex_text)
    text: str = _emphasised(escaped, bold, r"\textbf{{{}}}").to_latex(
        index=False,
        escape=False,
        column_format="l" * num_text_columns + "r" * (frame.shape[1] - num_text_columns),
        caption=latex_text(caption),
    )
    return text


def latex_text(text: str) -> str:
    """Write TEXT so that LaTeX prints it as it stands."""
    return text.translate(_LATEX)


def _emphasised(frame: pd.DataFrame, bold: Bool[np.ndarray, "line column"], form: str) -> pd.DataFrame:
    # by position: nothing says that columns have different names
    emphasised: pd.DataFrame = pd.DataFrame(np.where(bold, frame.map(form.format), frame), columns=frame.columns)
    return emphasised
