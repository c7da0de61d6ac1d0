"""What ``dvc.lock`` tells of a run: what each stage read and wrote."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import PipelineError


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What a stage read and wrote.

    Attributes:
        command: as in dvc.yaml, with its params filled in.
        params: the values it read; nested keys, or dotted ones.
        deps: paths and their hashes.
        outs: paths and their hashes.
    """

    command: str
    params: Mapping[str, Any]
    deps: Mapping[str, str]
    outs: Mapping[str, str]


class DamagedLockError(ValueError):
    """A text is no ``dvc.lock``."""


def read_lock(path: Path) -> dict[str, StageRecord]:
    """Read the stages of the ``dvc.lock`` at PATH.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    try:
        return parse_lock(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(f"{path} does not exist: `dvc repro` writes it") from None
    except (DamagedLockError, UnicodeDecodeError):
        raise PipelineError(f"{path} is damaged: run `git checkout {path}` or `dvc repro`") from None


def parse_lock(text: str) -> dict[str, StageRecord]:
    """Read the stages of a ``dvc.lock`` from its text.

    Raises:
        DamagedLockError: TEXT is something else.
    """
    try:
        return stages_of_lock(YAML(typ="safe").load(text))
    except (YAMLError, KeyError, TypeError, AttributeError):
        raise DamagedLockError("this is no dvc.lock") from None


def stages_of_lock(lock: Mapping[str, Any]) -> dict[str, StageRecord]:
    """Read the stages of the content of a ``dvc.lock``."""
    stages = {}
    for name, entry in lock["stages"].items():
        params: dict[str, Any] = {}
        for values in entry.get("params", {}).values():
            params |= values
        stages[name] = StageRecord(
            str(entry.get("cmd", "")), params, _hashes(entry.get("deps", [])), _hashes(entry.get("outs", []))
        )
    return stages


def _hashes(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {entry["path"]: str(entry.get("md5")) for entry in entries}
