"""The report: one page and its pictures in a folder that needs nothing else, offline and wherever it is copied."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.artifacts import VIEWS, VIEWS_TABLE, read_table
from pipeline.data.catalogue import ImagesTable, load_images
from pipeline.errors import PipelineError
from pipeline.io import new_folder
from pipeline.metrics.interface import Metric
from pipeline.metrics.registry import METRICS, metric
from pipeline.params import Params
from pipeline.report import curves, inputs
from pipeline.report.gallery import Card, TestUsage, count_usage, draw_cards, make_cards, read_prototypes
from pipeline.report.tables import (
    ABSENT,
    BLACKBOX,
    FULL_TITLES,
    HEAD_TITLES,
    INSENSITIVE,
    RANDOMISED,
    Detail,
    Line,
    family_tables,
    family_title,
    legend,
    metric_title,
    notes_on,
    render_interval,
    render_value,
    titled,
)
from pipeline.report.thumbnails import BOX_RGB, OUTLINE_RGB
from pipeline.runtime import Runtime

_log = logging.getLogger(__name__)

PAGE = "index.html"
PICTURES = "images"

_MINUS = "−"
_DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "neither": "neither way is better"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a metrics table: a row of metrics.json; ``is_baseline`` is the black box beside another network."""

    row: str
    title: str
    is_baseline: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """A rendered value.

    Attributes:
        text: the value.
        interval: in brackets; None where there is none.
        is_best: whether it is the best of its line.
        mark: of a number that failed a sanity check; else empty.
        note: why there is no value, or what it failed; empty where there is nothing to say.
    """

    text: str
    interval: str | None
    is_best: bool
    mark: str
    note: str


@dataclass(frozen=True, slots=True)
class TableLine:
    """One metric; ``price`` is the network's value less the black box's."""

    metric: Metric
    title: str
    direction: str
    cells: tuple[Cell, ...]
    price: str


