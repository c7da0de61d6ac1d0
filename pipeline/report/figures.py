"""The page of metrics: what the evaluation wrote into ``results/plots``, drawn."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.spatial import KDTree

from pipeline.errors import PipelineError
from pipeline.report.charts import BarChart, LineChart, Plot, Series, bar_chart, histogram, line_chart, nice_ticks
from pipeline.report.inputs import read_plot
from pipeline.report.site import Site
from pipeline.report.tables import BLACKBOX, FULL_TITLES, Detail, render_value

MOST_PAIRS = 10
"""Pairs of confused classes that the page lists."""

_SQUARE = Plot(width=400, height=390, left=54, right=390, top=12, bottom=348)
_WIDTH = (_SQUARE.left, _SQUARE.right)
_HEIGHT = (_SQUARE.bottom, _SQUARE.top)
_FRACTIONS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
_MANY_CLASSES = 24  # more have no room for their names
_FAINTEST = 0.35  # opacity of a cell of the confusion matrix with few images
_GOLDEN_ANGLE = 137.508  # degrees; hues of neighbouring classes lie far apart


@dataclass(frozen=True, slots=True)
class Cell:
    """Images of one class that were given one class; x and y count classes, from the upper left.

    Attributes:
        opacity: grows with the share of the class's images.
        is_right: whether the two classes are the same.
        title: what it says in words.
    """

    x: int
    y: int
    opacity: float
    is_right: bool
    title: str


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """Two classes of which one is taken for the other."""

    actual: str
    predicted: str
    num_images: int
    num_actual: int


@dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion matrix: its cells that hold images, and what stands out.

    Attributes:
        class_names: of rows and columns.
        are_named: whether names of so many classes have room beside the rows.
        cells: row by row.
        pairs: the most confused ones, most images first.
        summary: in words.
    """

    class_names: tuple[str, ...]
    are_named: bool
    cells: tuple[Cell, ...]
    pairs: tuple[ConfusedPair, ...]
    summary: str


@dataclass(frozen=True, slots=True)
class ClassPoints:
    """The points of one class and kind in a plane, as the ``d`` of a ``<path>``."""

    class_name: str
    kind: str
    hue: float
    path: str
    title: str


@dataclass(frozen=True, slots=True)
class Plane:
    """Points in a plane (t-SNE).

    Attributes:
        title: what lies near each other.
        summary: in words.
        groups: the points, drawn in this order.
        kinds: of points, for the legend.
        hues: of the classes, for the legend; empty where they are too many.
    """

    title: str
    summary: str
    groups: tuple[ClassPoints, ...]
    kinds: tuple[str, ...]
    hues: tuple[tuple[str, float], ...]
    plot: Plot = _SQUARE


def add_metrics_page(
    site: Site, *, plots: Path, details: Sequence[Detail], class_names: Sequence[str], head: str, top: int
) -> None:
    """Write ``metrics.html``.

    Args:
        site: the report.
        plots: ``results/plots``.
        details: all numbers of the metrics table.
        class_names: in label order.
        head: of the network; a black box has no plots of prototypes.
        top: how many of the most similar prototypes of an image are counted.

    Raises:
        PipelineError: a plot is missing, damaged or of another data set.
    """
    has_prototypes = head != BLACKBOX
    deletion = plots / "deletion.csv"
    site.add_page(
        "metrics.html",
        "metrics.html.j2",
        confusion=confusion(plots / "confusion.csv", class_names),
        reliability=reliability_chart(plots / "reliability.csv", details),
        roc=roc_chart(plots / "roc.csv", details),
        usage=usage_chart(plots / "usage.csv", top=top) if has_prototypes else None,
        deletion=deletion_chart(deletion) if has_prototypes and deletion.exists() else None,
        planes=[
            plane(plots / "projection.csv", "Prototypes, and views of test images that are like them", class_names),
            plane(plots / "top_projection.csv", "Test images, by the prototypes most similar to them", class_names),
        ]
        if has_prototypes
        else [],
        most_pairs=MOST_PAIRS,
    )


