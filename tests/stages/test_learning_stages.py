"""The stages train, project, finetune and evaluate, one after the other on a few coloured pictures."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from pipeline.artifacts import PROTOTYPES, VIEWS, metadata_of, read_table, write_table
from pipeline.data.bags import BagReader
from pipeline.io import read_json
from pipeline.model.backbone import Backbone
from pipeline.model.files import load_model
from pipeline.model.prototypes import squared_distance
from pipeline.params import Params, load_params
from pipeline.runtime import Runtime
from pipeline.training import embedding, project, projection, run, seeding
from pipeline.training.callbacks import Checkpoint
from pipeline.training.phases import TrainingPhase
from pipeline.training.pruning import prune
from stages.evaluate import app as evaluate_app
from stages.finetune import app as finetune_app
from stages.project import app as project_app
from stages.train import app as train_app
from tests.plain_dataset import write_dataset

SIDE_PX = 64
CLASS_NAMES = ["blue", "green", "red"]
IMAGES = {"train": 5, "val": 2, "test": 3}  # per class
WARMUP_EPOCHS, JOINT_EPOCHS = 15, 2


def write_crops(folder):
    """Bags of 1 to 3 views, one in its class's colour, the rest grey; the whole image is in every other bag only."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for split, num_images in IMAGES.items():
        shard = f"{split}-00000.tar"
        with tarfile.open(folder / shard, "w") as tar:
            for image in range(num_images * len(CLASS_NAMES)):
                label, num_masks = image % len(CLASS_NAMES), int(rng.integers(1, 4))
                coloured = int(rng.integers(num_masks))
                for view_idx in range(num_masks + 1):
                    is_whole = view_idx == num_masks
                    pixels = rng.integers(100, 140, (SIDE_PX, SIDE_PX, 3))
                    if view_idx == coloured or is_whole:
                        pixels[16:48, 16:48, label] += 100
                    content = simplejpeg.encode_jpeg(pixels.astype(np.uint8), 95, "RGB", "444")
                    member = tarfile.TarInfo(f"{split}-{image:02d}.{view_idx:02d}.jpg")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                    rows.append(
                        {
                            "image_key": f"{split}-{image:02d}",
                            "view_idx": view_idx,
                            "split": split,
                            "label": label,
                            "mask_idx": -1 if is_whole else view_idx + 3,
                            "mask_box": [1, 2, 21 + view_idx, 32],
                            "box": [0, 1, 22 + view_idx, 33],
                            "area_px": 300,
                            "shard": shard,
                            "jpeg_offset": member.name,
                            "jpeg_size": len(content),
                            "mask_offset": None,
                            "mask_size": None,
                            "in_bag": not is_whole or image % 2 == 0,
                        }
                    )
        with tarfile.open(folder / shard) as tar:
            offsets = {member.name: member.offset_data for member in tar}
        for row in rows:
            row["jpeg_offset"] = offsets.get(row["jpeg_offset"], row["jpeg_offset"])
    rows.sort(key=lambda row: (row["split"], row["image_key"], row["view_idx"]))
    write_table(folder / "views.parquet", rows, VIEWS, class_names=CLASS_NAMES, size_px=SIDE_PX)


def rewrite_views(crops, keep):
    """Keep the rows of views.parquet for which KEEP holds."""
    table = read_table(crops / "views.parquet", VIEWS)
    names = metadata_of(table, "class_names")
    rows = [row for row in table.to_pylist() if keep(row)]
    assert 0 < len(rows) < len(table)
    write_table(crops / "views.parquet", rows, VIEWS, class_names=names, size_px=SIDE_PX)


def write_params(path, **changes):
    """Params of a small run; CHANGES are dotted keys, with __ for the dot."""
    content = Params().model_dump(mode="json")
    settings = {
        "dataset__name": "folder",
        "model__backbone": "test_efficientnet",
        "model__pretrained": False,
        "model__dim": 16,
        "model__prototypes_per_class": 2,
        "train__batch_images": 4,
        "train__accumulate_batches": 3,
        "train__warmup__epochs": WARMUP_EPOCHS,
        "train__warmup__batch_images": 8,
        "train__warmup__lr_addon": 0.05,
        "train__warmup__lr_prototypes": 0.05,
        "train__joint__epochs": JOINT_EPOCHS,
        "train__joint__trainable_layers": 2,
        "finetune__epochs": 3,
        "finetune__batch_images": 8,
        "evaluate__saliency": ["mask", "upsample"],
        "evaluate__map_side_px": 32,
        "evaluate__sample_images": 3,
        "evaluate__bootstrap_draws": 50,
    }
    for key, value in {**settings, **changes}.items():
        *sections, name = key.split("__")
        place = content
        for section in sections:
            place = place[section]
        assert name in place
        place[name] = value
    path.write_text(yaml.safe_dump(content))
    return path


