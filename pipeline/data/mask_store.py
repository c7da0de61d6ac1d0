"""Where finished masks wait: one SQLite row per image, so that an interrupted ``masks`` stage loses nothing.

The store lies outside the stage's outs and is never an input: what is in it could always be computed again. A row's
key holds the picture's sha256 and a fingerprint of everything that shapes its masks, so a changed setting, changed
weights or an edited picture simply is not found, and going back to an older setting finds everything.
"""

import json
import logging
import sqlite3
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from pipeline.data.boxes import Box
from pipeline.data.masks import StoredMask
from pipeline.errors import PipelineError

_log = logging.getLogger(__name__)

_WAIT_FOR_LOCK_S = 60.0


class MaskStore:
    """A map from (image, settings) to masks; each ``put`` is one committed transaction. A context manager."""

    def __init__(self, path: Path) -> None:
        """Open or create PATH.

        A damaged file is set aside under another name, with a warning, and a new store begins.

        Raises:
            PipelineError: the folder cannot be written.
        """
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._database = self._open()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self._set_aside(error)
                self._database = self._open()
        except (OSError, sqlite3.OperationalError) as error:
            raise PipelineError(
                f"{path}: the store of finished masks cannot be opened ({error}); move it away or give another --store"
            ) from None

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=_WAIT_FOR_LOCK_S, isolation_level=None)
        try:
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            database.execute(
                "CREATE TABLE IF NOT EXISTS masks (image TEXT, settings TEXT, masks BLOB NOT NULL,"
                " PRIMARY KEY (image, settings)) WITHOUT ROWID"
            )
            database.text_factory = bytes  # a damaged blob that claims to be text is for _unpack to judge
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
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        _log.warning("%s is damaged (%s): set aside as %s, masks are computed anew", self._path, error, aside)

    def get(self, image: str, settings: str) -> list[StoredMask] | None:
        """Find the masks of an image, or None. A row that does not unpack counts as absent.

        Raises:
            PipelineError: the file was damaged after it was opened, or is no store of masks.
        """
        try:
            row = self._database.execute(
                "SELECT masks FROM masks WHERE image = ? AND settings = ?", (image, settings)
            ).fetchone()
        except sqlite3.DatabaseError as error:
            raise PipelineError(f"{self._path}: cannot be read ({error}); move it away and start again") from None
        if row is None:
            return None
        try:
            return _unpack(row[0])
        except (zlib.error, ValueError, TypeError, AttributeError) as error:
            _log.warning("%s: the row of image %.12s is damaged (%s) and computed anew", self._path, image, error)
            return None

    def put(self, image: str, settings: str, masks: Sequence[StoredMask]) -> None:
        """Keep the masks of an image; on return they are on the disk.

        Raises:
            PipelineError: the disk is full, or another process holds the store for over a minute.
        """
        try:
            self._database.execute("INSERT OR REPLACE INTO masks VALUES (?, ?, ?)", (image, settings, _pack(masks)))
        except sqlite3.DatabaseError as error:
            raise PipelineError(f"{self._path}: masks cannot be stored ({error}); what is stored stays valid") from None

    def __enter__(self) -> "MaskStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.close()


def _pack(masks: Sequence[StoredMask]) -> bytes:
    rows = [[mask.rle.decode("ascii"), list(mask.box), mask.area_px, mask.score, mask.stability] for mask in masks]
    return zlib.compress(json.dumps(rows).encode("ascii"), level=6)  # zlib checks itself with adler32


def _unpack(blob: bytes) -> list[StoredMask]:
    return [
        StoredMask(rle.encode("ascii"), Box(*box), area_px, score, stability)
        for rle, box, area_px, score, stability in json.loads(zlib.decompress(blob))
    ]
