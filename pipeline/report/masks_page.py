"""The page of the masks: what the segmenter finds in some images, which masks become views, and the figures of all."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pipeline.data.catalogue import ImageRow, ImagesTable
from pipeline.data.sample import draw_evenly
from pipeline.engine import map_in_order
from pipeline.io import progress
from pipeline.report.mask_pictures import (
    COLOURS_RGB,
    MaskedImage,
    MaskPictures,
    colour_of_number,
    draw_masks,
    masked_images,
)
from pipeline.report.mask_reports import (
    CropsReport,
    Histogram,
    Quality,
    QualityOfSplits,
    Spread,
    checked_crops_report,
    checked_masks_report,
)
from pipeline.report.site import Picture, Site
from pipeline.report.splits import SPLIT_TITLES, images_of
from pipeline.report.tables import ABSENT
from pipeline.report.thumbnails import encoded
from pipeline.report.view_cover import ViewCover
from pipeline.runtime import Runtime

PAGE = "masks.html"

_MANY_IMAGES = 100  # drawing fewer takes less time than starting worker processes
_DROPPED = {
    "too_small": ("too small", "smaller than the share of the image in crops.min_area_frac"),
    "too_large": ("too large", "larger than the share of the image in crops.max_area_frac"),
    "too_thin": ("too thin", "their box is narrower or lower than crops.min_extent_px"),
    "duplicate": ("duplicates", "nearly equal to a mask that was chosen before (crops.duplicate_iou)"),
    "over_max_views": ("beyond the number of views", "the image had crops.max_views masks already"),
    "empty_bag": ("of images without a view", "the image was dropped (crops.empty_bag)"),
}


@dataclass(frozen=True, slots=True)
class ShownView:
    """A view on a sheet: its number on the photograph, None for the whole image, and the colour of the number."""

    number: int | None
    colour: str
    picture: Picture


@dataclass(frozen=True, slots=True)
class Sheet:
    """An image with its masks.

    Attributes:
        image_key: of the image.
        class_name: its class.
        num_masks: all that the segmenter found.
        covered_frac: share of the image that lies in a mask.
        masks: the photograph under all masks.
        chosen: the photograph with the masks that became views.
        views: in bag order.
    """

    image_key: str
    class_name: str
    num_masks: int
    covered_frac: float
    masks: Picture
    chosen: Picture
    views: tuple[ShownView, ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """A line of a histogram; ``frac`` is the share of all, ``length`` its bar, 0..1 of the longest."""

    title: str
    note: str
    num: int
    frac: float
    length: float


@dataclass(frozen=True, slots=True)
class Strip:
    """A distribution as a line of a table: rendered numbers, and where they lie between 0 and the end of the scale.

    Attributes:
        title: what is measured.
        explanation: for somebody who does not know the word.
        median: rendered.
        mean: rendered.
        low: rendered; 5 % of the values lie below.
        high: rendered; 5 % lie above.
        at: of low, lower quarter, median, upper quarter and high, 0..100.
        scale: the end of the scale, rendered.
    """

    title: str
    explanation: str
    median: str
    mean: str
    low: str
    high: str
    at: tuple[float, float, float, float, float]
    scale: str


@dataclass(frozen=True, slots=True)
class FigureLine:
    """A figure of all images and of each split, rendered."""

    title: str
    explanation: str
    cells: tuple[str, ...]


def add_masks_page(
    site: Site,
    *,
    images: ImagesTable,
    masks: Path,
    crops: Path,
    masks_report: Mapping[str, Any],
    crops_report: Mapping[str, Any],
    cover: ViewCover,
    background: str,
    num_images: int,
    thumbnail_px: int,
    seed: int,
    runtime: Runtime,
) -> None:
    """Write the page and its pictures.

    Args:
        site: gets them.
        images: the data set.
        masks: ``masks.parquet``.
        crops: folder with shards.
        masks_report: the content of ``masks.json``.
        crops_report: the content of ``crops.json``.
        cover: how much of the images the views show.
        background: as in ``crops.background``: what a view shows around its mask.
        num_images: how many images are shown; fewer where there are fewer.
        thumbnail_px: longer side of the photographs; views are half as large.
        seed: of the draw of images.
        runtime: workers.

    Raises:
        PipelineError: an input is missing, damaged or does not fit the others.
    """
    report, chosen = checked_masks_report(masks_report), checked_crops_report(crops_report)
    quality = report.quality
    rows = choose_images(images, num_images, seed=seed)
    work = masked_images(rows, masks=masks, crops=crops)
    drawn = map_in_order(
        functools.partial(_with_pictures, side_px=thumbnail_px, view_px=max(1, thumbnail_px // 2)),
        work,
        runtime=runtime,
        workers=None if len(rows) >= _MANY_IMAGES else 1,
    )
    sheets: dict[str, list[Sheet]] = {split: [] for split in SPLIT_TITLES}
    for image, pictures in progress(drawn, what="masks page", total=len(rows)):
        sheets[image.row.split].append(_sheet(site, image, pictures))
    site.add_asset("sheets.css")
    columns, figures = figure_lines(quality)
    site.add_page(
        PAGE,
        "masks.html.j2",
        sheets={images_of(split).capitalize(): sheets[split] for split in SPLIT_TITLES if sheets[split]},
        num_shown=len(rows),
        num_all=len(images.rows),
        colours=[_css(colour) for colour in COLOURS_RGB],
        report=report,
        strips=strips(quality.all, cover),
        cover=cover,
        shows_surroundings=background == "original",
        area=area_bars(quality.all.area_histogram),
        columns=columns,
        figures=figures,
        reasons={**quality.reasons, **quality.all.reasons},
        consistency=quality.mask_consistency,
        crops=chosen,
        fates=fate_bars(chosen),
    )


def choose_images(images: ImagesTable, num: int, *, seed: int) -> list[ImageRow]:
    """Draw images evenly: as many from each split as from the others, and within a split from its classes.

    Args:
        images: the data set.
        num: images to draw; fewer come where there are fewer. What a small split lacks, the others make up for.
        seed: of the draw.

    Returns:
        By split, then label, then key.
    """
    of_split = {split: [row for row in images.rows if row.split == split] for split in SPLIT_TITLES}
    smallest_first = sorted(
        (split for split in SPLIT_TITLES if of_split[split]), key=lambda split: len(of_split[split])
    )
    chosen: dict[str, list[ImageRow]] = {split: [] for split in SPLIT_TITLES}
    left = num
    for position, split in enumerate(smallest_first):
        rows = of_split[split]
        share = min(len(rows), left // (len(smallest_first) - position))
        drawn = draw_evenly([row.image_key for row in rows], [row.label for row in rows], share, seed=seed)
        chosen[split] = sorted((rows[idx] for idx in drawn), key=lambda row: (row.label, row.image_key))
        left -= share
    return [row for split in SPLIT_TITLES for row in chosen[split]]


def _with_pictures(image: MaskedImage, *, side_px: int, view_px: int) -> tuple[MaskedImage, MaskPictures]:
    return image, draw_masks(image, side_px=side_px, view_px=view_px)


def _sheet(site: Site, image: MaskedImage, pictures: MaskPictures) -> Sheet:
    return Sheet(
        image_key=image.row.image_key,
        class_name=image.row.class_name,
        num_masks=len(image.masks),
        covered_frac=pictures.covered_frac,
        masks=site.add_picture(encoded(pictures.masks)),
        chosen=site.add_picture(encoded(pictures.chosen)),
        views=tuple(
            ShownView(
                number=None if chosen.rle is None else chosen.number,
                colour=_css(colour_of_number(chosen.number)),
                picture=site.add_picture(encoded(view)),
            )
            for chosen, view in zip(image.chosen, pictures.views, strict=True)
        ),
    )


def _css(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def area_bars(histogram: Histogram) -> list[Bar]:
    """Lay out the histogram of the masks' areas, without the empty bins at both ends."""
    bars = _bars(
        (f"{100 * low:g} to {100 * high:g} %", "", num)
        for (low, high), num in zip(pairwise(histogram.edges), histogram.num_masks, strict=True)
    )
    filled = [idx for idx, bar in enumerate(bars) if bar.num]
    return bars[filled[0] : filled[-1] + 1] if filled else []


