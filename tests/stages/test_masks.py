import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipeline.artifacts import IMAGES, write_table
from pipeline.data.masks import iterate_masks
from pipeline.io import read_json, sha256_of
from pipeline.params import Params
from stages.masks import app

NUM_IMAGES = 3


class Project:
    """A folder as the stage finds it: params.yaml, runtime.yaml and a data set."""

    def __init__(self, root):
        self.root = root
        self.params = Params().model_dump(mode="json")
        self.params["masks"]["superpixel"].update(image_side_px=64, num_superpixels=30)
        self.params["masks"]["weights"] = "weights.txt"
        (root / "weights.txt").write_text("the segmenter needs none")
        (root / "runtime.yaml").write_text("device: cpu\nworkers: 1\nengine: local\n")
        (root / "data/dataset/images").mkdir(parents=True)
        rows = []
        for i in range(NUM_IMAGES):
            path = root / f"data/dataset/images/bird_{i}.png"
            pixels = np.full((40, 50, 3), 200, dtype=np.uint8)
            pixels[8:22, 10 + i : 30] = (200, 0, 40 * i)
            pixels[26:36, 20:40] = (0, 90, 0)
            Image.fromarray(pixels).save(path)
            rows.append(
                {
                    "image_key": f"bird_{i}",
                    "path": f"images/bird_{i}.png",
                    "sha256": sha256_of(path.read_bytes()),
                    "width": 50,
                    "height": 40,
                    "label": 0,
                    "class_name": "gull",
                    "split": "train",
                    "parts": [],
                }
            )
        write_table(root / "data/dataset/images.parquet", rows, IMAGES, class_names=["gull"], part_names=[])

    def run(self, *more):
        (self.root / "params.yaml").write_text(yaml.safe_dump(self.params))
        return CliRunner().invoke(app, ["data/dataset", "data/masks", "results/masks.json", *more])

    @property
    def outs(self):
        paths = [*(self.root / "data/masks").rglob("*"), *self.root.glob("results/*")]
        return {str(path.relative_to(self.root)): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path)


def error_line(result):
    """The one line that a user sees besides the log."""
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.stderr.splitlines()[-1] == line
    assert "Traceback" not in result.stderr
    return line


def test_two_clean_runs_give_the_same_bytes_and_so_does_one_from_the_store(project):
    assert project.run().exit_code == 0
    first = project.outs
    assert sorted(first) == ["data/masks/masks.parquet", "results/masks.json"]
    store = project.root / ".cache/masks.sqlite"
    assert project.run().exit_code == 0
    assert project.outs == first
    store.unlink()
    assert project.run().exit_code == 0
    assert project.outs == first


def test_the_report_counts_what_the_table_holds(project):
    assert project.run().exit_code == 0
    masks = dict(iterate_masks(project.root / "data/masks/masks.parquet"))
    report = read_json(project.root / "results/masks.json")
    assert report["num_in"] == report["num_out"] == NUM_IMAGES
    assert report["dropped"] == {}
    assert report["num_masks"] == sum(len(of_image) for of_image in masks.values()) >= 2 * NUM_IMAGES


def test_the_store_lies_where_it_is_asked_for_and_outside_the_outs(project):
    assert project.run("--store", "elsewhere/store.sqlite").exit_code == 0
    assert (project.root / "elsewhere/store.sqlite").exists()
    assert not (project.root / ".cache").exists()
    assert sorted(project.outs) == ["data/masks/masks.parquet", "results/masks.json"]


def test_a_damaged_image_is_one_line_and_leaves_the_old_out_whole(project):
    assert project.run().exit_code == 0
    old = project.outs
    (project.root / "data/dataset/images/bird_1.png").write_bytes(b"no picture")
    project.params["masks"]["superpixel"]["num_superpixels"] = 20
    assert "data/dataset/images/bird_1.png" in error_line(project.run())
    assert project.outs == old
    assert [path.name for path in (project.root / "data").iterdir() if path.name.startswith(".")] == []


def test_a_damaged_table_of_images_is_one_line_that_names_it(project):
    (project.root / "data/dataset/images.parquet").write_bytes(b"garbage")
    assert "data/dataset/images.parquet" in error_line(project.run())
    assert project.outs == {}


def test_missing_weights_are_one_line_that_names_the_key(project):
    (project.root / "weights.txt").unlink()
    line = error_line(project.run())
    assert "masks.weights" in line
    assert "weights.txt" in line
