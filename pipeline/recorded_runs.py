"""Runs whose results DVC keeps, and what each was made from: as ``dvc.lock`` tells it, not as params.yaml stands today.

A *recipe* is all that shaped the metrics of a run but its seed: the params that its stages read, the hashes of the
files they read and that no stage wrote (code, raw data, weights), and their commands. Runs with equal recipes are
repetitions of one experiment. What only the report needs is no part of it.
"""

import difflib
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvc.api
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import RevError
from dvc_data.index import DataIndexDirError
from scmrepo.exceptions import SCMError

from pipeline.dvc_lock import DamagedLockError, StageRecord, parse_lock
from pipeline.errors import PipelineError
from pipeline.preset import leaves
from pipeline.report.tables import Metrics

METRICS_FILE = "results/metrics.json"
WORKSPACE = "workspace"
_LOCK_FILE = "dvc.lock"
_SEED = "seed"
_UNFINISHED = ("Queued", "Running", "Failed")

Recipe = Mapping[str, str]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """One seed's results.

    Attributes:
        source: where they lie: ``workspace``, ``HEAD``, an experiment's name, a revision.
        seed: of all its random draws.
        recipe: what made them, the seed apart.
        metrics: content of metrics.json.
    """

    source: str
    seed: int
    recipe: Recipe
    metrics: Metrics


class NoRunError(PipelineError):
    """A revision holds no finished run; the message says what is missing and which command makes it."""


class RevisionFiles:
    """The files of a revision, out of git or DVC's cache; those of the workspace as they lie there.

    Attributes:
        name: what messages call the revision.
        rev: what DVC calls it; None is the workspace.
    """

    def __init__(self, root: Path, name: str, rev: str | None) -> None:
        self.name = name
        self.rev = rev
        self._root = root
        self._files = dvc.api.DVCFileSystem(str(root), rev=rev)

    def read(self, path: str) -> bytes:
        """Read a file.

        Args:
            path: relative to the project's folder.

        Raises:
            NoRunError: it is not there; says which command brings it.
            PipelineError: the revision does not exist.
        """
        with self.open(path) as file:
            content: bytes = file.read()
        return content

    def open(self, path: str) -> AbstractContextManager[Any]:
        """Open a file, of which only a part is read; raises as :meth:`read` does."""
        try:
            opened: AbstractContextManager[Any] = self._files.open(path, "rb")
        except RevError:
            raise self._unknown() from None
        except (FileNotFoundError, DataIndexDirError):
            raise NoRunError(f"{self.name}: no {path}; {self._way_to(path)}") from None
        except DvcException as error:
            raise NoRunError(f"{self.name}: DVC cannot read {path}: {_one_line(error)}") from None
        return opened

    def commit(self) -> str | None:
        """Give the hash of the commit; None for the workspace."""
        if self.rev is None:
            return None
        try:
            return str(self._files.repo.get_rev())
        except RevError:
            raise self._unknown() from None

    def _way_to(self, path: str) -> str:
        """Say which command brings a file that is not there, or makes it."""
        go = f"{self._command_to_go_there()} && " if self.rev is not None else ""
        if path == _LOCK_FILE:
            return f"it was never run: `{go}dvc repro`"
        return f"`{go}dvc pull {path}` brings it where a remote has it, `{go}dvc repro` makes it"

    def _command_to_go_there(self) -> str:
        with Repo(str(self._root)) as repo:
            try:
                repo.scm.resolve_rev(self.name)
            except SCMError:  # git does not know experiments by their names
                return f"dvc exp apply {self.name}"
        return f"git checkout {self.name}"

    def _unknown(self) -> PipelineError:
        with Repo(str(self._root)) as repo:
            kept = repo.experiments.ls(all_commits=True).values()
            prefixes = ("refs/heads/", "refs/tags/", "refs/remotes/")
            refs = [
                ref.removeprefix(start) for ref in repo.scm.iter_refs() for start in prefixes if ref.startswith(start)
            ]
        names = {WORKSPACE, *refs, *(name for experiments in kept for name, *_ in experiments)}
        near = difflib.get_close_matches(self.name, sorted(names), n=3, cutoff=0.5)
        return PipelineError(
            f"git knows no revision {self.name!r}{'; near: ' if near else ''}{', '.join(near)}: "
            "`git branch -a`, `git tag` and `dvc exp list` show them"
        )


def runs_here(root: Path) -> list[Run]:
    """Collect the runs of the workspace, of HEAD and of the experiments derived from HEAD, in this order.

    A seed that is there twice with one recipe counts once. What holds no run is named in the log and left out.

    Raises:
        PipelineError: ROOT is no DVC project, or DVC cannot read it.
    """
    check_project(root)
    try:
        rows = dvc.api.exp_show(repo=str(root))
    except DvcException as error:
        raise PipelineError(f"DVC cannot list the experiments: {_one_line(error)}") from None
    experiments = [
        (row["Experiment"], row["rev"]) for row in rows if row.get("Experiment") and row.get("State") not in _UNFINISHED
    ]
    sources: list[tuple[str, str | None]] = [(WORKSPACE, None), *([("HEAD", "HEAD")] if rows else []), *experiments]
    runs = []
    for source, rev in sources:
        try:
            runs.append(read_run(root, source, rev))
        except NoRunError as error:
            _log.warning("left out: %s", error)
    return list(_distinct(runs))


