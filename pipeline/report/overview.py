"""The overview: headline numbers, the metrics table, the data, and what the run was made with."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.artifacts import VIEWS, read_table
from pipeline.data.catalogue import ImagesTable
from pipeline.data.datasets.interface import Split
from pipeline.errors import PipelineError
from pipeline.metrics.interface import Metric
from pipeline.metrics.registry import METRICS
from pipeline.params import Params
from pipeline.report.charts import BarChart, bar_chart, histogram
from pipeline.report.gallery import Card
from pipeline.report.inputs import NetworkDescription
from pipeline.report.price import PRICED, Price, signed
from pipeline.report.provenance import Provenance
from pipeline.report.site import Site
from pipeline.report.splits import SPLIT_TITLES, part_of_test_images
from pipeline.report.tables import (
    ABSENT,
    BLACKBOX,
    FULL_TITLES,
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

_DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "neither": "neither way is better"}
_MOST_LABELS = 12  # below bars


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
class ClassCounts:
    """How many images of each split a class has."""

    class_name: str
    of_split: Mapping[Split, int]


@dataclass(frozen=True, slots=True)
class ViewsPerImage:
    """How many views the images have; ``chart`` is their histogram."""

    median: float
    least: int
    most: int
    chart: BarChart


def add_overview(
    site: Site,
    *,
    images: ImagesTable,
    views: Path,
    network: NetworkDescription,
    details: Sequence[Detail],
    price: Price | None,
    cards: Sequence[Card],
    num_test: int,
    provenance: Provenance,
    params: Params,
) -> None:
    """Write ``index.html``.

    Args:
        site: the report.
        images: the data set.
        views: ``views.parquet``.
        network: the one evaluated.
        details: all numbers of the metrics table.
        price: what the network costs against the black box; None without one beside it.
        cards: the prototypes; none of a black box.
        num_test: test images that the network was shown; ``crops`` may have dropped some of the data set's.
        provenance: where the numbers come from.
        params: all sections are shown.

    Raises:
        PipelineError: VIEWS is missing, damaged or empty.
    """
    counts = count_classes(images)
    first, *others = metrics_tables(details, network.head)
    site.add_page(
        "index.html",
        "index.html.j2",
        network=network,
        accuracy=_accuracy(details, network.head),
        price=price,
        part_of_test_images=part_of_test_images(params),
        num_test=num_test,
        num_prototypes=len(cards),
        num_used=sum(card.usage.num_images > 0 for card in cards),
        top=min(params.evaluate.top_prototypes, len(cards)),
        example=_example(cards),
        classes=counts,
        split_titles=SPLIT_TITLES,
        num_per_split={split: sum(count.of_split[split] for count in counts) for split in SPLIT_TITLES},
        balance=balance_chart(counts),
        views=count_views(views),
        first_table=first,
        other_tables=others,
        legend=legend(params.evaluate.bootstrap_draws),
        notes=titled(notes_on(details)),
        definitions=_definitions(),
        provenance=provenance,
        seed=params.seed,
        sections=_sections(params),
    )


def _example(cards: Sequence[Card]) -> Card | None:
    """Choose the prototype that says most with few words: of those with a picture, the one most often in the top."""
    seen = [card for card in cards if card.source is not None]
    return max(seen, key=lambda card: (card.usage.num_images, -card.prototype_idx), default=None)


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
    return ABSENT if own is None or other is None else signed(declared, own - other)


def _definitions() -> dict[str, list[Metric]]:
    """All metrics, by the title of their family."""
    families: dict[str, list[Metric]] = {}
    for declared in METRICS:
        families.setdefault(family_title(declared.family), []).append(declared)
    return families


def _accuracy(details: Sequence[Detail], head: str) -> str:
    """Write the balanced accuracy of the network."""
    found = (detail.value for detail in details if detail.declared == PRICED and detail.row == head)
    return render_value(PRICED, next(found, None))


def count_classes(images: ImagesTable) -> list[ClassCounts]:
    """Count the images of each class and split, in label order."""
    found = Counter((row.label, row.split) for row in images.rows)
    return [
        ClassCounts(name, {split: found[label, split] for split in SPLIT_TITLES})
        for label, name in enumerate(images.class_names)
    ]


def balance_chart(counts: Sequence[ClassCounts]) -> BarChart:
    """Lay out how many images of each split the classes have."""
    totals = [sum(count.of_split.values()) for count in counts]
    every = -(-len(counts) // _MOST_LABELS)
    return bar_chart(
        "Images per class",
        [(f"{count.class_name}: {_in_splits(count)}", list(count.of_split.values())) for count in counts],
        summary=f"Images per class: {min(totals)} in the smallest class, {median(totals):g} in the median, "
        f"{max(totals)} in the largest, of {len(counts)}. A table below has the numbers.",
        x_title="class, by its number",
        y_title="images",
        labels=[(idx, str(idx)) for idx in range(0, len(counts), every)],
        legend=[f"{title} images" for title in SPLIT_TITLES.values()],
    )


def _in_splits(count: ClassCounts) -> str:
    return ", ".join(f"{num} {SPLIT_TITLES[split]}" for split, num in count.of_split.items())


def count_views(path: Path) -> ViewsPerImage:
    """Count the views in the bags of all images.

    Raises:
        PipelineError: PATH is missing, damaged or without a view.
    """
    table = read_table(path, VIEWS)
    counts = (
        table.filter(table["in_bag"]).group_by("image_key").aggregate([("view_idx", "count")])["view_idx_count"]
    ).to_pylist()
    if not counts:
        raise PipelineError(f"{path} lists no view: run `dvc repro crops`")
    return ViewsPerImage(float(median(counts)), min(counts), max(counts), histogram_of_views(counts))


def histogram_of_views(counts: Sequence[int]) -> BarChart:
    """Lay out how many images have how many views."""
    bars, labels = histogram(counts, what="image", of="view")
    return bar_chart(
        "Views per image",
        bars,
        summary=f"Views per image: {min(counts)} to {max(counts)}, {median(counts):g} in the median, "
        f"of {len(counts)} images.",
        x_title="views",
        y_title="images",
        labels=labels,
    )


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
