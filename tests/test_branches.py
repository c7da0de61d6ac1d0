"""Results on two branches, as DVC compares them: by the metrics and plots that dvc.yaml names."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.evaluation.plots import Explained, write_plots
from pipeline.io import write_json
from pipeline.metrics.interface import Deletion

ROOT = Path(__file__).parents[1]
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
NUM_IMAGES = 12


def sh(folder, *command):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(folder, *args):
    return sh(folder, sys.executable, "-m", "dvc", *args)


def sources_of(plots):
    """The files that the plots of dvc.yaml read, each with the columns that they take from it."""
    columns = {}
    for entry in plots:
        for name, settings in entry.items():
            y = settings["y"] if isinstance(settings["y"], dict) else {name: settings["y"]}
            for path, column in y.items():
                columns.setdefault(path, set()).update({settings["x"], column})
    return columns


def make_results(folder, seed):
    """Small results with all files that the plots of dvc.yaml read; every number hangs on SEED."""
    generator = torch.Generator().manual_seed(seed)
    names = ("removed", "inserted", "removed_at_random", "inserted_at_random")
    write_plots(
        folder / "plots",
        labels=torch.arange(NUM_IMAGES) % 3,
        logits={name: torch.randn(NUM_IMAGES, 3, generator=generator) for name in ("ProtoMask", "Black box")},
        explained=Explained(
            top=torch.stack([torch.randperm(6, generator=generator)[:2] for _ in range(NUM_IMAGES)]),
            features=torch.rand(NUM_IMAGES, 2, 4, generator=generator),
            prototypes=torch.rand(6, 4, generator=generator),
            prototype_labels=torch.arange(6) // 2,
            deletion=Deletion(**{name: torch.rand(4, 11, generator=generator) for name in names}),
        ),
        class_names=["gull", "tern", "wren"],
        seed=seed,
    )
    metrics = {
        "protomask": {
            "classification": {"accuracy": 0.5 + seed / 8},
            "complexity": {"iou": None if seed else 0.25, "object_overlap": None},
        }
    }
    if seed:
        metrics["protomask_view"] = {"complexity": {"iou": 0.75}}
    write_json(folder / "metrics.json", metrics)
    for source, columns in sources_of(GRAPH["plots"]).items():
        if source.startswith("results/train/"):
            path = folder / Path(source).relative_to("results")
            path.parent.mkdir(parents=True, exist_ok=True)
            (value,) = columns - {"step"}
            path.write_text(f"step\t{value}\n0\t0.5\n1\t{0.6 + seed / 8}\n", encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with results on the branches `one` and `other`; the second is checked out."""
    folder = tmp_path_factory.mktemp("branches")
    evaluate = GRAPH["stages"]["evaluate"]
    graph = {
        "stages": {
            "evaluate": {
                "cmd": "python -c \"import shutil; shutil.copytree('made', 'results', dirs_exist_ok=True)\"",
                "deps": ["made"],
                "outs": ["results/train", "results/plots"],
                "metrics": evaluate["metrics"],
            }
        },
        "plots": GRAPH["plots"],
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False), encoding="utf-8")
    (folder / ".gitignore").write_text("/results/\n", encoding="utf-8")
    sh(folder, "git", "init", "--quiet", "--initial-branch", "one")
    sh(folder, "git", "config", "user.name", "Somebody")
    sh(folder, "git", "config", "user.email", "somebody@example.org")
    dvc(folder, "init", "--quiet")
    dvc(folder, "config", "core.analytics", "false")
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    for seed, branch in enumerate(("one", "other")):
        if seed:
            sh(folder, "git", "switch", "--quiet", "--create", branch)
        shutil.rmtree(folder / "made", ignore_errors=True)
        make_results(folder / "made", seed)
        dvc(folder, "repro", "--quiet")
        sh(folder, "git", "add", "--all")
        sh(folder, "git", "commit", "--quiet", "--message", f"Results of {branch}")
    return folder


def test_the_plots_name_all_files_that_are_written_and_only_columns_that_are_there(tmp_path):
    make_results(tmp_path, 0)
    named = sources_of(GRAPH["plots"])
    ours = {f"results/plots/{path.name}" for path in (tmp_path / "plots").iterdir()}
    assert {source for source in named if source.startswith("results/plots/")} == ours
    for source in ours:
        with (tmp_path / Path(source).relative_to("results")).open(newline="", encoding="utf-8") as lines:
            assert named[source] <= set(next(csv.reader(lines)))


def test_plots_lie_in_an_out_of_the_evaluation():
    outs = GRAPH["stages"]["evaluate"]["outs"]
    assert "results/plots" in outs
    assert "results/metrics.json" in GRAPH["stages"]["evaluate"]["metrics"]


def test_dvc_compares_the_metrics_of_two_branches(project):
    found = json.loads(dvc(project, "metrics", "diff", "one", "other", "--json"))["results/metrics.json"]
    assert found == {
        "protomask.classification.accuracy": {"old": 0.5, "new": 0.625, "diff": 0.125},
        "protomask.complexity.iou": {"old": 0.25, "new": None},  # what one of them does not have
        "protomask_view.complexity.iou": {"old": None, "new": 0.75},
    }


def drawn(project):
    """What DVC draws of both branches: a Vega specification for each plot."""
    found = json.loads(dvc(project, "plots", "diff", "one", "other", "--json", "--out", str(project / "drawn")))
    assert not found.get("errors")
    specifications = {}
    for name, (plot,) in found["data"].items():
        assert plot["revisions"] == ["one", "other"]
        specifications[name] = json.loads(plot["content"]) if isinstance(plot["content"], str) else plot["content"]
    return specifications


def test_dvc_draws_every_plot_of_both_branches(project):
    found = drawn(project)
    titles = [settings["title"] for entry in GRAPH["plots"] for settings in entry.values()]
    assert sorted(spec["title"]["text"] for spec in found.values()) == sorted(titles)
    for spec in found.values():
        assert {point["rev"] for point in spec["data"]["values"]} == {"one", "other"}


def test_templates_of_our_own_find_the_columns_that_they_colour_by(project):
    found = drawn(project)
    fields = {"series": "series", "classes": "class_name"}
    own = [
        (name, fields[settings["template"]])
        for entry in GRAPH["plots"]
        for name, settings in entry.items()
        if settings.get("template") in fields
    ]
    assert {field for _, field in own} == set(fields.values())
    for name, field in own:
        spec = found[name]
        encoding = spec.get("spec", spec)["encoding"]
        assert encoding["color"]["field"] == field
        assert all(point[field] for point in spec["data"]["values"])
