import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipeline.artifacts import IMAGES, write_table
from pipeline.data.bags import BagReader
from pipeline.data.boxes import Box, box_of_mask
from pipeline.data.masks import MaskTableWriter, StoredMask, encode_mask
from pipeline.io import read_json, sha256_of
from pipeline.params import Params
from stages.crops import app

SPLITS = {"bird_0": "train", "bird_1": "val", "bird_2": "test"}
HEIGHT, WIDTH = 40, 50


class Project:
    """A folder as the stage finds it: params.yaml, runtime.yaml, a data set and its masks."""

    def __init__(self, root):
        self.root = root
        self.params = Params().model_dump(mode="json")
        self.params["crops"]["size_px"] = 32
        (root / "runtime.yaml").write_text("device: cpu\nworkers: 1\nengine: local\n")
        (root / "data/dataset/images").mkdir(parents=True)
        (root / "data/masks").mkdir()
        rows = []
        with MaskTableWriter(root / "data/masks/masks.parquet") as table:
            for i, (key, split) in enumerate(SPLITS.items()):
                path = root / f"data/dataset/images/{key}.png"
                mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
                mask[8:22, 10 + i : 30] = True
                Image.fromarray(np.where(mask[..., None], np.uint8([200, 0, 40 * i]), np.uint8(90))).save(path)
                table.add(key, [StoredMask(encode_mask(mask), box_of_mask(mask), int(mask.sum()), 1.0)])
                rows.append(
                    {
                        "image_key": key,
                        "path": f"images/{key}.png",
                        "sha256": sha256_of(path.read_bytes()),
                        "width": WIDTH,
                        "height": HEIGHT,
                        "label": 0,
                        "class_name": "gull",
                        "split": split,
                        "parts": [],
                    }
                )
        write_table(root / "data/dataset/images.parquet", rows, IMAGES, class_names=["gull"], part_names=[])

    def run(self):
        (self.root / "params.yaml").write_text(yaml.safe_dump(self.params))
        return CliRunner().invoke(app, ["data/dataset", "data/masks", "data/crops", "results/crops.json"])

    @property
    def outs(self):
        paths = [*(self.root / "data/crops").rglob("*"), *self.root.glob("results/*")]
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


def test_two_runs_give_the_same_bytes(project):
    assert project.run().exit_code == 0
    first = project.outs
    assert sorted(first) == [
        "data/crops/test-00000.tar",
        "data/crops/train-00000.tar",
        "data/crops/val-00000.tar",
        "data/crops/views.parquet",
        "results/crops.json",
    ]
    assert project.run().exit_code == 0
    assert project.outs == first


def test_the_report_counts_the_views_that_the_shards_hold(project):
    assert project.run().exit_code == 0
    report = read_json(project.root / "results/crops.json")
    assert report["num_in"] == report["num_out"] + sum(report["dropped"].values()) == 3
    masks = report["masks"]
    assert masks["num_in"] == masks["num_out"] + sum(masks["dropped"].values()) == 3
    lengths = [BagReader(project.root / "data/crops", split).lengths for split in SPLITS.values()]
    assert lengths == [[2], [2], [2]]
    assert report["num_views"] == 6


def test_the_section_crops_of_the_params_shapes_the_views(project):
    project.params["crops"].update(size_px=48, whole_image=False)
    assert project.run().exit_code == 0
    assert BagReader(project.root / "data/crops", "train").views(0).shape == (1, 48, 48, 3)


def test_the_switches_of_compat_shape_the_views(project):
    project.params["crops"]["padding_frac"] = 0

    def first_bag():
        assert project.run().exit_code == 0
        reader = BagReader(project.root / "data/crops", "train")
        return reader.rows(0), reader.views(0)

    rows, views = first_bag()
    assert [row.box for row in rows] == [Box(10, 8, 30, 22), Box(0, 0, WIDTH, HEIGHT)]
    project.params["compat"]["aliased_resizing"] = True
    rows, aliased = first_bag()
    assert [row.box for row in rows] == [Box(10, 8, 30, 22), Box(0, 0, WIDTH, HEIGHT)]
    assert abs(aliased[1].astype(int) - views[1]).max() > 8  # the whole image shrinks
    project.params["compat"]["clipped_boxes"] = True
    rows, _ = first_bag()
    assert [row.box for row in rows] == [Box(10, 8, 29, 21), Box(0, 0, WIDTH, HEIGHT)]
    assert rows[0].mask_box == Box(10, 8, 30, 22)


@pytest.mark.parametrize("damaged", ["data/masks/masks.parquet", "data/dataset/images/bird_1.png"])
def test_damaged_input_is_one_line_and_leaves_the_old_out_whole(project, damaged):
    assert project.run().exit_code == 0
    old = project.outs
    content = (project.root / damaged).read_bytes()
    (project.root / damaged).write_bytes(content[: len(content) // 2])
    project.params["crops"]["jpeg_quality"] = 50
    assert damaged in error_line(project.run())
    assert project.outs == old
    assert [path.name for path in (project.root / "data").iterdir() if path.name.startswith(".")] == []


def test_a_bag_that_must_not_be_empty_is_one_line_that_names_image_and_key(project):
    project.params["crops"].update(whole_image=False, empty_bag="error", min_area_frac=0.5)
    line = error_line(project.run())
    assert "data/dataset/images/bird_0.png" in line
    assert "crops.empty_bag" in line
    assert project.outs == {}
