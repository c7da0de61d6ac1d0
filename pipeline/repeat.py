"""Repeating one experiment with other seeds, as DVC experiments, without touching the workspace.

The runs happen in a clone under ``.dvc/tmp`` that holds the workspace as it stands, uncommitted changes included, and
shares DVC's cache. ``dvc exp run --temp`` would lack what git ignores and DVC does not make (raw data, checkpoints,
the store of finished masks), and rewrites the workspace's own files while it prepares; the clone has links instead.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from tqdm import tqdm

from pipeline.dvc_lock import StageRecord
from pipeline.errors import PipelineError
from pipeline.params import Params, check_params, load_params
from pipeline.preset import apply_override, lay
from pipeline.recorded_runs import (
    Recipe,
    Run,
    check_project,
    read_run,
    recipe_of,
    runs_here,
)

_PARAMS_FILE = "params.yaml"
_STORES = (".cache",)  # what stages keep outside their outs: the clone takes part in it
_UNWRITTEN = ""  # hash of what a stage is yet to write

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that did not finish.

    Attributes:
        seed: its seed.
        reason: the last error in its log.
        log: everything that DVC and the stages printed.
    """

    seed: int
    reason: str
    log: Path


@dataclass(frozen=True, slots=True)
class Clone:
    """A copy of the project in which experiments run.

    Attributes:
        root: the project.
        folder: the copy.
        head: the commit that experiments hang on.
        tree: git's name for the content of the workspace when the copy was made.
    """

    root: Path
    folder: Path
    head: str
    tree: str


def repeat(root: Path, seeds: Sequence[int], overrides: Sequence[str] = ()) -> tuple[list[Run], list[Failure]]:
    """Run the experiment that the workspace describes with each of SEEDS, unless that run is there already.

    Each run becomes a DVC experiment derived from HEAD. A line in the log tells of each, with the time the rest takes.

    Args:
        root: the project's folder.
        seeds: one run each.
        overrides: ``key=value`` pairs laid over params.yaml.

    Returns:
        The runs, in the order of SEEDS, and those that failed.

    Raises:
        PipelineError: no DVC project, no commit yet, or params that are none.
    """
    check_project(root)
    params = _overridden(root / _PARAMS_FILE, overrides)
    logs = root / ".dvc" / "tmp" / "table"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="clone-", dir=logs.resolve(), ignore_cleanup_errors=True) as folder:
        clone = _clone(root.resolve(), Path(folder) / "project")
        lay(params, clone.folder / _PARAMS_FILE)
        recipe = planned_recipe(clone)
        runs = {run.seed: run for run in runs_here(root) if run.seed in seeds and run.recipe == recipe}
        for seed in (seed for seed in seeds if seed in runs):
            _log.info("seed %s is there already (%s)", seed, runs[seed].source)
        failures: list[Failure] = []
        missing = [seed for seed in seeds if seed not in runs]
        started = time.monotonic()
        for done, seed in enumerate(missing):
            log = logs / f"seed-{seed}.log"
            left = remaining(time.monotonic() - started, done=done, num=len(missing))
            _log.info("seed %s (run %s of %s)%s; its output: %s", seed, done + 1, len(missing), left, log)
            _reset(clone)
            lay(params.model_copy(update={"seed": seed}), clone.folder / _PARAMS_FILE)
            name = f"seed-{seed}-{_short(recipe)}"
            if _run_experiment(clone, name, log):
                runs[seed] = read_run(root, name, _fetch(clone, name))
            else:
                failures.append(Failure(seed, last_error(log.read_text(encoding="utf-8", errors="replace")), log))
                _log.error("seed %s failed: %s; see %s", seed, failures[-1].reason, log)
        if missing:
            took = tqdm.format_interval(time.monotonic() - started)
            _log.info("%s of %s runs finished in %s", len(missing) - len(failures), len(missing), took)
    return [runs[seed] for seed in seeds if seed in runs], failures


def remaining(elapsed_s: float, *, done: int, num: int) -> str:
    """Say how long the rest of NUM runs takes, judged by the DONE ones; nothing before the first is done."""
    return f", about {tqdm.format_interval(elapsed_s / done * (num - done))} left" if done else ""