class Pipeline:
    """A project folder with crops, params and what the stages write."""

    def __init__(self, folder, crops, **changes):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.crops = crops
        self.trained, self.projected, self.final = (
            folder / "models" / name for name in ("trained", "projected", "final")
        )
        self.results = folder / "results"
        self.settings = [
            "--params",
            write_params(folder / "params.yaml", **changes),
            "--runtime",
            folder / "runtime.yaml",
        ]
        (folder / "runtime.yaml").write_text(f"device: cpu\ncache: {folder / 'cache'}\n")

    def call(self, app, *arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in (*arguments, *self.settings)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def train(self, *options):
        return self.call(train_app, self.crops, self.trained, self.results / "train", *options)

    def project(self):
        return self.call(project_app, self.crops, self.trained, self.projected, self.results / "project.json")

    def finetune(self):
        return self.call(finetune_app, self.crops, self.projected, self.final, self.results / "finetune.json")

    def evaluate(self):
        dataset, masks = self.folder / "dataset", self.folder / "masks"
        if not dataset.exists():
            write_dataset(dataset, masks, self.crops, side_px=SIDE_PX)
        return self.call(
            evaluate_app, dataset, masks, self.crops, self.trained, self.projected, self.final, self.results
        )

    def run(self, *stages):
        for stage in stages:
            result = getattr(self, stage)()
            assert result.exit_code == 0, result.output
        return self


def bytes_of(*folders):
    """Every file under the folders, by its path from the folder's parent."""
    found = {
        str(path.relative_to(folder.parent)): path.read_bytes()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    assert found
    return found


def one_line(result):
    """The message of a failed stage; nothing else is printed but the log."""
    assert result.exit_code == 1
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert result.output.rstrip().endswith(lines[0])
    return lines[0].removeprefix("error: ")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small only wait for each other's threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield num_threads
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "crops"
    write_crops(folder)
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory, crops):
    """All four stages, run once."""
    return Pipeline(tmp_path_factory.mktemp("done"), crops).run("train", "project", "finetune", "evaluate")


def test_a_second_run_gives_the_same_bytes_in_every_file(tmp_path, crops, done):
    torch.rand(5)  # whatever ran before
    again = Pipeline(tmp_path, crops).run("train", "project", "finetune", "evaluate")
    first, second = (bytes_of(one.folder / "models", one.results) for one in (done, again))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


RESUMED = {  # something of everything that has a state
    "train__warmup__epochs": 3,
    "train__joint__epochs": 3,
    "train__joint__lr_step_epochs": 2,
    "train__joint__augmentation": "medium",
    "train__ema_decay": 0.5,
    "train__sampling": "class_balanced",
}
NUM_EPOCHS = 2 * (RESUMED["train__warmup__epochs"] + RESUMED["train__joint__epochs"])  # of both networks


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


def kill_after(monkeypatch, num_epochs):
    """Let the process die right after it wrote its NUM_EPOCHS-th checkpoint."""
    write = Checkpoint.on_train_epoch_end
    written = []

    def write_and_die(*arguments):
        write(*arguments)
        written.append(1)
        if len(written) == num_epochs:
            raise Killed

    monkeypatch.setattr(Checkpoint, "on_train_epoch_end", write_and_die)


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory, crops):
    return Pipeline(tmp_path_factory.mktemp("whole"), crops, **RESUMED).run("train")


@pytest.mark.parametrize("num_epochs", [1, 3, 5, 6, 8, NUM_EPOCHS])
def test_a_run_killed_after_any_epoch_goes_on_to_the_same_bytes(tmp_path, crops, never_stopped, num_epochs):
    killed = Pipeline(tmp_path, crops, **RESUMED)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kill_after(monkeypatch, num_epochs)
        with pytest.raises(Killed):
            killed.train()
    assert not killed.trained.exists()
    assert list((tmp_path / "cache" / "training").iterdir()) != []
    torch.rand(3)
    seen = []
    with pytest.MonkeyPatch.context() as monkeypatch:
        step = TrainingPhase.training_step
        monkeypatch.setattr(TrainingPhase, "training_step", lambda *args: (seen.append(1), step(*args))[1])
        killed.run("train")
    assert bytes_of(killed.trained, killed.results) == bytes_of(never_stopped.trained, never_stopped.results)
    assert list((tmp_path / "cache" / "training").iterdir()) == []  # done with
    batches = {"warmup": 2, "joint": 4}  # per epoch, of 15 images
    order = [phase for _ in range(2) for phase in ("warmup", "joint") for _ in range(3)]
    assert len(seen) == sum(batches[phase] for phase in order[num_epochs:]) + 2  # and the rehearsals


def test_a_run_killed_twice_goes_on_to_the_same_bytes(tmp_path, crops, never_stopped):
    killed = Pipeline(tmp_path, crops, **RESUMED)
    for _ in range(2):
        with pytest.MonkeyPatch.context() as monkeypatch:
            kill_after(monkeypatch, 2)
            with pytest.raises(Killed):
                killed.train()
    killed.run("train")
    assert bytes_of(killed.trained, killed.results) == bytes_of(never_stopped.trained, never_stopped.results)


@pytest.mark.slow
def test_a_run_ended_by_the_system_at_any_moment_goes_on_to_the_same_bytes(tmp_path, crops, never_stopped):
    """Also in the middle of an epoch, or while a checkpoint is being written."""
    killed = Pipeline(tmp_path, crops, **RESUMED)
    arguments = [killed.crops, killed.trained, killed.results / "train", *killed.settings]
    command = [sys.executable, "-m", "stages.train", *map(str, arguments)]
    rng = np.random.default_rng(0)
    num_killed = 0
    for _ in range(4):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr:
                if "rehearsal passed" in line:
                    break
            try:
                process.wait(timeout=float(rng.uniform(0.1, 2.0)))
            except subprocess.TimeoutExpired:
                process.kill()
                num_killed += 1
    assert num_killed > 0
    killed.run("train")
    assert bytes_of(killed.trained) == bytes_of(never_stopped.trained)


@pytest.mark.slow
def test_a_run_killed_with_decoding_processes_goes_on_to_the_same_bytes(tmp_path, crops, monkeypatch):
    for module in (run, embedding):
        monkeypatch.setattr(module, "decoding_workers", lambda runtime: 2)
    changes = RESUMED | {"train__baseline": False, "train__warmup__epochs": 0, "train__prototype_init": "uniform"}
    changes["train__addon_init"] = "random"
    whole, killed = (Pipeline(tmp_path / name, crops, **changes) for name in ("whole", "killed"))
    whole.run("train")
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 1)
        with pytest.raises(Killed):
            killed.train()
    killed.run("train")
    assert bytes_of(killed.trained, killed.results) == bytes_of(whole.trained, whole.results)


