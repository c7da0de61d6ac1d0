import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pipeline.model.backbone import Backbone
from pipeline.model.blackbox import BlackBox
from pipeline.model.protomask import ProtoMask
from pipeline.runtime import Runtime
from pipeline.training.augment import Augmentation, make_augmentation
from pipeline.training.batches import EncodedBags, EpochOrder, PackedBags, loader
from pipeline.training.callbacks import KeepBest
from pipeline.training.fitting import fit
from pipeline.training.phases import FinetunePhase, TrainingPhase
from pipeline.training.seeding import prepare

CPU = Runtime(device="cpu")
NUM_CHANNELS = 256  # of test_efficientnet


@pytest.fixture(autouse=True)
def seeded():
    """A seed per test; one thread, as networks this small only wait for each other's threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    prepare(0)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(num_threads)


def make_network(num_classes=2, per_class=2):
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    return ProtoMask(
        Backbone("test_efficientnet"), dim=8, prototype_labels=labels, num_classes=num_classes, epsilon=1e-4
    )


def toy_bags(num_bags, seed, num_classes=2):
    """Ragged bags of pooled features, version 1 equal to version 0: one view per bag says the class, the rest noise."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).normal(size=(num_classes, NUM_CHANNELS))
    lengths = rng.integers(1, 5, num_bags).tolist()
    labels = (np.arange(num_bags) % num_classes).tolist()
    views = []
    for length, label in zip(lengths, labels, strict=True):
        bag = 0.1 * rng.normal(size=(length, NUM_CHANNELS))
        bag[rng.integers(length)] += directions[label]
        views.append(bag)
    pooled = torch.from_numpy(np.concatenate(views)).float()
    return EncodedBags([pooled, pooled], lengths, labels)


class Pictures(list, Dataset):
    """Bags of pictures."""


def image_bags(num_bags, seed=0):
    rng = np.random.default_rng(seed)
    bags = Pictures()
    for label in range(num_bags):
        length = 1 + label % 3
        views = torch.from_numpy(rng.integers(0, 256, (length, 3, 64, 64), dtype=np.uint8))
        bags.append(PackedBags(views, torch.tensor([length]), torch.tensor([label % 2])))
    return bags


def warmup_phase(network, lr=0.02, **settings):
    rates = [(list(network.add_on.parameters()), lr), ([network.prototypes], lr)]
    return TrainingPhase(network, rates=rates, class_weights=None, **settings)


def joint_phase(network, num_layers="all", **settings):
    network.backbone.train_last(num_layers)
    learning = [parameter for parameter in network.backbone.parameters() if parameter.requires_grad]
    rates = [(learning, 0.01), (list(network.add_on.parameters()), 0.01), ([network.prototypes], 0.01)]
    return TrainingPhase(network, rates=rates, class_weights=None, **settings)


