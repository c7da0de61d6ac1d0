"""Random generators: seeded before a stage's work, and left alone by what must not count."""

import contextlib
import copy
import random
from collections.abc import Iterator

import numpy as np
import torch

from pipeline.runtime import keep_freed_memory


def prepare(seed: int) -> None:
    """Seed every generator and ask for the deterministic variant of every operation."""
    keep_freed_memory()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # libraries draw from this one
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # the deterministic mode also fills every new tensor; nothing here reads memory that was not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextlib.contextmanager
def untouched_generators() -> Iterator[None]:
    """Put the states of all random generators back at the end."""
    python_state, numpy_state = random.getstate(), copy.deepcopy(np.random.get_state())  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
    random.setstate(python_state)
    np.random.set_state(numpy_state)  # noqa: NPY002
