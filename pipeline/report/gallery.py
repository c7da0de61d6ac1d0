"""The prototypes as cards: what each is, how much it is used, and its pictures."""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.artifacts import PER_IMAGE, PROTOTYPES, WHOLE_IMAGE, read_table
from pipeline.data.bags import BagReader
from pipeline.data.boxes import Box
from pipeline.data.catalogue import ImageRow, ImagesTable
from pipeline.data.masks import StoredMask, iterate_masks
from pipeline.engine import map_in_order
from pipeline.errors import PipelineError
from pipeline.io import progress, sha256_of
from pipeline.report.tables import BLACKBOX
from pipeline.report.thumbnails import SourceImage, SourceView, Thumbnail, around_place, draw_source
from pipeline.runtime import Runtime

_MANY_IMAGES = 400  # drawing fewer takes less time than starting worker processes
_NAME_DIGITS = 16  # of a picture's hash; 64 bits do not collide in a gallery

Element = tuple[int, int]
"""What is compared with prototypes, within an image: view_idx, and place_idx or -1."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture file in the folder of pictures."""

    name: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Usage:
    """In how many test images' explanations a prototype occurs: all of them, and those of its class."""

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


@dataclass(frozen=True, slots=True)
class Card:
    """One prototype.

    Attributes:
        label: its class; of a shared prototype, the one whose score it moves most.
        weight: of its similarity in the score of that class.
        usage: over test images.
        same_view_as: other prototypes with the same source.
        source: None where no training view could be one.
    """

    prototype_idx: int
    label: int
    class_name: str
    weight: float
    usage: Usage
    same_view_as: tuple[int, ...]
    source: Source | None


@dataclass(frozen=True, slots=True)
class TestUsage:
    """How the prototypes occur in the explanations of the test images.

    Attributes:
        top: how many prototypes explain an image.
        num_images: test images.
        of_prototype: by prototype_idx; those that never occur are absent.
    """

    top: int
    num_images: int
    of_prototype: Mapping[int, Usage]


def count_usage(per_image: Path, head: str, prototype_labels: Sequence[int]) -> TestUsage:
    """Count, for each prototype, the test images that it helps to explain.

    Args:
        per_image: ``per_image.parquet``.
        head: of the network; names its rows.
        prototype_labels: the class of each prototype.

    Raises:
        PipelineError: missing, damaged, without rows of the head, or of another network.
    """
    rows = [row for row in read_table(per_image, PER_IMAGE).to_pylist() if row["row"] == head]
    if not rows or any(row["top_prototypes"] is None for row in rows):
        raise PipelineError(f"{per_image} has no top prototypes of `{head}`: run `dvc repro evaluate`")
    images: Counter[int] = Counter()
    own: Counter[int] = Counter()
    for row in rows:
        for idx in row["top_prototypes"]:
            if not 0 <= idx < len(prototype_labels):
                raise PipelineError(f"{per_image} names prototype {idx} of {len(prototype_labels)}: run `dvc repro`")
            images[idx] += 1
            own[idx] += prototype_labels[idx] == row["label"]
    return TestUsage(
        top=max(len(row["top_prototypes"]) for row in rows),
        num_images=len(rows),
        of_prototype={idx: Usage(images[idx], own[idx]) for idx in sorted(images)},
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


def make_cards(usage: TestUsage, rows: Sequence[Mapping[str, Any]]) -> list[Card]:
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


def draw_cards(
    cards: Sequence[Card],
    folder: Path,
    *,
    images: ImagesTable,
    masks: Path,
    crops: Path,
    splits: Sequence[str],
    thumbnail_px: int,
    runtime: Runtime,
) -> list[Card]:
    """Write the pictures of all prototypes into FOLDER and give the cards that name them.

    Args:
        cards: without pictures.
        folder: gets ``<hash>.jpg`` files; equal pictures are stored once.
        images: the data set.
        masks: ``masks.parquet``.
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
    stored = _masks_of({key for key, sources in work if not all(s.is_whole_image for s in sources.values())}, masks)
    sources = _source_images(work, images=images, masks=stored, crops=crops, splits=splits)
    results = map_in_order(
        functools.partial(draw_source, side_px=thumbnail_px),
        sources,
        runtime=runtime,
        workers=None if len(work) >= _MANY_IMAGES else 1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    finished: dict[tuple[str, Element], Source] = {}
    for (image_key, elements), pairs in zip(work, progress(results, what="gallery", total=len(work)), strict=True):
        for (element, source), (photograph, view) in zip(sorted(elements.items()), pairs, strict=True):
            finished[image_key, element] = replace(
                source, photograph=_stored(photograph, folder), view=_stored(view, folder)
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


def _masks_of(image_keys: set[str], masks: Path) -> dict[str, list[StoredMask]]:
    """Read the masks of some images; the table is read no further than it must be."""
    found = ((key, stored) for key, stored in iterate_masks(masks) if key in image_keys)
    return dict(progress(islice(found, len(image_keys)), what="masks", total=len(image_keys)))


def _source_images(
    work: Sequence[tuple[str, Mapping[Element, Source]]],
    *,
    images: ImagesTable,
    masks: Mapping[str, Sequence[StoredMask]],
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
        yield _source_image(rows[image_key], sources, masks.get(image_key, ()), reader, position[image_key])


def _source_image(
    row: ImageRow, sources: Mapping[Element, Source], masks: Sequence[StoredMask], reader: BagReader, bag_idx: int
) -> SourceImage:
    views = {view.view_idx: view for view in reader.rows(bag_idx)}
    pixels_of = dict(zip(views, reader.views(bag_idx), strict=True))
    drawn = []
    for _, source in sorted(sources.items()):
        view = views.get(source.view_idx)
        if view is None or view.mask_idx != source.mask_idx:
            raise _stale(row.image_key, f"has no view {source.view_idx} of mask {source.mask_idx}")
        pixels = pixels_of[source.view_idx]
        if source.mask_idx >= len(masks):
            raise _stale(row.image_key, f"has no mask {source.mask_idx}")
        if source.place_idx is not None:
            if not _lies_within(source.box, view.box):
                raise _stale(row.image_key, f"has no place {source.place_idx} at {tuple(source.box)}")
            pixels = around_place(pixels, source.box, view.box)
        rle = None if source.is_whole_image else masks[source.mask_idx].rle
        drawn.append(SourceView(pixels, source.box, rle))
    return SourceImage(row.path, row.width, row.height, tuple(drawn))


def _lies_within(box: Box, other: Box) -> bool:
    return other.x0 <= box.x0 < box.x1 <= other.x1 and other.y0 <= box.y0 < box.y1 <= other.y1


def _stale(image_key: str, why: str) -> PipelineError:
    return PipelineError(
        f"prototypes.parquet: the source image {image_key} {why}: data and model come from different runs, "
        "run `dvc checkout` or `dvc repro`"
    )


def _stored(thumbnail: Thumbnail, folder: Path) -> Picture:
    name = f"{sha256_of(thumbnail.content)[:_NAME_DIGITS]}.jpg"
    (folder / name).write_bytes(thumbnail.content)
    return Picture(name, thumbnail.width, thumbnail.height)
