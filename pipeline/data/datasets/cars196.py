"""Stanford Cars: 196 models, official split, boxes."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from pipeline.data.boxes import Box
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
    "unpack cars_train.tgz, cars_test.tgz and car_devkit.tgz into one folder, put cars_test_annos_withlabels.mat into "
    "its devkit/, and set `dataset.source` in params.yaml to that folder"
)

_CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


class StanfordCars(Dataset):
    """``devkit/``, ``cars_train/`` and ``cars_test/``.

    The labels of the test images are published apart from the devkit, as ``cars_test_annos_withlabels.mat``; the file
    may lie in ``devkit/`` or beside it.

    Args:
        source: the folder that holds ``devkit``.
    """

    def __init__(self, source: Path) -> None:
        self.source = source

    def listing(self) -> Listing:
        """List the images of both annotation files; classes without an image are left out.

        Both parts number their files from ``00001.jpg``, so the split is part of the key. Corners count from 1 and
        are inclusive in the files.

        Raises:
            DatasetError: a file is missing or damaged, or the files contradict each other.
        """
        devkit = self.source / "devkit"
        meta = require_file(devkit / "cars_meta.mat", how_to_get=HOW_TO_GET)
        names = read_mat(meta, "class_names", how_to_get=HOW_TO_GET)
        class_names = {number: str(name) for number, name in enumerate(names, start=1)}
        train_annos = require_file(devkit / "cars_train_annos.mat", how_to_get=HOW_TO_GET)
        test_annos = require_file(
            devkit / "cars_test_annos_withlabels.mat",
            self.source / "cars_test_annos_withlabels.mat",
            how_to_get=f"cars_test_annos.mat of the devkit has no labels; {HOW_TO_GET}",
        )
        annotated = [
            *_read_annotations(train_annos, "train", class_names),
            *_read_annotations(test_annos, "test", class_names),
        ]
        for folder in ("cars_train", "cars_test"):
            require_folder(self.source / folder, how_to_get=HOW_TO_GET)

        used_names, labels = number_classes(class_names, (number for *_, number in annotated))
        records = [
            ImageRecord(
                image_key=f"{split}-{safe_name(PurePosixPath(name).stem)}",
                file_name=f"cars_{split}/{name}",
                label=labels[number],
                split=split,
                object_box=box,
            )
            for split, name, box, number in annotated
        ]
        return Listing(used_names, records)

    def image_bytes(self, record: ImageRecord) -> bytes:
        """Give the picture file of RECORD, byte for byte.

        Raises:
            DatasetError: the file is listed but missing.
        """
        return read_listed_file(self.source, record, how_to_get=HOW_TO_GET)


def _read_annotations(path: Path, split: Split, class_names: Mapping[int, str]) -> list[tuple[Split, str, Box, int]]:
    """Read (split, file name, box, class number) of each image, sorted by file name."""
    annotations = read_mat(path, "annotations", how_to_get=HOW_TO_GET)
    absent = [field for field in (*_CORNERS, "class", "fname") if field not in (annotations.dtype.names or ())]
    if absent:
        raise DatasetError(f"{path}: the annotations have no field `{absent[0]}`; {HOW_TO_GET}")
    entries: dict[str, tuple[Split, str, Box, int]] = {}
    for annotation in annotations:
        name = str(annotation["fname"])
        try:
            # int first: the file stores some corners as uint8, where subtracting 1 could wrap around
            x_min, y_min, x_max, y_max, number = (int(annotation[field]) for field in (*_CORNERS, "class"))
        except (TypeError, ValueError):
            raise DatasetError(f"{path}: image {name} has a corner or class that is no number; {HOW_TO_GET}") from None
        if number not in class_names:
            raise DatasetError(f"{path}: image {name} has class {number}, unknown to cars_meta.mat; {HOW_TO_GET}")
        if name in entries:
            raise DatasetError(f"{path}: image {name} is listed twice; {HOW_TO_GET}")
        entries[name] = (split, name, Box(x_min - 1, y_min - 1, x_max, y_max), number)
    return [entries[name] for name in sorted(entries)]