def runs_at(root: Path, revs: Sequence[str]) -> list[Run]:
    """Collect the runs of branches, tags, commits or experiments.

    Raises:
        PipelineError: ROOT is no DVC project, or a revision does not exist or holds no run.
    """
    check_project(root)
    return list(_distinct(read_run(root, rev, rev) for rev in revs))


def check_project(root: Path) -> None:
    """Raise a PipelineError unless ROOT is a DVC project's folder."""
    if not (root / ".dvc").is_dir():
        raise PipelineError(
            f"{root.resolve()} is no DVC project (no folder .dvc): run the command in the project's folder"
        )


def read_run(root: Path, source: str, rev: str | None) -> Run:
    """Read the run of one revision; None is the workspace.

    Raises:
        NoRunError: it holds no finished run.
        PipelineError: the revision does not exist.
    """
    files = RevisionFiles(root, source, rev)
    return run_of(files, read_stages(files))


def read_stages(files: RevisionFiles) -> dict[str, StageRecord]:
    """Read the stages of a revision as they were run.

    Raises:
        NoRunError: they never were.
        PipelineError: the revision does not exist.
    """
    try:
        return parse_lock(files.read(_LOCK_FILE).decode())
    except (DamagedLockError, UnicodeDecodeError):
        raise NoRunError(f"{files.name}: {_LOCK_FILE} is damaged: `dvc repro` writes it anew") from None


def run_of(files: RevisionFiles, stages: Mapping[str, StageRecord]) -> Run:
    """Read the run that the STAGES of a revision made.

    Raises:
        NoRunError: the revision holds no finished run.
    """
    source = files.name
    content = files.read(METRICS_FILE)
    writer = next((stage for stage in stages.values() if METRICS_FILE in stage.outs), None)
    if writer is None or writer.outs[METRICS_FILE] != hashlib.md5(content).hexdigest():
        raise NoRunError(f"{source}: {METRICS_FILE} is not the one that {_LOCK_FILE} records: `dvc repro` mends it")
    params, recipe = recipe_of(stages, source)
    seed = params.get(_SEED)
    if not (isinstance(seed, int) and not isinstance(seed, bool)):
        raise NoRunError(f"{source}: no stage has the param `{_SEED}`, so its results cannot be told from others")
    try:
        metrics: Metrics = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise NoRunError(f"{source}: {METRICS_FILE} is damaged: `dvc repro -f evaluate`") from None
    return Run(source, seed, recipe, metrics)


def recipe_of(stages: Mapping[str, StageRecord], source: str) -> tuple[dict[str, Any], Recipe]:
    """Put together what the stages up to the metrics were made from.

    Args:
        stages: of a whole graph, as it was run or as it would be.
        source: for messages.

    Returns:
        All params with dotted keys, the seed among them; and the recipe: a text for each param, path and command.

    Raises:
        NoRunError: the stages do not fit together, because only some of them ran again.
    """
    needed = _up_to_metrics(stages)
    written = {path: digest for stage in needed.values() for path, digest in stage.outs.items()}
    params: dict[str, Any] = {}
    recipe: dict[str, str] = {}
    for name, stage in needed.items():
        for key, value in leaves(stage.params):
            if params.setdefault(key, value) != value:
                raise _half_run(source, f"stages disagree about {key}")
        for path, digest in stage.deps.items():
            if written.get(path, digest) != digest:
                raise _half_run(source, f"stage {name} has not seen the last {path}")
            if not any(_overlap(path, out) for out in written):
                recipe[f"content of {path}"] = digest
        recipe[f"command of {name}"] = stage.command
    recipe |= {key: text_of(value) for key, value in params.items() if key != _SEED}
    return params, recipe


def text_of(value: Any) -> str:
    """Write a param so that equal values give equal texts: 64 and 64.0, for instance."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return f"[{', '.join(map(text_of, value))}]"
    return str(value)


def _distinct(runs: Iterable[Run]) -> Iterator[Run]:
    """Pass on the first run of each recipe and seed; one that contradicts it is named in the log."""
    kept: dict[tuple[int, tuple[tuple[str, str], ...]], Run] = {}
    for run in runs:
        first = kept.setdefault((run.seed, tuple(sorted(run.recipe.items()))), run)
        if first is run:
            yield run
        elif first.metrics != run.metrics:
            _log.warning(
                "%s and %s have the same seed, params and code, but other metrics (another machine?): %s counts",
                *(first.source, run.source, first.source),
            )


def _up_to_metrics(stages: Mapping[str, StageRecord]) -> dict[str, StageRecord]:
    """Choose the stage that writes the metrics, and all it hangs on."""
    waiting = [name for name, stage in stages.items() if METRICS_FILE in stage.outs]
    needed: set[str] = set()
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting += [
            other
            for other, stage in stages.items()
            if other not in needed and any(_overlap(dep, out) for dep in stages[name].deps for out in stage.outs)
        ]
    return {name: stage for name, stage in stages.items() if name in needed}


def _overlap(path: str, other: str) -> bool:
    """Whether one path is the other or lies in it."""
    return path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/")


def _half_run(source: str, why: str) -> NoRunError:
    return NoRunError(f"{source}: only some stages ran again ({why}): `dvc repro` runs the rest")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
