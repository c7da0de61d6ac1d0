"""How the pipeline runs and never what comes out: ``runtime.yaml`` and its environment overrides."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.errors import PipelineError
from pipeline.validation import first_problem

_DEFAULT_FILE = Path("runtime.yaml")

# glibc's mallopt(3) parameters
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


class Runtime(BaseSettings):
    """Where and how wide the pipeline runs. ``PROTOMASK_DEVICE=cpu`` in the environment overrides ``device``."""

    model_config = SettingsConfigDict(env_prefix="PROTOMASK_", extra="forbid", frozen=True)

    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    workers: Literal["auto"] | int = "auto"
    engine: Literal["local", "ray"] = "local"
    cache: Path | None = None
    """Folder for what outlives a stage but is no result: views encoded by a frozen backbone, and how far a training run
    is. None keeps nothing."""
    cache_gib: float = Field(20.0, gt=0)
    """Encoded views beyond this are deleted, those used least recently first."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file (whose keys come as init arguments)."""
        return env_settings, init_settings

    @property
    def num_workers(self) -> int:
        """Processes for map-like work: the cores this process may use, or the number given."""
        if self.workers == "auto":
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, self.workers)

    @property
    def torch_device(self) -> str:
        """The device for torch; ``auto`` takes CUDA, else Apple's MPS, else the CPU.

        Raises:
            PipelineError: the device asked for is not there.
        """
        import torch  # here, so that stages without a network start without torch

        if self.device == "auto":
            if torch.cuda.is_available():
                return "cuda"
            return "mps" if torch.backends.mps.is_available() else "cpu"
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise PipelineError(f"runtime.yaml: device is {self.device!r}, but torch sees no CUDA device; use `auto`")
        if self.device == "mps" and not torch.backends.mps.is_available():
            raise PipelineError("runtime.yaml: device is 'mps', but torch sees no Apple GPU; use `auto`")
        return self.device


def load_runtime(path: Path = _DEFAULT_FILE) -> Runtime:
    """Read PATH (defaults where it does not exist) and the ``PROTOMASK_*`` environment variables.

    Raises:
        PipelineError: an unknown key or a value out of range.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except yaml.YAMLError as error:
        raise PipelineError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content or {}, dict):
        raise PipelineError(f"{path}: expected `key: value` lines")
    try:
        return Runtime(**(content or {}))
    except ValidationError as error:
        raise PipelineError(f"{path} or a PROTOMASK_* variable: {first_problem(error)}") from None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread in the block: many small products take longer on several, which wait for another.

    It is the process's setting; nothing else may compute meanwhile.
    """
    import torch  # here, so that stages without a network start without torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of giving them back to the system after every layer.

    A network on the CPU allocates and frees tens of megabytes a layer; with the default thresholds each becomes an
    mmap whose pages the kernel zeroes anew. Elsewhere than Linux this does nothing. ``benchmarks/cpu_settings.py``
    measures the effect.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_MAX, 0)
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(_M_TOP_PAD, 256 * 2**20)