@dataclass(frozen=True, slots=True)
class MetricsTable:
    """The metrics of a family."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[TableLine, ...]


@dataclass(frozen=True, slots=True)
class ViewsPerImage:
    """How many views the images have."""

    median: float
    least: int
    most: int


def write_report(
    dataset: Path,
    masks: Path,
    crops: Path,
    final: Path,
    results: Path,
    out: Path,
    *,
    params: Params,
    runtime: Runtime,
) -> Path:
    """Write ``index.html`` and its pictures into OUT.

    Args:
        dataset: folder with ``images.parquet``.
        masks: folder with ``masks.parquet``.
        crops: folder with shards.
        final: the finished network, of any head, with ``prototypes.parquet``.
        results: what the stages from train to evaluate reported.
        out: replaced as a whole when everything is written.
        params: report and compat are used; all sections are shown.
        runtime: workers.

    Returns:
        The page.

    Raises:
        PipelineError: an input is missing, damaged or does not fit the others.
    """
    images = load_images(dataset)
    network = inputs.read_network(final / "model.json")
    details = inputs.read_details(results / "metrics_detail.parquet", network.head)
    summary = inputs.read_train_summary(results / "train/summary.json")
    content = {
        "network": network,
        "projection": inputs.read_projection(results / "project.json"),
        "finetune": inputs.read_finetune(results / "finetune.json"),
        "views": _views_per_image(crops / VIEWS_TABLE),
    }
    charts = curves.training_charts(results / "train", summary, network.head)
    rows = read_prototypes(final, network.head)
    usage: TestUsage | None = None
    cards: list[Card] = []
    if rows:
        usage = count_usage(results / "per_image.parquet", network.head, [row["label"] for row in rows])
        cards = make_cards(usage, rows)
    with new_folder(out) as folder:
        if cards:
            cards = draw_cards(
                cards,
                folder / PICTURES,
                images=images,
                masks=masks / "masks.parquet",
                crops=crops,
                splits=("train", "val") if params.compat.validate_on_test else ("train",),
                thumbnail_px=params.report.thumbnail_px,
                runtime=runtime,
            )
        page = (
            _environment()
            .get_template("index.html.j2")
            .render(
                **content,
                title=HEAD_TITLES[network.head],
                in_sentence=curves.in_sentence(network.head),
                dataset_name=params.dataset.name,
                num_classes=len(images.class_names),
                num_per_split=_num_per_split(images),
                headline=_headline(details, network.head),
                tables=metrics_tables(details, network.head),
                legend=legend(params.evaluate.bootstrap_draws),
                notes=titled(notes_on(details)),
                definitions=_definitions(),
                charts=charts,
                plot=curves.PLOT,
                training=_phases(summary, network.head),
                usage=usage,
                classes=_by_class(cards),
                num_cards=len(cards),
                num_unused=sum(card.usage.num_images == 0 for card in cards),
                num_duplicates=sum(bool(card.same_view_as) for card in cards),
                num_sourceless=sum(card.source is None for card in cards),
                pictures=PICTURES,
                outline_rgb=OUTLINE_RGB,
                box_rgb=BOX_RGB,
                seed=params.seed,
                sections=_sections(params),
            )
        )
        (folder / PAGE).write_text(page, encoding="utf-8")
    _log.info("report of %d prototypes: %s", len(cards), out / PAGE)
    return out / PAGE


def _environment() -> Environment:
    # everything is escaped, whatever the template's name: class names are other people's text
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = lambda fraction: f"{100 * fraction:.2f} %"
    return environment


def metrics_tables(details: Sequence[Detail], head: str) -> list[MetricsTable]:
    """Lay out the metrics, a table for each family.

    The columns are the network with HEAD, the black box beside it, then the network's variants: those that have metrics
    of the family. All come from the same test images, so they are comparable.
    """
    order = [head, BLACKBOX, *(row for row in FULL_TITLES if row.startswith(f"{head}_"))]
    return [
        MetricsTable(
            title=family_title(table.family),
            columns=tuple(
                Column(row, FULL_TITLES[row], is_baseline=row == BLACKBOX != head and head in table.rows)
                for row in table.rows
            ),
            lines=tuple(_table_line(line, table.rows, head) for line in table.lines),
        )
        for table in family_tables(details, dict.fromkeys(order))
    ]


def _table_line(line: Line, rows: Sequence[str], head: str) -> TableLine:
    values = {row: None if detail is None else detail.value for row, detail in zip(rows, line.details, strict=True)}
    return TableLine(
        metric=line.declared,
        title=metric_title(line.declared),
        direction=_DIRECTIONS[line.declared.direction],
        cells=tuple(map(_cell, line.details, line.is_best)),
        price=_difference(line.declared, values.get(head), values.get(BLACKBOX)),
    )


def _cell(detail: Detail | None, is_best: bool) -> Cell:
    if detail is None or detail.value is None:
        return Cell(ABSENT, None, False, "", "" if detail is None else detail.reason or "")
    failed = detail.insensitive_to or ()
    return Cell(
        text=render_value(detail.declared, detail.value),
        interval=render_interval(detail),
        is_best=is_best,
        mark=INSENSITIVE if failed else "",
        note=f"no worse with {', '.join(RANDOMISED[check] for check in failed)}" if failed else "",
    )


def _difference(declared: Metric, own: float | None, other: float | None) -> str:
    if own is None or other is None:
        return ABSENT
    size = render_value(declared, abs(own - other))
    if not size.strip("0."):
        return size
    return f"{'+' if own > other else _MINUS}{size}"


def _definitions() -> dict[str, list[Metric]]:
    """All metrics, by the title of their family."""
    families: dict[str, list[Metric]] = {}
    for declared in METRICS:
        families.setdefault(family_title(declared.family), []).append(declared)
    return families


def _headline(details: Sequence[Detail], head: str) -> dict[str, str | None]:
    """Balanced accuracy of both networks and their difference, rendered; None without a black box beside."""
    declared = metric("classification", "balanced_accuracy")
    by_row = {detail.row: detail.value for detail in details if detail.declared == declared}
    own, other = by_row.get(head), by_row.get(BLACKBOX)
    if head == BLACKBOX:
        other = None
    return {
        "own": render_value(declared, own),
        "blackbox": None if other is None else render_value(declared, other),
        "difference": None if other is None else _difference(declared, own, other),
    }


def _phases(summary: inputs.TrainSummary, head: str) -> list[dict[str, Any]]:
    return [
        {"network": HEAD_TITLES[kind], "phase": phase_title, "report": summary[role][phase]}
        for role, kind in curves.heads_by_role(head, summary).items()
        for phase, phase_title in curves.PHASE_TITLES.items()
        if phase in summary[role]
    ]


def _num_per_split(images: ImagesTable) -> dict[str, int]:
    return {
        "training": len(images.of_split("train")),
        "validation": len(images.of_split("val")),
        "test": len(images.of_split("test")),
    }


def _views_per_image(path: Path) -> ViewsPerImage:
    table = read_table(path, VIEWS)
    counts = table.filter(table["in_bag"]).group_by("image_key").aggregate([("view_idx", "count")])["view_idx_count"]
    if not len(counts):
        raise PipelineError(f"{path} lists no view: run `dvc repro crops`")
    extremes = pc.min_max(counts)
    median = pc.quantile(counts, 0.5)[0].as_py()
    return ViewsPerImage(median, extremes["min"].as_py(), extremes["max"].as_py())


def _by_class(cards: list[Card]) -> list[dict[str, Any]]:
    """Group the cards by class, in label order."""
    classes: dict[int, list[Card]] = {}
    for card in cards:
        classes.setdefault(card.label, []).append(card)
    return [
        {"label": label, "name": of_class[0].class_name, "cards": of_class}
        for label, of_class in sorted(classes.items())
    ]


def _sections(params: Params) -> dict[str, list[tuple[str, str]]]:
    """List the params of every section as (key, value); keys of subsections are joined to theirs by dots."""
    content = params.model_dump(mode="json")
    return {name: list(_flat(section, "")) for name, section in content.items() if isinstance(section, dict)}


def _flat(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
