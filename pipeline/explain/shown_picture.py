"""One explained picture as a page of its own and as a single drawing: "this view looks like that prototype"."""

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageDraw

from pipeline.artifacts import WHOLE_IMAGE
from pipeline.data.boxes import box_of_place
from pipeline.explain.pictures import ExplainedPicture
from pipeline.report.drawing import PAPER_RGB, SOFT_RGB, TEXT_RGB, fitted, letters, write_line
from pipeline.report.prototype_pictures import PrototypePictures
from pipeline.report.shown import (
    Element,
    Ranked,
    ShownElement,
    ShownPrototype,
    ShownReason,
    ShownScore,
    name_of_element,
    numbered_elements,
    ranked_lines,
    shown_scores,
)
from pipeline.report.site import Picture, embedded, render_alone
from pipeline.report.thumbnails import (
    NUMBER_RGB,
    NumberedImage,
    NumberedView,
    Thumbnail,
    around_place,
    draw_numbered,
)

PHOTOGRAPH_PX = 448
"""Longer side of the photograph on the page."""

_SHEET_PX, _LEFT_PX, _GAP_PX, _ROW_PX = 1200, 440, 20, 132
_TITLE_PX, _LETTERS_PX, _SMALL_PX = 26, 17, 14
_BAR_RGB, _AGAINST_RGB = (11, 98, 196), (181, 72, 10)


@dataclass(frozen=True)
class ShownPicture:
    """An explained picture with everything that is drawn of it.

    Attributes:
        explained: what is shown.
        photograph: with the outlines of the numbered views.
        elements: the views or places that the reasons are about.
        score: the predicted class and the reasons for it.
        missing: why prototypes have no pictures; empty where they have.
        thumbnails: the pictures on the page by their ``src``.
    """

    explained: ExplainedPicture
    photograph: Picture
    elements: tuple[ShownElement, ...]
    score: ShownScore
    missing: str
    thumbnails: dict[str, Thumbnail]

    @property
    def ranking(self) -> list[Ranked]:
        """The most probable classes."""
        explanation = self.explained.explanation
        return ranked_lines(explanation.ranking, self.explained.class_names, explanation.predicted.label, None)


def show(explained: ExplainedPicture, prototypes: PrototypePictures) -> ShownPicture:
    """Draw what an explanation is about.

    Args:
        explained: of a file.
        prototypes: pictures of the network's prototypes.

    Raises:
        PipelineError: the file is gone, or a picture of a prototype is damaged.
    """
    thumbnails: dict[str, Thumbnail] = {}

    def kept(thumbnail: Thumbnail) -> Picture:
        picture = embedded(thumbnail)
        thumbnails[picture.src] = thumbnail
        return picture

    numbers = numbered_elements(explained.explanation)
    height, width = explained.image.shape[:2]
    views = tuple(_numbered_view(explained, element, number) for element, number in numbers.items())
    drawn = draw_numbered(NumberedImage(explained.path, width, height, views), side_px=PHOTOGRAPH_PX)
    elements = {
        element: ShownElement(
            number,
            kept(view),
            name_of_element(explained.views[element[0]].mask_idx, element[1] if element[1] >= 0 else None),
            *point,
        )
        for (element, number), view, point in zip(numbers.items(), drawn.views, drawn.points, strict=True)
    }
    needed = {reason.prototype_idx for score in explained.explanation.class_scores for reason in score.reasons}
    shown = []
    for idx, row in enumerate(prototypes.rows):
        both = prototypes.drawn(idx) if idx in needed else None
        photograph, view = (None, None) if both is None else map(kept, both)
        shown.append(ShownPrototype(idx, row["class_name"], view, photograph, row["image_key"]))
    (score,) = shown_scores(
        explained.explanation,
        class_names=explained.class_names,
        elements=elements,
        prototypes=shown,
        is_true_known=False,
    )
    return ShownPicture(
        explained=explained,
        photograph=kept(drawn.photograph),
        elements=tuple(elements.values()),
        score=score,
        missing=prototypes.missing,
        thumbnails=thumbnails,
    )


def _numbered_view(explained: ExplainedPicture, element: Element, number: int) -> NumberedView:
    view_idx, place_idx = element
    view = explained.views[view_idx]
    if place_idx >= 0:
        box = box_of_place(view.box, place_idx, explained.grid)
        return NumberedView(number, around_place(view.pixels, box, view.box), box, None)
    rle = None if view.mask_idx == WHOLE_IMAGE else explained.masks[view.mask_idx].rle
    return NumberedView(number, view.pixels, view.box, rle)


def as_page(shown: ShownPicture, *, head: str) -> str:
    """Render a page that needs no other file.

    Args:
        shown: the picture.
        head: of the network.
    """
    explained = shown.explained
    return render_alone(
        "explanation.html.j2",
        styles=("style.css", "gallery.css"),
        shown=shown,
        name=explained.path.name,
        predicted=explained.predicted,
        probability=explained.explanation.predicted.probability,
        num_views=len(explained.views),
        num_masks=len(explained.masks),
        element="view" if explained.grid == (1, 1) else "place",
        is_pipnet=head == "pipnet",
    )


