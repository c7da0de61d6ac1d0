"""The metrics table as CSV, Markdown and LaTeX, rendered from the content of metrics.json."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool

from pipeline.io import new_file
from pipeline.metrics.interface import Metric
from pipeline.metrics.registry import METRICS

HEAD_TITLES = {
    "protomask": "ProtoMask",
    "protopnet": "ProtoPNet",
    "pipnet": "PIP-Net",
    "protopool": "ProtoPool",
    "blackbox": "Black box",
}
"""What each ``model.head`` is called, in the order of tables."""
BLACKBOX = "blackbox"  # the head without prototypes, which has no earlier states
_STATES = {"projected": "before fine-tuning", "trained": "before projection"}


def _titles_of_rows(form: str) -> dict[str, str]:
    """Title every row that metrics.json may have; FORM makes the titles of earlier states."""
    titles = {}
    for head, network in HEAD_TITLES.items():
        titles[head] = network
        for state, when in _STATES.items() if head != BLACKBOX else ():
            titles[f"{head}_{state}"] = form.format(network=network, when=when)
    return titles


ROW_TITLES = _titles_of_rows("- {when}")
"""The rows of metrics.json, in the order of tables: earlier states stand after their network."""
FULL_TITLES = _titles_of_rows("{network} {when}")
"""The same for where they may stand elsewhere."""
ABSENT = "–"
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
        ABSENT: "--",
    }
)
_NUM_TEXT_COLUMNS = 2  # family and metric; the values after them stand to the right

Metrics = Mapping[str, Mapping[str, Mapping[str, float | None]]]


def render_value(declared: Metric, value: float | None) -> str:
    """Write a value for people: fractions as percent with two decimals, counts with one, others with three."""
    if value is None:
        return ABSENT
    if declared.unit == "fraction":
        return f"{100 * value:.2f}"
    return f"{value:.1f}" if declared.unit == "count" else f"{value:.3f}"


def metric_title(declared: Metric) -> str:
    """Name a metric with its unit, where that is percent, and an arrow to the better side."""
    unit = " %" if declared.unit == "fraction" else ""
    return f"{declared.title}{unit} {_ARROWS[declared.direction]}".rstrip()


def metrics_frame(metrics: Metrics) -> pd.DataFrame:
    """Lay the metrics out for people: a line per metric, a column per row of metrics.json, all values rendered."""
    rows = [name for name in ROW_TITLES if name in metrics]
    lines = []
    for declared in METRICS:
        values = [metrics[row].get(declared.family, {}).get(declared.key) for row in rows]
        lines.append([declared.family, metric_title(declared), *(render_value(declared, value) for value in values)])
    frame: pd.DataFrame = pd.DataFrame(lines, columns=["family", "metric", *(ROW_TITLES[row] for row in rows)])
    return frame


def write_tables(out: Path, metrics: Metrics) -> None:
    """Write ``table.csv`` (numbers as they are), ``table.md`` and ``table.tex`` (rendered) into OUT."""
    flat = pd.DataFrame(
        [
            {"row": row, "family": family, "metric": key, "value": value}
            for row, families in metrics.items()
            for family, scores in families.items()
            for key, value in scores.items()
        ]
    )
    frame = metrics_frame(metrics)
    contents = {
        "table.csv": flat.to_csv(index=False),
        "table.md": markdown(frame),
        "table.tex": latex(frame),
    }
    for name, content in contents.items():
        with new_file(out / name) as work:
            work.write_text(content, encoding="utf-8")


def markdown(frame: pd.DataFrame, bold: Bool[np.ndarray, "line column"] | None = None) -> str:
    """Write a table as :func:`metrics_frame` lays it out, columns straight; BOLD says which cells stand out."""
    cells = [[str(name) for name in frame.columns], *_emphasised(frame, bold, "**{}**").to_numpy().tolist()]
    widths = [max(len(line[column]) for line in cells) for column in range(frame.shape[1])]
    numeric = [column >= _NUM_TEXT_COLUMNS for column in range(frame.shape[1])]

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


def latex(
    frame: pd.DataFrame, bold: Bool[np.ndarray, "line column"] | None = None, *, caption: str | None = None
) -> str:
    """Write the same for LaTeX with the package booktabs; with a CAPTION as a floating table."""
    escaped = frame.map(latex_text).rename(columns=latex_text)
    text: str = _emphasised(escaped, bold, r"\textbf{{{}}}").to_latex(
        index=False,
        escape=False,
        column_format="l" * _NUM_TEXT_COLUMNS + "r" * (frame.shape[1] - _NUM_TEXT_COLUMNS),
        caption=None if caption is None else latex_text(caption),
    )
    return text


def latex_text(text: str) -> str:
    """Write TEXT so that LaTeX prints it as it stands."""
    return text.translate(_LATEX)


def _emphasised(frame: pd.DataFrame, bold: Bool[np.ndarray, "line column"] | None, form: str) -> pd.DataFrame:
    if bold is None:
        return frame
    # by position: nothing says that columns have different names
    emphasised: pd.DataFrame = pd.DataFrame(np.where(bold, frame.map(form.format), frame), columns=frame.columns)
    return emphasised
