"""Charts, laid out for templates that draw them as inline SVG.

Lengths are SVG units; x grows to the right, y downwards. Charts are narrow, so that their text stays readable where
one fills a telephone's width. Each says in words what it shows, for those who cannot see it.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Plot(NamedTuple):
    """The size of a chart, and the edges of the area that lines and bars may fill."""

    width: int = 400
    height: int = 240
    left: int = 54
    right: int = 390
    top: int = 22
    bottom: int = 204


PLOT = Plot()

_ROOM_FOR_LABEL = 60.0
_MOST_BINS = 30  # of a histogram
_MOST_LABELS = 10
_WIDEST_BAR = 40.0
_GAP_FRAC = 0.15  # between two bars, of the room of one


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        title: its name in the legend.
        points: (x, y), from left to right.
        dotted: x of the points that are drawn as dots, too.
    """

    title: str
    points: Sequence[tuple[float, float]]
    dotted: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """A series in SVG units; ``dots`` are those of its points that are marked, or the only point of a line."""

    title: str
    points: str  # as <polyline> takes them
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class SpanLabel:
    """Where the name of a span of x stands; ``start`` is the border to the span before, None for the first."""

    title: str
    x: float
    anchor: str
    start: float | None


@dataclass(frozen=True, slots=True)
class LineChart:
    """A line chart.

    Attributes:
        title: what is shown, with its unit.
        summary: the same, and what the lines do, in words.
        x_title: of the axis.
        y_title: of the axis; empty where the title says it.
        lines: the most important one first.
        x_ticks: where the axis is marked.
        y_ticks: likewise.
        spans: names of parts of the x axis.
        guide: a line to compare with, as <polyline> takes it; None where there is none.
        guide_title: what that is.
        dots_title: what a dot is; empty where the legend need not say it.
    """

    title: str
    summary: str
    x_title: str
    y_title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    spans: tuple[SpanLabel, ...] = ()
    guide: str | None = None
    guide_title: str = ""
    dots_title: str = ""
    plot: Plot = PLOT


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a bar: which series, where its upper edge lies, how high it is."""

    series_idx: int
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar and what it says when one points at it."""

    x: float
    width: float
    pieces: tuple[Piece, ...]
    title: str


@dataclass(frozen=True, slots=True)
class BarChart:
    """A bar chart; ``legend`` names the series, where there are several."""

    title: str
    summary: str
    x_title: str
    y_title: str
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    legend: tuple[str, ...] = ()
    plot: Plot = PLOT


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