@pytest.mark.parametrize("damage", ["empty", "cut short", "wiped"])
def test_a_damaged_checkpoint_starts_its_phase_anew(tmp_path, crops, never_stopped, damage):
    killed = Pipeline(tmp_path, crops, **RESUMED)
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(Killed):
            killed.train()
    (path,) = (tmp_path / "cache" / "training").rglob("*.ckpt")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = bytes(200)  # more than the archive pads its parts with
    path.write_bytes({"empty": b"", "cut short": content[: len(content) // 2], "wiped": content}[damage])
    result = killed.train()
    assert result.exit_code == 0
    assert "is damaged: the phase starts anew" in result.output
    assert bytes_of(killed.trained, killed.results) == bytes_of(never_stopped.trained, never_stopped.results)


def test_replaced_weights_start_a_stopped_run_anew(tmp_path, crops):
    weights = tmp_path / "weights.safetensors"
    changes = RESUMED | {"train__baseline": False, "model__weights": str(weights), "model__pretrained": True}

    def write_weights(seed):
        torch.manual_seed(seed)
        state = Backbone("test_efficientnet")._network.state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, weights)

    write_weights(0)
    killed = Pipeline(tmp_path / "killed", crops, **changes)
    with pytest.MonkeyPatch.context() as patch:
        kill_after(patch, 4)
        with pytest.raises(Killed):
            killed.train()
    write_weights(1)
    killed.run("train")
    clean = Pipeline(tmp_path / "clean", crops, **changes).run("train")
    assert bytes_of(killed.trained) == bytes_of(clean.trained)


def test_runs_that_nobody_took_up_for_a_month_are_removed(tmp_path, crops):
    old, recent = (tmp_path / "cache" / "training" / name for name in ("protomask-old", "protomask-recent"))
    for folder in (old, recent):
        folder.mkdir(parents=True)
        (folder / "warmup.ckpt").write_bytes(b"")
    os.utime(old / "warmup.ckpt", (1, 1))
    Pipeline(tmp_path, crops, **RESUMED, train__baseline=False).run("train")
    assert (old.exists(), recent.exists()) == (False, True)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_reported_accuracy_is_that_of_the_network_that_is_handed_on(tmp_path, crops, ema_decay):
    changes = RESUMED | {"compat__last_epoch": True, "train__ema_decay": ema_decay, "train__baseline": False}
    changes |= {"train__joint__lr_backbone": 0.3, "train__joint__lr_addon": 0.3}  # which does harm
    pipeline = Pipeline(tmp_path, crops, **changes).run("train", "project")
    reported = read_json(pipeline.results / "train" / "summary.json")["network"]["joint"]
    assert reported["best_epoch"] == reported["epochs"] == 3
    before = read_json(pipeline.results / "project.json")["val_accuracy"]["before"]
    assert before == pytest.approx(reported["val_accuracy"], abs=1e-6)


def test_pruning_asks_all_images_also_when_projection_takes_the_last_batch_only(tmp_path, done, monkeypatch):
    asked = []
    monkeypatch.setattr(project, "prune", lambda *args, **kw: (asked.extend(args[2]), prune(*args, **kw))[1])
    monkeypatch.setattr(projection, "_AUTHORS_BATCH", 4)
    changes = {"compat__project_last_batch": True, "project__prune__enabled": True, "project__prune__threshold": 1}
    again = Pipeline(tmp_path, done.crops, **changes)
    again.trained = done.trained
    again.run("project")
    assert len(asked) == 15


def test_distinct_views_are_distinct_when_bags_are_filled_up(tmp_path, done):
    again = Pipeline(tmp_path, done.crops, compat__equal_bags=True)
    again.trained = done.trained
    again.run("project")
    assert read_json(again.results / "project.json")["num_duplicates"] == 0


def test_projection_refuses_to_prune_other_heads_before_it_reads_a_view(tmp_path, other_head, monkeypatch):
    if load_model(other_head.trained)[0].head == "protomask":
        pytest.skip("its prototypes can be pruned")
    again = Pipeline(tmp_path, other_head.crops, project__prune__enabled=True)
    again.trained = other_head.trained
    monkeypatch.setattr(BagReader, "views", None)
    assert "project.prune is for model.head protomask" in one_line(again.project())


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"train__joint__lr_backbone": 1e-4}, {"model__dim": 8}, {"compat__frozen_addon": True}]
)
def test_a_stopped_run_with_other_params_is_not_gone_on_with(tmp_path, crops, change):
    settings = RESUMED | {"train__baseline": False}
    other = Pipeline(tmp_path, crops, **settings, **change)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kill_after(monkeypatch, 4)
        with pytest.raises(Killed):
            other.train()
    again = Pipeline(tmp_path, crops, **settings).run("train")
    alone = Pipeline(tmp_path / "alone", crops, **settings).run("train")
    assert bytes_of(again.trained) == bytes_of(alone.trained)


def test_without_a_cache_the_bytes_are_the_same_and_nothing_is_kept(tmp_path, crops, never_stopped):
    without = Pipeline(tmp_path, crops, **RESUMED)
    (tmp_path / "runtime.yaml").write_text("device: cpu\n")
    without.run("train")
    assert bytes_of(without.trained, without.results) == bytes_of(never_stopped.trained, never_stopped.results)
    assert not (tmp_path / "cache").exists()


def test_out_of_patience_a_phase_ends_early_also_when_it_was_killed_there(tmp_path, crops):
    settings = RESUMED | {"train__patience_epochs": 1, "train__warmup__epochs": 12, "train__baseline": False}
    settings |= {"train__warmup__lr_addon": 1e-9, "train__warmup__lr_prototypes": 1e-9}  # nothing gets better
    whole = Pipeline(tmp_path / "whole", crops, **settings).run("train")
    report = read_json(whole.results / "train" / "summary.json")["network"]["warmup"]
    assert report["epochs"] < 12
    assert report["epochs"] == report["best_epoch"] + 1
    killed = Pipeline(tmp_path / "killed", crops, **settings)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kill_after(monkeypatch, report["epochs"])
        with pytest.raises(Killed):
            killed.train()
    killed.run("train")
    assert bytes_of(killed.trained, killed.results) == bytes_of(whole.trained, whole.results)


@pytest.mark.slow
def test_two_runs_on_all_threads_give_the_same_bytes(tmp_path, crops, one_thread):
    torch.set_num_threads(max(2, one_thread))
    found = []
    for name in ("one", "other"):
        changes = {"train__warmup__epochs": 1, "train__joint__epochs": 1, "train__joint__trainable_layers": "all"}
        pipeline = Pipeline(tmp_path / name, crops, train__baseline=False, **changes).run("train")
        found.append(bytes_of(pipeline.folder / "models", pipeline.results))
    torch.set_num_threads(1)
    assert found[0] == found[1]


