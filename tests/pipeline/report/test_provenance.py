import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.report.provenance import TOOLS, Revision, read_provenance
from tests.test_graph import ROOT, STAGES, imported_sooner_or_later, is_covered, lies_in, only_describes

LOCK = {
    "stages": {
        "report": {"outs": [{"path": "results/report", "md5": "0"}]},
        "later": {"outs": [{"path": "z", "md5": "5"}]},
        "train": {"outs": [{"path": "results/train", "md5": "2"}, {"path": "models/trained", "md5": "3"}]},
        "masks": {"outs": [{"path": "data/masks", "md5": "1"}]},
    }
}


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    git(folder, "add", name)
    git(folder, "commit", "--quiet", "-m", name)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(tmp_path, "init", "--quiet")
    return tmp_path


def revision_of(folder):
    return read_provenance(folder / "dvc.lock").revision


def test_the_revision_is_the_last_one_that_changed_code_graph_or_params(repository):
    for name in ("pipeline/a.py", "stages/b.py", "params.yaml", "dvc.yaml"):
        last = commit(repository, name, "one")
        assert revision_of(repository) == Revision(last, is_changed=False)
    for name in ("dvc.lock", "README.md", "tests/c.py"):
        assert commit(repository, name, "stages: {}\n") != last
        assert revision_of(repository) == Revision(last, is_changed=False)


def test_tools_that_no_stage_reads_are_no_sources(repository):
    last = commit(repository, "pipeline/a.py", "one")
    for tool in TOOLS:
        name = tool if tool.endswith(".py") else f"{tool}/inner/b.py"
        assert commit(repository, f"pipeline/{name}", "two") != last
        (repository / f"pipeline/{name}").write_text("three")
        assert revision_of(repository) == Revision(last, is_changed=False)


def test_the_tools_are_all_code_that_no_stage_depends_on():
    read = imported_sooner_or_later([f"stages/{stage}.py" for stage in STAGES])
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline").rglob("*.py")}
    files = {file for file in files if not only_describes(file)}
    unread = {file for file in files - read if not any(is_covered(file, stage) for stage in STAGES)}
    assert {Path(file).parts[1] for file in unread} == set(TOOLS)
    assert not [file for file in read for tool in TOOLS if lies_in(file, f"pipeline/{tool}")]


def test_the_oldest_commit_of_a_shallow_clone_is_no_revision(repository, tmp_path_factory):
    commit(repository, "params.yaml", "one")
    commit(repository, "README.md", "two")
    commit(repository, "README.md", "three")
    shallow = tmp_path_factory.mktemp("clone") / "shallow"
    git(repository, "clone", "--quiet", "--depth=2", repository.as_uri(), str(shallow))
    assert git(shallow, "rev-parse", "--is-shallow-repository") == "true"
    assert revision_of(shallow) == Revision(None, is_changed=False)
    (shallow / "params.yaml").write_text("two")
    assert revision_of(shallow) == Revision(None, is_changed=True)
    below = commit(shallow, "project/params.yaml", "one")
    assert revision_of(shallow / "project") == Revision(below, is_changed=False)
    last = commit(shallow, "params.yaml", "two")  # after the oldest one
    assert revision_of(shallow) == Revision(last, is_changed=False)


@pytest.mark.parametrize("name", ["params.yaml", "pipeline/new.py"])
def test_sources_that_are_in_no_commit_are_noticed_others_are_not(repository, name):
    last = commit(repository, "params.yaml", "one")
    (repository / "notes.txt").write_text("")
    assert revision_of(repository) == Revision(last, is_changed=False)
    (repository / name).parent.mkdir(exist_ok=True)
    (repository / name).write_text("two")
    assert revision_of(repository) == Revision(last, is_changed=True)


def test_a_project_below_the_top_of_a_repository_has_its_own_revision(repository):
    last = commit(repository, "project/params.yaml", "one")
    commit(repository, "params.yaml", "of something else")
    assert revision_of(repository / "project") == Revision(last, is_changed=False)


def test_without_repository_commit_or_git_there_is_no_revision(tmp_path, monkeypatch):
    assert revision_of(tmp_path) is None
    if shutil.which("git") is not None:
        git(tmp_path, "init", "--quiet")
        assert revision_of(tmp_path) is None
        commit(tmp_path, "README.md", "")
        assert revision_of(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert revision_of(tmp_path) is None


def test_outs_stand_in_the_order_of_the_stages_and_by_path_without_those_of_the_report(tmp_path):
    assert read_provenance(tmp_path / "dvc.lock").outs is None
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(LOCK, sort_keys=False))
    outs = read_provenance(tmp_path / "dvc.lock").outs
    assert [(stage, list(of_stage.items())) for stage, of_stage in outs.items()] == [
        ("masks", [("data/masks", "1")]),
        ("train", [("models/trained", "3"), ("results/train", "2")]),
        ("later", [("z", "5")]),
    ]


def test_versions_are_those_that_are_imported(tmp_path):
    versions = read_provenance(tmp_path / "dvc.lock").versions
    assert versions["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["numpy"] == np.__version__
    assert versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"torchvision", "timm", "segment-anything", "protomask-pipeline"} <= versions.keys()
