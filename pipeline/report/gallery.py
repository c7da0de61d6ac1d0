"""The page of prototypes: what each is, how much it is used, its pictures, and the test views nearest to it."""

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.artifacts import PROTOTYPES, WHOLE_IMAGE, read_table
from pipeline.data.bags import BagReader
from pipeline.data.boxes import Box
from pipeline.data.catalogue import ImageRow, ImagesTable
from pipeline.engine import map_in_order
from pipeline.errors import PipelineError
from pipeline.io import progress
from pipeline.report.prototype_pictures import source_view
from pipeline.report.shown import Element, ShownPrototype, name_of_element
from pipeline.report.site import PICTURES, Picture, Site
from pipeline.report.tables import BLACKBOX
from pipeline.report.test_outputs import NUM_NEAREST, TestOutputs
from pipeline.report.test_pictures import MANY_IMAGES, TestPictures
from pipeline.report.thumbnails import BOX_RGB, OUTLINE_RGB, SourceImage, draw_source
from pipeline.runtime import Runtime

_DECIMALS = 6  # of numbers in the data of a page


@dataclass(frozen=True, slots=True)
class Usage:
    """Of how many test images a prototype is among the most similar ones: all images, and those of its class."""

    num_images: int = 0
    num_own_class: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """The training view that a prototype is, or the place in it.

    Attributes:
        place_idx: on the view's feature grid, row by row; None where views are compared.
        box: what the view shows, or what lies under the place.
        distance: of the learned prototype to the view or place.
        photograph: with the outline of the mask and the box; None before it is drawn.
        view: what the network sees, of a place its neighbourhood; None before it is drawn.
    """

    image_key: str
    view_idx: int
    place_idx: int | None
    mask_idx: int
    box: Box
    distance: float
    photograph: Picture | None = None
    view: Picture | None = None

    @property
    def is_whole_image(self) -> bool:
        """Whether the view shows the whole image, and so has no mask."""
        return self.mask_idx == WHOLE_IMAGE

    @property
    def element(self) -> Element:
        """Where in its image it is; sources with equal ones are the same."""
        return self.view_idx, -1 if self.place_idx is None else self.place_idx

    @property
    def name(self) -> str:
        """The view or place in words."""
        return name_of_element(self.mask_idx, self.place_idx)


@dataclass(frozen=True, slots=True)
class NearView:
    """A test view, or a place in one, near to a prototype.

    Attributes:
        image_key: of the test image.
        class_name: of the test image.
        is_own_class: whether this is the class of the prototype.
        distance: of the two, at least 0.
        picture: the view, or the neighbourhood of the place.
    """

    image_key: str
    class_name: str
    is_own_class: bool
    distance: float
    picture: Picture


@dataclass(frozen=True, slots=True)
class Card:
    """One prototype.

    Attributes:
        label: its class; of a shared prototype, the one whose score it moves most.
        weight: of its similarity in the score of that class.
        usage: over test images.
        num_reasons: test images that have it among the reasons for their predicted class: those of the largest
            contributions, which are not always the most similar ones.
        same_view_as: other prototypes with the same source.
        source: None where no training view could be one.
        nearest: from as many test images, the nearest first.
    """

    prototype_idx: int
    label: int
    class_name: str
    weight: float
    usage: Usage
    same_view_as: tuple[int, ...]
    source: Source | None
    nearest: tuple[NearView, ...] = ()
    num_reasons: int = 0

    @property
    def shown(self) -> ShownPrototype:
        """The prototype beside a view that looks like it."""
        source = self.source
        if source is None:
            return ShownPrototype(self.prototype_idx, self.class_name, None, None, None)
        return ShownPrototype(self.prototype_idx, self.class_name, source.view, source.photograph, source.image_key)


@dataclass(frozen=True, slots=True)
class PrototypeUsage:
    """How often prototypes are among the most similar ones of a test image.

    Attributes:
        top: how many of the most similar prototypes of an image are counted.
        num_images: test images.
        of_prototype: by prototype_idx; those that never occur are absent.
    """

    top: int
    num_images: int
    of_prototype: Mapping[int, Usage]


