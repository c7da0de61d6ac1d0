"""Encoded views that outlive the stage that computed them: a frozen backbone sees every view once.

A file per split and version of its views, named by everything that decides its content: backbone, views, the code that
computes it. So nothing in it is ever out of date; a damaged file is noticed by its hash and computed anew.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.io import sha256_of, sha256_of_file

_log = logging.getLogger(__name__)

_HASH_DIGITS = 32  # of the content, in the file's name
_UNFINISHED = ".writing"
_DAY_S = 86_400


class FeatureStore:
    """Arrays [view, channel, *place] by key, in one folder that is kept below a size."""

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        """Use FOLDER, which need not exist yet.

        Args:
            folder: holds nothing else.
            limit_bytes: the files used least recently are deleted when all together are larger.
        """
        self._folder = folder
        self._limit_bytes = limit_bytes

    def find(self, key: str) -> Float[Tensor, "view channel *place"] | None:
        """Map the array of KEY into memory; None where there is none, or only a damaged one (which is deleted).

        Nothing may be written into it: the pages are those of the file.
        """
        for path in sorted(self._folder.glob(f"{key}.*.npy")):
            # it is no array, though its hash is right; or another process has just deleted it
            with contextlib.suppress(ValueError, FileNotFoundError):
                if path.name.split(".")[1] == sha256_of_file(path)[:_HASH_DIGITS]:
                    array = np.load(path, mmap_mode="r")
                    os.utime(path)
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # that it cannot be written
                        return torch.from_numpy(array)
            _log.warning("%s is damaged: computing it again", path)
            path.unlink(missing_ok=True)
        return None

    @contextlib.contextmanager
    def writing(self, keys: Sequence[str], num_views: int) -> Iterator["Writer"]:
        """Give a writer for the arrays of KEYS; they are kept when the block succeeds and all views were written.

        Raises:
            PipelineError: the disk is full, or the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_unfinished()
            prefix = f"{_UNFINISHED}.{_host()}.{os.getpid()}."
            with tempfile.TemporaryDirectory(prefix=prefix, dir=self._folder) as work:
                writer = Writer([Path(work) / f"{idx}.npy" for idx in range(len(keys))], num_views)
                with contextlib.closing(writer):
                    yield writer
                written = set()
                for key, path in zip(keys, writer.finished(), strict=True):
                    written.add(path.rename(self._folder / f"{key}.{sha256_of_file(path)[:_HASH_DIGITS]}.npy"))
        except OSError as error:
            raise PipelineError(
                f"{self._folder}: cannot be written ({error.strerror or error}); free some space, or set `cache: null`"
                " in runtime.yaml"
            ) from None
        self._make_room(written)

    def _remove_unfinished(self) -> None:
        """Remove what killed writers left: those of this machine that run no more, and all that are a day old."""
        for work in self._folder.glob(f"{_UNFINISHED}.*"):
            _, _, host, pid, _ = work.name.split(".")
            with contextlib.suppress(OSError):
                is_old = time.time() - work.stat().st_mtime > _DAY_S
                if is_old or (host == _host() and not _runs(int(pid))):
                    shutil.rmtree(work, ignore_errors=True)

    def _make_room(self, written: set[Path]) -> None:
        """Delete what was used least recently; what was just written stays, even if it is too large by itself."""
        files = []
        for path in self._folder.glob("*.npy"):
            with contextlib.suppress(FileNotFoundError):  # another process made room, too
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total > self._limit_bytes and path not in written:
                path.unlink(missing_ok=True)
                total -= size


class Writer:
    """Fills one file per version, a few views at a time."""

    def __init__(self, paths: Sequence[Path], num_views: int) -> None:
        self._paths = paths
        self._num_views = num_views
        self._files: list[IO[bytes]] = []
        self._filled = 0

    def add(self, versions: Sequence[Float[Tensor, "view channel *place"]]) -> None:
        """Write the next views, one tensor per version."""
        if not self._files:
            self._files = [path.open("wb") for path in self._paths]
            header = {"descr": "<f4", "fortran_order": False, "shape": (self._num_views, *versions[0].shape[1:])}
            for file in self._files:
                np.lib.format.write_array_header_1_0(file, header)
        for file, version in zip(self._files, versions, strict=True):
            file.write(version.contiguous().numpy().astype("<f4", copy=False).tobytes())
        self._filled += len(versions[0])

    def close(self) -> None:
        """Write what is still in memory."""
        for file in self._files:
            file.close()

    def finished(self) -> Sequence[Path]:
        """Name the files; all views must have been written."""
        assert self._filled == self._num_views
        return self._paths


def _host() -> str:
    return sha256_of(socket.gethostname().encode())[:8]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def hash_of_state(state: dict[str, Tensor]) -> str:
    """Hash the names and bytes of a network's tensors."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        content = tensor.detach().cpu().contiguous()
        hashed.update(f"{name} {content.dtype} {tuple(content.shape)}".encode())
        hashed.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