def last_error(log: str) -> str:
    """Find the line of a log that says why a run failed: the stage's own, or else DVC's."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for start in ("error: ", "ERROR: "):
        for line in reversed(lines):
            if line.startswith(start):
                return line.removeprefix(start)
    return lines[-1] if lines else "no output"


def planned_recipe(clone: Clone) -> Recipe:
    """Put together what a run in CLONE would be made from, with the params that lie there.

    Inputs that git does not carry are linked into the clone first.

    Raises:
        PipelineError: an input does not exist, or DVC cannot read dvc.yaml.
    """
    try:
        with Repo(str(clone.folder)) as repo:
            graph = [stage for stage in repo.index.stages if stage.cmd]
            added = [stage.path for stage in repo.index.stages if not stage.cmd]
            if added:  # by `dvc add`: DVC's cache has them
                _dvc(clone.folder, "checkout", "--quiet", *added)
            written = {out.def_path for stage in graph for out in stage.outs}
            inputs = {dep.def_path for stage in graph for dep in stage.deps if dep.hash_name == "md5"} - written
            _link(clone, sorted(inputs))
            stages = {stage.name: _planned_stage(stage, written) for stage in graph}
    except FileNotFoundError as error:
        missing = Path(error.filename or str(error)).relative_to(clone.folder)
        raise PipelineError(f"{missing} does not exist, but a stage of dvc.yaml reads it") from None
    except DvcException as error:
        raise PipelineError(f"DVC cannot read the graph: {' '.join(str(error).split())}") from None
    return recipe_of(stages, "dvc.yaml")[1]


def _planned_stage(stage: Any, written: Collection[str]) -> StageRecord:
    """Describe a stage of DVC's graph before it runs; what stages write has no hash yet."""
    params: dict[str, Any] = {}
    deps: dict[str, str] = {}
    for dep in stage.deps:
        if dep.hash_name == "params":
            params |= dep.read_params()
        else:
            deps[dep.def_path] = _UNWRITTEN if dep.def_path in written else str(dep.get_hash().value)
    return StageRecord(str(stage.cmd), params, deps, {out.def_path: _UNWRITTEN for out in stage.outs})


def _overridden(path: Path, overrides: Sequence[str]) -> Params:
    """Read the params file PATH and lay OVERRIDES over it."""
    content = load_params(path).model_dump(mode="json")
    for override in overrides:
        if override.partition("=")[0].strip() == "seed":
            raise PipelineError(f"-S {override}: --seeds names the seeds")
        apply_override(content, override)
    return check_params(content, Path("-S"))


def _clone(root: Path, folder: Path) -> Clone:
    """Copy the project at ROOT, as it stands, to FOLDER. The project's own index and files are only read."""
    head = _git(root, "rev-parse", "--verify", "HEAD", way_out="commit once: DVC hangs experiments on a commit")
    env = {"GIT_INDEX_FILE": str(folder.with_name("index"))}
    _git(root, "read-tree", head, env=env)
    _git(root, "add", "--all", env=env)
    tree = _git(root, "write-tree", env=env)
    _git(root, "clone", "--quiet", "--shared", "--no-checkout", str(root), str(folder))
    for key in ("user.name", "user.email"):
        value = _git(root, "config", "--default", "", "--get", key)
        if value:
            _git(folder, "config", key, value)
    clone = Clone(root, folder, head, tree)
    _reset(clone)
    local = root / ".dvc" / "config.local"
    if local.exists():
        shutil.copy(local, folder / ".dvc")
    _dvc(folder, "config", "--local", "cache.dir", _dvc(root, "cache", "dir"))
    _dvc(folder, "config", "--local", "core.site_cache_dir", str(folder.with_name("state")))
    _link(clone, _STORES)
    return clone


def _reset(clone: Clone) -> None:
    """Give the clone the content of the workspace again; what git ignores stays."""
    _git(clone.folder, "checkout", "--quiet", "--force", "--detach", clone.head)
    _git(clone.folder, "read-tree", "--reset", "-u", clone.tree)
    _git(clone.folder, "clean", "--quiet", "--force", "-d")


def _link(clone: Clone, paths: Iterable[str]) -> None:
    """Link what the project has and git does not carry; git in the clone looks past it."""
    for path in paths:
        there, here = clone.root / path, clone.folder / path
        if there.exists() and not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there)
            with (clone.folder / ".git" / "info" / "exclude").open("a", encoding="utf-8") as file:
                file.write(f"/{path}\n")


def _run_experiment(clone: Clone, name: str, log: Path) -> bool:
    """Run the graph in CLONE as the experiment NAME; tell whether it finished."""
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "exp", "run", "--name", name],
            cwd=clone.folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    return done.returncode == 0


def _fetch(clone: Clone, name: str) -> str:
    """Bring the experiment NAME from CLONE into the project; return its commit."""
    refs = _git(clone.folder, "for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
    commit, ref = next(line.split() for line in refs if line.endswith(f"/{name}"))
    _git(clone.root, "fetch", "--quiet", "--no-write-fetch-head", str(clone.folder), f"+{ref}:{ref}")
    return commit


def _dvc(folder: Path, *args: str) -> str:
    return _output([sys.executable, "-m", "dvc", *args], folder, way_out="see `dvc doctor`")


def _git(folder: Path, *args: str, env: Mapping[str, str] | None = None, way_out: str = "see `git status`") -> str:
    return _output(["git", *args], folder, env=env, way_out=way_out)


def _output(command: Sequence[str], folder: Path, *, env: Mapping[str, str] | None = None, way_out: str) -> str:
    done = subprocess.run(command, cwd=folder, env=_environment() | dict(env or {}), capture_output=True, text=True)
    if done.returncode:
        what = " ".join(command[-3:])
        raise PipelineError(f"`{what}` failed ({' '.join(done.stderr.split())}): {way_out}")
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    """Let stages find the `python` that runs this command, whether or not its environment is activated."""
    return os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def _short(recipe: Recipe) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:7]