def test_all_that_is_announced_is_written(done):
    names = set(bytes_of(done.folder / "models", done.results))
    expected = {
        f"models/{stage}/model.{kind}"
        for stage in ("trained", "projected", "final")
        for kind in ("json", "safetensors")
    }
    expected |= {"models/trained/blackbox/model.json", "models/trained/blackbox/model.safetensors"}
    expected |= {"models/projected/prototypes.parquet", "models/final/prototypes.parquet"}
    expected |= {"results/project.json", "results/finetune.json", "results/metrics.json", "results/per_image.parquet"}
    expected |= {f"results/table.{kind}" for kind in ("csv", "md", "tex")} | {"results/train/summary.json"}
    expected |= {"results/metrics_detail.parquet", "results/plots/confusion.csv", "results/plots/projection.csv"}
    assert expected <= names
    assert all(name.startswith(("results/train/", "results/plots/")) for name in names - expected)


def test_training_projecting_and_finetuning_never_open_the_test_split(tmp_path, crops, done):
    without = tmp_path / "crops"
    shutil.copytree(crops, without)
    (without / "test-00000.tar").unlink()
    rewrite_views(without, lambda row: row["split"] != "test")
    again = Pipeline(tmp_path / "project", without).run("train", "project", "finetune")
    second = bytes_of(again.folder / "models", again.results)
    first = bytes_of(done.folder / "models", done.results)
    assert {name for name in second if second[name] != first[name]} == set()


def test_the_networks_learn(done):
    summary = read_json(done.results / "train" / "summary.json")
    assert set(summary) == {"network", "blackbox"}
    for network in summary.values():
        assert {phase: report["epochs"] for phase, report in network.items()} == {
            "warmup": WARMUP_EPOCHS,
            "joint": JOINT_EPOCHS,
        }
        assert network["warmup"]["best_epoch"] > 0
        # a phase starts where the one before it was best, so it never ends worse
        assert network["warmup"]["val_accuracy"] <= network["joint"]["val_accuracy"]
    assert summary["network"]["joint"]["val_accuracy"] > 0.8  # chance is a third


def test_curves_have_a_row_per_epoch_of_all_phases_together(done):
    for network, terms in (
        ("network", ("loss", "cross_entropy", "cluster", "separation", "diversity")),
        ("blackbox", ("loss",)),
    ):
        plots = done.results / "train" / network / "plots" / "metrics"
        names = [f"train/{term}" for term in terms] + ["val/loss", "val/accuracy"]
        assert sorted(str(path.relative_to(plots)) for path in plots.rglob("*.tsv")) == sorted(
            f"{name}.tsv" for name in names
        )
        for name in names:
            head, *rows = (plots / f"{name}.tsv").read_text().splitlines()
            assert head.split("\t") == ["step", name.split("/")[1]]
            assert [row.split("\t")[0] for row in rows] == [str(step) for step in range(WARMUP_EPOCHS + JOINT_EPOCHS)]
            assert np.isfinite([float(row.split("\t")[1]) for row in rows]).all()


def test_the_reported_accuracies_are_points_of_the_curves(done):
    for network, phases in read_json(done.results / "train" / "summary.json").items():
        path = done.results / "train" / network / "plots" / "metrics" / "val" / "accuracy.tsv"
        curve = [float(row.split("\t")[1]) for row in path.read_text().splitlines()[1:]]
        for first, phase in ((0, "warmup"), (WARMUP_EPOCHS, "joint")):
            report = phases[phase]
            if report["best_epoch"] > 0:
                assert curve[first + report["best_epoch"] - 1] == pytest.approx(report["val_accuracy"], abs=1e-6)
            assert max(curve[first : first + report["epochs"]]) <= report["val_accuracy"] + 1e-6


def test_both_networks_start_from_the_same_backbone(done):
    """One seed for both; the stem is frozen in this run and so still shows the start."""
    protomask, _ = load_model(done.trained)
    blackbox, _ = load_model(done.trained / "blackbox")
    stem = "backbone._network.conv_stem.weight"
    assert torch.equal(protomask.state_dict()[stem], blackbox.state_dict()[stem])


def test_training_leaves_the_last_layer_at_its_start(done):
    network, description = load_model(done.trained)
    assert network.last_layer.weight.tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    assert (description["class_names"], description["size_px"]) == (CLASS_NAMES, SIDE_PX)


def differing(one, other):
    states = [load_model(folder)[0].state_dict() for folder in (one, other)]
    return {key for key, value in states[0].items() if not torch.equal(value, states[1][key])}


def test_projection_changes_prototypes_and_nothing_else(done):
    assert differing(done.trained, done.projected) == {"prototypes"}


def test_finetuning_changes_the_last_layer_and_nothing_else(done):
    assert differing(done.projected, done.final) <= {"last_layer.weight"}
    tuned, original = (read_table(folder / "prototypes.parquet", PROTOTYPES) for folder in (done.final, done.projected))
    assert tuned.drop_columns("weight").equals(original.drop_columns("weight"))
    network, _ = load_model(done.final)
    assert tuned["weight"].to_pylist() == [
        network.last_layer.weight[label, idx].item() for idx, label in enumerate(network.prototype_labels)
    ]


def test_finetuning_learns_when_there_is_something_to_learn(tmp_path, done):
    """Here validation is perfect from the start, so the start stays; on a spoilt last layer it does not."""
    again = Pipeline(tmp_path, done.crops, finetune__lr=0.3, finetune__epochs=30)
    network, description = load_model(done.projected)
    with torch.no_grad():
        network.last_layer.weight.copy_(network.last_layer.weight.roll(1, dims=0))
    run.save_model(again.projected, network, class_names=description["class_names"], size_px=SIDE_PX)
    shutil.copy(done.projected / "prototypes.parquet", again.projected)
    again.run("finetune")
    report = read_json(again.results / "finetune.json")
    assert report["best_epoch"] > 0
    assert report["val_accuracy"] > 0.6
    assert differing(again.projected, again.final) == {"last_layer.weight"}


