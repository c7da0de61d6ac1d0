"""Repeating an experiment with other seeds: in small projects under git and DVC, made for the test."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.params import Params
from pipeline.recorded_runs import runs_at, runs_here
from pipeline.repeat import last_error, remaining
from pipeline.table import app
from tests.branches import commit, dvc, new_project, sh

ROOT = Path(__file__).parents[2]
GRAPH = {
    "stages": {
        "draw": {
            "cmd": "python code/draw.py",
            "deps": ["code/draw.py", "raw/set"],
            "params": ["seed"],
            "outs": ["data/draw.txt"],
        },
        "evaluate": {
            "cmd": "python code/evaluate.py",
            "deps": ["data/draw.txt", "code/evaluate.py"],
            "params": ["seed", "evaluate"],
            "metrics": ["results/metrics.json"],
        },
    }
}
SCRIPTS = {
    # every start of a stage is a line of the journal; accuracy is 0.5 + seed / 100 + offset of the raw data
    "draw": """
import os, pathlib, yaml
seed = yaml.safe_load(open("params.yaml"))["seed"]
with open(os.environ["TOY_JOURNAL"], "a") as journal:
    print("draw", seed, file=journal)
assert pathlib.Path(".cache/store").exists()
offset = float(pathlib.Path("raw/set/offset.txt").read_text())
pathlib.Path("data/draw.txt").write_text(str(0.5 + seed / 100 + offset))
""",
    "evaluate": """
import json, os, time, yaml
seed = yaml.safe_load(open("params.yaml"))["seed"]
with open(os.environ["TOY_JOURNAL"], "a") as journal:
    print("evaluate", seed, file=journal)
time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
if str(seed) == os.environ.get("TOY_CURSED"):
    raise SystemExit("error: no luck with this seed")
accuracy = float(open("data/draw.txt").read())
json.dump({"protomask": {"classification": {"accuracy": accuracy, "f1": None}}}, open("results/metrics.json", "w"))
""",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with two stages and a commit, not run yet; its raw data are ignored by git and unknown to DVC."""
    folder = tmp_path / "project"
    for name in ("code", "raw/set", "data", "results", ".cache"):
        (folder / name).mkdir(parents=True)
    (folder / "dvc.yaml").write_text(yaml.safe_dump(GRAPH, sort_keys=False), encoding="utf-8")
    (folder / "params.yaml").write_text(yaml.safe_dump(Params().model_dump(mode="json")), encoding="utf-8")
    (folder / ".gitignore").write_text("/raw/\n/data/\n/results/\n/.cache/\n", encoding="utf-8")
    (folder / "raw" / "set" / "offset.txt").write_text("0.01", encoding="utf-8")
    (folder / ".cache" / "store").write_text("", encoding="utf-8")
    for name, script in SCRIPTS.items():
        (folder / "code" / f"{name}.py").write_text(script, encoding="utf-8")
    new_project(folder, "main")
    commit(folder, "Start")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TOY_JOURNAL", str(tmp_path / "journal.txt"))
    return folder


def journal(project):
    path = project.with_name("journal.txt")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def table(*args):
    return CliRunner().invoke(app, [*args])


def state_of(project):
    """All files outside .git and .dvc, with their times; what git has staged; its branches and its stash."""
    files = {
        path.relative_to(project).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(project.rglob("*"))
        if path.is_file() and path.relative_to(project).parts[0] not in (".git", ".dvc")
    }
    staged = sh(project, "git", "diff", "--cached", "--binary")
    return files, staged, sh(project, "git", "status", "--porcelain"), sh(project, "git", "branch", "--verbose")


def accuracies(path):
    content = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    return next(dict(zip(content[0], line, strict=True)) for line in content if "accuracy" in line)