def confusion(path: Path, class_names: Sequence[str]) -> Confusion:
    """Lay out the confusion matrix.

    Raises:
        PipelineError: PATH is missing, damaged or names another class.
    """
    frame = read_plot(path, texts=("actual", "predicted"))
    _check_classes(path, pd.concat([frame["actual"], frame["predicted"]]), class_names)
    position = {name: idx for idx, name in enumerate(class_names)}
    counts = Counter(zip(frame["actual"].map(position), frame["predicted"].map(position), strict=True))
    of_class = Counter(frame["actual"].map(position))
    cells = tuple(
        Cell(
            x=predicted,
            y=actual,
            opacity=round(_FAINTEST + (1 - _FAINTEST) * num / of_class[actual], 2),
            is_right=actual == predicted,
            title=f"{class_names[actual]}: {num} of {of_class[actual]} "
            + ("named rightly" if actual == predicted else f"taken for {class_names[predicted]}"),
        )
        for (actual, predicted), num in sorted(counts.items())
    )
    wrong = {pair: num for pair, num in counts.items() if pair[0] != pair[1]}
    most = sorted(wrong.items(), key=lambda entry: (-entry[1], entry[0]))[:MOST_PAIRS]
    return Confusion(
        class_names=tuple(class_names),
        are_named=len(class_names) <= _MANY_CLASSES,
        cells=cells,
        pairs=tuple(
            ConfusedPair(class_names[actual], class_names[predicted], num, of_class[actual])
            for (actual, predicted), num in most
        ),
        summary=f"Confusion matrix of {len(class_names)} classes: {len(frame) - sum(wrong.values())} of {len(frame)} "
        f"test images lie on the diagonal, where the class is right, the others in {len(wrong)} cells beside it. "
        "The table has the pairs of classes that are confused most.",
    )


def reliability_chart(path: Path, details: Sequence[Detail]) -> LineChart:
    """Lay out how often predictions of some confidence are right; the legend has the calibration errors.

    Raises:
        PipelineError: PATH is missing or damaged.
    """
    frame = read_plot(path, texts=("series",), numbers=("confidence", "accuracy"))
    errors = _values_by_title(details, "calibration_error")
    series = [
        Series(f"{line.title} (calibration error {errors[line.title]} %)", line.points, [x for x, _ in line.points])
        if line.title in errors
        else line
        for line in _series(frame, "confidence", "accuracy")
    ]
    words = [
        f"{line.title}: right in {_percent(y_first)} where its mean confidence is {_percent(x_first)}, "
        f"in {_percent(y_last)} where it is {_percent(x_last)}."
        for line in series
        for (x_first, y_first), (x_last, y_last) in [(line.points[0], line.points[-1])]
    ]
    return line_chart(
        "How often a prediction of some confidence is right",
        series,
        summary=" ".join(["Share of right predictions over their confidence.", *words]),
        x_title="confidence",
        y_title="right",
        x_range=(0.0, 1.0),
        x_marks=_FRACTIONS,
        y_marks=_FRACTIONS,
        guide=[(0.0, 0.0), (1.0, 1.0)],
        guide_title="as often as it claims",
        plot=_SQUARE,
    )


def roc_chart(path: Path, details: Sequence[Detail]) -> LineChart:
    """Lay out the mean ROC curves; the legend has the areas.

    Raises:
        PipelineError: PATH is missing or damaged.
    """
    frame = read_plot(path, texts=("series",), numbers=("false_positive_rate", "true_positive_rate"))
    areas = _values_by_title(details, "roc_auc")
    series = [
        Series(f"{line.title} (area {areas[line.title]} %)", line.points) if line.title in areas else line
        for line in _series(frame, "false_positive_rate", "true_positive_rate")
    ]
    words = [
        f"{line.title}: {_percent(np.interp(0.05, [x for x, _ in line.points], [y for _, y in line.points]))} found "
        "at 5 % false alarms."
        for line in series
    ]
    return line_chart(
        "ROC curve, mean over classes",
        series,
        summary=" ".join(["Share of a class's images that are found, over the share of false alarms.", *words]),
        x_title="false positives",
        y_title="true positives",
        x_range=(0.0, 1.0),
        x_marks=_FRACTIONS,
        y_marks=_FRACTIONS,
        guide=[(0.0, 0.0), (1.0, 1.0)],
        guide_title="guessing",
        plot=_SQUARE,
    )


def usage_chart(path: Path, *, top: int) -> BarChart:
    """Lay out how many prototypes are among the most similar ones of how many test images.

    Args:
        path: ``usage.csv``.
        top: how many of the most similar prototypes of an image are counted.

    Raises:
        PipelineError: PATH is missing or damaged.
    """
    frame = read_plot(path, numbers=("images",))
    counts = sorted(frame["images"].astype(int), reverse=True)
    bars, labels = histogram(counts, what="prototype", of="test image")
    top = min(top, len(counts))
    half = int(np.searchsorted(np.cumsum(counts), sum(counts) / 2)) + 1
    return bar_chart(
        f"Test images with a prototype in their top {top}",
        bars,
        summary=f"Unused (never in the top {top} of a test image): {counts.count(0)} of {len(counts)} prototypes. The "
        f"most used one is in the top {top} of {counts[0]} of {sum(counts) // top} test images; half of all these "
        f"places go to the {half} most used.",
        x_title="test images, from",
        y_title="prototypes",
        labels=labels,
    )


