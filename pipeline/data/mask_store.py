"""Where finished masks wait: one SQLite row per image, so that an interrupted ``masks`` stage loses nothing.

The store lies outside the stage's outs and is never an input: what is in it could always be computed again. A row's
key holds the picture's sha256 and a fingerprint of everything that shapes its masks, so a changed setting, changed
weights or an edited picture simply is not found, and going back to an older setting finds everything.

Beside the masks stand, for people: how many masks each image has, how long they took, and what settings are called.
"""

import contextlib
import json
import logging
import math
import sqlite3
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.data.boxes import Box
from pipeline.data.masks import StoredMask
from pipeline.data.store_lock import only_process
from pipeline.errors import PipelineError

_log = logging.getLogger(__name__)

_WAIT_FOR_LOCK_S = 60.0  # of SQLite's own, where the file system has none for us
_WAITING_PUTS = 8  # images that may wait for the disk; so many a kill can cost
_TIMED_IMAGES = 500  # the last ones, for the rate

_TABLES = (
    "CREATE TABLE IF NOT EXISTS masks (image TEXT, settings TEXT, masks BLOB NOT NULL,"
    " PRIMARY KEY (image, settings)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS timings (image TEXT, settings TEXT, num_masks INTEGER, seconds REAL)",
    "CREATE TABLE IF NOT EXISTS names (settings TEXT PRIMARY KEY, name TEXT)",
)


class MaskStore:
    """A map from (image, settings) to masks; each ``put`` is one committed transaction. A context manager.

    One process at a time has it open; see :mod:`pipeline.data.store_lock`.
    """

    def __init__(self, path: Path) -> None:
        """Open or create PATH, once no other process has it open.

        A damaged file is set aside under another name, with a warning, and a new store begins.

        Raises:
            PipelineError: the folder cannot be written.
        """
        self._path = path
        self._open_things = contextlib.ExitStack()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open_things.enter_context(only_process(path))
            try:
                self._database = self._open()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._set_aside(error)
                self._database = self._open()
            self._open_things.callback(self._database.close)
        except (OSError, sqlite3.OperationalError) as error:
            self._open_things.close()
            raise PipelineError(
                f"{path}: the store of finished masks cannot be opened ({error}); make room on its disk, move it away"
                " or give another --store"
            ) from None

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(
            self._path,
            timeout=_WAIT_FOR_LOCK_S,
            isolation_level="IMMEDIATE",
            check_same_thread=False,  # of threads that take turns; see WriteBehind
        )
        try:
            _check(database)  # from here on texts are bytes: a blob that claims to be text is for _unpack to judge
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            for table in _TABLES:
                database.execute(table)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _set_aside(self, error: sqlite3.Error) -> None:
        number = 0
        while (aside := self._path.with_name(f"{self._path.name}.damaged-{number}")).exists():
            number += 1
        self._path.rename(aside)
        for suffix in ("-wal", "-shm"):
            _beside(self._path, suffix).unlink(missing_ok=True)
        _log.warning("%s is damaged (%s): set aside as %s, masks are computed anew", self._path, error, aside)

    def has(self, image: str, settings: str) -> bool:
        """Say whether there is a row, without reading it: a damaged one counts, until :meth:`get` finds out.

        Raises:
            PipelineError: as :meth:`get`.
        """
        return self._row("SELECT 1 FROM masks WHERE image = ? AND settings = ?", image, settings) is not None

    def get(self, image: str, settings: str) -> list[StoredMask] | None:
        """Find the masks of an image, or None. A row that does not unpack counts as absent.

        Raises:
            PipelineError: the file was damaged after it was opened, or is no store of masks.
        """
        row = self._row("SELECT masks FROM masks WHERE image = ? AND settings = ?", image, settings)
        if row is None:
            return None
        try:
            return _unpack(row[0])
        except (zlib.error, ValueError, TypeError, AttributeError) as error:
            _log.warning("%s: the row of image %.12s is damaged (%s) and computed anew", self._path, image, error)
            return None

    def _row(self, query: str, *values: str) -> Any:
        try:
            return self._database.execute(query, values).fetchone()
        except sqlite3.DatabaseError as error:
            raise PipelineError(f"{self._path}: cannot be read ({error}); move it away and start again") from None

    def put(self, image: str, settings: str, masks: Sequence[StoredMask], *, seconds: float | None = None) -> None:
        """Keep the masks of an image; on return they are on the disk.

        Args:
            image: the image's part of the key.
            settings: the settings' part of the key.
            masks: all of them, best score first.
            seconds: what they took, for the rate that :func:`read_contents` gives; None where that is not known.

        Raises:
            PipelineError: the disk is full, or another process holds the store for over a minute.
        """
        self._change(
            ("INSERT OR REPLACE INTO masks VALUES (?, ?, ?)", (image, settings, _pack(masks))),
            ("INSERT INTO timings VALUES (?, ?, ?, ?)", (image, settings, len(masks), seconds)),
        )

    def call(self, settings: str, name: str) -> None:
        """Give SETTINGS a NAME that people understand.

        Raises:
            PipelineError: as :meth:`put`.
        """
        self._change(("INSERT OR IGNORE INTO names VALUES (?, ?)", (settings, name)))

    def _change(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        try:
            with self._database:  # one transaction
                for statement, values in statements:
                    self._database.execute(statement, values)
        except sqlite3.DatabaseError as error:
            raise PipelineError(
                f"{self._path}: masks cannot be stored ({error}); make room on its disk and run again: what is stored"
                " stays valid"
            ) from None

    def __enter__(self) -> "MaskStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open_things.close()


class WriteBehind:
    """Puts masks from a thread of its own, so that a network does not wait for the disk. A context manager.

    Nobody else uses the store before the block ends. It ends when all is on the disk, also after an error.
    """

    def __init__(self, store: MaskStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def put(self, image: str, settings: str, masks: Sequence[StoredMask], *, seconds: float | None = None) -> None:
        """Have :meth:`MaskStore.put` called; waits only while a few images wait already.

        Raises:
            PipelineError: an earlier put failed. The end of the block raises those of the last ones.
        """
        while self._waiting and (self._waiting[0].done() or len(self._waiting) == _WAITING_PUTS):
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._store.put, image, settings, masks, seconds=seconds))

    def __enter__(self) -> "WriteBehind":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            for put in self._waiting:
                put.result()


