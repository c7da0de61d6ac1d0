"""One process at a time on a store: a lock that its holder's death lets go, however the holder dies."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def only_process(store: Path) -> Iterator[None]:
    """Wait until no other process is at work on STORE, and keep others out until the block ends.

    The lock is on a file beside the store, which stays there and names the process that wrote it last. Where the file
    system has no locks, a warning says so and the block runs.

    Raises:
        OSError: the file cannot be made.
    """
    with _lock_file(store).open("a+", encoding="ascii") as file:  # the end of this block lets go of the lock
        try:
            _wait_for(file, store)
        except OSError as error:
            _log.warning("%s: no locks here (%s): let no two processes segment at once", store, error)
        with contextlib.suppress(OSError):  # a full disk; waiting works without the number, too
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield


def holder_of(store: Path) -> str | None:
    """Name the process that is at work on STORE by its id, or None. Changes nothing."""
    try:
        with _lock_file(store).open(encoding="ascii") as file:
            try:
                _lock(file, wait=False, shared=True)
            except BlockingIOError:
                return _holder_in(file)
    except OSError:  # no such file, or no locks
        pass
    return None


def _wait_for(file: IO[str], store: Path) -> None:
    try:
        _lock(file, wait=False)
    except BlockingIOError:
        _log.info("%s is in use: waiting for process %s (another --store would not wait)", store, _holder_in(file))
        _lock(file, wait=True)


def _lock(file: IO[str], *, wait: bool, shared: bool = False) -> None:
    if fcntl is None:
        raise OSError("this system has no flock")
    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def _holder_in(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"  # locked, and its number not yet written


def _lock_file(store: Path) -> Path:
    return store.with_name(f"{store.name}.lock")
