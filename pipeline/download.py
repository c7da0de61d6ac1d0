"""Downloads of data sets and checkpoints: hash, progress, resume.

What has come so far lies in ``NAME.part`` beside its later place, from which an interrupted download continues. It gets
its final name only when it is whole and its sha256 is right. A file that is already in its place is checked and never
written to: it may have been placed there by hand.
"""

import logging
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from os import link
from pathlib import Path
from typing import Any, BinaryIO

import pooch
import requests
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from tqdm import tqdm
from typer import Argument, Option
from typer.core import TyperCommand

from pipeline.cli import command_line
from pipeline.errors import PipelineError
from pipeline.io import new_file, new_folder, progress_bar
from pipeline.weights import CHECKPOINTS, Checkpoint, RemoteFile

_CHUNK = 2**18  # bytes
_TIMEOUT_S = (15.0, 60.0)  # until there is a connection; between two pieces of an answer
_CALTECH = "https://data.caltech.edu/records"
_DOGS = "https://vision.stanford.edu/aditya86/ImageNetDogs"

_log = logging.getLogger(__name__)
pooch.get_logger().setLevel(logging.WARNING)  # the rest of what it says is said here


@dataclass(frozen=True, slots=True)
class Archive:
    """One file of a data set as it is published.

    Attributes:
        file: a tar file, or a single file to be copied.
        inner: the folder in the tar file whose content is used; empty for all of it.
        to: the folder of the data set that receives the content; empty for the data set's own folder.
    """

    file: RemoteFile
    inner: str = ""
    to: str = ""


@dataclass(frozen=True, slots=True)
class DataSet:
    """Archives that are unpacked into one folder.

    Attributes:
        name: what the command calls it.
        what: for people.
        folder: below ``raw/``.
        archives: unpacked in this order.
        holds: files and folders without which :attr:`folder` is not the data set.
        licence: for people.
        part_of: the data set inside whose folder this one goes.
        by_hand: where to get what nobody offers for download, as the end of a message.
    """

    name: str
    what: str
    folder: str
    archives: tuple[Archive, ...]
    holds: tuple[str, ...]
    licence: str
    part_of: str | None = None
    by_hand: str = ""


def _published(name: str, size_bytes: int, sha256: str, *, at: str | None, inner: str = "", to: str = "") -> Archive:
    return Archive(RemoteFile(name, f"{at}/{name}" if at else None, size_bytes, sha256), inner, to)


DATA_SETS: tuple[DataSet, ...] = (
    DataSet(
        "cub200",
        "CUB-200-2011: 200 bird species, boxes, parts",
        "CUB_200_2011",
        (
            _published(
                "CUB_200_2011.tgz", 1_150_585_339, "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
                at=f"{_CALTECH}/65de6-vp158/files", inner="CUB_200_2011",
            ),
        ),
        ("images", "images.txt", "classes.txt", "train_test_split.txt", "bounding_boxes.txt", "parts/part_locs.txt"),
        "non-commercial research and education",
    ),
    DataSet(
        "cub200-segmentations",
        "object masks for cub200",
        "CUB_200_2011/segmentations",
        (
            _published(
                "segmentations.tgz", 39_272_883, "dc77f6cffea0cbe2e41d4201115c8f29a6320ecb04fffd2444f51b8066e4b84f",
                at=f"{_CALTECH}/w9d68-gec53/files", inner="segmentations",
            ),
        ),
        (),
        "as cub200",
        part_of="cub200",
    ),
    DataSet(
        "dogs",
        "Stanford Dogs: 120 breeds, boxes",
        "stanford_dogs",
        (
            _published(
                "images.tar", 793_579_520, "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
                at=_DOGS,
            ),
            _published(
                "annotation.tar", 21_852_160, "662ed36f707be6b195c2fda392d8e153e83af28cedc8e2134a649f198def30fd",
                at=_DOGS,
            ),
            _published(
                "lists.tar", 481_280, "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
                at=_DOGS,
            ),
        ),
        ("Images", "Annotation"),
        "from ImageNet: non-commercial research and education",
    ),
    DataSet(
        "cars196",
        "Stanford Cars: 196 models, boxes",
        "stanford_cars",
        (
            _published(
                "cars_train.tgz", 979_269_282, "512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
                at=None,
            ),
            _published(
                "cars_test.tgz", 977_350_468, "bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
                at=None,
            ),
            _published(
                "car_devkit.tgz", 330_960, "b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd",
                at=None,
            ),
            _published(
                "cars_test_annos_withlabels.mat", 185_758,
                "790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05", at=None, to="devkit",
            ),
        ),
        ("cars_train", "cars_test", "devkit/cars_meta.mat", "devkit/cars_train_annos.mat"),
        "none stated",
        by_hand=(
            "copies such as https://www.kaggle.com/datasets/jessicali9530/stanford-cars-dataset have to be laid out as"
            " cars_train/*.jpg, cars_test/*.jpg and devkit/*.mat (cars_meta, cars_train_annos,"
            " cars_test_annos_withlabels)"
        ),
    ),
)  # fmt: skip


