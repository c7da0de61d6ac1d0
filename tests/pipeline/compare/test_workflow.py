"""The example of continuous integration: what it calls exists."""

import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from pipeline.recorded_runs import RevisionFiles
from tests.branches import commit, dvc, new_project, sh

ROOT = Path(__file__).parents[3]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "compare.yml").read_text(encoding="utf-8"))
STEPS = WORKFLOW["jobs"]["compare"]["steps"]
LINES = [line.strip() for step in STEPS for line in step.get("run", "").splitlines()]


def test_it_runs_on_pull_requests_and_may_comment_on_them_but_not_push():
    assert "pull_request" in WORKFLOW[True]  # YAML 1.1 reads `on` so
    assert WORKFLOW["permissions"] == {"contents": "read", "pull-requests": "write"}


def test_the_whole_history_is_there_to_compare_with():
    (checkout,) = [step for step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert checkout["with"]["fetch-depth"] == 0


def test_with_a_remote_the_results_of_the_other_branch_are_fetched_too(tmp_path):
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    new_project(origin, "main")
    dvc(origin, "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    for branch in ("main", "changed"):
        if branch != "main":
            sh(origin, "git", "switch", "--quiet", "--create", branch)
        (origin / "result.txt").write_text(f"of {branch}\n")
        dvc(origin, "add", "--quiet", "result.txt")
        dvc(origin, "push", "--quiet")
        commit(origin, branch)
    # as actions/checkout leaves it: all branches of the origin, none here
    sh(tmp_path, "git", "clone", "--quiet", "--no-checkout", str(origin), str(clone))
    sh(clone, "git", "checkout", "--quiet", "--detach", "origin/changed")
    sh(clone, "git", "branch", "--quiet", "-D", "changed")
    (results,) = [step["run"] for step in STEPS if step.get("name") == "Results"]
    sh(clone, "env", "GITHUB_BASE_REF=main", "bash", "-e", "-c", results)
    shutil.rmtree(tmp_path / "store")
    assert (clone / "result.txt").read_text() == "of changed\n"
    assert RevisionFiles(clone, "origin/main", "origin/main").read("result.txt") == b"of main\n"


def test_every_module_that_it_runs_is_a_command_that_knows_the_options():
    calls = [shlex.split(line) for line in LINES if line.startswith("python -m ")]
    assert calls
    for _, _, module, *args in calls:
        command = get_command(importlib.import_module(f"{module}.__main__").app)
        options = {option for param in command.params for option in param.opts if param.param_type_name == "option"}
        used = {arg for arg in args if arg.startswith("-")}
        assert used
        assert used <= options
        with command.make_context(module, list(args)) as context:
            assert context.params["after"] == "workspace"


def test_every_target_of_make_that_it_calls_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in LINES if line.startswith("make ")]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_comment_is_the_file_that_the_comparison_writes():
    written = next(re.search(r"--markdown (\S+)", line).group(1) for line in LINES if "pipeline.compare" in line)
    (comment,) = [line for line in LINES if line.startswith("cml ")]
    assert comment.startswith("cml comment create ")
    assert comment.endswith(f" {written}")


@pytest.mark.parametrize("path", ["constraints.txt", "dvc.yaml", "params.yaml", "dvc.lock"])
def test_files_that_it_names_exist(path):
    assert (ROOT / path).exists()
    assert path in (ROOT / ".github" / "workflows" / "compare.yml").read_text(encoding="utf-8")