def count_usage(test: TestOutputs, prototype_labels: Sequence[int], *, top: int) -> PrototypeUsage:
    """Count, for each prototype, the test images that have it among their most similar ones.

    Args:
        test: of a network with prototypes.
        prototype_labels: the class of each prototype.
        top: how many of the most similar prototypes of an image are counted.
    """
    images: Counter[int] = Counter()
    own: Counter[int] = Counter()
    for label, prototypes in zip(test.reader.labels, test.most_similar(top), strict=True):
        images.update(prototypes)
        own.update(idx for idx in prototypes if prototype_labels[idx] == label)
    return PrototypeUsage(
        top=min(top, len(prototype_labels)),
        num_images=len(test.reader),
        of_prototype={idx: Usage(images[idx], own[idx]) for idx in sorted(images)},
    )


def count_reasons(pictures: Sequence[TestPictures]) -> Counter[int]:
    """Count, by prototype_idx, the test images that have the prototype among the reasons for their predicted class."""
    explanations = (shown.explanation for shown in pictures)
    return Counter(
        reason.prototype_idx
        for explanation in explanations
        if explanation is not None
        for reason in explanation.predicted.reasons
    )


def read_prototypes(final: Path, head: str) -> list[dict[str, Any]]:
    """Read the rows of ``prototypes.parquet`` in FINAL; see ``artifacts.PROTOTYPES``.

    Raises:
        PipelineError: missing, damaged, or empty though HEAD is no black box.
    """
    rows: list[dict[str, Any]] = read_table(final / "prototypes.parquet", PROTOTYPES).to_pylist()
    if not rows and head != BLACKBOX:
        raise PipelineError(f"{final / 'prototypes.parquet'} has no prototype: run `dvc repro project`")
    return rows


def make_cards(usage: PrototypeUsage, rows: Sequence[Mapping[str, Any]]) -> list[Card]:
    """Describe every prototype; sources have no pictures yet.

    Args:
        usage: over test images.
        rows: see :func:`read_prototypes`.
    """
    sources = {row["prototype_idx"]: _source_of(row) for row in rows}
    sharing: dict[tuple[str, Element], list[int]] = {}
    for idx, source in sources.items():
        if source is not None:
            sharing.setdefault((source.image_key, source.element), []).append(idx)
    cards = []
    for row in rows:
        idx = row["prototype_idx"]
        source = sources[idx]
        same = sharing[source.image_key, source.element] if source is not None else []
        cards.append(
            Card(
                prototype_idx=idx,
                label=row["label"],
                class_name=row["class_name"],
                weight=row["weight"],
                usage=usage.of_prototype.get(idx, Usage()),
                same_view_as=tuple(other for other in same if other != idx),
                source=source,
            )
        )
    return cards


def _source_of(row: Mapping[str, Any]) -> Source | None:
    if row["image_key"] is None:
        return None
    return Source(
        image_key=row["image_key"],
        view_idx=row["view_idx"],
        place_idx=row["place_idx"],
        mask_idx=row["mask_idx"],
        box=Box(*row["box"]),
        distance=row["distance_before"],
    )