def line_chart(
    title: str,
    series: Iterable[Series],
    *,
    summary: str,
    x_title: str,
    y_title: str = "",
    x_range: tuple[float, float],
    x_marks: Sequence[float],
    y_marks: Sequence[float],
    spans: Sequence[tuple[str, float]] = (),
    guide: Sequence[tuple[float, float]] = (),
    guide_title: str = "",
    dots_title: str = "",
    plot: Plot = PLOT,
) -> LineChart:
    """Lay out a line chart.

    Args:
        title: what is shown, with its unit.
        series: the lines; each has a point.
        summary: in words.
        x_title: of the axis.
        y_title: of the axis.
        x_range: where the axis begins and ends.
        x_marks: what it is marked with.
        y_marks: what the other axis is marked with, from its beginning to its end.
        spans: (name, length) of parts of the x axis, one after the other from its start.
        guide: a line to compare with.
        guide_title: what that is.
        dots_title: what a dot is.
        plot: its size.
    """
    x, y = _across(x_range, plot), _up((y_marks[0], y_marks[-1]), plot)

    def joined(points: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{x(at)},{y(value)}" for at, value in points)

    lines = []
    for line in series:
        dotted = line.points if len(line.points) == 1 else [point for point in line.points if point[0] in line.dotted]
        lines.append(Line(line.title, joined(line.points), tuple((x(at), y(value)) for at, value in dotted)))
    return LineChart(
        title=title,
        summary=summary,
        x_title=x_title,
        y_title=y_title,
        lines=tuple(lines),
        x_ticks=_ticks(x_marks, x),
        y_ticks=_ticks(y_marks, y),
        spans=tuple(_span_labels(spans, x, x_range[0])),
        guide=joined(guide) if guide else None,
        guide_title=guide_title,
        dots_title=dots_title,
        plot=plot,
    )


def bar_chart(
    title: str,
    bars: Sequence[tuple[str, Sequence[int]]],
    *,
    summary: str,
    x_title: str,
    y_title: str,
    labels: Sequence[tuple[int, str]],
    legend: Sequence[str] = (),
    plot: Plot = PLOT,
) -> BarChart:
    """Lay out a chart of bars that stand side by side.

    Args:
        title: what is shown.
        bars: what each says, and the heights of its pieces, from below.
        summary: in words.
        x_title: of the axis.
        y_title: of the axis.
        labels: positions of bars, and what stands below them.
        legend: names of the pieces.
        plot: its size.
    """
    highest = max((sum(heights) for _, heights in bars), default=0)
    y_marks = [value for value in nice_ticks(0.0, float(highest or 1), most=5) if value.is_integer()]
    y = _up((0.0, y_marks[-1]), plot)
    room = (plot.right - plot.left) / max(len(bars), 1)
    width = min(room * (1 - _GAP_FRAC), _WIDEST_BAR)
    drawn = []
    for idx, (what, heights) in enumerate(bars):
        below, pieces = 0, []
        for series_idx, height in enumerate(heights):
            if height:
                top, bottom = y(below + height), y(below)
                pieces.append(Piece(series_idx, top, round(bottom - top, 2)))
            below += height
        drawn.append(Bar(round(plot.left + room * idx + (room - width) / 2, 2), round(width, 2), tuple(pieces), what))
    return BarChart(
        title=title,
        summary=summary,
        x_title=x_title,
        y_title=y_title,
        bars=tuple(drawn),
        x_ticks=tuple(Tick(round(plot.left + room * (idx + 0.5), 2), label) for idx, label in labels),
        y_ticks=_ticks(y_marks, y),
        legend=tuple(legend),
        plot=plot,
    )


def histogram(
    counts: Sequence[int], *, what: str, of: str
) -> tuple[list[tuple[str, list[int]]], list[tuple[int, str]]]:
    """Bin whole numbers for :func:`bar_chart`: bars that say what they count, and labels of some of them.

    Args:
        counts: how many OF things each WHAT has; 0 or more, at least one.
        what: singular; its plural takes an s.
        of: likewise.
    """
    least, most = min(counts), max(counts)
    width = 1
    while (most - least) // width + 1 > _MOST_BINS:
        width = next(factor for factor in _bin_widths() if factor > width)
    held = Counter((count - least) // width for count in counts)
    num = (most - least) // width + 1
    bars = []
    for bin_idx in range(num):
        low, high = least + bin_idx * width, least + (bin_idx + 1) * width - 1
        many = f"{low}" if width == 1 else f"{low} to {high}"
        bars.append((f"{many} {_plural(of, high)}: {held[bin_idx]} {_plural(what, held[bin_idx])}", [held[bin_idx]]))
    every = -(-num // _MOST_LABELS)
    return bars, [(bin_idx, str(least + bin_idx * width)) for bin_idx in range(0, num, every)]


def _bin_widths() -> Iterator[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def _plural(word: str, num: int) -> str:
    return word if num == 1 else f"{word}s"


def _across(ends: tuple[float, float], plot: Plot) -> Callable[[float], float]:
    low, high = ends
    return lambda value: round(plot.left + (plot.right - plot.left) * (value - low) / (high - low), 2)


def _up(ends: tuple[float, float], plot: Plot) -> Callable[[float], float]:
    low, high = ends
    return lambda value: round(plot.bottom - (plot.bottom - plot.top) * (value - low) / (high - low), 2)


def _ticks(values: Iterable[float], scale: Callable[[float], float]) -> tuple[Tick, ...]:
    return tuple(Tick(scale(value), f"{value:g}") for value in values)


def _span_labels(spans: Sequence[tuple[str, float]], x: Callable[[float], float], origin: float) -> Iterable[SpanLabel]:
    done = origin
    for idx, (name, length) in enumerate(spans):
        start, end = x(done), x(done + length)
        fits = end - start >= _ROOM_FOR_LABEL
        yield SpanLabel(name, start + 4 if fits else end, "start" if fits else "end", start if idx else None)
        done += length