def test_every_projected_prototype_is_a_training_view_of_its_class(done):
    network, _ = load_model(done.projected)
    trained, _ = load_model(done.trained)
    reader = BagReader(done.crops, "train")
    position = {key: idx for idx, key in enumerate(reader.image_keys)}
    rows = read_table(done.projected / "prototypes.parquet", PROTOTYPES).to_pylist()
    assert [row["prototype_idx"] for row in rows] == list(range(6))
    assert len({(row["image_key"], row["view_idx"]) for row in rows}) == 6  # project.distinct_views
    for row in rows:
        idx, bag_idx = row["prototype_idx"], position[row["image_key"]]
        view = reader.rows(bag_idx)[row["view_idx"]]
        assert row["label"] == view.label == network.prototype_labels[idx]
        assert row["class_name"] == CLASS_NAMES[row["label"]]
        assert (row["mask_idx"], row["box"]) == (view.mask_idx, list(view.box))
        pixels = torch.from_numpy(reader.views(bag_idx)[row["view_idx"]]).permute(2, 0, 1)[None]
        with torch.no_grad():
            feature = network.features_of(network.encode(pixels))
        torch.testing.assert_close(feature[0], network.prototypes[idx].detach(), atol=1e-5, rtol=1e-5)
        assert row["distance_after"] < 1e-5
        before = squared_distance(feature, trained.prototypes.detach()[idx : idx + 1]).item()
        assert row["distance_before"] == pytest.approx(before, abs=1e-5)


def test_the_projection_report_adds_up(done):
    report = read_json(done.results / "project.json")
    rows = read_table(done.projected / "prototypes.parquet", PROTOTYPES).to_pylist()
    assert (report["num_prototypes"], report["num_projected"], report["num_distinct_views"]) == (6, 6, 6)
    assert (report["num_duplicates"], report["prune"]) == (0, None)
    for name in ("distance_before", "distance_after"):
        distances = [row[name] for row in rows]
        assert report[name]["mean"] == pytest.approx(np.mean(distances), abs=1e-6)
        assert report[name]["max"] == pytest.approx(max(distances), abs=1e-6)
    trained = read_json(done.results / "train" / "summary.json")["network"]
    assert report["val_accuracy"]["before"] == pytest.approx(trained["joint"]["val_accuracy"], abs=1e-6)
    finetuned = read_json(done.results / "finetune.json")
    assert finetuned["val_accuracy"] >= report["val_accuracy"]["after"] - 1e-6


def test_every_state_is_evaluated_and_the_tables_hold_the_numbers(done):
    metrics = read_json(done.results / "metrics.json")
    assert list(metrics) == ["blackbox", "protomask", "protomask_projected", "protomask_trained"]
    assert metrics["protomask"]["classification"]["accuracy"] > 0.6
    rows = pq.read_table(done.results / "per_image.parquet").to_pylist()
    assert len(rows) == 4 * 9
    assert (
        f"{100 * metrics['blackbox']['classification']['balanced_accuracy']:.2f}"
        in (done.results / "table.md").read_text()
    )


@pytest.mark.parametrize(
    ("changes", "phases", "has_blackbox"),
    [
        ({"train__joint__epochs": 0}, {"warmup": WARMUP_EPOCHS}, True),
        ({"train__warmup__epochs": 0}, {"joint": JOINT_EPOCHS}, True),
        (
            {"train__warmup__epochs": 0, "train__prototype_init": "uniform", "train__class_weights": False},
            {"joint": JOINT_EPOCHS},
            True,
        ),
        (
            {"train__joint__epochs": 0, "train__baseline": False, "train__warmup__flip": False},
            {"warmup": WARMUP_EPOCHS},
            False,
        ),
    ],
    ids=["warm-up only", "joint only", "as in the paper", "no baseline"],
)
def test_every_variant_of_a_run_goes_through(tmp_path, crops, changes, phases, has_blackbox):
    variant = Pipeline(tmp_path, crops, finetune__epochs=0, **changes).run("train", "project", "finetune", "evaluate")
    summary = read_json(variant.results / "train" / "summary.json")
    assert {phase: report["epochs"] for phase, report in summary["network"].items()} == phases
    assert ("blackbox" in summary) == has_blackbox
    curve = variant.results / "train" / "network" / "plots" / "metrics" / "val" / "accuracy.tsv"
    assert len(curve.read_text().splitlines()) == 1 + sum(phases.values())
    assert (variant.trained / "blackbox").exists() == has_blackbox
    assert ("blackbox" in read_json(variant.results / "metrics.json")) == has_blackbox
    assert differing(variant.projected, variant.final) == set()  # finetune.epochs is 0


HEADS = ("protomask", "blackbox", "protopnet", "pipnet", "protopool")


@pytest.fixture(scope="module", params=[head for head in HEADS if head != "protomask"])
def other_head(request, tmp_path_factory, crops):
    """All four stages of another head, pretraining and all."""
    changes = {"model__head": request.param, "model__slots_per_class": 2, "train__pipnet__pretraining_epochs": 2}
    if request.param == "pipnet":
        changes["model__shared_prototypes"] = 24  # with few of them it merges classes
    pipeline = Pipeline(tmp_path_factory.mktemp(request.param), crops, **changes)
    return pipeline.run("train", "project", "finetune", "evaluate")


def test_every_head_goes_through_all_stages_and_gives_rows_by_its_name(other_head):
    head = load_params(other_head.folder / "params.yaml").model.head
    metrics = read_json(other_head.results / "metrics.json")
    if head == "blackbox":
        assert list(metrics) == ["blackbox"]
    else:
        assert list(metrics) == sorted(["blackbox", head, f"{head}_projected", f"{head}_trained"])
    summary = read_json(other_head.results / "train" / "summary.json")
    assert set(summary) == {"network", "blackbox"} - ({"blackbox"} if head == "blackbox" else set())
    if head != "pipnet":  # which has too few epochs and too little to see here
        assert summary["network"]["joint"]["val_accuracy"] > 0.5  # chance is a third
    for stage in (other_head.trained, other_head.projected, other_head.final):
        assert load_model(stage)[1]["head"] == head