def add_prototypes_page(
    site: Site,
    final: Path,
    *,
    test: TestOutputs,
    pictures: Sequence[TestPictures],
    images: ImagesTable,
    crops: Path,
    splits: Sequence[str],
    top: int,
    thumbnail_px: int,
    runtime: Runtime,
) -> list[Card]:
    """Write ``prototypes.html`` and its pictures, also of a black box, whose page says that it has none.

    Args:
        site: gets the page.
        final: folder of the finished network, with ``prototypes.parquet``.
        test: what the network says of the test images.
        pictures: of the test images.
        images: the data set.
        crops: folder with shards.
        splits: those that the network was trained on.
        top: how many of the most similar prototypes of an image are counted.
        thumbnail_px: longer side of the pictures.
        runtime: workers.

    Returns:
        All prototypes; none of a black box.

    Raises:
        PipelineError: a file is missing, damaged, or of another run than the others.
    """
    head = test.network.head
    rows = read_prototypes(final, head)
    if test.output is not None and len(rows) != test.output.similarity.shape[1]:
        raise PipelineError(
            f"{final / 'prototypes.parquet'} has {len(rows)} prototypes, the network beside it "
            f"{test.output.similarity.shape[1]}: run `dvc checkout` or `dvc repro`"
        )
    usage = PrototypeUsage(top, len(test.reader), {})
    cards: list[Card] = []
    if rows:
        usage = count_usage(test, [row["label"] for row in rows], top=top)
        nearest = _nearest(test, pictures, [row["label"] for row in rows])
        of_reasons = count_reasons(pictures)
        cards = [
            replace(card, nearest=near, num_reasons=of_reasons[card.prototype_idx])
            for card, near in zip(make_cards(usage, rows), nearest, strict=True)
        ]
        cards = draw_cards(
            cards,
            site,
            images=images,
            crops=crops,
            splits=splits,
            thumbnail_px=thumbnail_px,
            runtime=runtime,
        )
    for asset in ("gallery.js", "gallery.css"):
        site.add_asset(asset)
    site.add_page(
        "prototypes.html",
        "prototypes.html.j2",
        head=head,
        cards=cards,
        usage=usage,
        classes=sorted({card.label: card.class_name for card in cards}.items()),
        num_unused=sum(card.usage.num_images == 0 for card in cards),
        num_duplicates=sum(bool(card.same_view_as) for card in cards),
        num_sourceless=sum(card.source is None for card in cards),
        num_nearest=min(NUM_NEAREST, len(test.reader)),
        outline_rgb=OUTLINE_RGB,
        box_rgb=BOX_RGB,
        data=page_data([_item(card) for card in cards]),
    )
    return cards


