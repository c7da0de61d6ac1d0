"""Small pictures of what changed, out of the data sets of both revisions, where DVC's cache has them."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.compare.differences import Comparison
from pipeline.compare.image_differences import Flips
from pipeline.compare.prototype_differences import Moves
from pipeline.compare.revisions import Missing, Revision, Source, read_masks
from pipeline.data.boxes import Box
from pipeline.errors import PipelineError
from pipeline.report.site import Picture, embedded
from pipeline.report.thumbnails import SourceImage, SourceView, draw_source, encoded, read_photograph, shrunk

_SIDE_PX = 176
_NO_PIXELS = np.zeros((1, 1, 3), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Pictures:
    """What could be drawn.

    Attributes:
        before: sources of A, with the outline of the mask and the box of the view.
        after: sources of B, likewise.
        images: test images by image_key.
        reasons: why outlines or pictures are missing, each once.
    """

    before: Mapping[Source, Picture]
    after: Mapping[Source, Picture]
    images: Mapping[str, Picture]
    reasons: tuple[str, ...]


def draw_pictures(comparison: Comparison, before: Revision, after: Revision, *, most: int) -> Pictures:
    """Draw the first MOST prototypes that moved, and as many images that flipped each way."""
    moved = comparison.moves.moved[:most] if isinstance(comparison.moves, Moves) else ()
    shown = [move.before for move in moved], [move.after for move in moved]
    flips = comparison.flips
    flipped = (
        [flip.image_key for flip in (*flips.broken[:most], *flips.mended[:most])] if isinstance(flips, Flips) else []
    )
    reasons: dict[str, None] = {}
    drawn = [
        _draw_sources(side, [source for source in sources if source is not None], reasons)
        for side, sources in zip((before, after), shown, strict=True)
    ]
    images: dict[str, Picture] = {}
    for key in flipped:
        picture = _draw(after, key, None, None, reasons) or _draw(before, key, None, None, {})
        if picture is not None:
            images[key] = picture
    return Pictures(drawn[0], drawn[1], images, tuple(reasons))


def _draw_sources(side: Revision, sources: Iterable[Source], reasons: dict[str, None]) -> dict[Source, Picture]:
    distinct = list(dict.fromkeys(sources))
    outlined = {source.image_key for source in distinct if source.place_idx is None and source.mask_idx >= 0}
    masks: dict[tuple[str, int], bytes] = {}
    try:
        masks = read_masks(side.files, outlined) if outlined else {}
    except PipelineError as error:
        reasons[f"Without outlines: {error}"] = None
    pictures = {}
    for source in distinct:
        rle = None if source.place_idx is not None else masks.get((source.image_key, source.mask_idx))
        picture = _draw(side, source.image_key, source.box, rle, reasons)
        if picture is not None:
            pictures[source] = picture
    return pictures


def _draw(
    side: Revision, image_key: str, box: Box | None, rle: bytes | None, reasons: dict[str, None]
) -> Picture | None:
    """Draw an image, with a box and an outline where there are any; None where it cannot be had."""
    if isinstance(side.images, Missing):
        reasons[f"Without pictures: {side.images.reason}"] = None
        return None
    image = side.images.get(image_key)
    if image is None:
        reasons[f"Without some pictures: {side.name} has no image {image_key}"] = None
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(image.path).name
        try:
            path.write_bytes(side.files.read(image.path))
            if box is None:
                photograph = read_photograph(path, width=image.width, height=image.height)
                return embedded(encoded(shrunk(photograph, _SIDE_PX)))
            view = SourceView(_NO_PIXELS, box, rle)
            drawn, _ = draw_source(SourceImage(path, image.width, image.height, (view,)), side_px=_SIDE_PX)[0]
        except PipelineError as error:
            reasons[f"Without some pictures: {str(error).replace(str(path), image.path)}"] = None
            return None
    return embedded(drawn)
