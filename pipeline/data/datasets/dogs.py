"""Stanford Dogs: 120 breeds, official split, boxes."""

from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from pipeline.data.boxes import Box, box_around
from pipeline.data.datasets.interface import Dataset, DatasetError, ImageRecord, Listing, Split
from pipeline.data.datasets.sources import (
    number_classes,
    read_listed_file,
    read_mat,
    require_file,
    require_folder,
    safe_name,
)

HOW_TO_GET = (
    "unpack images.tar, annotation.tar and lists.tar into one folder and set `dataset.source` in params.yaml to it"
)

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class StanfordDogs(Dataset):
    """``Images/``, ``Annotation/`` and the two ``.mat`` lists, in ``lists/`` or beside the two folders.

    A class is named after its folder (``n02085620-Chihuahua``).

    Args:
        source: the folder that holds ``Images``.
    """

    def __init__(self, source: Path) -> None:
        self.source = source

    def listing(self) -> Listing:
        """List the images of both lists.

        The box is the smallest one around all annotated dogs: the label holds for each of them, and with the first
        one alone others of the same breed would count as background.

        Raises:
            DatasetError: a file is missing or damaged, or the lists contradict each other.
        """
        for folder in ("Images", "Annotation"):
            require_folder(self.source / folder, how_to_get=HOW_TO_GET)
        listed: dict[str, tuple[int, Split]] = {}
        class_names: dict[int, str] = {}
        lists: tuple[tuple[str, Split], ...] = (("train_list.mat", "train"), ("test_list.mat", "test"))
        for list_name, split in lists:
            path = require_file(self.source / "lists" / list_name, self.source / list_name, how_to_get=HOW_TO_GET)
            for name, number in _read_list(path):
                if name in listed:
                    raise DatasetError(f"{path}: image {name} is listed twice; {HOW_TO_GET}")
                folder = PurePosixPath(name).parent.name
                if class_names.setdefault(number, folder) != folder:
                    raise DatasetError(
                        f"{path}: image {name} has label {number}, which stands for {class_names[number]}; {HOW_TO_GET}"
                    )
                listed[name] = (number, split)
        if len(set(class_names.values())) < len(class_names):
            twice = next(n for n in class_names.values() if list(class_names.values()).count(n) > 1)
            raise DatasetError(f"{self.source}: the images in {twice} have several labels in the lists; {HOW_TO_GET}")

        used_names, labels = number_classes(class_names, class_names)
        records = [
            ImageRecord(
                image_key=safe_name(PurePosixPath(name).stem),  # holds the synset, so it is unique over breeds
                file_name=f"Images/{name}",
                label=labels[number],
                split=split,
                object_box=self._object_box(name),
            )
            for name, (number, split) in sorted(listed.items())
        ]
        return Listing(used_names, records)

    def image_bytes(self, record: ImageRecord) -> bytes:
        """Give the picture file of RECORD, byte for byte.

        Raises:
            DatasetError: the file is listed but missing.
        """
        return read_listed_file(self.source, record, how_to_get=HOW_TO_GET)

    def _object_box(self, name: str) -> Box:
        """Read the Pascal VOC annotation, whose corners count from 1 and are inclusive."""
        path = require_file(self.source / "Annotation" / PurePosixPath(name).with_suffix(""), how_to_get=HOW_TO_GET)
        try:
            root = ElementTree.parse(path).getroot()
            corners = [[int(box.findtext(corner, "")) for corner in _CORNERS] for box in root.iterfind("object/bndbox")]
        except (ElementTree.ParseError, ValueError) as error:
            raise DatasetError(f"{path} cannot be read ({error}): {HOW_TO_GET}") from None
        if not corners:
            raise DatasetError(f"{path} holds no object with a box: {HOW_TO_GET}")
        return box_around([Box(x_min - 1, y_min - 1, x_max, y_max) for x_min, y_min, x_max, y_max in corners])


def _read_list(path: Path) -> list[tuple[str, int]]:
    """Read the names (``FOLDER/FILE.jpg``) and class numbers of one list."""
    names = [str(name).strip() for name in read_mat(path, "file_list", how_to_get=HOW_TO_GET)]
    numbers = read_mat(path, "labels", how_to_get=HOW_TO_GET)
    if len(names) != len(numbers):
        raise DatasetError(f"{path} lists {len(names)} images but {len(numbers)} labels: {HOW_TO_GET}")
    entries = []
    for name, number in zip(names, numbers, strict=True):
        if len(PurePosixPath(name).parts) != 2:
            raise DatasetError(f"{path}: image `{name}` is not of the form FOLDER/FILE; {HOW_TO_GET}")
        try:
            entries.append((name, int(number)))
        except (TypeError, ValueError):
            raise DatasetError(f"{path}: image {name} has the label `{number}`, no number; {HOW_TO_GET}") from None
    return entries