def test_the_prototypes_of_every_head_have_a_source_and_a_place(other_head):
    network, description = load_model(other_head.final)
    rows = read_table(other_head.final / "prototypes.parquet", PROTOTYPES).to_pylist()
    if network.head == "blackbox":
        assert rows == []
        assert read_json(other_head.results / "project.json")["num_prototypes"] == 0
        return
    assert len(rows) == len(network.prototypes) == (24 if network.head == "pipnet" else 6)
    reader = BagReader(other_head.crops, "train", views="whole")
    position = {key: idx for idx, key in enumerate(reader.image_keys)}
    weights, labels = network.class_weights(), network.prototype_classes()
    sourced = [row for row in rows if row["image_key"] is not None]
    assert len(sourced) >= 4  # a shared prototype that no class uses has none
    for row in rows:
        idx = row["prototype_idx"]
        assert row["class_name"] == description["class_names"][labels[idx]]
        assert row["weight"] == pytest.approx(weights[labels[idx], idx].item())
    for row in sourced:
        pixels = torch.from_numpy(reader.views(position[row["image_key"]])).permute(0, 3, 1, 2)
        with torch.no_grad():
            encoded = network.encode(pixels)
            features = network.features_of(encoded)
            distance = network.distances(features)[row["place_idx"], row["prototype_idx"]].item()
        assert distance == pytest.approx(row["distance_after"], abs=1e-5)
        if network.is_projected:
            assert distance < 1e-5
        else:
            assert distance == pytest.approx(row["distance_before"], abs=1e-5)
        (view,) = reader.rows(position[row["image_key"]])
        x0, y0, x1, y1 = row["box"]
        assert view.box.x0 <= x0 < x1 <= view.box.x1
        assert view.box.y0 <= y0 < y1 <= view.box.y1
        assert row["mask_idx"] == -1


@pytest.mark.parametrize("head", ["pipnet", "protopool"])
def test_a_second_run_of_a_head_with_draws_of_its_own_gives_the_same_bytes_killed_or_not(tmp_path, crops, head):
    changes = RESUMED | {"model__head": head, "train__baseline": False}
    whole = Pipeline(tmp_path / "whole", crops, **changes).run("train", "project")
    again = Pipeline(tmp_path / "again", crops, **changes)
    with pytest.MonkeyPatch.context() as monkeypatch:
        kill_after(monkeypatch, 4)
        with pytest.raises(Killed):
            again.train()
    again.run("train", "project")
    assert bytes_of(again.folder / "models", again.results) == bytes_of(whole.folder / "models", whole.results)


LAST_OF_RESUMED = RESUMED | {"train__baseline": False, "compat__last_epoch": True}  # where every change shows
COMPAT = [
    "equal_bags",
    "validate_on_test",
    "constant_diversity",
    "frozen_addon",
    "saturating_distances",
    "dropped_window",
    "wrapped_borders",
]


@pytest.fixture(scope="module")
def without_compat(tmp_path_factory, crops):
    return Pipeline(tmp_path_factory.mktemp("without"), crops, **LAST_OF_RESUMED).run("train")


@pytest.mark.parametrize("switch", COMPAT)
def test_every_switch_of_compat_goes_through_and_changes_the_trained_network(tmp_path, crops, without_compat, switch):
    changed = Pipeline(tmp_path, crops, **LAST_OF_RESUMED, **{f"compat__{switch}": True}).run("train")
    same = bytes_of(changed.trained) == bytes_of(without_compat.trained)
    assert same == (switch == "saturating_distances")  # features and prototypes of 16 values never get that far apart


def test_handing_on_the_last_epoch_leaves_every_phase_where_it_ended(tmp_path, crops, without_compat):
    best = Pipeline(tmp_path, crops, **RESUMED | {"train__baseline": False}).run("train")
    assert bytes_of(best.trained) != bytes_of(without_compat.trained)
    summaries = [read_json(one.results / "train" / "summary.json")["network"] for one in (best, without_compat)]
    assert summaries[1]["warmup"]["best_epoch"] == summaries[1]["warmup"]["epochs"] == 3


def test_a_frozen_add_on_layer_stays_at_its_start(tmp_path, crops):
    changes = RESUMED | {"train__baseline": False, "compat__frozen_addon": True, "train__addon_init": "random"}
    runs = [
        Pipeline(tmp_path / str(rate), crops, **changes, train__joint__lr_addon=rate).run("train")
        for rate in (1e-3, 1e-1)
    ]
    one, other = (load_model(run.trained)[0].add_on.weight for run in runs)
    assert torch.equal(one, other)


def test_validating_on_test_images_opens_them_and_trains_on_the_validation_images(tmp_path, crops, monkeypatch):
    opened = []
    views = BagReader.views
    monkeypatch.setattr(
        BagReader, "views", lambda self, idx: (opened.append(self.image_keys[idx]), views(self, idx))[1]
    )
    Pipeline(tmp_path, crops, train__baseline=False, compat__validate_on_test=True).run("train", "project", "finetune")
    assert {key.split("-")[0] for key in opened} == {"train", "val", "test"}


def test_projecting_on_the_last_batch_only_takes_its_images(tmp_path, done):
    again = Pipeline(tmp_path, done.crops, compat__project_last_batch=True, project__distinct_views=False)
    again.trained = done.trained
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(projection, "_AUTHORS_BATCH", 4)
        again.run("project")
    rows = read_table(again.projected / "prototypes.parquet", PROTOTYPES).to_pylist()
    reader = BagReader(done.crops, "train")
    by_class = sorted(zip(reader.labels, reader.image_keys, strict=True))
    batches = [by_class[start : start + 4] for start in range(0, len(by_class), 4)]
    for row in rows:
        last = [batch for batch in batches if any(label == row["label"] for label, _ in batch)][-1]
        assert (row["label"], row["image_key"]) in last