def as_png(shown: ShownPicture) -> bytes:
    """Draw the same as one picture, 1200 px wide: for slides and papers."""
    top = 2 * _GAP_PX + _TITLE_PX
    lines = shown.score.lines
    right_height = len(lines) * (_ROW_PX + _GAP_PX // 2) + 3 * 30
    photograph = _fitted(shown, shown.photograph, _LEFT_PX)
    left_height = photograph.height + _GAP_PX + len(shown.ranking) * 34
    canvas = Image.new("RGB", (_SHEET_PX, top + max(left_height, right_height) + _GAP_PX), PAPER_RGB)
    draw = ImageDraw.Draw(canvas)
    title = f"{shown.explained.path.name}: {shown.explained.predicted}"
    write_line(draw, title, (_GAP_PX, _GAP_PX), width_px=_SHEET_PX - 2 * _GAP_PX, letters_px=_TITLE_PX, colour=TEXT_RGB)
    canvas.paste(photograph, (_GAP_PX, top))
    for element in shown.elements:
        at = (_GAP_PX + element.x_frac * photograph.width, top + element.y_frac * photograph.height)
        _draw_number(draw, element.number, at)
    _draw_ranking(draw, shown, top + photograph.height + _GAP_PX)
    x = _LEFT_PX + 3 * _GAP_PX
    for position, line in enumerate(lines):
        _draw_reason(canvas, shown, line, (x, top + position * (_ROW_PX + _GAP_PX // 2)))
    y = top + len(lines) * (_ROW_PX + _GAP_PX // 2)
    room = _SHEET_PX - x - _GAP_PX
    if shown.score.num_others:
        rest = f"the other {shown.score.num_others} prototypes together: {shown.score.rest}"
        write_line(draw, rest, (x, y), width_px=room, letters_px=_LETTERS_PX, colour=SOFT_RGB)
    total = f"total for {shown.score.class_name}: {shown.score.total}"
    write_line(draw, total, (x, y + 30), width_px=room, letters_px=_LETTERS_PX, colour=TEXT_RGB)
    if shown.missing:
        write_line(draw, shown.missing, (x, y + 60), width_px=room, letters_px=_SMALL_PX, colour=SOFT_RGB)
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _fitted(shown: ShownPicture, picture: Picture, side_px: int) -> Image.Image:
    decoded: np.ndarray = simplejpeg.decode_jpeg(shown.thumbnails[picture.src].content, "RGB")
    return fitted(decoded, side_px)


def _draw_number(draw: ImageDraw.ImageDraw, number: int, at: tuple[float, float]) -> None:
    x, y = at
    colour = NUMBER_RGB[(number - 1) % len(NUMBER_RGB)]
    draw.ellipse((x - 14, y - 14, x + 14, y + 14), fill=colour, outline=(0, 0, 0))
    draw.text((x, y), str(number), fill=(0, 0, 0), font=letters(_LETTERS_PX), anchor="mm")


def _draw_ranking(draw: ImageDraw.ImageDraw, shown: ShownPicture, y: int) -> None:
    for rank, line in enumerate(shown.ranking):
        top = y + rank * 34
        percent = f"{100 * line.probability:.1f} %"
        write_line(draw, line.class_name, (_GAP_PX, top), width_px=_LEFT_PX - 90, letters_px=_SMALL_PX, colour=TEXT_RGB)
        draw.text((_GAP_PX + _LEFT_PX, top), percent, fill=TEXT_RGB, font=letters(_SMALL_PX), anchor="ra")
        length = max(1, round(line.probability * _LEFT_PX))
        draw.rectangle((_GAP_PX, top + 22, _GAP_PX + length, top + 26), fill=_BAR_RGB)


def _draw_reason(canvas: Image.Image, shown: ShownPicture, line: ShownReason, at: tuple[int, int]) -> None:
    """Draw the view, the prototype's view and photograph, and the product, from left to right."""
    draw = ImageDraw.Draw(canvas)
    x, y = at
    canvas.paste(_fitted(shown, line.element.picture, _ROW_PX), (x, y))
    _draw_number(draw, line.element.number, (x + 16.0, y + 16.0))
    for picture in (line.prototype.view, line.prototype.photograph):
        x += _ROW_PX + _GAP_PX // 2
        if picture is not None:
            canvas.paste(_fitted(shown, picture, _ROW_PX), (x, y))
    x += _ROW_PX + _GAP_PX
    room = _SHEET_PX - x - _GAP_PX
    prototype = f"prototype {line.prototype.prototype_idx}"
    write_line(draw, prototype, (x, y), width_px=room, letters_px=_LETTERS_PX, colour=TEXT_RGB)
    write_line(draw, line.prototype.class_name, (x, y + 26), width_px=room, letters_px=_SMALL_PX, colour=SOFT_RGB)
    product = f"{line.similarity} × {line.weight} = {line.contribution}"
    write_line(draw, product, (x, y + 56), width_px=room, letters_px=_LETTERS_PX, colour=TEXT_RGB)
    colour = _AGAINST_RGB if line.is_negative else _BAR_RGB
    draw.rectangle((x, y + 88, x + max(1, round(line.bar * room)), y + 96), fill=colour)
