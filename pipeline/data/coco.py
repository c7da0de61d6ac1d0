"""COCO instances files, in which masks leave the pipeline and come into it.

``python -m pipeline.data.masks export --coco OUT.json`` writes ``masks.parquet`` as an instances file. What others
wrote comes in through the segmenter ``coco`` (:mod:`pipeline.segmenters.coco`).
"""

import io
import itertools
import json
import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Int
from pycocotools import mask as coco
from tqdm import tqdm
from typer import Option

from pipeline.cli import command_line
from pipeline.data.catalogue import ImageRow, load_images
from pipeline.data.masks import StoredMask, join_masks
from pipeline.data.runs import mask_of_runs, run_lengths
from pipeline.errors import PipelineError
from pipeline.io import new_file, progress, progress_bar

_log = logging.getLogger(__name__)

_CATEGORY = {"id": 1, "name": "segment", "supercategory": ""}  # readers take category 0 for none

_CHUNK = 2**22
_SCORE_KEYS = ("score", "predicted_iou")  # the second is Segment Anything's own
_STABILITY_KEYS = ("stability", "stability_score")


# out


def write_instances(dataset: Path, masks: Path, out: Path) -> tuple[int, int]:
    """Write the stored masks as a COCO instances file; equal masks give equal bytes.

    Annotations have compressed run lengths and ``iscrowd`` 0. COCO's own files use 1 for run lengths, since there they
    are regions of many objects, which evaluation and training pass over; that would hide every mask. What reads COCO
    files tells run lengths from polygons by their type. ``score`` stands where detections have it; the stability score
    is an attribute. Ids count from 1.

    Args:
        dataset: folder with ``images.parquet``.
        masks: folder with ``masks.parquet``.
        out: replaced in one step.

    Returns:
        How many images and annotations were written.

    Raises:
        PipelineError: an input is missing, damaged or does not fit the other; OUT cannot be written.
    """
    if out.is_dir():
        raise PipelineError(f"{out} is a folder: give the name of a file")
    images = load_images(dataset).rows
    try:
        with new_file(out) as work, work.open("w", encoding="utf-8") as stream:
            stream.write('{"info":{"description":"masks of images, each a segment"},"licenses":[],\n')
            stream.write(f'"categories":[{_compact(_CATEGORY)}],\n"images":')
            num_images = _write_list(stream, (_image_entry(i, row, dataset) for i, row in enumerate(images, start=1)))
            stream.write(',\n"annotations":')
            walk = progress(join_masks(images, masks / "masks.parquet"), what="export", total=len(images))
            num_masks = _write_list(stream, _annotation_entries(walk))
            stream.write("}\n")
    except OSError as error:
        raise PipelineError(f"{out}: cannot be written ({error.strerror or error}): give another place") from None
    return num_images, num_masks


def _write_list(stream: IO[str], entries: Iterable[Mapping[str, Any]]) -> int:
    """Write a list, an entry per line, without having it in memory; gives its length."""
    length = 0
    for entry in entries:
        stream.write(f"{',' if length else '['}\n{_compact(entry)}")
        length += 1
    stream.write("\n]" if length else "[]")
    return length


def _compact(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, separators=(",", ":"), ensure_ascii=False)


def _image_entry(image_id: int, row: ImageRow, dataset: Path) -> dict[str, Any]:
    name = row.path.relative_to(dataset).as_posix()
    return {"id": image_id, "file_name": name, "width": row.width, "height": row.height}


def _annotation_entries(walk: Iterable[tuple[ImageRow, list[StoredMask]]]) -> Iterator[dict[str, Any]]:
    annotation_ids = itertools.count(1)
    for image_id, (row, masks) in enumerate(walk, start=1):
        for mask in masks:
            yield {
                "id": next(annotation_ids),
                "image_id": image_id,
                "category_id": _CATEGORY["id"],
                "segmentation": {"size": [row.height, row.width], "counts": mask.rle.decode("ascii")},
                "bbox": [mask.box.x0, mask.box.y0, mask.box.width_px, mask.box.height_px],
                "area": mask.area_px,
                "iscrowd": 0,
                "score": _shortest(mask.score),
                **({} if mask.stability is None else {"attributes": {"stability": _shortest(mask.stability)}}),
            }


def _shortest(value: float) -> float:
    """The number with the fewest digits that is the same 32-bit float."""
    return float(str(np.float32(value)))