def test_finetuning_the_authors_way_moves_the_normalisation_statistics(tmp_path, done):
    again = Pipeline(tmp_path, done.crops, compat__moving_finetune=True, compat__last_epoch=True)
    again.trained, again.projected = done.trained, done.projected
    again.run("finetune", "evaluate")
    moved = differing(again.projected, again.final)
    assert "last_layer.weight" in moved
    assert moved - {"last_layer.weight"}
    assert all(
        key.startswith("backbone.") and key.rsplit(".", 1)[1] in ("running_mean", "running_var", "num_batches_tracked")
        for key in moved - {"last_layer.weight"}
    )


def test_check_goes_through_every_phase_and_writes_nothing(tmp_path, crops):
    checked = Pipeline(tmp_path, crops)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, crops, *tmp_path.rglob("*"), *crops.rglob("*"))}
    result = checked.train("--check")
    assert result.exit_code == 0
    assert "rehearsal passed" in result.output
    after = {path: path.stat().st_mtime_ns for path in (tmp_path, crops, *tmp_path.rglob("*"), *crops.rglob("*"))}
    assert after == before


def test_the_rehearsal_leaves_every_generator_as_it_was(crops, done):
    """So that a run with it gives what a run without it would."""
    params = load_params(done.folder / "params.yaml")
    seeding.prepare(params.seed)
    states = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    run.rehearse(crops, params=params, runtime=Runtime(device="cpu"))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert all(np.array_equal(one, other) for one, other in zip(np.random.get_state(), states[1], strict=True))  # noqa: NPY002


def test_check_stops_at_a_loss_that_is_not_finite(tmp_path, crops):
    # one class has no other to be separated from
    single = tmp_path / "crops"
    shutil.copytree(crops, single)
    table = read_table(single / "views.parquet", VIEWS)
    rows = [row for row in table.to_pylist() if row["label"] == 0]
    write_table(single / "views.parquet", rows, VIEWS, class_names=CLASS_NAMES[:1], size_px=SIDE_PX)
    message = one_line(Pipeline(tmp_path / "project", single).train("--check"))
    assert re.fullmatch(r"params.yaml: the first batch gives (train|val)/\w+ = -?inf; check train and model", message)


@pytest.mark.parametrize("option", [(), ("--check",)])
def test_a_class_without_training_images_is_one_line_that_names_it(tmp_path, crops, option):
    lacking = tmp_path / "crops"
    shutil.copytree(crops, lacking)
    rewrite_views(lacking, lambda row: (row["split"], row["label"]) != ("train", 1))
    stopped = Pipeline(tmp_path / "project", lacking)
    assert "green" in one_line(stopped.train(*option))
    assert not stopped.trained.exists()
    assert not stopped.results.exists()


def test_a_class_without_training_images_keeps_its_prototypes_in_projection(tmp_path, crops, done):
    lacking = tmp_path / "crops"
    shutil.copytree(crops, lacking)
    rewrite_views(lacking, lambda row: (row["split"], row["label"]) != ("train", 1))
    again = Pipeline(tmp_path / "project", lacking)
    again.trained = done.trained
    again.run("project")
    rows = read_table(again.projected / "prototypes.parquet", PROTOTYPES).to_pylist()
    assert [row["image_key"] is None for row in rows] == [False, False, True, True, False, False]
    assert all(
        rows[idx][name] is None for idx in (2, 3) for name in ("view_idx", "box", "distance_before", "distance_after")
    )
    projected, trained = (load_model(folder)[0].prototypes for folder in (again.projected, again.trained))
    assert torch.equal(projected[2:4], trained[2:4])
    assert read_json(again.results / "project.json")["num_projected"] == 4


def test_pruned_prototypes_are_gone_from_network_and_table_and_named_in_the_report(tmp_path, done):
    again = Pipeline(
        tmp_path, done.crops, project__prune__enabled=True, project__prune__k=3, project__prune__threshold=2
    )
    again.trained = done.trained
    again.run("project", "finetune", "evaluate")
    report, pruned = (read_json(one.results / "project.json") for one in (done, again))
    pruning = pruned.pop("prune")
    assert pruned == {key: value for key, value in report.items() if key != "prune"}  # all that is before pruning
    gone = [entry["prototype_idx"] for entry in pruning["pruned"]]
    kept = [idx for idx in range(6) if idx not in gone]
    assert 0 < len(gone) < 6
    assert (pruning["num_kept"], pruning["num_pruned"]) == (len(kept), len(gone))
    assert all(entry["num_own"] < 2 for entry in pruning["pruned"])

    whole, smaller = (load_model(one.projected)[0] for one in (done, again))
    assert torch.equal(smaller.prototypes, whole.prototypes[kept])
    assert torch.equal(smaller.last_layer.weight, whole.last_layer.weight[:, kept])
    assert torch.equal(smaller.prototype_labels, whole.prototype_labels[kept])
    before, after = (read_table(one.projected / "prototypes.parquet", PROTOTYPES).to_pylist() for one in (done, again))
    assert after == [before[old] | {"prototype_idx": new} for new, old in enumerate(kept)]
    for entry in pruning["pruned"]:
        row = before[entry["prototype_idx"]]
        assert all(entry[name] == row[name] for name in ("class_name", "image_key", "view_idx"))

    assert differing(again.projected, again.final) <= {"last_layer.weight"}
    finetuned = read_json(again.results / "finetune.json")
    assert finetuned["val_accuracy"] >= pruning["val_accuracy"] - 1e-6
    rows = pq.read_table(again.results / "per_image.parquet").to_pylist()
    top = {row["row"]: row["top_prototypes"] for row in rows if row["top_prototypes"] is not None}
    assert {name: len(indices) for name, indices in top.items()} == {
        "protomask": min(5, len(kept)),
        "protomask_projected": min(5, len(kept)),
        "protomask_trained": 5,
    }