def get_checkpoint(checkpoint: Checkpoint, weights: Path) -> None:
    """Bring all files of CHECKPOINT into the folder WEIGHTS; see :func:`fetch`."""
    for file in checkpoint.files:
        fetch(file, weights / checkpoint.folder / file.name)


def get_data_set(data_set: DataSet, raw: Path) -> None:
    """Bring DATA_SET into the folder RAW, unpacked as its reader expects it, unless it is there.

    The archives stay in ``RAW/archives``.

    Raises:
        PipelineError: its folder is there but incomplete, an archive cannot be had or is not the right one, or an
            archive holds something else than expected.
    """
    target, archives = raw / data_set.folder, raw / "archives" / data_set.name
    if target.is_dir() and any(target.iterdir()):
        absent = _absent(data_set, target)
        if absent:
            raise PipelineError(
                f"{target} is there but lacks {absent[0]}: complete it, or move it away to get a new one"
            )
        print(f"{target}: is there")
        return
    if data_set.part_of and not target.parent.is_dir():
        both = f"{data_set.part_of} {data_set.name}"
        raise PipelineError(f"{target.parent} does not exist: run `python -m pipeline.download {both}`")
    for archive in data_set.archives:
        place = archives / archive.file.name
        if archive.file.url is None and not place.exists():
            raise PipelineError(
                f"{data_set.name}: {archive.file.name} is no longer offered for download: put the original archives"
                f" into {archives} and run this again, or fill {target} by hand: {data_set.by_hand}"
            )
        fetch(archive.file, place)
    with _one_line(target), new_folder(target) as work:
        for archive in data_set.archives:
            _unpack(archive, archives / archive.file.name, work)
        absent = _absent(data_set, work)
        if absent:
            raise PipelineError(f"{archives}: the archives hold no {absent[0]}; move them away and run this again")
    print(f"{target}: unpacked; {archives} is not needed any more")


def _absent(data_set: DataSet, folder: Path) -> list[str]:
    return [name for name in data_set.holds if not (folder / name).exists()]


def fetch(file: RemoteFile, target: Path) -> None:
    """Bring FILE to TARGET; a file that is there is checked instead.

    Without a known sha256, that of the first file is recorded beside it, and later ones are compared with the record.

    Raises:
        PipelineError: TARGET is another file (it is left alone), what came is another file (it is deleted), or the
            transfer failed (what came so far is kept).
    """
    record = target.with_name(f"{target.name}.sha256")
    expected = file.sha256 or _recorded(record)
    with _one_line(target):
        if target.exists():
            _check_placed(target, expected, record if file.sha256 is None else None)
            outcome = "is there"
        else:
            _download(file, target, expected)
            outcome = "downloaded"
        if expected is not None:
            print(f"{target}: {outcome}, its sha256 is right")
            return
        found = pooch.file_hash(str(target), alg="sha256")
        with new_file(record) as work:
            work.write_text(f"{found}  {target.name}\n", encoding="utf-8")  # as sha256sum reads it
        print(
            f"{target}: {outcome}; no sha256 is known to compare it with. Its own, {found}, is recorded in {record}"
            " and compared from now on"
        )


def _recorded(record: Path) -> str | None:
    if not record.is_file():
        return None
    words = record.read_text(encoding="utf-8", errors="replace").split()
    if not words or not re.fullmatch("[0-9a-f]{64}", words[0]):
        raise PipelineError(f"{record} holds no sha256: delete it to trust the file beside it anew")
    return words[0]


def _check_placed(target: Path, expected: str | None, record: Path | None) -> None:
    if target.is_dir():
        raise PipelineError(f"{target} is a folder, but a file belongs there: move it away")
    if expected is None:
        return
    _log.info("checking %s", target)
    found = pooch.file_hash(str(target), alg="sha256")
    if found != expected:
        source = f"as recorded in {record} (delete that to trust the file as it is)" if record else "as published"
        raise PipelineError(
            f"{target} has the sha256 {found}, expected {expected} {source}: it was left alone; move it away and run"
            " this again to download it"
        )