def fate_bars(report: CropsReport) -> list[Bar]:
    """Lay out what became of all masks: the views first, then why the others did not become one."""
    masks = report.masks
    reasons = [reason for reason in _DROPPED if reason in masks.dropped]
    reasons += sorted(masks.dropped.keys() - _DROPPED.keys())
    lines = [("became a view", "", masks.num_out)]
    for reason in reasons:
        title, note = _DROPPED.get(reason, (reason.replace("_", " "), ""))
        lines.append((title, note, masks.dropped[reason]))
    return _bars(lines)


def _bars(lines: Iterable[tuple[str, str, int]]) -> list[Bar]:
    found = list(lines)
    total = sum(num for _, _, num in found) or 1
    longest = max((num for _, _, num in found), default=0) or 1
    return [Bar(title, note, num, num / total, num / longest) for title, note, num in found]


def strips(quality: Quality, cover: ViewCover) -> list[Strip]:
    """Lay out the distributions over images, or over masks."""
    too = f" {cover.of_whole_images[0].upper()}{cover.of_whole_images[1:]}." if cover.num_whole else ""
    measured = (
        ("Masks per image", "How many masks the segmenter finds in an image.", quality.masks_per_image, False),
        (
            "Share in a mask",
            "How much of an image lies in at least one of all its masks, of which some become views.",
            quality.covered_frac,
            True,
        ),
        (
            "Share in the box of a view",
            "How much of an image lies in the box of at least one of its views, the whole image left aside. What no "
            f"view shows cannot be a reason.{too}",
            _spread(cover.fracs),
            True,
        ),
        ("Area of a mask", "As share of its image.", quality.area_frac, True),
        (
            "Share of the box that the mask fills",
            "A view shows the box around a mask; what the mask does not fill is surroundings.",
            quality.box_fill,
            True,
        ),
        (
            "IoU with the object",
            "How well the best mask of an image fits the labelled object: what both cover, as share of what at least "
            "one of them covers. 100 % is the object itself.",
            quality.object_iou,
            True,
        ),
    )
    return [
        _strip(title, explanation, spread, is_share)
        for title, explanation, spread, is_share in measured
        if spread is not None
    ]