def state_of(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def changed(network, before):
    return {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}


def run(phase, training, validation, *, epochs, batch_images=4, **settings):
    return fit(
        phase,
        loader(training, batch_images, order=EpochOrder([0] * len(training), 0)),
        loader(validation, batch_images),
        name="test",
        epochs=epochs,
        runtime=CPU,
        **settings,
    )


def keep_last(monkeypatch):
    """Leave the network as the last epoch made it, so that a test sees every change."""
    monkeypatch.setattr(KeepBest, "on_fit_end", lambda *arguments: None)


def accuracy_of(network, bags):
    network.eval()
    hits = 0
    for idx in range(len(bags)):
        views, lengths, labels = bags[idx]
        with torch.no_grad():
            logits = network.classify(network.features_of(views[:, 0]), lengths).logits
        hits += int(logits.argmax() == labels[0])
    return hits / len(bags)


def test_it_learns_a_toy_problem_in_a_few_epochs():
    network = make_network()
    validation = toy_bags(17, seed=2)
    assert accuracy_of(network, validation) < 0.8
    report = run(warmup_phase(network), toy_bags(40, seed=1), validation, epochs=8)
    assert report["val_accuracy"] == 1.0
    assert 1 <= report["best_epoch"] <= report["epochs"] == 8
    assert accuracy_of(network, toy_bags(30, seed=3)) == 1.0


def test_a_black_box_learns_a_toy_problem():
    network = BlackBox(Backbone("test_efficientnet"), num_classes=2)
    bags = toy_bags(40, seed=1)
    single = EncodedBags([torch.stack([bags[idx].views[:, 0].sum(dim=0) for idx in range(40)])], [1] * 40, bags._labels)
    phase = TrainingPhase(network, rates=[(list(network.classifier.parameters()), 0.02)], class_weights=None)
    assert run(phase, single, single, epochs=5)["val_accuracy"] == 1.0


def test_warm_up_moves_add_on_and_prototypes_and_nothing_else(monkeypatch):
    keep_last(monkeypatch)
    network = make_network()
    before = state_of(network)
    run(warmup_phase(network), toy_bags(8, seed=1), toy_bags(4, seed=2), epochs=2)
    assert changed(network, before) == {"add_on.weight", "add_on.bias", "prototypes"}


@pytest.mark.parametrize("num_layers", [2, "all"])
def test_the_joint_phase_moves_all_but_the_last_layer_and_what_is_frozen(monkeypatch, num_layers):
    keep_last(monkeypatch)
    network = make_network()
    network.backbone.train_last(num_layers)
    learns = {name for name, parameter in network.backbone.named_parameters() if parameter.requires_grad}
    before = state_of(network)
    phase = joint_phase(network, num_layers, augmentation=make_augmentation("light"))
    run(phase, image_bags(6), image_bags(2, seed=1), epochs=2)
    moved = changed(network, before)
    assert {"add_on.weight", "add_on.bias", "prototypes"} <= moved
    assert "last_layer.weight" not in moved
    in_backbone = {key.removeprefix("backbone.") for key in moved if key.startswith("backbone.")}
    parameters = {name for name, _ in network.backbone.named_parameters()}
    assert in_backbone & parameters == learns
    # the statistics beside a parameter that learns move, those beside a frozen one do not
    statistics = {key for key in in_backbone if key.endswith("running_mean")}
    assert statistics == {f"{key.removesuffix('weight')}running_mean" for key in learns if _is_norm(network, key)}


def _is_norm(network, key):
    return key.endswith(".weight") and key.replace(".weight", ".running_mean") in network.backbone.state_dict()


def test_finetuning_moves_the_last_layer_and_nothing_else(monkeypatch):
    keep_last(monkeypatch)
    network = make_network()
    before = state_of(network)
    phase = FinetunePhase(network, l1=1e-3, rates=[([network.last_layer.weight], 0.01)], class_weights=None)
    run(phase, toy_bags(8, seed=1), toy_bags(4, seed=2), epochs=2)
    assert changed(network, before) == {"last_layer.weight"}


def test_a_phase_after_another_has_its_own_parameters_learn(monkeypatch):
    keep_last(monkeypatch)
    network = make_network()
    run(warmup_phase(network), toy_bags(8, seed=1), toy_bags(4, seed=2), epochs=1)
    before = state_of(network)
    run(joint_phase(network), image_bags(4), image_bags(2, seed=1), epochs=1)
    assert "backbone._network.conv_stem.weight" in changed(network, before)
    before = state_of(network)
    run(warmup_phase(network), toy_bags(8, seed=1), toy_bags(4, seed=2), epochs=1)
    assert changed(network, before) == {"add_on.weight", "add_on.bias", "prototypes"}


@pytest.mark.parametrize(("num_bags", "accumulate"), [(12, 1), (12, 3), (11, 4), (5, 4), (2, 4)])
def test_every_window_of_batches_is_stepped_the_last_incomplete_one_too(monkeypatch, num_bags, accumulate):
    steps = []
    adam_step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *args, **kw: (steps.append(1), adam_step(*args, **kw))[1])
    network = make_network()
    run(
        warmup_phase(network),
        toy_bags(num_bags, 1),
        toy_bags(4, 2),
        epochs=3,
        batch_images=1,
        accumulate_batches=accumulate,
    )
    assert len(steps) == 3 * math.ceil(num_bags / accumulate)