def _download(file: RemoteFile, target: Path, expected: str | None) -> None:
    """Download FILE to TARGET, which does not exist, through TARGET.part.

    Raises:
        PipelineError: see :func:`fetch`.
    """
    assert file.url is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    by_hand = f"or place the file by hand at {target}"
    try:
        pooch.retrieve(
            file.url,
            known_hash=None if expected is None else f"sha256:{expected}",
            fname=target.name,
            path=target.parent,
            downloader=_Continuing(file, part),
        )
    except requests.RequestException as error:
        kept = part.stat().st_size if part.exists() and file.sha256 else 0
        again = f"run this again to continue after {_readable(kept)}" if kept else "run this again"
        raise PipelineError(f"{file.url}: {_reason(error)}: {again}, {by_hand}") from None
    except ValueError as error:  # pooch: "... does not match the known hash: expected sha256:... but got .... ..."
        part.unlink(missing_ok=True)
        mismatch = str(error).partition(". ")[0]
        raise PipelineError(f"{file.url}: {mismatch}; it was deleted: run this again, {by_hand}") from None
    part.unlink(missing_ok=True)


class _Continuing:
    """A downloader for pooch that continues a partial file, and keeps it until pooch has checked the whole."""

    def __init__(self, file: RemoteFile, part: Path) -> None:
        self._file = file
        self._part = part

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        """Complete the partial file and give it the name OUTPUT_FILE as well.

        Raises:
            requests.RequestException: no connection, a refusal, or an end before all was there.
            PipelineError: the server offers a file of another size, or there is no room for it.
        """
        self._complete(url)
        output = Path(output_file)
        output.unlink()
        try:
            link(self._part, output)  # pooch deletes its name when it is interrupted while it checks; ours stays
        except OSError:  # a file system without hard links
            self._part.replace(output)

    def _complete(self, url: str) -> None:
        start = self._usable_bytes()
        if start and start == self._file.size_bytes:
            return  # whole, but interrupted before it was checked
        response, start = _answer(url, start)
        with closing(response):
            total = _total_bytes(response, start)
            self._check_size(url, total, start)
            if start:
                _log.info("continuing %s after %s", self._part, _readable(start))
            with self._part.open("ab" if start else "wb") as out, _byte_bar(self._file.name, total, start) as bar:
                for chunk in response.iter_content(_CHUNK):
                    out.write(chunk)
                    bar.update(len(chunk))
        came = self._part.stat().st_size
        if total is not None and came != total:
            raise requests.ConnectionError(f"the connection ended after {came:,} of {total:,} bytes")

    def _usable_bytes(self) -> int:
        """Count the bytes to continue after; 0 starts afresh.

        Without a sha256 nothing would tell that the two parts are of different versions of the file.
        """
        size = self._part.stat().st_size if self._part.exists() else 0
        too_large = self._file.size_bytes is not None and size > self._file.size_bytes
        return 0 if too_large or self._file.sha256 is None else size

    def _check_size(self, url: str, total: int | None, start: int) -> None:
        target = self._part.with_suffix("")
        expected = self._file.size_bytes
        if total is not None and expected is not None and total != expected:
            raise PipelineError(
                f"{url} offers {total:,} bytes, expected {expected:,}: it is another file; place the right one by hand"
                f" at {target}"
            )
        free = shutil.disk_usage(self._part.parent).free
        if total is not None and total - start > free:
            raise PipelineError(
                f"{target}: {_readable(total - start)} to come, {_readable(free)} free on the disk: make room, or give"
                " another folder with --to"
            )


def _answer(url: str, start: int) -> tuple[requests.Response, int]:
    """Ask for URL from the byte START on; give the answer and the byte with which it really starts."""
    # as stored: lengths and ranges of a compressed transfer would count other bytes
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    response = requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S)
    if (
        start
        and response.status_code == 206
        and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
    ):
        return response, start
    if start and response.status_code in (206, 416):  # another range, or none that begins so late
        response.close()
        return _answer(url, 0)
    response.raise_for_status()
    return response, 0


