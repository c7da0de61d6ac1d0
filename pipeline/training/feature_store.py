"""Encoded views that outlive the stage that computed them: a frozen backbone sees every view once.

A file per split and version of its views, named by everything that decides its content: backbone, views, the code that
computes it. So nothing in it is ever out of date; a damaged file is noticed by its hash and computed anew.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.io import sha256_of_file

_log = logging.getLogger(__name__)

_HASH_DIGITS = 32  # of the content, in the file's name


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
        """Map the array of KEY into memory; None where there is none, or only a damaged one (which is deleted)."""
        for path in sorted(self._folder.glob(f"{key}.*.npy")):
            try:
                if path.name.split(".")[1] == sha256_of_file(path)[:_HASH_DIGITS]:
                    array = np.load(path, mmap_mode="c")  # copy on write: nobody can change the file
                    os.utime(path)
                    return torch.from_numpy(array)
            except (OSError, ValueError):
                pass
            _log.warning("%s is damaged: computing it again", path)
            path.unlink(missing_ok=True)
        return None

    @contextlib.contextmanager
    def writing(self, keys: Sequence[str], num_views: int) -> Iterator["Writer"]:
        """Give a writer for the arrays of KEYS; they are kept when the block succeeds and all views were written."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing.", dir=self._folder) as work:
            writer = Writer([Path(work) / f"{idx}.npy" for idx in range(len(keys))], num_views)
            yield writer
            written = set()
            for key, path in zip(keys, writer.finished(), strict=True):
                written.add(path.rename(self._folder / f"{key}.{sha256_of_file(path)[:_HASH_DIGITS]}.npy"))
        self._make_room(written)

    def _make_room(self, written: set[Path]) -> None:
        """Delete what was used least recently; what was just written stays, even if it is too large by itself."""
        files = [(path.stat().st_mtime, path.stat().st_size, path) for path in self._folder.glob("*.npy")]
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
        self._arrays: list[np.memmap] = []
        self._filled = 0

    def add(self, versions: Sequence[Float[Tensor, "view channel *place"]]) -> None:
        """Write the next views, one tensor per version."""
        if not self._arrays:
            shape = (self._num_views, *versions[0].shape[1:])
            self._arrays = [
                np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape) for path in self._paths
            ]
        stop = self._filled + len(versions[0])
        for array, version in zip(self._arrays, versions, strict=True):
            array[self._filled : stop] = version.numpy()
        self._filled = stop

    def finished(self) -> Sequence[Path]:
        """Flush, and name the files; all views must have been written."""
        assert self._filled == self._num_views
        for array in self._arrays:
            array.flush()
        self._arrays = []
        return self._paths


def hash_of_state(state: dict[str, Tensor]) -> str:
    """Hash the names and bytes of a network's tensors."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        content = tensor.detach().cpu().contiguous()
        hashed.update(f"{name} {content.dtype} {tuple(content.shape)}".encode())
        hashed.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
