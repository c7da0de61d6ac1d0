import itertools
import json
import math

import numpy as np
import pytest
import torch

from benchmarks import train
from pipeline.data.bags import BagReader
from pipeline.data.datasets.interface import Dataset, ImageRecord, Listing
from pipeline.data.images import read_image
from pipeline.errors import PipelineError
from pipeline.model.backbone import Backbone
from pipeline.model.protomask import ProtoMask
from pipeline.params import CropsParams, JointParams, ModelParams, WarmupParams
from pipeline.runtime import Runtime
from pipeline.training.augment import make_augmentation
from pipeline.training.batches import ImageBags

NUM_IMAGES = 8


def tiny_params():
    params = train.make_params(
        None,
        num_images=NUM_IMAGES,
        crops=CropsParams(size_px=64, max_views=8, min_area_frac=0.15),  # few masks are as large: bags are unequal
        model=ModelParams(backbone="test_efficientnet", pretrained=False, dim=16),
        batch_images=3,
        precision="float32",
        joint=JointParams(epochs=1, trainable_layers=2),
    )
    short = params.train.model_copy(update={"warmup": WarmupParams(epochs=2, batch_images=3)})
    return params.model_copy(update={"train": short})


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def line(home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTOMASK_WORKERS", "1")
        yield train.measure(home, params=tiny_params(), num_images=NUM_IMAGES, device="cpu", workers=0, epochs=1)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def task(home, line):
    """What the measured run worked on."""
    (home / "cut_outs").rename(home / "cut_outs_of_the_run")
    reader, plain_bags = BagReader(home / "crops", "train"), train._write_cut_outs(home)
    return train.Task(tiny_params(), Runtime(device="cpu"), 0, 1, reader, plain_bags)


@pytest.fixture
def network(task):
    torch.manual_seed(0)
    backbone = Backbone("test_efficientnet")
    return ProtoMask(backbone, dim=16, prototype_labels=torch.arange(10) // 5, num_classes=2, epsilon=1e-4)


def test_a_run_prints_rates_of_both_contenders_for_every_measurement(line):
    assert json.loads(json.dumps(line)) == line
    assert line["equal"]
    for name in ("joint", "joint_step", "warmup"):
        ours, plain = line[name]["ours"], line[name]["plain"]
        for measured in (ours, plain):
            assert measured["bags_per_s"] * measured["seconds"] == pytest.approx(NUM_IMAGES, rel=5e-3)
            assert measured["views_per_s"] * measured["seconds"] == pytest.approx(line["views"], rel=5e-3)
            assert math.isfinite(measured.get("loss", 0.0))
        assert line["ratio"][name] == pytest.approx(plain["seconds"] / ours["seconds"], rel=0.01, abs=0.01)
    assert {"loss", "peak_mib"} <= line["joint"]["ours"].keys() & line["joint"]["plain"].keys()
    assert {"tflops", "share_of_bf16_peak"} <= line["joint_step"]["ours"].keys() & line["joint_step"]["plain"].keys()
    whole = line["whole_warmup"]
    assert whole["ours_s"] == pytest.approx(
        line["warmup"]["ours"]["encode_s"] + 2 * line["warmup"]["ours"]["seconds"], rel=2e-3
    )
    assert whole["plain_s"] == pytest.approx(2 * line["warmup"]["plain"]["seconds"], rel=2e-3)


def test_views_and_copies_add_up_to_equally_long_bags(line, task):
    lengths = task.reader.lengths
    assert (line["images"], line["views"], line["longest_bag"]) == (NUM_IMAGES, sum(lengths), max(lengths))
    assert line["copies"] > 0
    assert line["views"] + line["copies"] == NUM_IMAGES * max(lengths)
    assert {len(bag.views) for bag in task.plain_bags} == {max(lengths)}


def test_both_ways_have_the_same_loss_and_the_check_notices_one_other_view(task, network, monkeypatch):
    assert train.largest_difference(network, task) <= 1e-4
    padded = train._padded

    def with_one_other_view(*args, **settings):
        views, labels = padded(*args, **settings)
        views[0, 0] = views[1, 0]
        return views, labels

    monkeypatch.setattr(train, "_padded", with_one_other_view)
    assert train.largest_difference(network, task) > 1e-4


def test_the_plain_way_learns_with_the_same_parameters_and_the_same_frozen_statistics(network):
    network.backbone.train_last(2)
    plain = train.PlainNetwork(network.train()).train()
    ours = dict(network.backbone._network.named_modules())
    theirs = dict(plain.trunk.named_modules())
    normalisations = [name for name, module in theirs.items() if isinstance(module, torch.nn.BatchNorm2d)]
    modes = [theirs[name].training for name in normalisations]
    assert set(modes) == {True, False}
    assert modes == [ours[name].training for name in normalisations]
    learning = [name for name, parameter in plain.trunk.named_parameters() if parameter.requires_grad]
    assert learning == [n for n, parameter in network.backbone._network.named_parameters() if parameter.requires_grad]


def test_the_plain_way_loads_the_views_that_the_shards_hold(task, network):
    mean, std = network.backbone.mean, network.backbone.std
    plain_bags = train.CutOutBags(task.plain_bags, 64, mean, std, make_augmentation("none"))
    for bag_idx, length in enumerate(task.reader.lengths):
        normal, label = plain_bags[bag_idx]
        pixels = (normal * std + mean) * 255
        stored = ImageBags(task.reader)[bag_idx]
        assert label == stored.labels.item()
        assert (pixels[:length] - stored.views.float()).abs().mean(dim=(1, 2, 3)).max() < 4  # the shards' are JPEGs
        originals = [task.plain_bags[bag_idx].views.index(view) for view in task.plain_bags[bag_idx].views]
        assert originals[:length] == list(range(length))
        assert torch.equal(normal, normal[originals])


def test_pictures_of_views_are_as_large_as_the_image_and_black_outside_the_mask(task):
    num_black = 0
    for bag in task.plain_bags:
        image = read_image(bag.image)
        for view in bag.views:
            cut = read_image(view.path)
            black = ~cut.any(axis=2)
            assert cut.shape == image.shape
            assert np.array_equal(cut[~black], image[~black])
            num_black += black.mean() > 0.5
    assert num_black > NUM_IMAGES  # of masks; the whole image is a view, too


@pytest.mark.parametrize("num_layers", [1, 3, "all"])
def test_operations_are_those_of_the_products_and_three_times_those_of_layers_that_learn(network, num_layers):
    network.backbone.train_last(num_layers)
    expected = 0

    def count(module, inputs, output):
        nonlocal expected
        multiplications = output.numel() * module.weight.numel() // module.out_channels
        expected += 2 * multiplications * (3 if module.weight.requires_grad else 1)

    hooks = [
        module.register_forward_hook(count)
        for module in network.backbone.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        network.backbone.eval()(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    assert train.flops_per_view(network, 64) == expected > 0


class FourClasses(Dataset):
    """Ten training images of each, but three of the second; two test images."""

    def listing(self):
        num_train = (10, 3, 10, 10)
        records = [
            ImageRecord(f"{label}_{split}_{idx}", f"{label}_{split}_{idx}.jpg", label, split)
            for label, num in enumerate(num_train)
            for split, count in (("train", num), ("test", 2))
            for idx in range(count)
        ]
        return Listing(["a", "b", "c", "d"], records)

    def image_bytes(self, record):
        return record.image_key.encode()


def test_few_images_are_taken_equally_of_the_first_classes_with_one_to_validate_and_one_of_each_to_test():
    few = train.FewImages(FourClasses(), 12)
    listing = few.listing()
    assert listing.class_names == ["a", "b"]
    with pytest.raises(
        PipelineError, match=r"^--images 13: the first 2 classes have 13 training images, and one more "
    ):
        train.FewImages(FourClasses(), 13).listing()
    assert few.image_bytes(listing.records[0]) == b"0_train_0"
    labels = {
        split: [record.label for record in records]
        for split, records in itertools.groupby(listing.records, key=lambda record: record.split)
    }
    assert labels == {"train": [0, 1] * 3 + [0] * 6, "val": [0], "test": [0, 1]}


@pytest.mark.parametrize("layers", ["0", "most", "-1", "1.5"])
def test_layers_that_cannot_learn_are_refused(layers):
    with pytest.raises(train.typer.BadParameter, match="at least 1, or all"):
        train._layers(layers)
