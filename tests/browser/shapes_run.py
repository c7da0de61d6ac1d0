"""Whole runs on coloured shapes, made by the stages themselves, with reports on them."""

import shutil

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipeline.compare.__main__ import app as compare_app
from pipeline.explain.__main__ import app as explain_app
from pipeline.params import Params
from stages.crops import app as crops_app
from stages.dataset import app as dataset_app
from stages.evaluate import app as evaluate_app
from stages.finetune import app as finetune_app
from stages.masks import app as masks_app
from stages.project import app as project_app
from stages.report import app as report_app
from stages.train import app as train_app
from tests.branches import commit, dvc, new_project

MARKUP = "<b>x<b>"
CLASSES = (  # sorted, as the data set numbers them
    "\"Quotes\" & 'ampersands' &amp; co",
    MARKUP,
    "a class whose name is as long as names of species get",
    "disc",
)
IMAGES = {"train": 6, "val": 2, "test": 13}  # of each class: more test images than a part of the list holds
PROTOTYPES_PER_CLASS = 13  # likewise
TOP = 3
SETTINGS = {
    "dataset.name": "folder",
    "masks.superpixel.image_side_px": 96,
    "masks.superpixel.num_superpixels": 40,
    "crops.max_views": 3,
    "crops.size_px": 64,
    "model.backbone": "test_efficientnet",
    "model.pretrained": False,
    "model.dim": 8,
    "model.prototypes_per_class": PROTOTYPES_PER_CLASS,
    "train.prototype_init": "uniform",
    "train.warmup.epochs": 2,
    "project.distinct_views": False,  # so that some prototypes share a view
    "finetune.epochs": 2,
    "finetune.lr": 0.05,
    "compat.last_epoch": True,  # so that weights are not those of the start
    "evaluate.top_prototypes": TOP,
    "evaluate.saliency": ["mask"],
    "evaluate.map_side_px": 32,
    "evaluate.sample_images": 2,
    "evaluate.bootstrap_draws": 20,
    "report.thumbnail_px": 96,
}
OTHER_VIEWS = {"seed": 1, "crops.max_views": 2}
BLACKBOX = {"model.head": "blackbox", "train.baseline": False}


def draw_shapes(label, rng):
    """Draw a picture of one class: squares, triangles, discs or rings, on a ground of any colour."""
    height, width = rng.integers(64, 97, size=2)
    rows, columns = np.mgrid[:height, :width]
    pixels = np.full((height, width, 3), rng.integers(90, 166, size=3), dtype=np.uint8)
    for _ in range(3):
        radius = rng.integers(9, 17)
        row, column = rng.integers(radius, height - radius), rng.integers(radius, width - radius)
        down, right = rows - row, columns - column
        distance = np.hypot(down, right)
        shapes = (
            np.maximum(abs(down), abs(right)) < radius,
            (abs(right) < (down + radius) / 2) & (down < radius),
            distance < radius,
            (distance < radius) & (distance > radius / 2),
        )
        colour = rng.integers(0, 60, size=3)
        colour[label % 3] += 190
        pixels[shapes[label]] = colour
    return pixels


def write_pictures(folder):
    """Write the raw data: a folder for each split, in it one for each class."""
    for label, name in enumerate(CLASSES):
        for split, num_images in IMAGES.items():
            target = folder / split / name
            target.mkdir(parents=True)
            for number in range(num_images):
                pixels = draw_shapes(label, np.random.default_rng((label, len(split), number)))
                Image.fromarray(pixels).save(target / f"{split}{number:02d}.png")


def compare_runs(before, after, folder):
    """Let the command compare two runs, which FOLDER holds one after the other, and give its page."""
    outs = [
        "data/dataset",
        "data/masks",
        "models/final",
        "results/metrics_detail.parquet",
        "results/per_image.parquet",
    ]
    stage = {"cmd": "true", "params": ["seed", "crops"], "outs": outs, "metrics": ["results/metrics.json"]}
    folder.mkdir()
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evaluate": stage}}))
    (folder / ".gitignore").write_text("/data/\n/models/\n/results/\n")
    new_project(folder, "before")
    for run in (before, after):
        for part in ("data", "models", "results"):
            shutil.rmtree(folder / part, ignore_errors=True)
            shutil.copytree(run.folder / part, folder / part)
        shutil.copy(run.folder / "params.yaml", folder)
        dvc(folder, "commit", "--quiet", "--force")
        if run is before:
            commit(folder, "before")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        result = CliRunner().invoke(compare_app, ["before", "--html", "compared.html"])
    assert result.exit_code == 0, result.output
    return folder / "compared.html"


class ShapesRun:
    """A project folder; ``site`` is the folder of its report."""

    def __init__(self, folder, **changes):
        """CHANGES are params on top of ``SETTINGS``, by their dotted keys."""
        self.folder = folder
        self.site = folder / "results/report"
        content = Params().model_dump(mode="json")
        for key, value in {**SETTINGS, "dataset.source": str(folder / "raw"), **changes}.items():
            *sections, name = key.split(".")
            place = content
            for section in sections:
                place = place[section]
            assert name in place
            place[name] = value
        folder.mkdir(parents=True)
        (folder / "params.yaml").write_text(yaml.safe_dump(content))
        (folder / "runtime.yaml").write_text(f"device: cpu\nworkers: 1\ncache: {folder / 'cache'}\n")

    def call(self, app, *paths, **options):
        """Run a command; PATHS and OPTIONS are files and folders of the project, None leaves out an option."""
        arguments = [self.folder / path for path in paths]
        for name, path in {"params": "params.yaml", "runtime": "runtime.yaml", **options}.items():
            arguments += [] if path is None else [f"--{name}", self.folder / path]
        result = CliRunner().invoke(app, list(map(str, arguments)))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output

    def prepare(self):
        """Run the stages that have no network."""
        write_pictures(self.folder / "raw")
        self.call(dataset_app, "data/dataset", "results/dataset.json")
        self.call(masks_app, "data/dataset", "data/masks", "results/masks.json", store="cache/masks.sqlite")
        self.call(crops_app, "data/dataset", "data/masks", "data/crops", "results/crops.json")
        return self

    def prepare_like(self, other):
        """Take what these stages made in OTHER."""
        shutil.copytree(other.folder / "data", self.folder / "data")
        (self.folder / "results").mkdir()
        for stage in ("dataset", "masks", "crops"):
            shutil.copy(other.folder / f"results/{stage}.json", self.folder / "results")
        return self

    def learn_and_report(self):
        """Run the stages from train to report."""
        data, models = (
            ("data/dataset", "data/masks", "data/crops"),
            ("models/trained", "models/projected", "models/final"),
        )
        self.call(train_app, "data/crops", "models/trained", "results/train")
        self.call(project_app, "data/crops", *models[:2], "results/project.json")
        self.call(finetune_app, "data/crops", *models[1:], "results/finetune.json")
        self.call(evaluate_app, *data, *models, "results")
        written = ("results/report", "results/MODEL_CARD.md", "results/pictures")
        self.call(report_app, *data, "models/final", "results", *written, lock="dvc.lock")
        return self

    def explain(self, name):
        """Let the command explain a new picture of that NAME, and give its page."""
        Image.fromarray(draw_shapes(0, np.random.default_rng(9))).save(self.folder / f"{name}.png")
        places = {"model": "models/final", "dataset": "data/dataset", "crops": "data/crops", "out": "explained"}
        self.call(explain_app, f"{name}.png", **places, params=None)
        return self.folder / f"explained/{name}.html"