@dataclass(frozen=True)
class Contents:
    """What a store has.

    Attributes:
        num_masks: of each image under the settings asked for; None where its row is damaged.
        other_settings: fingerprint, name ("" where it has none) and number of images of all others.
        timed_images: the last images under these settings whose time was taken, a limited number.
        timed_seconds: what they took together.
    """

    num_masks: dict[str, int | None]
    other_settings: list[tuple[str, str, int]]
    timed_images: int
    timed_seconds: float


def read_contents(path: Path, settings: str) -> Contents | None:
    """Look into the store at PATH without changing anything, also while another process writes; None if there is none.

    Raises:
        sqlite3.DatabaseError: the file is damaged, or cannot be read.
    """
    if not path.exists():
        return None
    # a reader of the write-ahead log needs files beside the store; without a log nothing has to be made for it
    mode = "mode=ro" if _beside(path, "-wal").exists() else "mode=ro&immutable=1"
    database = sqlite3.connect(f"{path.resolve().as_uri()}?{mode}", uri=True, timeout=_WAIT_FOR_LOCK_S)
    with contextlib.closing(database):
        _check(database)
        database.text_factory = _text
        counts = "image, CAST(num_masks AS INTEGER)"
        counted = dict(_rows(database, "timings", counts, "WHERE settings = ? ORDER BY rowid", settings))
        images = [image for (image,) in _rows(database, "masks", "image", "WHERE settings = ?", settings)]
        names = dict(_rows(database, "names", "settings, name"))
        others = _rows(
            database, "masks", "settings, count(*)", "WHERE settings != ? GROUP BY settings ORDER BY settings", settings
        )
        last = "WHERE settings = ? AND seconds BETWEEN 0 AND 1e9 ORDER BY rowid DESC LIMIT ?"  # no NULL, no garbage
        seconds = [taken for (taken,) in _rows(database, "timings", "seconds", last, settings, _TIMED_IMAGES)]
        return Contents(
            num_masks={
                image: counted[image] if image in counted else _num_masks(database, image, settings) for image in images
            },
            other_settings=[(other, names.get(other, ""), num_images) for other, num_images in others],
            timed_images=len(seconds),
            timed_seconds=math.fsum(seconds),
        )


def _rows(database: sqlite3.Connection, table: str, columns: str, rest: str = "", *values: Any) -> Iterator[Any]:
    """Read a table, empty where an older version of the store does not have it."""
    if database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
        yield from database.execute(f"SELECT {columns} FROM {table} {rest}", values)


def _num_masks(database: sqlite3.Connection, image: str, settings: str) -> int | None:
    """Count the masks of a row that was put before timings were kept; None where it is damaged."""
    row = database.execute("SELECT masks FROM masks WHERE image = ? AND settings = ?", (image, settings)).fetchone()
    try:
        return None if row is None else len(_unpack(row[0]))  # listed, but not found: its key is damaged
    except (zlib.error, ValueError, TypeError, AttributeError):
        return None


def _check(database: sqlite3.Connection) -> None:
    """Go through the pages of a file that may be damaged; leaves DATABASE giving texts as bytes.

    Raises:
        sqlite3.DatabaseError: it is damaged.
    """
    database.text_factory = bytes
    try:
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    except UnicodeDecodeError:  # the message quotes what it found
        raise sqlite3.DatabaseError("unreadable schema") from None
    if verdict != b"ok":
        raise sqlite3.DatabaseError(_text(verdict))


def _text(content: bytes) -> str:
    return content.decode(errors="replace")


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Tell a damaged file from a full disk, a folder without permission, and the like."""
    return not isinstance(error, sqlite3.OperationalError) or str(error) == "unsupported file format"


def _beside(path: Path, suffix: str) -> Path:
    """Name a file that SQLite keeps beside its database."""
    return path.with_name(path.name + suffix)


def _pack(masks: Sequence[StoredMask]) -> bytes:
    rows = [[mask.rle.decode("ascii"), list(mask.box), mask.area_px, mask.score, mask.stability] for mask in masks]
    return zlib.compress(json.dumps(rows).encode("ascii"), level=6)  # zlib checks itself with adler32


def _unpack(blob: bytes) -> list[StoredMask]:
    return [
        StoredMask(rle.encode("ascii"), Box(*box), area_px, score, stability)
        for rle, box, area_px, score, stability in json.loads(zlib.decompress(blob))
    ]
