"""The prototypes as cards: what each is, how much it is used, and its pictures."""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from pipeline.artifacts import PER_IMAGE, PROTOTYPES, WHOLE_IMAGE, read_table
from pipeline.data.bags import BagReader
from pipeline.data.boxes import Box
from pipeline.data.catalogue import ImageRow, ImagesTable
from pipeline.data.masks import StoredMask, iterate_masks
from pipeline.engine import map_in_order
from pipeline.errors import PipelineError
from pipeline.io import progress, sha256_of
from pipeline.report.thumbnails import SourceImage, SourceView, Thumbnail, draw_source
from pipeline.runtime import Runtime

_MANY_IMAGES = 400  # drawing fewer takes less time than starting worker processes
_NAME_DIGITS = 16  # of a picture's hash; 64 bits do not collide in a gallery


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
    """The training view that a prototype is.

    Attributes:
        distance: squared distance of the learned prototype to the view.
        photograph: with the outline of the mask and the box of the view; None before it is drawn.
        view: what the network sees; None before it is drawn.
    """

    image_key: str
    view_idx: int
    mask_idx: int
    box: Box
    distance: float
    photograph: Picture | None = None
    view: Picture | None = None

    @property
    def is_whole_image(self) -> bool:
        """Whether the view shows the whole image, and so has no mask."""
        return self.mask_idx == WHOLE_IMAGE


@dataclass(frozen=True, slots=True)
class Card:
    """One prototype.

    Attributes:
        weight: from the prototype to its own class, in the last layer.
        usage: over test images.
        same_view_as: other prototypes with the same source.
        source: None where the class had no training view.
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


def count_usage(per_image: Path, prototype_labels: Sequence[int]) -> TestUsage:
    """Count, for each prototype, the test images that it helps to explain.

    Args:
        per_image: ``per_image.parquet``.
        prototype_labels: the class of each prototype.

    Raises:
        PipelineError: missing, damaged, without ProtoMask's rows, or of another network.
    """
    rows = [row for row in read_table(per_image, PER_IMAGE).to_pylist() if row["row"] == "protomask"]
    if not rows or any(row["top_prototypes"] is None for row in rows):
        raise PipelineError(f"{per_image} has no top prototypes of `protomask`: run `dvc repro evaluate`")
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


def read_prototypes(final: Path) -> list[dict[str, Any]]:
    """Read the rows of ``prototypes.parquet`` in FINAL; see ``artifacts.PROTOTYPES``.

    Raises:
        PipelineError: missing, damaged or empty.
    """
    rows: list[dict[str, Any]] = read_table(final / "prototypes.parquet", PROTOTYPES).to_pylist()
    if not rows:
        raise PipelineError(f"{final / 'prototypes.parquet'} has no prototype: run `dvc repro project`")
    return rows


def read_last_layer(final: Path) -> Float[np.ndarray, "class prototype"]:
    """Read the weights of the last layer from the network in FINAL, without building it.

    Raises:
        PipelineError: missing or damaged.
    """
    path = final / "model.safetensors"
    try:
        with safe_open(path, framework="numpy") as tensors:
            weights: np.ndarray = tensors.get_tensor("last_layer.weight")
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PipelineError(f"{path}: cannot be read ({reason}); run `dvc checkout` or `dvc repro`") from None
    return weights


def make_cards(final: Path, usage: TestUsage, rows: Sequence[Mapping[str, Any]]) -> list[Card]:
    """Describe every prototype; sources have no pictures yet.

    Args:
        final: holds the network.
        usage: over test images.
        rows: see :func:`read_prototypes`.

    Raises:
        PipelineError: the network is missing, damaged, or has other prototypes than the table.
    """
    last_layer = read_last_layer(final)
    if last_layer.shape[1] != len(rows) or max(row["label"] for row in rows) >= len(last_layer):
        raise PipelineError(f"{final}: model.safetensors and prototypes.parquet do not fit each other: run `dvc repro`")
    sharing: dict[tuple[str, int], list[int]] = {}
    for row in rows:
        if row["image_key"] is not None:
            sharing.setdefault((row["image_key"], row["view_idx"]), []).append(row["prototype_idx"])
    cards = []
    for row in rows:
        idx = row["prototype_idx"]
        source: Source | None = None
        same_view: tuple[int, ...] = ()
        if row["image_key"] is not None:
            source = Source(
                image_key=row["image_key"],
                view_idx=row["view_idx"],
                mask_idx=row["mask_idx"],
                box=Box(*row["box"]),
                distance=row["distance_before"],
            )
            same_view = tuple(other for other in sharing[source.image_key, source.view_idx] if other != idx)
        cards.append(
            Card(
                prototype_idx=idx,
                label=row["label"],
                class_name=row["class_name"],
                weight=float(last_layer[row["label"], idx]),
                usage=usage.of_prototype.get(idx, Usage()),
                same_view_as=same_view,
                source=source,
            )
        )
    return cards


def draw_cards(
    cards: Sequence[Card],
    folder: Path,
    *,
    images: ImagesTable,
    masks: Path,
    crops: Path,
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
        thumbnail_px: longer side of the pictures.
        runtime: workers.

    Raises:
        PipelineError: an image, mask or view is missing, damaged, or not the one that a prototype names.
    """
    of_image: dict[str, dict[int, Source]] = {}  # every view is drawn once, by image
    for card in cards:
        if card.source is not None:
            of_image.setdefault(card.source.image_key, {})[card.source.view_idx] = card.source
    work = sorted(of_image.items())
    stored = _masks_of({key for key, sources in work if not all(s.is_whole_image for s in sources.values())}, masks)
    sources = _source_images(work, images=images, masks=stored, crops=crops)
    results = map_in_order(
        functools.partial(draw_source, side_px=thumbnail_px),
        sources,
        runtime=runtime,
        workers=None if len(work) >= _MANY_IMAGES else 1,
    )
    folder.mkdir(parents=True, exist_ok=True)
    finished: dict[tuple[str, int], Source] = {}
    for (image_key, views), pairs in zip(work, progress(results, what="gallery", total=len(work)), strict=True):
        for (view_idx, source), (photograph, view) in zip(sorted(views.items()), pairs, strict=True):
            finished[image_key, view_idx] = replace(
                source, photograph=_stored(photograph, folder), view=_stored(view, folder)
            )
    return [
        card
        if card.source is None
        else replace(
            card,
            source=replace(finished[card.source.image_key, card.source.view_idx], distance=card.source.distance),
        )
        for card in cards
    ]


