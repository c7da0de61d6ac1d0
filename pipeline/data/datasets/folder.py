"""Any pictures sorted into one folder per class, with or without folders for the splits above them."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipeline.data.datasets.interface import Dataset, DatasetError, ImageRecord, Listing, Split
from pipeline.data.datasets.sources import read_listed_file, safe_name
from pipeline.data.splits import draw_per_class

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""What counts as a picture, upper or lower case."""

TEST_FRAC = 0.3
"""Share of each class that becomes test where the source has no test folder: the authors' generic splitter keeps 0.7
for training."""

HOW_TO_ARRANGE = "arrange the pictures as CLASS/PICTURE or train|val|test/CLASS/PICTURE inside `dataset.source`"

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_MAX_READABLE = 100  # characters of the path inside a key; file systems end at 255 bytes per name


class ImageFolder(Dataset):
    """``CLASS/PICTURE`` or ``{train,val,test}/CLASS/PICTURE`` inside SOURCE. Hidden files are ignored.

    Args:
        source: the folder that holds the class folders, or the folders train, val and test.
        seed: of the draw of test images, where there is no folder test.
    """

    def __init__(self, source: Path, seed: int) -> None:
        self.source = source
        self.seed = seed

    def listing(self) -> Listing:
        """List the pictures.

        Counted as dropped: files of class folders with another suffix than ``SUFFIXES``, and pictures that lie beside
        class folders.

        Raises:
            DatasetError: the source is missing, empty, or arranged in another way.
        """
        if not self.source.is_dir():
            raise DatasetError(f"{self.source} is not there or is no folder: correct `dataset.source` in params.yaml")
        dropped: Counter[str] = Counter()
        class_folders = self._class_folders(dropped)
        class_names = sorted({folder.name for _, folder in class_folders})
        labels = {name: label for label, name in enumerate(class_names)}
        records = []
        for split, folder in class_folders:
            for path in _pictures_of_class(folder, dropped):
                relative = path.relative_to(self.source).as_posix()
                records.append(ImageRecord(_key(relative), relative, labels[folder.name], split))
        if not any(split == "test" for split, _ in class_folders):
            drawn = draw_per_class(records, class_names, frac=TEST_FRAC, seed=self.seed, purpose="test")
            records = [replace(r, split="test") if r.image_key in drawn else r for r in records]
        return Listing(class_names, records, dropped=dict(dropped))

    def image_bytes(self, record: ImageRecord) -> bytes:
        """Give the picture file of RECORD, byte for byte.

        Raises:
            DatasetError: the file vanished since it was listed.
        """
        return read_listed_file(self.source, record, how_to_get="leave the source alone while the stage runs")

    def _class_folders(self, dropped: Counter[str]) -> list[tuple[Split, Path]]:
        """Find each class folder, with the split of its pictures."""
        folders = _subfolders(self.source, dropped)
        present = [split for split in _SPLITS if self.source / split in folders]
        if not present:
            return [("train", folder) for folder in folders]
        for folder in folders:
            if folder.name not in present:
                raise DatasetError(f"{folder} lies beside the split folder {present[0]}: {HOW_TO_ARRANGE}")
        if "train" not in present:
            raise DatasetError(f"{self.source / 'train'} is missing beside {present[0]}: {HOW_TO_ARRANGE}")
        return [(split, folder) for split in present for folder in _subfolders(self.source / split, dropped)]


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _subfolders(folder: Path, dropped: Counter[str]) -> list[Path]:
    entries = _visible(folder)
    subfolders = [path for path in entries if path.is_dir()]
    if not subfolders:
        raise DatasetError(f"{folder} holds no class folder: {HOW_TO_ARRANGE}")
    loose = sum(path.suffix.lower() in SUFFIXES for path in entries if not path.is_dir())
    if loose:
        dropped["no_class"] += loose
    return subfolders


def _pictures_of_class(folder: Path, dropped: Counter[str]) -> list[Path]:
    pictures = []
    for path in _visible(folder):
        if path.is_dir():
            raise DatasetError(f"{path} is a folder inside a class folder: {HOW_TO_ARRANGE}")
        if path.suffix.lower() in SUFFIXES:
            pictures.append(path)
        else:
            dropped["other_suffix"] += 1
    if not pictures:
        raise DatasetError(f"{folder} holds no picture ({', '.join(SUFFIXES)}): add some or remove the folder")
    return pictures


def _key(relative: str) -> str:
    """Make a key of the path alone, so that it stays the same when other pictures come or go.

    The hash tells apart what looks the same without its special characters or its suffix (``a.jpg``, ``a.png``).
    """
    readable = safe_name(str(PurePosixPath(relative).with_suffix("")))[-_MAX_READABLE:].strip("-")
    return f"{readable}-{hashlib.sha256(relative.encode()).hexdigest()[:8]}"