def page_data(items: Sequence[Mapping[str, Any]]) -> Markup:
    """Write ITEMS as JSON that stands in a ``<script>`` element: no text in it can end the element."""
    text = json.dumps(items, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # escaped for where it stands


def in_data(picture: Picture | None) -> list[str | int] | None:
    """Write a picture of a site as the script reads it: name of the file, width, height."""
    return None if picture is None else [picture.src.removeprefix(f"{PICTURES}/"), picture.width, picture.height]


def _item(card: Card) -> dict[str, Any]:
    source = card.source
    return {
        "id": card.prototype_idx,
        "label": card.label,
        "class": card.class_name,
        "weight": round(card.weight, _DECIMALS),
        "distance": source and round(source.distance, _DECIMALS),
        "usage": card.usage.num_images,
        "own": card.usage.num_own_class,
        "reasons": card.num_reasons,
        "key": source and source.image_key,
        "part": source and source.name,
        "photograph": source and in_data(source.photograph),
        "view": source and in_data(source.view),
        "unused": card.usage.num_images == 0,
        "duplicates": [{"id": idx} for idx in card.same_view_as],
        "nearest": [
            {
                "key": near.image_key,
                "class": near.class_name,
                "own": near.is_own_class,
                "distance": round(near.distance, _DECIMALS),
                "view": in_data(near.picture),
            }
            for near in card.nearest
        ],
    }


def _nearest(
    test: TestOutputs, pictures: Sequence[TestPictures], prototype_labels: Sequence[int]
) -> list[tuple[NearView, ...]]:
    assert test.output is not None
    labels = test.reader.labels
    return [
        tuple(
            NearView(
                image_key=pictures[bag_idx].image_key,
                class_name=test.class_names[labels[bag_idx]],
                is_own_class=labels[bag_idx] == prototype_labels[prototype_idx],
                distance=float(test.output.distance[bag_idx, prototype_idx]),
                picture=pictures[bag_idx].views[test.nearest_element(bag_idx, prototype_idx)],
            )
            for bag_idx in nearest
        )
        for prototype_idx, nearest in enumerate(test.nearest_images)
    ]


def draw_cards(
    cards: Sequence[Card],
    site: Site,
    *,
    images: ImagesTable,
    crops: Path,
    splits: Sequence[str],
    thumbnail_px: int,
    runtime: Runtime,
) -> list[Card]:
    """Write the pictures of all prototypes and give the cards that name them.

    Args:
        cards: without pictures.
        site: gets the pictures.
        images: the data set.
        crops: folder with shards.
        splits: those that the network was trained on.
        thumbnail_px: longer side of the pictures.
        runtime: workers.

    Raises:
        PipelineError: an image, mask or view is missing, damaged, or not the one that a prototype names.
    """
    of_image: dict[str, dict[Element, Source]] = {}  # every view, or place, is drawn once, by image
    for card in cards:
        if card.source is not None:
            of_image.setdefault(card.source.image_key, {})[card.source.element] = card.source
    work = sorted(of_image.items())
    sources = _source_images(work, images=images, crops=crops, splits=splits)
    results = map_in_order(
        functools.partial(draw_source, side_px=thumbnail_px),
        sources,
        runtime=runtime,
        workers=None if len(work) >= MANY_IMAGES else 1,
    )
    finished: dict[tuple[str, Element], Source] = {}
    for (image_key, elements), pairs in zip(work, progress(results, what="prototypes", total=len(work)), strict=True):
        for (element, source), (photograph, view) in zip(sorted(elements.items()), pairs, strict=True):
            finished[image_key, element] = replace(
                source, photograph=site.add_picture(photograph), view=site.add_picture(view)
            )
    return [
        card
        if card.source is None
        else replace(
            card,
            source=replace(finished[card.source.image_key, card.source.element], distance=card.source.distance),
        )
        for card in cards
    ]


def _source_images(
    work: Sequence[tuple[str, Mapping[Element, Source]]],
    *,
    images: ImagesTable,
    crops: Path,
    splits: Sequence[str],
) -> Iterator[SourceImage]:
    rows = {row.image_key: row for row in images.rows}
    # the whole image may lie beside the bag, for networks that see nothing else
    only_whole = all(source.is_whole_image for _, sources in work for source in sources.values())
    reader = BagReader(crops, *splits, views="whole" if only_whole else "bag")
    position = {image_key: bag_idx for bag_idx, image_key in enumerate(reader.image_keys)}
    for image_key, sources in work:
        if image_key not in rows or image_key not in position:
            raise _stale(image_key, "is no training image with views")
        yield _source_image(rows[image_key], sources, reader, position[image_key])


def _source_image(row: ImageRow, sources: Mapping[Element, Source], reader: BagReader, bag_idx: int) -> SourceImage:
    views = {view.view_idx: view for view in reader.rows(bag_idx)}
    drawn = []
    for _, source in sorted(sources.items()):
        view = views.get(source.view_idx)
        if view is None or view.mask_idx != source.mask_idx:
            raise _stale(row.image_key, f"has no view {source.view_idx} of mask {source.mask_idx}")
        if source.place_idx is not None and not _lies_within(source.box, view.box):
            raise _stale(row.image_key, f"has no place {source.place_idx} at {tuple(source.box)}")
        drawn.append(source_view(reader, view, row, box=source.box, place_idx=source.place_idx))
    return SourceImage(row.path, row.width, row.height, tuple(drawn))


def _lies_within(box: Box, other: Box) -> bool:
    return other.x0 <= box.x0 < box.x1 <= other.x1 and other.y0 <= box.y0 < box.y1 <= other.y1


def _stale(image_key: str, why: str) -> PipelineError:
    return PipelineError(
        f"prototypes.parquet: the source image {image_key} {why}: data and model come from different runs, "
        "run `dvc checkout` or `dvc repro`"
    )
