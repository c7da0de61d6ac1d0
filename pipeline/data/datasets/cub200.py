"""Caltech-UCSD Birds-200-2011: 200 species, boxes, 15 part locations and, as an extra archive, object masks.

Any part of the data set can be read, as long as its text files agree about which images there are.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from jaxtyping import Bool
from PIL import Image

from pipeline.data.boxes import Box
from pipeline.data.datasets.interface import Dataset, DatasetError, ImageRecord, Listing, Part, Split
from pipeline.data.datasets.sources import number_classes, read_listed_file, require_file, require_folder, safe_name

HOW_TO_GET = (
    "unpack CUB_200_2011.tgz and set `dataset.source` in params.yaml to the folder CUB_200_2011 that comes out of it"
)
HOW_TO_GET_MASKS = (
    "unpack segmentations.tgz inside `dataset.source`, or remove the folder segmentations to go without object masks"
)

_OBJECT_ABOVE = 127  # grey is the share of annotators who marked the pixel, of 255; more than half make the object

Value = TypeVar("Value")


class Cub200(Dataset):
    """The layout of ``CUB_200_2011.tgz``, with or without ``segmentations/``.

    Args:
        source: the folder that holds ``images.txt``.
    """

    def __init__(self, source: Path) -> None:
        self.source = source

    def listing(self) -> Listing:
        """List the images of ``images.txt``; classes without an image are left out.

        Boxes are widened to whole pixels. Of several lines for one part of an image, the first visible one counts.

        Raises:
            DatasetError: a file is missing or damaged, or two files disagree.
        """
        names = _by_id(self._file("images.txt"), 1, lambda values: values[0])
        class_names = _by_id(self._file("classes.txt"), 1, lambda values: values[0])
        labels_txt = self._file("image_class_labels.txt")
        numbers = _by_image(labels_txt, 1, lambda values: _whole(values[0]), names)
        splits = _by_image(self._file("train_test_split.txt"), 1, _split, names)
        boxes = _by_image(self._file("bounding_boxes.txt"), 4, _box, names)
        for image_id, number in numbers.items():
            if number not in class_names:
                raise DatasetError(
                    f"{labels_txt}: image {image_id} has class {number}, unknown to classes.txt; {HOW_TO_GET}"
                )
        part_names = _by_id(self._file("parts/parts.txt"), 1, lambda values: values[0])
        part_idx = {part_id: idx for idx, part_id in enumerate(sorted(part_names))}
        parts = _visible_parts(self._file("parts/part_locs.txt"), names, part_idx)
        require_folder(self.source / "images", how_to_get=HOW_TO_GET)

        used_names, labels = number_classes(class_names, numbers.values())
        records = [
            ImageRecord(
                image_key=safe_name(str(PurePosixPath(name).with_suffix(""))),
                file_name=f"images/{name}",
                label=labels[numbers[image_id]],
                split=splits[image_id],
                object_box=boxes[image_id],
                parts=tuple(sorted(parts[image_id].values(), key=lambda part: part.part_idx)),
            )
            for image_id, name in sorted(names.items())
        ]
        return Listing(used_names, records, [part_names[part_id] for part_id in sorted(part_names)])

    def image_bytes(self, record: ImageRecord) -> bytes:
        """Give the picture file of RECORD, byte for byte.

        Raises:
            DatasetError: the file is listed but missing.
        """
        return read_listed_file(self.source, record, how_to_get=HOW_TO_GET)

    def object_mask(self, record: ImageRecord) -> Bool[np.ndarray, "height width"] | None:
        """Give the pixels that most annotators marked; None without the folder ``segmentations``.

        Raises:
            DatasetError: the folder is there, but not this image's file, or it cannot be decoded.
        """
        if not (self.source / "segmentations").is_dir():
            return None
        name = PurePosixPath(record.file_name).relative_to("images").with_suffix(".png")
        path = require_file(self.source / "segmentations" / name, how_to_get=HOW_TO_GET_MASKS)
        try:
            with Image.open(io.BytesIO(path.read_bytes())) as opened:
                # some files carry an alpha channel or RGB; alpha means nothing here, so it is dropped, not applied
                grey = np.asarray(opened.convert("L"))
        except (OSError, SyntaxError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise DatasetError(f"{path} cannot be decoded ({reason}): {HOW_TO_GET_MASKS}") from None
        mask: Bool[np.ndarray, "height width"] = grey > _OBJECT_ABOVE
        return mask

    def _file(self, name: str) -> Path:
        return require_file(self.source / name, how_to_get=HOW_TO_GET)


def _rows(path: Path, num_values: int, parse: Callable[[list[str]], Value]) -> Iterator[tuple[int, int, Value]]:
    """Read lines ``<id> <value> ...`` as (line number, id, parsed values); the last value may hold spaces."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no text file ({error}): {HOW_TO_GET}") from None
    for line_number, line in enumerate(lines, start=1):
        fields = line.strip().split(maxsplit=num_values)
        if not fields:
            continue
        try:
            if len(fields) != num_values + 1:
                raise ValueError(f"expected {num_values + 1} fields")
            row_id, value = _whole(fields[0]), parse(fields[1:])
        except ValueError as error:
            raise DatasetError(f"{path} line {line_number} (`{line}`): {error}; {HOW_TO_GET}") from None
        yield line_number, row_id, value


def _by_id(path: Path, num_values: int, parse: Callable[[list[str]], Value]) -> dict[int, Value]:
    values: dict[int, Value] = {}
    for line_number, row_id, value in _rows(path, num_values, parse):
        if row_id in values:
            raise DatasetError(f"{path} line {line_number}: id {row_id} is listed twice; {HOW_TO_GET}")
        values[row_id] = value
    return values


def _by_image(
    path: Path, num_values: int, parse: Callable[[list[str]], Value], names: Mapping[int, str]
) -> dict[int, Value]:
    """As :func:`_by_id`, with exactly one line for each image of NAMES."""
    values = _by_id(path, num_values, parse)
    for image_id, name in names.items():
        if image_id not in values:
            raise DatasetError(f"{path}: no line for image {image_id} of images.txt ({name}); {HOW_TO_GET}")
    for image_id in values:
        if image_id not in names:
            raise DatasetError(f"{path}: a line for image {image_id}, which images.txt does not list; {HOW_TO_GET}")
    return values


def _visible_parts(path: Path, names: Mapping[int, str], part_idx: Mapping[int, int]) -> dict[int, dict[int, Part]]:
    parts: dict[int, dict[int, Part]] = {image_id: {} for image_id in names}
    for line_number, image_id, (part_id, x, y, visible) in _rows(path, 4, _part_location):
        if image_id not in names:
            raise DatasetError(f"{path} line {line_number}: image {image_id} is not listed in images.txt; {HOW_TO_GET}")
        if part_id not in part_idx:
            raise DatasetError(f"{path} line {line_number}: part {part_id} is not listed in parts.txt; {HOW_TO_GET}")
        if visible:
            parts[image_id].setdefault(part_id, Part(part_idx[part_id], x, y))
    return parts


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"`{text}` is no whole number") from None


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"`{text}` is no number")
    return number


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError(f"`{text}` is neither 0 nor 1")
    return text == "1"


def _split(values: list[str]) -> Split:
    return "train" if _flag(values[0]) else "test"


def _box(values: list[str]) -> Box:
    """Turn left, top, width, height in fractional pixels into the whole pixels they touch."""
    x, y, width, height = map(_number, values)
    return Box(math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height))


def _part_location(values: list[str]) -> tuple[int, float, float, bool]:
    return _whole(values[0]), _number(values[1]), _number(values[2]), _flag(values[3])