def deletion_chart(path: Path) -> LineChart:
    """Lay out the probability of the predicted class while views are taken out or put in.

    Raises:
        PipelineError: PATH is missing or damaged.
    """
    frame = read_plot(path, texts=("series",), numbers=("share_of_views", "probability"))
    series = _series(frame, "share_of_views", "probability")
    highest = max(y for line in series for _, y in line.points)
    words = [f"{line.title}: {np.mean([y for _, y in line.points]):.3f} in the mean." for line in series]
    return line_chart(
        "Probability of the predicted class",
        series,
        summary=" ".join(["Probability of the predicted class while views are taken out, or put in.", *words]),
        x_title="share of views",
        y_title="",
        x_range=(0.0, 1.0),
        x_marks=_FRACTIONS,
        y_marks=nice_ticks(0.0, highest),
    )


def plane(path: Path, title: str, class_names: Sequence[str]) -> Plane:
    """Lay out points that t-SNE has put near those that they are like.

    Raises:
        PipelineError: PATH is missing, damaged or names another class.
    """
    frame = read_plot(path, texts=("class_name", "kind"), numbers=("x", "y"))
    _check_classes(path, frame["class_name"], class_names)
    x, y = (_spread(frame[axis], ends) for axis, ends in (("x", _WIDTH), ("y", _HEIGHT)))
    frame = frame.assign(at=[f"M{across:g} {down:g}h0" for across, down in zip(x, y, strict=True)])
    hue = {name: round(idx * _GOLDEN_ANGLE % 360, 1) for idx, name in enumerate(class_names)}
    order = {name: idx for idx, name in enumerate(class_names)}
    kinds = tuple(dict.fromkeys(frame["kind"]))
    held = Counter(frame["kind"])
    groups = sorted(
        frame.groupby(["kind", "class_name"], sort=False),
        key=lambda group: (-kinds.index(group[0][0]), order[group[0][1]]),
    )
    return Plane(
        title=title,
        summary=f"{title}: {', '.join(f'{held[kind]} {kind}s' for kind in kinds)}, laid out so that "
        f"what is alike lies together. {_percent(_share_beside_own_class(frame))} of the points have one of their own "
        "class as their nearest.",
        groups=tuple(
            ClassPoints(class_name, kind, hue[class_name], "".join(points["at"]), f"{class_name}, {kind}s")
            for (kind, class_name), points in groups
        ),
        kinds=kinds,
        hues=tuple(hue.items()) if len(class_names) <= _MANY_CLASSES else (),
    )


def _spread(values: pd.Series, ends: tuple[int, int]) -> Float[np.ndarray, " point"]:
    """Spread values between the ends of an axis, a little inside."""
    low, high = values.min(), values.max()
    share = (values.to_numpy() - low) / (high - low) if high > low else np.full(len(values), 0.5)
    start, end = ends
    placed: np.ndarray = (start + (end - start) * (0.03 + 0.94 * share)).round(1)
    return placed


def _share_beside_own_class(frame: pd.DataFrame) -> float:
    if len(frame) < 2:
        return 0.0
    places = frame[["x", "y"]].to_numpy()
    nearest = KDTree(places).query(places, k=2)[1]
    idx = np.arange(len(frame))
    other = np.where(nearest[:, 0] == idx, nearest[:, 1], nearest[:, 0])
    names = frame["class_name"].to_numpy()
    return float((names[other] == names).mean())


def _series(frame: pd.DataFrame, x: str, y: str) -> list[Series]:
    """Split a plot into its lines; points without a value are left out, and so is a line without a point."""
    lines = []
    for title in dict.fromkeys(frame["series"]):
        of_line = frame[frame["series"] == title].dropna(subset=[x, y])
        if len(of_line):
            lines.append(Series(title, list(zip(of_line[x].tolist(), of_line[y].tolist(), strict=True))))
    return lines


def _values_by_title(details: Sequence[Detail], key: str) -> dict[str, str]:
    """Render a metric of the networks, by the titles that plots give them."""
    return {
        FULL_TITLES.get(detail.row, detail.row): render_value(detail.declared, detail.value)
        for detail in details
        if detail.family == "classification" and detail.metric == key and detail.value is not None
    }


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def _check_classes(path: Path, names: pd.Series, class_names: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(class_names))
    if unknown:
        raise PipelineError(
            f"{path} names a class `{unknown[0]}` that the data set does not have: data and results come from "
            "different runs, run `dvc checkout` or `dvc repro`"
        )
