"""The metrics table as CSV, Markdown and LaTeX, rendered from the content of metrics.json."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipeline.io import new_file
from pipeline.metrics.interface import Metric
from pipeline.metrics.registry import METRICS

ROW_TITLES = {
    "protomask": "ProtoMask",
    "protomask_projected": "- before fine-tuning",
    "protomask_trained": "- before projection",
    "blackbox": "Black box",
}
_ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}
_ABSENT = "–"
_LATEX = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "%": r"\%", _ABSENT: "--"}

Metrics = Mapping[str, Mapping[str, Mapping[str, float | None]]]


def render_value(declared: Metric, value: float | None) -> str:
    """Write a value for people: fractions as percent with two decimals, counts with one, others with three."""
    if value is None:
        return _ABSENT
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
        "table.md": _markdown(frame),
        "table.tex": frame.map(_latex).to_latex(
            index=False, escape=False, column_format="ll" + "r" * (frame.shape[1] - 2)
        ),
    }
    for name, content in contents.items():
        with new_file(out / name) as work:
            work.write_text(content, encoding="utf-8")


def _latex(text: str) -> str:
    for plain, latex in _LATEX.items():
        text = text.replace(plain, latex)
    return text


def _markdown(frame: pd.DataFrame) -> str:
    cells = [list(frame.columns), *frame.to_numpy().tolist()]
    widths = [max(len(str(line[column])) for line in cells) for column in range(frame.shape[1])]
    numeric = [column >= 2 for column in range(frame.shape[1])]

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
    return "\n".join([line([str(name) for name in cells[0]]), rule, *(line(values) for values in cells[1:])]) + "\n"
