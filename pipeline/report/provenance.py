"""Where the numbers of a report come from: revision, recorded outs, versions; no clock, machine or absolute path.

Revision and versions are those of the code and the environment that make the report: what an earlier stage ran with is
not recorded, but DVC runs a stage again when code that it depends on has changed.
"""

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pipeline.dvc_lock import read_lock
from pipeline.params import Params

TOOLS = ("compare", "explain", "preset.py", "recorded_runs.py", "repeat.py", "selection.py", "table.py")
"""What lies in ``pipeline`` and is read by no stage."""
SOURCES = ("pipeline", "stages", "params.yaml", "dvc.yaml", *(f":(exclude)pipeline/{tool}" for tool in TOOLS))
"""What a run is made from, beside its data, as git names it: the folder of dvc.lock holds it."""

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "segment-anything", "protomask-pipeline")
_THIS_STAGE = "report"


@dataclass(frozen=True, slots=True)
class Revision:
    """The state of the sources.

    Attributes:
        commit: the one that last changed them; None where it may lie beyond what a shallow clone holds.
        is_changed: whether they have changes that are in no commit.
    """

    commit: str | None
    is_changed: bool


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where numbers come from.

    Attributes:
        revision: of the code when the report is made; None outside a git repository.
        outs: by stage, in their order, the outs' paths and hashes; None where DVC recorded no stage.
        versions: of the environment that makes the report, by what has them; None for a package that is not installed.
    """

    revision: Revision | None
    outs: Mapping[str, Mapping[str, str]] | None
    versions: Mapping[str, str | None]


def read_provenance(lock: Path) -> Provenance:
    """Find out where the numbers come from.

    Args:
        lock: ``dvc.lock``, in the folder of the sources; it need not exist.

    Raises:
        PipelineError: LOCK is damaged.
    """
    return Provenance(
        revision=_revision(lock.parent),
        outs=_recorded_outs(lock) if lock.exists() else None,
        versions={"Python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
    )


def _revision(folder: Path) -> Revision | None:
    """Ask git for the last commit of the sources, which stays the same when only dvc.lock is committed after a run."""
    commit = _git(folder, "log", "-1", "--format=%H", "--", *SOURCES)
    if not commit:  # none, or a commit to come
        return None
    is_changed = bool(_git(folder, "status", "--porcelain", "--", *SOURCES))
    # to git, the oldest commit of a shallow clone has changed all of its files
    return Revision(None if commit in _boundary(folder) else commit, is_changed)


def _boundary(folder: Path) -> list[str]:
    """List the oldest commits of a shallow clone; none of another one."""
    if _git(folder, "rev-parse", "--is-shallow-repository") != "true":
        return []
    path = _git(folder, "rev-parse", "--git-path", "shallow")
    assert path is not None
    return (folder / path).read_text(encoding="utf-8").split()


def _git(folder: Path, *arguments: str) -> str | None:
    """Ask git about the repository that FOLDER is in; None where it cannot answer."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _recorded_outs(lock: Path) -> dict[str, dict[str, str]]:
    """Read the outs of the stages before this one, in the order of the params' sections."""
    order = {name: idx for idx, name in enumerate(Params.model_fields)}
    records = {name: record for name, record in read_lock(lock).items() if name != _THIS_STAGE}
    return {
        name: dict(sorted(records[name].outs.items()))
        for name in sorted(records, key=lambda name: (order.get(name, len(order)), name))
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