def _total_bytes(response: requests.Response, start: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdigit() else None


def _unpack(archive: Archive, path: Path, folder: Path) -> None:
    """Bring the content of the ARCHIVE that lies at PATH into FOLDER.

    Raises:
        PipelineError: it is no whole tar file, or an entry wants to lie outside, is a device, or the like.
    """
    destination = folder / archive.to
    destination.mkdir(parents=True, exist_ok=True)
    if not path.name.endswith((".tar", ".tgz", ".tar.gz")):
        shutil.copyfile(path, destination / path.name)
        return
    if not hasattr(tarfile, "data_filter"):
        raise PipelineError("this Python cannot unpack archives safely: use 3.10.12, 3.11.4, 3.12 or newer")
    staging = folder / ".unpacked"
    try:
        with (
            path.open("rb") as raw,
            tarfile.open(fileobj=raw) as tar,
            _byte_bar(f"unpacking {path.name}", path.stat().st_size) as bar,
        ):
            tar.extractall(staging, members=_noted(tar, raw, bar), filter="data")
    except (tarfile.TarError, zlib.error, EOFError) as error:
        reason = " ".join(str(error).split())
        raise PipelineError(f"{path} cannot be unpacked ({reason}): move it away and run this again") from None
    inner = staging / archive.inner
    if not inner.is_dir():
        raise PipelineError(f"{path} holds no folder {archive.inner}: move it away and run this again")
    for entry in sorted(inner.iterdir()):
        entry.rename(destination / entry.name)
    shutil.rmtree(staging)


def _noted(tar: tarfile.TarFile, raw: BinaryIO, bar: "tqdm[Any]") -> Iterator[tarfile.TarInfo]:
    """Pass the members of TAR on; BAR shows how much of the file RAW has been read for them."""
    for member in tar:
        yield member
        bar.update(raw.tell() - bar.n)


@contextmanager
def _byte_bar(what: str, total: int | None, start: int = 0) -> Iterator["tqdm[Any]"]:
    """Open a progress bar that counts bytes, START of which were there before."""
    with progress_bar(what=what, total=total or 0, unit="B") as bar:
        bar.unit_scale = True
        bar.n = bar.initial = start
        yield bar


@contextmanager
def _one_line(target: Path) -> Iterator[None]:
    """Turn what the file system refuses, such as more bytes than there is room for, into an error of one line."""
    try:
        yield
    except OSError as error:
        where = error.filename or target
        raise PipelineError(
            f"{where}: {error.strerror or error}: mend that and run this again (a download continues where it stopped),"
            " or give another folder with --to"
        ) from None


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    cause: BaseException = error
    while cause.__context__ is not None:  # the outer ones repeat the address, several times
        cause = cause.__context__
    words = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return f"the connection failed ({' '.join(words.split())})"


def _readable(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _select(names: Sequence[str]) -> list[Checkpoint | DataSet]:
    """Find what NAMES stand for, each once, in the order of the list.

    Raises:
        PipelineError: a name is unknown.
    """
    items: list[Checkpoint | DataSet] = [*CHECKPOINTS, *DATA_SETS]
    known = [item.name for item in items]
    for name in names:
        if name not in known:
            raise PipelineError(f"there is no download `{name}`; there are {', '.join(known)}")
    return [item for item in items if item.name in names]


def _table(weights: Path, raw: Path) -> Table:
    table = Table(Column("name", no_wrap=True), "what", "size", "goes to", "licence")
    for checkpoint in CHECKPOINTS:
        place = weights / (checkpoint.folder or checkpoint.files[0].name)
        _add_row(table, checkpoint, checkpoint.files, place)
    for data_set in DATA_SETS:
        _add_row(table, data_set, [archive.file for archive in data_set.archives], raw / data_set.folder)
    return table


def _add_row(table: Table, item: Checkpoint | DataSet, files: Sequence[RemoteFile], place: Path) -> None:
    sizes = [file.size_bytes for file in files if file.size_bytes is not None]
    size = _readable(sum(sizes)) if len(sizes) == len(files) else "?"
    if any(file.url is None for file in files):
        size += ", by hand"
    table.add_row(Text(item.name), Text(item.what), Text(size), Text(str(place), overflow="fold"), item.licence)


def main(
    names: list[str] | None = Argument(None, help="What to download, as listed.", show_default=False),
    to: Path | None = Option(None, help="Folder to use instead of weights/ and raw/.", show_default=False),
) -> None:
    """Download checkpoints into weights/ and data sets into raw/; without NAMES, list what there is.

    An interrupted download continues where it stopped. A file or folder that is there is checked and left alone.
    """
    weights, raw = to or Path("weights"), to or Path("raw")
    if not names:
        Console().print(_table(weights, raw))
        return
    for item in _select(names):
        if isinstance(item, Checkpoint):
            get_checkpoint(item, weights)
        else:
            get_data_set(item, raw)


class _Command(TyperCommand):
    """The command, with the list at the end of its help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help and the list."""
        super().format_help(ctx, formatter)
        Console().print(_table(Path("weights"), Path("raw")))


app = command_line(main)
app.registered_commands[0].cls = _Command

if __name__ == "__main__":
    app()