@pytest.mark.parametrize(("num_bags", "accumulate"), [(12, 3), (11, 4), (2, 4)])
def test_a_dropped_window_is_not_stepped_and_leaves_nothing_for_the_next_epoch(monkeypatch, num_bags, accumulate):
    steps, gradients = [], []
    adam_step = torch.optim.Adam.step

    def spy(optimizer, closure):
        result = adam_step(optimizer, closure)
        steps.append(1)
        gradients.append(optimizer.param_groups[1]["params"][0].grad.clone())
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    phase = warmup_phase(make_network(), lr=1e-30, drops_last_window=True)
    bags = toy_bags(num_bags, seed=1)
    fit(phase, loader(bags, 1), loader(bags, 1), name="test", epochs=2, runtime=CPU, accumulate_batches=accumulate)
    per_epoch = num_bags // accumulate
    assert len(steps) == 2 * per_epoch
    for first, second in zip(gradients[:per_epoch], gradients[per_epoch:], strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_running_mean_is_that_of_a_plain_loop_over_the_states_after_every_step(monkeypatch, accumulate):
    keep_last(monkeypatch)
    states, validated = [], []
    adam_step = torch.optim.Adam.step
    network = make_network()

    def spy(optimizer, closure):
        result = adam_step(optimizer, closure)
        states.append(network.prototypes.detach().clone())
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    phase = warmup_phase(network)
    validation_step = phase.validation_step
    phase.validation_step = lambda *arguments: (
        validated.append(network.prototypes.detach().clone()),
        validation_step(*arguments),
    )[1]
    bags = toy_bags(12, seed=1)
    start = network.prototypes.detach().clone()
    run(phase, bags, bags, epochs=2, batch_images=3, accumulate_batches=accumulate, ema_decay=0.7)
    num_batches = 4  # of validation, before the first epoch and after each
    expected, per_epoch = [], len(states) // 2
    mean = states[0]
    for number, state in enumerate(states):
        mean = 0.7 * mean + 0.3 * state if number else mean
        if (number + 1) % per_epoch == 0:
            expected.append(mean)
    assert torch.equal(validated[0], start)
    torch.testing.assert_close(validated[num_batches], expected[0])
    torch.testing.assert_close(validated[2 * num_batches], expected[1])
    torch.testing.assert_close(network.prototypes.detach(), states[-1])  # training went on with its own state


def test_with_a_running_mean_what_is_kept_is_the_mean_that_was_best():
    network = make_network()
    validation = toy_bags(13, seed=2)
    report = run(warmup_phase(network, lr=0.01), toy_bags(16, seed=1), validation, epochs=5, ema_decay=0.9)
    assert report["best_epoch"] > 0
    assert accuracy_of(network, validation) == pytest.approx(report["val_accuracy"], abs=1e-6)


def test_a_phase_without_anything_better_ends_after_its_patience():
    network = make_network()
    bags = toy_bags(13, seed=2)
    report = run(warmup_phase(network, lr=1e-30), bags, bags, epochs=9, patience_epochs=3)
    assert (report["epochs"], report["best_epoch"]) == (3, 0)


def test_handing_on_the_last_epoch_reports_that_one():
    network = make_network()
    validation = toy_bags(13, seed=2)
    run(warmup_phase(network), toy_bags(40, seed=1), validation, epochs=6)
    bags = toy_bags(16, seed=1)
    wrong = EncodedBags(bags._versions, bags._lengths, [1 - label for label in bags._labels])
    report = run(warmup_phase(network, lr=0.5), wrong, validation, epochs=3, hands_on_last=True)
    assert report["best_epoch"] == report["epochs"] == 3
    assert accuracy_of(network, validation) == pytest.approx(report["val_accuracy"], abs=1e-6)
    assert report["val_accuracy"] < 0.5


def test_bfloat16_is_for_the_backbone_alone():
    network = make_network()
    phase = joint_phase(network, bfloat16=True)
    seen = {}
    pooled = network.backbone.pooled
    network.backbone.pooled = lambda views: seen.setdefault("pooled", pooled(views))
    classify = network.classify
    network.classify = lambda features, lengths: seen.setdefault("output", classify(features, lengths))
    bags = image_bags(2)
    run(phase, bags, bags, epochs=1, batch_images=2)
    assert seen["pooled"].dtype == torch.bfloat16
    assert seen["output"].distance.dtype == seen["output"].logits.dtype == torch.float32
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_the_gradient_of_an_incomplete_window_does_not_leak_into_the_next_epoch(monkeypatch):
    keep_last(monkeypatch)
    seen = []
    adam_step = torch.optim.Adam.step

    def spy(optimizer, closure):
        result = adam_step(optimizer, closure)
        seen.append(optimizer.param_groups[1]["params"][0].grad.clone())
        return result

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    network = make_network()
    bags = toy_bags(5, seed=1)
    phase = warmup_phase(network, lr=1e-30)  # nothing moves, so gradients of batches can be recomputed
    settings = {"name": "test", "epochs": 2, "runtime": CPU, "accumulate_batches": 3}
    fit(phase, loader(bags, 1), loader(bags, 1), **settings)
    alone = []
    for idx in range(5):
        network.zero_grad()
        bag = bags[idx]
        phase.losses(bag.views[:, 0], bag, None)[0]["loss"].backward()
        alone.append(network.prototypes.grad.clone())
    first, last = sum(alone[:3]), sum(alone[3:])
    assert len(seen) == 4
    for step, expected in zip(seen, (first / 3, last / 2, first / 3, last / 2), strict=True):
        torch.testing.assert_close(step, expected)  # the mean over the window


def test_the_best_epoch_is_kept_and_reported_with_its_accuracy():
    network = make_network()
    training, validation = toy_bags(16, seed=1), toy_bags(13, seed=2)
    report = run(warmup_phase(network, lr=0.003), training, validation, epochs=4)
    assert report["best_epoch"] > 0
    assert accuracy_of(network, validation) == pytest.approx(report["val_accuracy"], abs=1e-6)


def test_a_phase_that_only_does_harm_leaves_the_start():
    network = make_network()
    validation = toy_bags(13, seed=2)
    run(warmup_phase(network), toy_bags(40, seed=1), validation, epochs=6)
    assert accuracy_of(network, validation) == 1.0
    before = state_of(network)
    bags = toy_bags(16, seed=1)
    wrong = EncodedBags(bags._versions, bags._lengths, [1 - label for label in bags._labels])
    report = run(warmup_phase(network, lr=0.5), wrong, validation, epochs=3)
    assert (report["best_epoch"], report["val_accuracy"]) == (0, 1.0)
    assert changed(network, before) == set()


class Offered(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(float(value)))


@pytest.mark.parametrize(
    ("epochs", "best"),
    [
        ([(0.5, 1.0), (0.7, 2.0), (0.6, 0.1)], 1),  # accuracy first
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.95)], 1),  # then the lower loss
        ([(0.5, 1.0), (0.5, 1.0)], 0),  # then the earlier epoch
        ([(0.0, 5.0), (0.0, 6.0)], 0),  # an accuracy of 0 is kept, too
        ([(0.5, 1.0), (0.5, float("nan"))], 0),
    ],
)
def test_of_the_offered_states_the_best_is_kept(epochs, best):
    keeper = KeepBest()
    for epoch, (accuracy, loss) in enumerate(epochs):
        keeper._offer(Offered(epoch), accuracy, loss, epoch=epoch)
    assert (keeper.epoch, keeper.accuracy) == (best, epochs[best][0])
    assert keeper._state["value"].item() == best