# in


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One image of an instances file.

    Attributes:
        file_name: as the file has it.
        size: width and height as the file has them; None where it does not say.
        annotations: each a JSON list of id, segmentation, score and stability, as text: a small part of the memory
            that Python's own objects take.
    """

    file_name: str
    size: tuple[int, int] | None
    annotations: list[bytes] = field(default_factory=list)


def read_instances(path: Path) -> list[ListedImage]:
    """Read an instances file, entry by entry: what is held is the masks, not the file.

    Raises:
        PipelineError: missing, no JSON, no such file, or at odds with itself.
    """
    images: dict[int | str, ListedImage] = {}
    annotations: defaultdict[int | str, list[bytes]] = defaultdict(list)
    seen = set()
    for key, entry in _entries(path, ("images", "annotations")):
        seen.add(key)
        try:
            if key == "annotations":
                image_id, annotation = _annotation(entry)
                annotations[image_id].append(annotation)
                continue
            image_id, image = _image(entry)
            if image_id in images:
                raise ValueError(f"two images have the id {image_id}")
            images[image_id] = image
        except ValueError as error:
            raise PipelineError(f"{path}: {error}: correct the file") from None
    if "images" not in seen:
        raise PipelineError(f"{path}: lists no `images`, as a COCO instances file does: choose another masks.weights")
    for image_id, of_image in annotations.items():
        if image_id not in images:
            first = json.loads(of_image[0])[0]
            raise PipelineError(f"{path}: annotation {first} is of image {image_id}, which the file does not list")
        images[image_id].annotations.extend(of_image)
    return list(images.values())


def masks_of_image(image: ListedImage, *, height: int, width: int) -> list[StoredMask]:
    """Bring the annotations of an image into the pipeline's form.

    Polygons, run lengths and compressed run lengths are told apart by their type, whatever ``iscrowd`` says; polygons
    are drawn as pycocotools draws them.

    Returns:
        Best score first. An annotation without a score has 1, as what is drawn by hand should; among those, the larger
        mask comes first. Equal ones keep the order of the file. Masks without a pixel are left out.

    Raises:
        ValueError: an annotation is no mask of HEIGHT x WIDTH pixels; names it.
    """
    ranked: list[tuple[tuple[float, int], StoredMask]] = []
    for text in image.annotations:
        annotation_id, segmentation, score, stability = json.loads(text)
        try:
            runs = _runs_of(segmentation, height=height, width=width)
            mask = mask_of_runs(
                runs, height=height, width=width, score=1.0 if score is None else score, stability=stability
            )
        except ValueError as error:
            raise ValueError(f"annotation {annotation_id}: {error}") from None
        if mask is not None:
            ranked.append(((-mask.score, -mask.area_px if score is None else 0), mask))
    return [mask for _, mask in sorted(ranked, key=lambda entry: entry[0])]


def _image(entry: Any) -> tuple[int | str, ListedImage]:
    match entry:
        case {"id": int() | str() as image_id, "file_name": str() as name} if name:
            width, height = entry.get("width"), entry.get("height")
            known = isinstance(width, int) and isinstance(height, int)
            return image_id, ListedImage(name, (width, height) if known else None)
    raise ValueError(f"an image without `id` or `file_name` ({_shown(entry)})")


def _annotation(entry: Any) -> tuple[int | str, bytes]:
    match entry:
        case {"image_id": int() | str() as image_id}:
            values = [entry.get("id"), entry.get("segmentation")]
            numbers = [_number(entry, keys) for keys in (_SCORE_KEYS, _STABILITY_KEYS)]
            return image_id, json.dumps([*values, *numbers], separators=(",", ":")).encode("ascii")
    raise ValueError(f"an annotation without `image_id` ({_shown(entry)})")


def _number(entry: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    attributes = entry.get("attributes")
    for place in (entry, attributes if isinstance(attributes, dict) else {}):
        for key in keys:
            value = place.get(key)
            if value is None:
                continue
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"annotation {entry.get('id')}: its {key} ({_shown(value)}) is no number")
            return float(value)
    return None


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _runs_of(segmentation: Any, *, height: int, width: int) -> Int[np.ndarray, " run"]:
    match segmentation:
        case None | []:  # a box alone
            return np.array([height * width])
        case [[*_], *_]:
            return _runs_of_polygons(segmentation, height=height, width=width)
        case {"size": [int() as rows, int() as columns], "counts": str() | list() as counts}:
            if (rows, columns) != (height, width):
                raise ValueError(f"its mask is {columns}x{rows}, the image {width}x{height}")
            if isinstance(counts, str):
                return run_lengths(counts.encode("utf-8"))
            if all(type(count) is int for count in counts):
                return np.array(counts, dtype=np.int64)
    raise ValueError(f"its segmentation is neither polygons nor run lengths ({_shown(segmentation)})")


def _runs_of_polygons(polygons: Sequence[Any], *, height: int, width: int) -> Int[np.ndarray, " run"]:
    drawn = []
    for polygon in polygons:
        try:
            points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        except (ValueError, TypeError):
            raise ValueError(f"its polygon is no list x, y, x, y, ... ({_shown(polygon)})") from None
        if len(points) < 3:
            continue  # no area
        # pycocotools walks along every outline, also far outside, and takes memory for each step
        if not (np.abs(points - (width / 2, height / 2)) <= (2 * width, 2 * height)).all():
            raise ValueError(f"its polygon leaves the image of {width}x{height} pixels by far ({_shown(polygon)})")
        drawn.append(points.ravel().tolist())
    if not drawn:
        return np.array([height * width])
    union = coco.merge(coco.frPyObjects(drawn, height, width))
    return run_lengths(union["counts"])


def _entries(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Read the entries of the WANTED lists of a JSON file that holds an object; the rest is checked and passed over."""
    try:
        size = path.stat().st_size
        with path.open("rb") as raw, progress_bar(what=path.name, total=size, unit="B") as bar:
            bar.unit_scale = True
            document = _JsonStream(raw, bar)
            for key in document.members():
                if key in wanted and document.next() == "[":
                    for entry in document.elements():
                        yield key, entry
                else:
                    document.value()
            if document.next():
                raise ValueError("more text after the end")
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:  # a JSONDecodeError and a UnicodeDecodeError are such
        raise PipelineError(f"{path}: is no whole JSON file ({error}): write it again") from None