@pytest.mark.slow
def test_missing_seeds_are_run_once_failures_are_named_and_the_workspace_stays(project, tmp_path, monkeypatch):
    # what is not committed is part of the experiment: an edit, a staged edit, a new file
    (project / "code" / "draw.py").write_text(SCRIPTS["draw"].replace("0.5 +", "0.4 +"), encoding="utf-8")
    (project / "code" / "evaluate.py").write_text(SCRIPTS["evaluate"] + "# staged\n", encoding="utf-8")
    sh(project, "git", "add", "code/evaluate.py")
    (project / "notes.txt").write_text("new", encoding="utf-8")
    before = state_of(project)

    monkeypatch.setenv("TOY_CURSED", "1")
    result = table("--seeds", "3", "--out", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert "seed 1 failed: no luck with this seed; see .dvc/tmp/table/seed-1.log" in result.output
    assert result.output.splitlines()[-1] == "error: not in the table, because their runs failed: seeds 1"
    assert journal(project) == [f"{stage} {seed}" for seed in range(3) for stage in ("draw", "evaluate")]
    found = accuracies(tmp_path / "out" / "table.csv")
    assert found["seeds"] == "0 2"
    assert float(found["mean"]) == pytest.approx(0.42)
    assert state_of(project) == before

    monkeypatch.delenv("TOY_CURSED")
    result = table("--seeds", "3")
    assert result.exit_code == 0, result.output
    assert result.output.count("is there already") == 2
    assert journal(project)[6:] == ["evaluate 1"]  # its finished stage comes from DVC's cache
    assert "Mean ± sample standard deviation of 3 runs (seeds 0, 1, 2)" in result.output
    assert "42.00 ± 1.00" in result.output

    result = table("--seeds", "3")
    assert result.output.count("is there already") == 3
    assert len(journal(project)) == 7
    assert state_of(project) == before
    assert not list((project / ".dvc" / "tmp" / "table").glob("clone-*"))

    # they are experiments like others: DVC lists them, and the table finds them without being asked to run any
    assert sorted(run.seed for run in runs_here(project)) == [0, 1, 2]
    names = sh(project, "git", "for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps").split()
    assert len(names) == 3
    files = sh(
        project, "git", "ls-tree", "-r", "--name-only", sh(project, "git", "rev-parse", "--glob=refs/exps").split()[0]
    )
    assert {"notes.txt", "dvc.lock"} < set(files.split())
    assert not [file for file in files.split() if file.startswith((".cache", "raw"))]
    (run,) = runs_at(project, [next(name for name in names if name.startswith("seed-2"))])
    assert (run.seed, run.metrics["protomask"]["classification"]["accuracy"]) == (2, pytest.approx(0.43))


@pytest.mark.slow
def test_runs_that_exist_count_and_what_changes_results_makes_them_others(project):
    dvc(project, "repro")
    commit(project, "Run")
    dvc(project, "exp", "run", "--set-param", "seed=1")
    sh(project, "git", "checkout", "--quiet", "--", ".")
    dvc(project, "checkout")
    first = journal(project)

    result = table("--seeds", "2")
    assert "seed 0 is there already (workspace)" in result.output  # the commit's run is the same one and counts once
    assert "seed 1 is there already" in result.output
    assert "51.50 ± 0.71" in result.output
    assert journal(project) == first

    result = table("--seeds", "1,", "-S", "evaluate.top_classes=4")  # another experiment; drawing does not read this
    assert journal(project)[len(first) :] == ["evaluate 1"]
    result = table()
    assert "evaluate.top_classes=3. Mean ± sample standard deviation of 2 runs (seeds 0, 1)" in result.output
    assert "evaluate.top_classes=4. 1 run (seed 1)" in result.output

    (project / "raw" / "set" / "offset.txt").write_text("0.02", encoding="utf-8")  # raw data count, too
    assert "53.00" in table("--seeds", "1,").output
    assert journal(project)[len(first) + 1 :] == ["draw 1", "evaluate 1"]


@pytest.mark.slow
def test_inputs_that_dvc_keeps_come_from_its_cache(project):
    sh(project, "git", "rm", "--quiet", "--cached", ".gitignore")
    (project / ".gitignore").write_text("/data/\n/results/\n/.cache/\n", encoding="utf-8")
    dvc(project, "add", "--quiet", "raw")
    (project / "raw" / "set" / "offset.txt").unlink()
    assert "51.00" in table("--seeds", "0,").output
    assert "seed 0 is there already" in table("--seeds", "0,").output
    assert journal(project) == ["draw 0", "evaluate 0"]
    assert not (project / "raw" / "set" / "offset.txt").exists()


@pytest.mark.slow
def test_an_interrupted_call_leaves_the_workspace_and_goes_on(project):
    before = state_of(project)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.table", "--seeds", "2"],
        env=os.environ | {"TOY_SLEEP": "60", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while "evaluate 0" not in journal(project) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert journal(project) == ["draw 0", "evaluate 0"]
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        assert process.wait(60) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert state_of(project) == before
    result = table("--seeds", "2")
    assert result.exit_code == 0, result.output
    assert journal(project)[2:] == ["evaluate 0", "draw 1", "evaluate 1"]
    assert "51.50 ± 0.71" in result.output
    assert state_of(project) == before


@pytest.mark.slow
def test_what_cannot_be_taken_is_one_line_with_the_way_out(project):
    result = table()
    assert result.output.splitlines()[-1] == "error: no run to show: `dvc repro` makes one, --seeds 4 makes four"
    assert "workspace: no dvc.lock; it was never run: `dvc repro`" in result.output
    assert "git knows no revision 'nowhere'" in table("--rev", "nowhere").output

    for override, message in {
        "seed=3": "--seeds names the seeds",
        "evaluate.top_clases=3": "unknown key",
        "evaluate.top_classes=-3": "-S: `evaluate.top_classes`",
    }.items():
        result = table("--seeds", "2", "-S", override)
        assert result.exit_code == 1
        assert message in result.output
        assert len(result.output.splitlines()) == 1
    (project / "raw" / "set" / "offset.txt").unlink()
    (project / "raw" / "set").rmdir()
    assert "raw/set does not exist, but a stage of dvc.yaml reads it" in table("--seeds", "2").output
    assert journal(project) == []

    (project / "raw" / "set").mkdir()
    (project / "raw" / "set" / "offset.txt").write_text("0.01", encoding="utf-8")
    dvc(project, "repro")
    metrics = json.loads((project / "results" / "metrics.json").read_text(encoding="utf-8"))
    metrics["protomask"]["classification"]["accuracy"] = 1.0
    (project / "results" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert "results/metrics.json is not the one that dvc.lock records" in table().output


def test_the_reason_of_a_failure_is_the_stages_own_line():
    log = "Running stage\nerror: params.yaml: unknown key `x`\nERROR: failed to reproduce 'train'\n"
    assert last_error(log) == "params.yaml: unknown key `x`"
    assert last_error("Traceback\nValueError: 3\nERROR: failed to reproduce 'train'") == "failed to reproduce 'train'"
    assert last_error("") == "no output"


def test_the_time_that_is_left_is_known_after_the_first_run():
    assert remaining(10.0, done=0, num=4) == ""
    assert remaining(120.0, done=2, num=5) == ", about 03:00 left"