def _spread(values: Float[np.ndarray, " image"]) -> Spread:
    low, q05, q25, middle, q75, q95, high = np.quantile(values, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)).tolist()
    return Spread(min=low, q05=q05, q25=q25, median=middle, q75=q75, q95=q95, max=high, mean=float(values.mean()))


def _strip(title: str, explanation: str, spread: Spread, is_share: bool) -> Strip:
    end = 1.0 if is_share else max(spread.max, 1.0)
    render = _percent if is_share else _count
    five = (spread.q05, spread.q25, spread.median, spread.q75, spread.q95)
    return Strip(
        title=title,
        explanation=explanation,
        median=render(spread.median),
        mean=render(spread.mean),
        low=render(spread.q05),
        high=render(spread.q95),
        at=tuple(round(100 * value / end, 2) for value in five),  # type: ignore[arg-type]
        scale=render(end),
    )


def figure_lines(quality: QualityOfSplits) -> tuple[list[str], list[FigureLine]]:
    """Lay out the figures that are one number each.

    Returns:
        The titles of the columns, and the lines, one cell per column.
    """
    of_split = {"val": quality.val, "train": quality.train, "test": quality.test}
    columns = {"All images": quality.all}
    columns |= {
        images_of(split).capitalize(): found for split in SPLIT_TITLES if (found := of_split[split]) is not None
    }
    groups = list(columns.values())
    limits = list(dict.fromkeys(limit for one in groups if one.object_iou for limit in one.object_iou.share_at_least))

    def line(title: str, explanation: str, cells: Sequence[str]) -> FigureLine:
        return FigureLine(title, explanation, tuple(cells))

    lines = [
        line("Images", "", [f"{one.num_images:,}" for one in groups]),
        line("Masks", "All that the segmenter kept.", [f"{one.num_masks:,}" for one in groups]),
        line(
            "Masks on a covered pixel",
            "How many masks lie on one another, in the mean: 1 where no two of them overlap.",
            [_rendered(overlap(one), _one_decimal) for one in groups],
        ),
    ]
    for position, limit in enumerate(limits):
        lines.append(
            line(
                f"Objects found at IoU {limit}",
                "" if position else "Share of the images in which a mask fits the labelled object at least so well.",
                [_rendered(_reached(one, limit), _percent) for one in groups],
            )
        )
    if any(one.parts for one in groups):
        lines += [
            line(
                "Visible parts",
                "Labelled points on the objects, such as a beak.",
                [ABSENT if one.parts is None else f"{one.parts.num_visible:,}" for one in groups],
            ),
            line(
                "Parts in a mask",
                "Share of the visible parts that lie in at least one mask.",
                [_rendered(None if one.parts is None else one.parts.in_a_mask, _percent) for one in groups],
            ),
            line(
                "Parts in a box",
                "Share of the visible parts that lie in the box around at least one mask, which is what a view shows.",
                [_rendered(None if one.parts is None else one.parts.in_a_box, _percent) for one in groups],
            ),
        ]
    return list(columns), lines


def _reached(quality: Quality, limit: str) -> float | None:
    return None if quality.object_iou is None else quality.object_iou.share_at_least.get(limit)


def overlap(quality: Quality) -> float | None:
    """Say how many masks lie on a covered pixel in the mean, images weighing equally; None without a covered one."""
    if quality.area_frac is None or quality.covered_frac is None or not quality.covered_frac.mean:
        return None
    return quality.num_masks * quality.area_frac.mean / (quality.num_images * quality.covered_frac.mean)


def _rendered(value: float | None, render: Callable[[float], str]) -> str:
    return ABSENT if value is None else render(value)


def _one_decimal(value: float) -> str:
    return f"{value:.1f}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _percent(share: float) -> str:
    """Write a share with the digits that it needs: 0.03 %, 1.2 %, 96.4 %."""
    percent = 100 * share
    return f"{percent:.2f} %" if 0 < percent < 1 else f"{percent:.1f} %" if 0 < percent < 100 else f"{percent:.0f} %"