def _masks_of(image_keys: set[str], masks: Path) -> dict[str, list[StoredMask]]:
    """Read the masks of some images; the table is read no further than it must be."""
    found = ((key, stored) for key, stored in iterate_masks(masks) if key in image_keys)
    return dict(progress(islice(found, len(image_keys)), what="masks", total=len(image_keys)))


def _source_images(
    work: Iterable[tuple[str, Mapping[int, Source]]],
    *,
    images: ImagesTable,
    masks: Mapping[str, Sequence[StoredMask]],
    crops: Path,
) -> Iterator[SourceImage]:
    rows = {row.image_key: row for row in images.rows}
    reader = BagReader(crops, "train")
    position = {image_key: bag_idx for bag_idx, image_key in enumerate(reader.image_keys)}
    for image_key, sources in work:
        if image_key not in rows or image_key not in position:
            raise _stale(image_key, "is no training image with views")
        yield _source_image(rows[image_key], sources, masks.get(image_key, ()), reader, position[image_key])


def _source_image(
    row: ImageRow, sources: Mapping[int, Source], masks: Sequence[StoredMask], reader: BagReader, bag_idx: int
) -> SourceImage:
    in_bag = reader.rows(bag_idx)
    pixels = reader.views(bag_idx)
    drawn = []
    for view_idx, source in sorted(sources.items()):
        if view_idx >= len(in_bag) or in_bag[view_idx].mask_idx != source.mask_idx:
            raise _stale(row.image_key, f"has no view {view_idx} of mask {source.mask_idx}")
        if source.mask_idx >= len(masks):
            raise _stale(row.image_key, f"has no mask {source.mask_idx}")
        rle = None if source.is_whole_image else masks[source.mask_idx].rle
        drawn.append(SourceView(pixels[view_idx], source.box, rle))
    return SourceImage(row.path, row.width, row.height, tuple(drawn))


def _stale(image_key: str, why: str) -> PipelineError:
    return PipelineError(
        f"prototypes.parquet: the source image {image_key} {why}: data and model come from different runs, "
        "run `dvc checkout` or `dvc repro`"
    )


def _stored(thumbnail: Thumbnail, folder: Path) -> Picture:
    name = f"{sha256_of(thumbnail.content)[:_NAME_DIGITS]}.jpg"
    (folder / name).write_bytes(thumbnail.content)
    return Picture(name, thumbnail.width, thumbnail.height)