def test_a_class_that_loses_all_its_prototypes_is_named_and_the_rest_goes_on(tmp_path, crops, done):
    rare = tmp_path / "crops"
    shutil.copytree(crops, rare)
    keys = sorted({row["image_key"] for row in read_table(crops / "views.parquet", VIEWS).to_pylist()})
    dropped = {key for key in keys if key.startswith("train-") and int(key[-2:]) % 3 == 1} - {"train-01"}
    rewrite_views(rare, lambda row: row["image_key"] not in dropped)
    again = Pipeline(tmp_path / "project", rare, project__prune__enabled=True, finetune__l1=0.0)
    again.trained = done.trained
    result = again.project()
    assert result.exit_code == 0
    report = read_json(again.results / "project.json")["prune"]
    assert report["classes_without_prototypes"] == ["green"]  # one training image is never 3 of 6
    assert "1 classes have no prototype left: green" in result.output
    again.run("finetune", "evaluate")
    network, _ = load_model(again.final)
    assert 1 not in network.prototype_labels.tolist()
    metrics = read_json(again.results / "metrics.json")["protomask"]
    for family in ("classification", "compactness", "deletion"):
        assert all(value is not None for value in metrics[family].values())


def test_pruning_that_leaves_nothing_is_one_line_and_writes_nothing(tmp_path, done):
    changes = {"project__prune__enabled": True, "project__prune__k": 15, "project__prune__threshold": 15}
    again = Pipeline(tmp_path, done.crops, **changes)
    again.trained = done.trained
    message = one_line(again.project())
    assert message.startswith("params.yaml: project.prune leaves no prototype")
    assert not again.projected.exists()
    assert not (again.results / "project.json").exists()


def test_a_threshold_above_k_is_one_line(tmp_path, done):
    again = Pipeline(tmp_path, done.crops, project__prune__threshold=7)
    assert "threshold (7) is above k (6)" in one_line(again.project())


def test_missing_crops_and_missing_models_are_one_line(tmp_path, crops):
    nothing = Pipeline(tmp_path / "nothing", tmp_path / "no_crops")
    assert one_line(nothing.train()).startswith(str(tmp_path / "no_crops" / "views.parquet"))
    untrained = Pipeline(tmp_path / "untrained", crops)
    assert one_line(untrained.project()).startswith(str(untrained.trained / "model.json"))
    assert one_line(untrained.finetune()).startswith(str(untrained.projected / "model.json"))
    assert one_line(untrained.evaluate()).startswith(str(untrained.final / "model.json"))


def test_a_shard_cut_short_is_one_line_and_leaves_nothing_behind(tmp_path, crops):
    damaged = tmp_path / "crops"
    shutil.copytree(crops, damaged)
    shard = damaged / "train-00000.tar"
    shard.write_bytes(shard.read_bytes()[:4000])
    stopped = Pipeline(tmp_path / "project", damaged)
    assert one_line(stopped.train()).startswith(str(shard))
    assert not (stopped.folder / "models").exists() or not list((stopped.folder / "models").iterdir())


def test_a_split_without_images_is_one_line(tmp_path, crops):
    without = tmp_path / "crops"
    shutil.copytree(crops, without)
    rewrite_views(without, lambda row: row["split"] != "val")
    assert "val split" in one_line(Pipeline(tmp_path / "project", without).train())


def test_finetuning_a_network_that_was_not_projected_is_one_line(tmp_path, done):
    again = Pipeline(tmp_path, done.crops)
    again.projected = done.trained
    assert one_line(again.finetune()).startswith(str(done.trained / "prototypes.parquet"))
    assert not again.final.exists()


def test_evaluating_states_of_different_runs_is_one_line(tmp_path, done):
    other = Pipeline(tmp_path / "other", done.crops, seed=1, train__joint__epochs=0, train__baseline=False).run("train")
    mixed = Pipeline(tmp_path / "mixed", done.crops)
    mixed.trained, mixed.projected, mixed.final = other.trained, done.projected, done.final
    message = one_line(mixed.evaluate())
    assert message.startswith(str(other.trained))
    assert "dvc repro" in message


def test_crops_of_other_classes_than_the_networks_are_one_line(tmp_path, crops, done):
    others = tmp_path / "crops"
    shutil.copytree(crops, others)
    table = read_table(others / "views.parquet", VIEWS)
    write_table(others / "views.parquet", table.to_pylist(), VIEWS, class_names=["a", "b", "c"], size_px=SIDE_PX)
    again = Pipeline(tmp_path / "project", others)
    again.trained, again.projected, again.final = done.trained, done.projected, done.final
    assert one_line(again.project()).startswith(str(done.trained))
    assert one_line(again.finetune()).startswith(str(done.projected))
    assert one_line(again.evaluate()).startswith(str(done.final))


def test_another_seed_gives_another_network(tmp_path, crops, done):
    other = Pipeline(tmp_path, crops, seed=1, train__baseline=False).run("train")
    assert (other.trained / "model.safetensors").read_bytes() != (done.trained / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_number_of_decoding_processes_changes_no_byte(tmp_path, crops, monkeypatch):
    changes = {"train__warmup__epochs": 0, "train__prototype_init": "uniform", "train__baseline": False}
    changes |= {"train__joint__epochs": 2, "train__joint__augmentation": "medium"}
    found = []
    for num_workers in (0, 2):
        for module in (run, embedding):
            monkeypatch.setattr(module, "decoding_workers", lambda runtime, num=num_workers: num)
        pipeline = Pipeline(tmp_path / str(num_workers), crops, **changes).run("train")
        found.append(bytes_of(pipeline.folder / "models", pipeline.results))
    assert found[0] == found[1]


def test_a_stage_says_what_it_reads_and_writes():
    for app, words in (
        (train_app, ("CROPS", "TRAINED", "CURVES", "--check")),
        (project_app, ("CROPS", "TRAINED", "PROJECTED", "REPORT")),
        (finetune_app, ("CROPS", "PROJECTED", "FINAL", "REPORT")),
        (evaluate_app, ("DATASET", "MASKS", "CROPS", "TRAINED", "PROJECTED", "FINAL", "RESULTS")),
    ):
        result = CliRunner().invoke(app, ["--help"])
        assert result.exit_code == 0
        assert all(word.lower() in result.output.lower() for word in words)


def test_reports_are_json_with_sorted_keys(done):
    for path in (done.results / "project.json", done.results / "metrics.json", done.results / "train" / "summary.json"):
        content = json.loads(path.read_text())
        assert path.read_text() == json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