def test_validation_accuracy_is_a_mean_over_images_whatever_the_batches():
    network = make_network()
    bags = toy_bags(13, seed=2)
    expected = accuracy_of(network, bags)
    assert 0 < expected < 1
    for batch_images in (1, 4, 5, 13, 50):
        phase = warmup_phase(network, lr=1e-30)
        report = run(phase, bags, bags, epochs=1, batch_images=batch_images)
        assert report["val_accuracy"] == pytest.approx(expected, abs=1e-6)


def test_validation_loss_is_a_mean_over_images_whatever_the_batches():
    network = make_network()
    bags = toy_bags(13, seed=2)
    losses = []
    for batch_images in (1, 4, 13):
        phase = warmup_phase(network, lr=1e-30)
        run(phase, bags, bags, epochs=1, batch_images=batch_images)
        losses.append(float(phase.trainer.callback_metrics["val/loss"]))
    assert losses == pytest.approx([losses[-1]] * 3, rel=1e-5)


def test_each_group_learns_at_its_rate_and_rates_step_down_by_epoch():
    network = make_network()
    phase = TrainingPhase(
        network,
        rates=[([], 1.0), (list(network.add_on.parameters()), 0.01), ([network.prototypes], 0.004)],
        class_weights=None,
        lr_step_epochs=2,
        lr_gamma=0.1,
    )
    bags = toy_bags(8, seed=1)
    run(phase, bags, bags, epochs=5)  # several batches an epoch: steps count epochs, not batches
    assert [group["lr"] for group in phase.trainer.optimizers[0].param_groups] == pytest.approx([0.0001, 0.00004])
    assert all(group["weight_decay"] == 0 for group in phase.trainer.optimizers[0].param_groups)


