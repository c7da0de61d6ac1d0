"""Results on two branches, as DVC compares them: by the metrics and plots that dvc.yaml names."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.evaluation.plots import Explained, write_plots
from pipeline.io import write_json
from pipeline.metrics.interface import Deletion
from pipeline.report.contact_sheets import MASKS_SHEET, MISTAKES_SHEET, PROTOTYPES_SHEET, Tile, write_sheet
from tests.branches import commit, dvc, new_project, sh

ROOT = Path(__file__).parents[1]
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
NUM_IMAGES = 12


def charts_of(plots):
    """The plots of dvc.yaml that are drawn from numbers: name and settings."""
    return [item for entry in plots if not isinstance(entry, str) for item in entry.items()]


def pictures_of(plots):
    """The picture files among the plots of dvc.yaml."""
    return [entry for entry in plots if isinstance(entry, str)]


def sources_of(plots):
    """The files that the plots of dvc.yaml read, each with the columns that they take from it."""
    columns = {}
    for name, settings in charts_of(plots):
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
    tile = Tile((np.full((40, 40, 3), 90 * seed, dtype=np.uint8),), ("gull", "a fact"))
    for picture in pictures_of(GRAPH["plots"]):
        path = folder / Path(picture).relative_to("results")
        path.parent.mkdir(exist_ok=True)
        has_tile = seed or path.name != PROTOTYPES_SHEET  # one branch has a black box
        write_sheet(path, path.stem, [tile] if has_tile else [], columns=4, instead="There is none.")


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
                "outs": ["results/train", "results/plots", "results/pictures"],
                "metrics": evaluate["metrics"],
            }
        },
        "plots": GRAPH["plots"],
    }
    (folder / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False), encoding="utf-8")
    (folder / ".gitignore").write_text("/results/\n", encoding="utf-8")
    new_project(folder, "one")
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    for seed, branch in enumerate(("one", "other")):
        if seed:
            sh(folder, "git", "switch", "--quiet", "--create", branch)
        shutil.rmtree(folder / "made", ignore_errors=True)
        make_results(folder / "made", seed)
        dvc(folder, "repro", "--quiet")
        commit(folder, f"Results of {branch}")
    return folder


def test_the_plots_name_all_files_that_are_written_and_only_columns_that_are_there(tmp_path):
    make_results(tmp_path, 0)
    named = sources_of(GRAPH["plots"])
    ours = {f"results/plots/{path.name}" for path in (tmp_path / "plots").iterdir()}
    assert {source for source in named if source.startswith("results/plots/")} == ours
    for source in ours:
        with (tmp_path / Path(source).relative_to("results")).open(newline="", encoding="utf-8") as lines:
            assert named[source] <= set(next(csv.reader(lines)))


def test_pictures_are_the_sheets_of_the_report():
    sheets = (MASKS_SHEET, PROTOTYPES_SHEET, MISTAKES_SHEET)
    assert pictures_of(GRAPH["plots"]) == [f"results/pictures/{name}" for name in sheets]
    assert "results/pictures" in GRAPH["stages"]["report"]["outs"]


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


def compared(project):
    """What DVC makes of the plots and pictures of both branches."""
    found = json.loads(dvc(project, "plots", "diff", "one", "other", "--json", "--out", str(project / "drawn")))
    assert not found.get("errors")
    return found["data"]


def drawn(project):
    """What DVC draws of both branches: a Vega specification for each plot."""
    specifications = {}
    for name, plots in compared(project).items():
        if name in pictures_of(GRAPH["plots"]):
            continue
        (plot,) = plots
        assert plot["revisions"] == ["one", "other"]
        specifications[name] = json.loads(plot["content"]) if isinstance(plot["content"], str) else plot["content"]
    return specifications


def test_dvc_draws_every_plot_of_both_branches(project):
    found = drawn(project)
    titles = [settings["title"] for _, settings in charts_of(GRAPH["plots"])]
    assert sorted(spec["title"]["text"] for spec in found.values()) == sorted(titles)
    for spec in found.values():
        assert {point["rev"] for point in spec["data"]["values"]} == {"one", "other"}


def test_templates_of_our_own_find_the_columns_that_they_colour_by(project):
    found = drawn(project)
    fields = {"series": "series", "classes": "class_name"}
    own = [
        (name, fields[settings["template"]])
        for name, settings in charts_of(GRAPH["plots"])
        if settings.get("template") in fields
    ]
    assert {field for _, field in own} == set(fields.values())
    for name, field in own:
        spec = found[name]
        encoding = spec.get("spec", spec)["encoding"]
        assert encoding["color"]["field"] == field
        assert all(point[field] for point in spec["data"]["values"])


def test_dvc_offers_every_picture_of_both_branches(project):
    found = compared(project)
    assert pictures_of(GRAPH["plots"])
    for name in pictures_of(GRAPH["plots"]):
        assert [(plot["type"], plot["revisions"]) for plot in found[name]] == [("image", ["one"]), ("image", ["other"])]


def test_the_page_that_dvc_writes_shows_the_pictures_of_both_branches(project):
    page = project / "page"
    dvc(project, "plots", "diff", "one", "other", "--out", str(page))
    sources = re.findall(r'<img src="([^"]+)"', (page / "index.html").read_text(encoding="utf-8"))
    names = [Path(name).name for name in pictures_of(GRAPH["plots"])]
    assert len(sources) == 2 * len(names) > 0
    for name in names:
        one, other = ((page / source).read_bytes() for source in sorted(sources) if source.endswith(name))
        assert one != other
        assert other == (project / "results" / "pictures" / name).read_bytes()  # the branch that is checked out
