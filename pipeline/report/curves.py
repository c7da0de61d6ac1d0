"""Training curves, laid out as line charts; the template draws them as inline SVG.

Lengths are SVG units; x grows to the right, y downwards. Charts are narrow, so that their text stays readable where
one fills a telephone's width.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.report.inputs import PhaseReport, TrainSummary, read_curve
from pipeline.report.tables import BLACKBOX, HEAD_TITLES


class Plot(NamedTuple):
    """The size of a chart, and the edges of the area that the lines may fill."""

    width: int = 400
    height: int = 240
    left: int = 54
    right: int = 390
    top: int = 22
    bottom: int = 204


PLOT = Plot()

PHASE_TITLES = {"warmup": "warm-up", "joint": "joint"}
_SPLIT_TITLES = {"train": "training images", "val": "validation images"}
_TERM_TITLES = {
    "cross_entropy": "Cross entropy ↓",
    "classification": "Classification ↓: cross entropy",
    "cluster": "Cluster ↓: distance to the image's class",
    "separation": "Separation ↑: distance to other classes",
    "diversity": "Diversity ↓: 1 where prototypes coincide",
    "alignment": "Alignment ↓: 0 where two versions agree",
    "presence": "Presence ↓: low where prototypes occur",
    "orthogonality": "Orthogonality ↓: 0 where slots differ",
}
_ROOM_FOR_LABEL = 60.0


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        title: its name in the legend.
        points: (epoch, value), epochs counted from 1.
        kept_epochs: those whose state a phase ended with; drawn as dots.
    """

    title: str
    points: Sequence[tuple[int, float]]
    kept_epochs: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """A series in SVG units; ``dots`` are kept epochs, or the only point of a line."""

    title: str
    points: str  # as <polyline> takes them
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class PhaseLabel:
    """Where the name of a phase stands; ``start`` is the border to the phase before, None for the first."""

    title: str
    x: float
    anchor: str
    start: float | None


@dataclass(frozen=True, slots=True)
class Chart:
    """A line chart over epochs, laid out."""

    title: str
    summary: str  # what it shows, in words
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    phases: tuple[PhaseLabel, ...]
    shows_kept: bool


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Choose at most MOST + 1 round values (steps of 1, 2 or 5 times a power of ten) that enclose [low, high]."""
    if high <= low:
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{count * step:.12g}") for count in range(first, last + 1)]


def lay_out(title: str, series: Iterable[Series], phases: Sequence[tuple[str, int]]) -> Chart | None:
    """Lay out a chart; None where no series has a point.

    Args:
        title: what is shown, with its unit.
        series: the lines, the most important one first.
        phases: (name, epochs) of each phase, in the order in which they ran.
    """
    filled = [line for line in series if line.points]
    if not filled:
        return None
    last_epoch = max([sum(epochs for _, epochs in phases), *(line.points[-1][0] for line in filled)])
    values = [value for line in filled for _, value in line.points]
    y_values = nice_ticks(min(values), max(values))

    def x(epoch: int) -> float:
        return round(PLOT.left + (PLOT.right - PLOT.left) * epoch / last_epoch, 2)

    def y(value: float) -> float:
        return round(PLOT.bottom - (PLOT.bottom - PLOT.top) * (value - y_values[0]) / (y_values[-1] - y_values[0]), 2)

    lines = []
    for line in filled:
        dotted = line.points if len(line.points) == 1 else [p for p in line.points if p[0] in line.kept_epochs]
        lines.append(
            Line(
                line.title,
                " ".join(f"{x(epoch)},{y(value)}" for epoch, value in line.points),
                tuple((x(epoch), y(value)) for epoch, value in dotted),
            )
        )
    x_values = [
        int(value) for value in nice_ticks(0.0, float(last_epoch)) if value.is_integer() and value <= last_epoch
    ]
    return Chart(
        title=title,
        summary=f"{title}, epochs 1 to {last_epoch}. " + " ".join(_in_words(line) for line in filled),
        lines=tuple(lines),
        x_ticks=tuple(Tick(x(epoch), str(epoch)) for epoch in x_values),
        y_ticks=tuple(Tick(y(value), f"{value:g}") for value in y_values),
        phases=tuple(_phase_labels(phases, x)),
        shows_kept=any(line.kept_epochs for line in filled),
    )


def _in_words(line: Series) -> str:
    values = [value for _, value in line.points]
    return (
        f"{line.title}: {values[0]:.3g} at the first epoch, {values[-1]:.3g} at the last, "
        f"lowest {min(values):.3g}, highest {max(values):.3g}."
    )


def _phase_labels(phases: Sequence[tuple[str, int]], x: Callable[[int], float]) -> Iterable[PhaseLabel]:
    done = 0
    for idx, (name, epochs) in enumerate(phases):
        start, end = x(done), x(done + epochs)
        fits = end - start >= _ROOM_FOR_LABEL
        yield PhaseLabel(name, start + 4 if fits else end, "start" if fits else "end", start if idx else None)
        done += epochs


def heads_by_role(head: str, summary: TrainSummary) -> dict[str, str]:
    """Name the heads of the networks in SUMMARY: the run's own, which is HEAD, and the black box beside it, if any."""
    return {role: kind for role, kind in {"network": head, BLACKBOX: BLACKBOX}.items() if role in summary}