class _JsonStream:
    """Reads a JSON text value by value, a few megabytes at a time."""

    def __init__(self, raw: io.BufferedReader, bar: "tqdm[Any]") -> None:
        self._text = io.TextIOWrapper(raw, encoding="utf-8-sig")  # with or without a byte order mark
        self._raw, self._bar = raw, bar
        self._decode = json.JSONDecoder().raw_decode
        self._buffer, self._at, self._ended = "", 0, False

    def next(self) -> str:
        """Give the next character that is no space, without taking it; empty at the end."""
        while True:
            while self._at < len(self._buffer):
                character = self._buffer[self._at]
                if not character.isspace():
                    return character
                self._at += 1
            if self._ended:
                return ""
            self._fill()

    def value(self) -> Any:
        """Take one value."""
        while True:
            try:
                self.next()
                value, end = self._decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                if self._ended:
                    raise ValueError(f"{error.msg} near {self._buffer[self._at : self._at + 40]!r}") from None
            else:
                if end < len(self._buffer) or self._ended:  # a number might go on
                    self._at = end
                    return value
            self._fill()

    def members(self) -> Iterator[str]:
        """Take an object, name by name; the caller takes the value of each."""
        for _ in self._until("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                raise ValueError(f"{key!r} in the place of a name")
            self._take(":")
            yield key

    def elements(self) -> Iterator[Any]:
        """Take a list, element by element."""
        for _ in self._until("[", "]"):
            yield self.value()

    def _until(self, opening: str, closing: str) -> Iterator[None]:
        self._take(opening)
        if self.next() != closing:
            yield
            while self.next() == ",":
                self._take(",")
                yield
        self._take(closing)

    def _take(self, wanted: str) -> None:
        if self.next() != wanted:
            found = self._buffer[self._at : self._at + 40]
            raise ValueError(f"expected {wanted!r}, found {found!r}" if found else "it ends too soon")
        self._at += 1

    def _fill(self) -> None:
        rest = self._buffer[self._at :]
        more = self._text.read(max(_CHUNK, len(rest)))  # doubling: a value is not begun again and again
        self._buffer, self._at, self._ended = rest + more, 0, not more
        self._bar.update(self._raw.tell() - self._bar.n)


# the command


def export(
    coco: Path = Option(..., help="The COCO file to write (.json)."),
    dataset: Path = Option(Path("data/dataset"), help="Folder with images.parquet."),
    masks: Path = Option(Path("data/masks"), help="Folder with masks.parquet."),
) -> None:
    """Write all stored masks as a COCO instances file, for annotation tools and viewers.

    The names of its images are paths in the folder DATASET. With `masks.segmenter: coco` and the file in
    `masks.weights`, the masks come back, edited or not.
    """
    num_images, num_masks = write_instances(dataset, masks, coco)
    _log.info("%s: %d masks of %d images", coco, num_masks, num_images)


app = command_line(export)


@app.callback()
def _group() -> None:
    """Masks as they are stored, for other tools."""
