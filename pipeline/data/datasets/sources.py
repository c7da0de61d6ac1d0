"""What the readers of unpacked data sets share: finding their files, and naming images and classes."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from scipy.io import loadmat

from pipeline.data.datasets.interface import DatasetError, ImageRecord


def require_file(*places: Path, how_to_get: str) -> Path:
    """Find the first of PLACES that is a file.

    Raises:
        DatasetError: none is; names the first place, where the file belongs, and says HOW_TO_GET it.
    """
    for place in places:
        if place.is_file():
            return place
    raise DatasetError(f"{places[0]} does not exist: {how_to_get}")


def require_folder(place: Path, *, how_to_get: str) -> Path:
    """Make sure that PLACE is a folder.

    Raises:
        DatasetError: it is none; says HOW_TO_GET it.
    """
    if not place.is_dir():
        raise DatasetError(f"{place} is not there or is no folder: {how_to_get}")
    return place


def read_listed_file(source: Path, record: ImageRecord, *, how_to_get: str) -> bytes:
    """Read the picture file of RECORD, whose ``file_name`` is relative to SOURCE.

    Raises:
        DatasetError: the file is listed but cannot be read.
    """
    try:
        return (source / record.file_name).read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DatasetError(f"{source / record.file_name} is listed, but: {reason}; {how_to_get}") from None


def read_mat(path: Path, variable: str, *, how_to_get: str) -> Shaped[np.ndarray, " entry"]:
    """Read one list out of a MATLAB file, without the 1 x N frames that MATLAB puts around everything.

    Raises:
        DatasetError: the file is damaged or holds no such variable.
    """
    try:
        content: dict[str, Any] = loadmat(path, squeeze_me=True)
    except Exception as error:  # scipy lets out whatever a damaged byte leads to, TypeError and zlib.error included
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"{path} cannot be read ({reason}): {how_to_get}") from None
    if variable not in content:
        raise DatasetError(f"{path} holds no variable `{variable}`: {how_to_get}")
    return np.atleast_1d(content[variable])


def safe_name(text: str) -> str:
    """Bring TEXT to ``[A-Za-z0-9_-]+``: each run of other characters becomes one hyphen."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "unnamed"


def number_classes(names: Mapping[int, str], used: Iterable[int]) -> tuple[list[str], dict[int, int]]:
    """Number the classes that have an image 0..n-1, in the order of the data set's own numbers.

    A part of a data set often lists all classes; one without images could neither be learned nor tested.

    Args:
        names: class name by the data set's number.
        used: the number of each image; every one a key of ``names``.

    Returns:
        The class names in label order, and the label by the data set's number.
    """
    numbers = sorted(set(used))
    return [names[number] for number in numbers], {number: label for label, number in enumerate(numbers)}