def training_charts(folder: Path, summary: TrainSummary, head: str) -> list[Chart]:
    """Lay out the curves of a training run.

    Args:
        folder: ``results/train``: DVCLive's folders ``network`` and, where there is one, ``blackbox``.
        summary: its networks and phases.
        head: of the network.

    Raises:
        PipelineError: a curve is missing or damaged.
    """
    heads = heads_by_role(head, summary)
    phases = _phases(summary["network"])
    accuracy = [
        Series(
            HEAD_TITLES[kind],
            [(epoch, 100 * value) for epoch, value in _read(folder, role, "val/accuracy")],
            _kept_epochs(summary[role]),
        )
        for role, kind in heads.items()
    ]
    charts = [lay_out("Validation accuracy, %", accuracy, phases)]
    for role, kind in heads.items():
        both = [Series(title, _read(folder, role, f"{split}/loss")) for split, title in _SPLIT_TITLES.items()]
        charts.append(lay_out(f"Loss of {in_sentence(kind)}", both, _phases(summary[role])))
    for term in _terms(folder):
        series = Series("training images", _read(folder, "network", f"train/{term}"))
        charts.append(lay_out(_TERM_TITLES.get(term, term), [series], phases))
    return [chart for chart in charts if chart is not None]


def in_sentence(head: str) -> str:
    """Name a network as it stands in a sentence."""
    return "the black box" if head == BLACKBOX else HEAD_TITLES[head]


def _terms(folder: Path) -> list[str]:
    """List the terms of the network's loss: those with a title in its order, then others by name."""
    found = {path.stem for path in _curve(folder, "network", "train/loss").parent.glob("*.tsv")} - {"loss"}
    return [*(term for term in _TERM_TITLES if term in found), *sorted(found - _TERM_TITLES.keys())]


def _curve(folder: Path, role: str, metric: str) -> Path:
    return folder / role / "plots/metrics" / f"{metric}.tsv"


def _read(folder: Path, role: str, metric: str) -> list[tuple[int, float]]:
    return read_curve(_curve(folder, role, metric))


def _phases(reports: dict[str, PhaseReport]) -> list[tuple[str, int]]:
    return [(title, reports[name].epochs) for name, title in PHASE_TITLES.items() if name in reports]


def _kept_epochs(reports: dict[str, PhaseReport]) -> list[int]:
    """The kept epoch of each phase, counted over the whole run; a phase that kept its start has none."""
    done, kept = 0, []
    for name in PHASE_TITLES:
        if name in reports:
            if reports[name].best_epoch:
                kept.append(done + reports[name].best_epoch)
            done += reports[name].epochs
    return kept