def views_given_to(phase, batch, step):
    """The views that a step hands to the loss."""
    seen = []
    losses = phase.losses
    phase.losses = lambda encoded, *others: (seen.append(encoded), losses(encoded, *others))[1]
    phase.trainer = SimpleNamespace(accumulate_grad_batches=1, num_training_batches=1)
    phase.log_dict = lambda *arguments, **settings: None
    with torch.no_grad():
        step(batch, 0)
    return seen[0]


def two_versions(num=400):
    views = torch.zeros(num, 2, NUM_CHANNELS)
    views[:, 1] = 1.0
    return PackedBags(views, torch.tensor([num]), torch.tensor([0]))


def test_with_mirroring_each_view_or_its_mirror_image_is_taken_by_chance():
    phase = warmup_phase(make_network(), draw_mirror=True)
    taken = views_given_to(phase, two_versions(), phase.training_step)
    assert taken.shape == (400, NUM_CHANNELS)
    assert 140 < (taken[:, 0] == 1).sum() < 260
    assert torch.equal(taken.amin(dim=1), taken.amax(dim=1))


def test_without_mirroring_and_in_validation_views_are_as_they_are():
    phase = warmup_phase(make_network())
    assert (views_given_to(phase, two_versions(), phase.training_step) == 0).all()
    phase = warmup_phase(make_network(), draw_mirror=True)
    assert (views_given_to(phase, two_versions(), phase.validation_step) == 0).all()


class Darker(Augmentation):
    """Halves all values."""

    def __init__(self):
        super().__init__([], [], "view")

    def forward(self, views, lengths):
        return views.float() / 510


def test_pictures_are_augmented_in_training_and_not_in_validation(monkeypatch):
    batch = image_bags(1)[0]
    phase = joint_phase(make_network(), augmentation=Darker())
    seen = []
    encode = phase.network.encode
    phase.network.encode = lambda views: (seen.append(views), encode(views))[1]
    views_given_to(phase, batch, phase.training_step)
    views_given_to(phase, batch, phase.validation_step)
    assert len(seen) == 2
    assert torch.equal(seen[0], batch.views.float() / 510)
    assert torch.equal(seen[1], batch.views)


def test_the_cross_entropy_is_weighed_by_class():
    network = make_network()
    bags = toy_bags(6, seed=1)
    batch = PackedBags(*(torch.cat(parts) for parts in zip(*(bags[idx] for idx in range(6)), strict=True)))
    batch = batch._replace(views=batch.views[:, 0])
    weights = torch.tensor([1.0, 9.0])
    phase = TrainingPhase(network, rates=[([network.prototypes], 0.1)], class_weights=weights)
    terms, logits = phase.losses(batch.views, batch, None)
    expected = torch.nn.functional.cross_entropy(logits, batch.labels, weight=weights)
    assert terms["cross_entropy"].item() == pytest.approx(expected.item())
    assert expected.item() != pytest.approx(torch.nn.functional.cross_entropy(logits, batch.labels).item())
