import os
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from benchmarks.kill_masks import measure
from pipeline.artifacts import IMAGES, write_table
from pipeline.data.masks import iterate_masks
from pipeline.io import read_json, sha256_of
from pipeline.params import Params
from stages.masks import app

ROOT = Path(__file__).parents[2]
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
        self.write_dataset()

    def write_dataset(self, *, bgr=False):
        (self.root / "data/dataset/images").mkdir(parents=True, exist_ok=True)
        rows = []
        for i in range(NUM_IMAGES):
            path = self.root / f"data/dataset/images/bird_{i}.png"
            pixels = np.full((40, 50, 3), 200, dtype=np.uint8)
            pixels[8:22, 10 + i : 30] = (200, 0, 40 * i)
            pixels[26:36, 20:40] = (0, 90, 0)
            Image.fromarray(pixels[..., ::-1] if bgr else pixels).save(path)
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
        write_table(self.root / "data/dataset/images.parquet", rows, IMAGES, class_names=["gull"], part_names=[])

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


def test_bgr_masks_are_masks_of_the_pictures_with_red_and_blue_exchanged(project):
    sam = {"model_type": "tiny", "points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    project.params["masks"]["sam"].update(sam, crop_n_layers=0)
    project.params["masks"].update(segmenter="sam", weights=str(ROOT / "pipeline/segmenters/tiny_sam.safetensors"))
    outs, tables = {}, {}
    for bgr in (False, True, False):
        project.params["compat"]["bgr_masks"] = bgr
        assert project.run().exit_code == 0
        assert outs.setdefault(bgr, project.outs) == project.outs
        tables[bgr] = pq.read_table(BytesIO(project.outs["data/masks/masks.parquet"]))
    assert not tables[True].equals(tables[False])
    project.write_dataset(bgr=True)
    project.params["compat"]["bgr_masks"] = False
    assert project.run().exit_code == 0
    # but for the note of what made them
    assert pq.read_table(BytesIO(project.outs["data/masks/masks.parquet"])).equals(tables[True])


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


def write_many(folder, count):
    """Write a data set of COUNT small pictures, each blobs of its own."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(count):
        path = folder / f"images/bird_{i:03d}.png"
        pixels = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48), Image.Resampling.BILINEAR).save(path)
        row = {"image_key": f"bird_{i:03d}", "path": f"images/bird_{i:03d}.png", "sha256": sha256_of(path.read_bytes())}
        row |= {"width": 64, "height": 48, "label": 0, "class_name": "gull", "split": "train", "parts": []}
        rows.append(row)
    write_table(folder / "images.parquet", rows, IMAGES, class_names=["gull"], part_names=[])
    return folder


class Processes:
    """The stage in processes of its own, on 60 pictures; all are gone after the test."""

    NUM_IMAGES = 60

    def __init__(self, project):
        self.root, self.started = project.root, []
        project.params["masks"]["superpixel"].update(image_side_px=64, num_superpixels=40)
        (self.root / "params.yaml").write_text(yaml.safe_dump(project.params))
        write_many(self.root / "many", self.NUM_IMAGES)

    def command(self, *more, code="from stages.masks import app; app()"):
        return {
            "args": [sys.executable, "-c", code, "many", "data/masks", "results/masks.json", *more],
            "cwd": self.root,
            "env": {**os.environ, "PYTHONPATH": str(ROOT), "PROTOMASK_LOG": "DEBUG"},
            "text": True,
        }

    def run(self, *more, code="from stages.masks import app; app()"):
        return subprocess.run(**self.command(*more, code=code), capture_output=True)

    def start(self):
        log = self.root / f"{len(self.started)}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(**self.command(), stderr=stream)
        process.log = log
        self.started.append(process)
        return process

    def stopped_in_the_middle(self):
        """A process that has done some images and then got SIGSTOP."""
        process = self.start()
        wait_for(lambda: num_taken(process) >= 12)
        process.send_signal(signal.SIGSTOP)
        assert num_taken(process) < self.NUM_IMAGES
        return process

    def waiting_for(self, other):
        """A process that waits for OTHER, and says so in one line."""
        process = self.start()
        wait_for(lambda: f"waiting for process {other.pid} " in process.log.read_text())
        assert process.log.read_text().count("waiting") == 1
        return process


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def num_taken(process):
    return process.log.read_text().count(": segmenting ")


@pytest.fixture
def processes(project):
    of_this_test = Processes(project)
    yield of_this_test
    for process in of_this_test.started:
        process.kill()
        process.wait()


def test_a_second_process_waits_for_the_first_and_then_finds_everything_done(processes):
    first = processes.stopped_in_the_middle()
    second = processes.waiting_for(first)
    first.send_signal(signal.SIGCONT)
    assert first.wait() == second.wait() == 0
    assert (num_taken(first), num_taken(second)) == (60, 0)
    assert "60 of 60 images are in the store" in second.log.read_text()
    assert read_json(processes.root / "results/masks.json")["num_out"] == 60


def test_a_second_process_goes_on_where_a_killed_one_was(processes):
    first = processes.stopped_in_the_middle()
    second = processes.waiting_for(first)
    first.kill()
    assert second.wait() == 0
    assert 60 <= num_taken(first) + num_taken(second) <= 70
    assert read_json(processes.root / "results/masks.json")["num_out"] == 60


def test_interrupting_a_process_that_waits_is_clean_and_leaves_the_first_alone(processes):
    first = processes.stopped_in_the_middle()
    second = processes.waiting_for(first)
    second.send_signal(signal.SIGINT)
    assert second.wait(10) != 0
    assert "Traceback" not in second.log.read_text()
    assert not (processes.root / "data/masks").exists()
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0
    assert num_taken(first) == 60


def test_an_interrupted_run_keeps_what_it_had_and_the_next_one_goes_on(processes):
    first = processes.start()
    wait_for(lambda: num_taken(first) >= 12)
    first.send_signal(signal.SIGINT)
    assert first.wait(10) != 0
    assert "Traceback" not in first.log.read_text()
    second = processes.start()
    assert second.wait() == 0
    assert num_taken(first) + num_taken(second) <= 61


def test_the_status_is_told_while_a_process_is_at_work(processes):
    first = processes.stopped_in_the_middle()
    status = processes.run("--status")
    assert status.returncode == 0
    done, rest, at_work = status.stdout.splitlines()
    assert done.startswith("superpixel, weights.txt [")
    assert 2 <= int(done.split(": ")[1].split(" of 60 images done")[0]) <= num_taken(first)
    assert rest.startswith("about ")
    assert "images/s, measured over the last" in rest
    assert at_work == f"process {first.pid} is at work on .cache/masks.sqlite"


def everything_in(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_the_status_computes_and_writes_nothing(project):
    project.run("--status")
    before = everything_in(project.root)
    assert project.run("--status").stdout.splitlines()[-1] == "3 images left; no estimate yet"
    assert everything_in(project.root) == before
    assert not (project.root / ".cache").exists()
    assert project.run().exit_code == 0
    before = everything_in(project.root)
    result = project.run("--status")
    assert result.exit_code == 0
    assert "3 of 3 images done (100.0%)" in result.stdout
    assert everything_in(project.root) == before


def test_the_status_of_a_damaged_store_is_no_error(project):
    assert project.run().exit_code == 0
    (project.root / ".cache/masks.sqlite").write_bytes(b"garbage" * 1000)
    result = project.run("--status")
    assert result.exit_code == 0
    assert "0 of 3 images done" in result.stdout
    assert project.run().exit_code == 0
    assert "3 of 3 images done" in project.run("--status").stdout


def test_the_help_teaches_the_status(project):
    assert "--status" in project.run("--help").stdout


LIMITED = """
import resource
import stages.masks
from pipeline.data import segmentation

def limited(owner, name, size):
    real = getattr(owner, name)
    def call(*args, **kwargs):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return real(*args, **kwargs)
    setattr(owner, name, call)

limited({owner}, {name!r}, {size})
stages.masks.app()
"""


@pytest.mark.parametrize(
    ("owner", "name", "size", "named"),
    [
        ("segmentation", "MaskTableWriter", 4096, "data/masks/masks.parquet"),
        ("stages.masks", "write_json", 32, "results/masks.json"),
    ],
)
def test_a_disk_that_takes_no_more_is_one_line_and_the_old_file_stays(processes, owner, name, size, named):
    assert processes.run().returncode == 0
    files = [processes.root / "data/masks/masks.parquet", processes.root / "results/masks.json"]
    old = [file.read_bytes() for file in files]
    (processes.root / "weights.txt").write_text("others")  # everything is segmented anew
    failing = processes.run(code=LIMITED.format(owner=owner, name=name, size=size))
    assert failing.returncode == 1
    line = failing.stderr.splitlines()[-1]
    assert line.startswith(f"error: {named}: cannot be written (")
    assert "File too large" in line
    assert "make room" in line
    assert [file.read_bytes() for file in files if named.endswith(file.name)] == [
        content for file, content in zip(files, old, strict=True) if named.endswith(file.name)
    ]
    assert not list(processes.root.rglob(".*.tmp"))
    last = processes.run()
    assert last.returncode == 0
    assert "segmenting" not in last.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("segmenter", "workers", "in_flight"), [("superpixel", 1, 10), ("grid", 2, 18)])
def test_ten_kills_lose_what_was_in_flight_and_change_no_byte(project, monkeypatch, segmenter, workers, in_flight):
    monkeypatch.setenv("PROTOMASK_WORKERS", str(workers))
    project.params["masks"]["segmenter"] = segmenter
    project.params["masks"]["weights"] = str(project.root / "weights.txt")  # the stage runs in another folder
    params = project.root / "params.yaml"
    params.write_text(yaml.safe_dump(project.params))
    dataset, home = write_many(project.root / "many", 200), project.root / "home"
    home.mkdir()
    line = measure(home, dataset=dataset, params=params, runtime=project.root / "runtime.yaml", kills=10, seed=0)
    assert (line["segmenter"], line["images"], line["kills"]) == (segmenter, 200, 10)
    assert line["identical"]
    assert 1 <= line["taken_twice"] <= 10 * in_flight
    assert line["most_lost"] <= in_flight
