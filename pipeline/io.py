"""Files that are either old or new, never half-written."""

import ctypes
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from pipeline.errors import PipelineError

Item = TypeVar("Item")

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_CHUNK = 2**24  # bytes read at once


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside TARGET that becomes TARGET when the block succeeds, and vanishes when it fails.

    An older TARGET stays whole until the new one takes its place.

    Raises:
        PipelineError: TARGET exists and is a file.
    """
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise PipelineError(f"{target} is a file, but this command writes a folder there: move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    work.chmod(0o755)  # mkdtemp is private; what DVC shares must not be
    try:
        yield work
        if target.exists():
            _exchange(work, target)
        else:
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Give a path beside TARGET; what the block writes there becomes TARGET when the block succeeds."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    work = Path(name)
    try:
        yield work
        work.chmod(0o644)
        with work.open("rb") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing in it
        work.replace(target)
    finally:
        work.unlink(missing_ok=True)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step where the system can, so that a kill leaves one or the other in place."""
    if sys.platform == "linux":
        renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if renameat2 is not None:
            done = renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE)
            if done == 0:
                return
    aside = old.with_name(f".{old.name}.old.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write CONTENT to PATH: sorted keys, two spaces, a final newline, so equal content gives equal bytes."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    with new_file(path) as work:
        work.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read the JSON file PATH.

    Raises:
        PipelineError: the file is missing or is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path} does not exist: run the stage that writes it (`dvc repro`)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path} is damaged ({error}): delete it and run `dvc repro`") from None


def sha256_of(content: bytes) -> str:
    """Hash CONTENT, as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hash the content of PATH, however large, as 64 hexadecimal digits."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()


def progress_bar(*, what: str, total: int, unit: str, initial: int = 0) -> "tqdm[Any]":
    """Open a progress bar with rate and remaining time; in a log file, a line every ten seconds.

    Args:
        what: its name.
        total: where it ends.
        unit: what is counted.
        initial: what was done before, by a run that was stopped.
    """
    interactive = sys.stderr.isatty()
    return tqdm(
        desc=what,
        total=total,
        initial=initial,
        unit=unit,
        mininterval=0.2 if interactive else 10.0,
        maxinterval=1.0 if interactive else 10.0,
        dynamic_ncols=interactive,
        ascii=not interactive,
    )


def progress(items: Iterable[Item], *, what: str, total: int, unit: str = "image") -> Iterator[Item]:
    """Pass ITEMS on behind a :func:`progress_bar`."""
    with progress_bar(what=what, total=total, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()
