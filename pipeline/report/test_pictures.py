"""The test images as pictures: drawn once, for the pages of images and for the lists of nearest views."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import WHOLE_IMAGE
from pipeline.data.bags import ViewRow
from pipeline.data.boxes import box_of_place
from pipeline.data.catalogue import ImageRow, ImagesTable
from pipeline.data.masks import StoredMask, join_masks
from pipeline.engine import map_in_order
from pipeline.errors import PipelineError
from pipeline.io import progress
from pipeline.reasons import Explanation
from pipeline.report.shown import Element, ShownElement, name_of_element, numbered_elements
from pipeline.report.site import Picture, Site
from pipeline.report.test_outputs import TestOutputs
from pipeline.report.thumbnails import NumberedImage, NumberedView, around_place, draw_numbered
from pipeline.runtime import Runtime

MANY_IMAGES = 400  # drawing fewer takes less time than starting worker processes


@dataclass(frozen=True, slots=True)
class TestPictures:
    """A test image, as pages show it.

    Attributes:
        image_key: of the image.
        small: the photograph, small.
        photograph: with the outlines of the numbered views.
        explanation: what the network says of it, and why; None for a black box.
        elements: the views or places that the reasons are about; they are numbered.
        views: pictures of these, and of those that are nearest to a prototype.
    """

    image_key: str
    small: Picture
    photograph: Picture
    explanation: Explanation | None
    elements: Mapping[Element, ShownElement]
    views: Mapping[Element, Picture]


def draw_test_images(
    site: Site,
    test: TestOutputs,
    *,
    images: ImagesTable,
    masks: Path,
    top: int,
    thumbnail_px: int,
    runtime: Runtime,
) -> list[TestPictures]:
    """Draw every test image and those of its views that pages show; each is decoded once.

    Args:
        site: gets the pictures.
        test: what the network says.
        images: the data set.
        masks: ``masks.parquet``; read once, in order.
        top: how many reasons are given for a class.
        thumbnail_px: longer side of photographs; that of views is half as long.
        runtime: workers.

    Returns:
        In the order of the test images.

    Raises:
        PipelineError: an image or mask is missing, damaged, or not the one that the views were cut from.
    """
    explanations: list[Explanation | None] = [None] * len(test.reader)
    wanted: list[dict[Element, int | None]] = [{} for _ in explanations]  # the views to be drawn, and their numbers
    if test.output is not None:
        for bag_idx in range(len(test.reader)):
            explanation = test.explanation(bag_idx, top=top)
            explanations[bag_idx] = explanation
            wanted[bag_idx].update(numbered_elements(explanation))
        for prototype_idx, nearest in enumerate(test.nearest_images):
            for bag_idx in nearest:
                wanted[bag_idx].setdefault(test.nearest_element(bag_idx, prototype_idx), None)
    drawn = map_in_order(
        functools.partial(draw_numbered, side_px=thumbnail_px),
        _to_draw(test, wanted, images, masks),
        runtime=runtime,
        workers=None if len(wanted) >= MANY_IMAGES else 1,
    )
    shown = []
    for bag_idx, picture in enumerate(progress(drawn, what="test images", total=len(wanted))):
        rows = test.reader.rows(bag_idx)
        views = dict(zip(wanted[bag_idx], map(site.add_picture, picture.views), strict=True))
        numbered = [(element, number) for element, number in wanted[bag_idx].items() if number is not None]
        elements = {
            element: ShownElement(number, views[element], _name_of(rows, element), *point)
            for (element, number), point in zip(numbered, picture.points, strict=True)
        }
        shown.append(
            TestPictures(
                image_key=rows[0].image_key,
                small=site.add_picture(picture.small),
                photograph=site.add_picture(picture.photograph),
                explanation=explanations[bag_idx],
                elements=elements,
                views=views,
            )
        )
    return shown


def _to_draw(
    test: TestOutputs, wanted: Sequence[Mapping[Element, int | None]], images: ImagesTable, masks: Path
) -> Iterator[NumberedImage]:
    reader = test.reader
    of_key = {row.image_key: row for row in images.rows}
    rows = [of_key.get(image_key) for image_key in reader.image_keys]
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        raise _stale(reader.image_keys[rows.index(None)], "is no image of the data set")
    with_masks: Iterator[tuple[ImageRow, Sequence[StoredMask]]] = ((row, ()) for row in found)
    if any(_needs_masks(reader.rows(bag_idx), elements) for bag_idx, elements in enumerate(wanted)):
        with_masks = join_masks(found, masks, are_all=False)
    for bag_idx, (row, stored) in enumerate(with_masks):
        yield _numbered_image(row, wanted[bag_idx], stored, test, bag_idx)


def _name_of(rows: Sequence[ViewRow], element: Element) -> str:
    view, place_idx = element
    return name_of_element(rows[view].mask_idx, None if place_idx < 0 else place_idx)


def _needs_masks(rows: Sequence[ViewRow], elements: Mapping[Element, int | None]) -> bool:
    return any(rows[view].mask_idx != WHOLE_IMAGE for view, _ in elements)


def _numbered_image(
    row: ImageRow, elements: Mapping[Element, int | None], masks: Sequence[StoredMask], test: TestOutputs, bag_idx: int
) -> NumberedImage:
    rows = test.reader.rows(bag_idx)
    pixels_of = {view: test.reader.view(rows[view]) for view, _ in elements}
    views = []
    for (view, place_idx), number in elements.items():
        mask_idx, box, pixels = rows[view].mask_idx, rows[view].box, pixels_of[view]
        if mask_idx >= len(masks):
            raise _stale(row.image_key, f"has no mask {mask_idx}")
        if place_idx >= 0:
            box = box_of_place(rows[view].box, place_idx, test.grid)
            pixels = around_place(pixels, box, rows[view].box)
        rle = None if mask_idx == WHOLE_IMAGE or place_idx >= 0 else masks[mask_idx].rle
        views.append(NumberedView(number, pixels, box, rle))
    return NumberedImage(row.path, row.width, row.height, tuple(views))


def _stale(image_key: str, why: str) -> PipelineError:
    return PipelineError(
        f"views.parquet: the test image {image_key} {why}: data and views come from different runs, "
        "run `dvc checkout` or `dvc repro`"
    )
