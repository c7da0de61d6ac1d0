import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.model.backbone import Backbone
from pipeline.model.files import load_model, save_model
from pipeline.model.protomask import ProtoMask
from pipeline.training import pruning
from pipeline.training.nearest import EmbeddedBag
from pipeline.training.pruning import prune, without_pruned

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"
PROTOTYPE_LABELS = torch.tensor([1, 0, 1, 2, 0, 1, 3])  # unequal numbers, out of order; no image is of class 3


def golden_cases():
    """The prune cases of the vectors; a single None, which skips, where the vectors are absent."""
    if not (GOLDEN / "index.json").exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="needs ../shared/golden"))]
    files = {entry["file"]: entry for entry in json.loads((GOLDEN / "index.json").read_text())["files"]}
    return [pytest.param(case, id=case["id"]) for case in files["prune.npz"]["cases"]]


def test_the_golden_vectors_have_six_prunings():
    if golden_cases()[0].values == (None,):
        pytest.skip("needs ../shared/golden")
    assert len(golden_cases()) == 6


@pytest.mark.parametrize("case", golden_cases())
def test_pruning_is_the_intended_one_of_the_golden_vectors(case):
    name = case["id"]
    with np.load(GOLDEN / "prune.npz") as stored:
        arrays = {key.removeprefix(f"{name}."): stored[key] for key in stored.files if key.startswith(f"{name}.")}
    z, labels = torch.from_numpy(arrays["in.z"]), arrays["in.labels"]
    prototypes, identity = arrays["in.prototypes"], arrays["in.identity"]
    result = prune(
        torch.from_numpy(prototypes),
        torch.from_numpy(identity).argmax(dim=1),
        [EmbeddedBag(f"{position:05d}", int(labels[position]), z[position]) for position in range(len(z))],
        k=case["params"]["k"],
        threshold=case["params"]["prune_threshold"],
    )
    assert result.kept.tolist() == arrays["fix.kept"].tolist()
    assert result.nearest_labels.tolist() == arrays["fix.nearest_labels"].tolist()
    for array, expected in (
        (prototypes[result.kept], arrays["fix.prototypes"]),
        (arrays["in.last_layer"][:, result.kept], arrays["fix.last_layer"]),
        (identity[result.kept], arrays["fix.identity"]),
    ):
        np.testing.assert_array_equal(array, expected)


def random_bags(seed, num_bags=40, steps=None):
    """Bags of three classes, each around a place of its own; STEPS makes exact ties."""
    rng = np.random.default_rng(seed)
    bags = []
    for key in rng.permutation(num_bags).tolist():
        label = int(rng.integers(3))
        values = 0.3 * label + 0.6 * rng.random((rng.integers(1, 5), 4))
        values = values if steps is None else np.round(values * steps) / 4
        bags.append(EmbeddedBag(f"image-{key:03d}", label, torch.from_numpy(values).float()))
    return bags


def random_prototypes(seed, steps=None):
    values = 1.2 * np.random.default_rng(100 + seed).random((len(PROTOTYPE_LABELS), 4))
    return torch.from_numpy(values if steps is None else np.round(values * steps) / 4).float()


def plain_pruning(prototypes, bags, k, threshold):
    """What pruning is, prototype by prototype."""
    kept, nearest_labels = [], []
    for idx, (prototype, label) in enumerate(zip(prototypes.double(), PROTOTYPE_LABELS.tolist(), strict=True)):
        images = sorted(
            (min((view - prototype).square().sum().item() for view in bag.features.double()), bag.image_key, bag.label)
            for bag in bags
        )
        nearest_labels.append([image[2] for image in images[:k]])
        if nearest_labels[-1].count(label) >= threshold:
            kept.append(idx)
    return kept, nearest_labels


@pytest.mark.parametrize("distances_per_batch", [1, 100, 10**6])
@pytest.mark.parametrize(("k", "threshold"), [(6, 3), (1, 1), (5, 5), (100, 14)])
@pytest.mark.parametrize("steps", [None, 3], ids=["no ties", "many ties"])
def test_pruning_is_what_a_plain_loop_gives(monkeypatch, steps, k, threshold, distances_per_batch):
    monkeypatch.setattr(pruning, "_DISTANCES_PER_BATCH", distances_per_batch)
    kept_numbers = set()
    for seed in range(3):
        prototypes, bags = random_prototypes(seed, steps), random_bags(seed, steps=steps)
        result = prune(prototypes, PROTOTYPE_LABELS, iter(bags), k=k, threshold=threshold)
        kept, nearest_labels = plain_pruning(prototypes, bags, k, threshold)
        assert (result.kept.tolist(), result.nearest_labels.tolist()) == (kept, nearest_labels)
        counts = [row.count(label) for row, label in zip(nearest_labels, PROTOTYPE_LABELS.tolist(), strict=True)]
        assert result.num_own.tolist() == counts
        kept_numbers.add(len(kept))
    assert kept_numbers - {0, len(PROTOTYPE_LABELS)}  # neither all nor none


def test_an_image_counts_once_however_many_of_its_views_are_near():
    near = torch.full((5, 2), 0.5)
    bags = [EmbeddedBag("own", 0, near)]
    bags += [EmbeddedBag(f"other-{idx}", 1, near[:1] + 0.1 * (idx + 1)) for idx in range(3)]
    result = prune(near[:1], torch.tensor([0]), bags, k=3, threshold=2)
    assert result.nearest_labels.tolist() == [[0, 1, 1]]
    assert result.kept.tolist() == []


@pytest.mark.parametrize("keys", [("b", "a", "c"), ("c", "b", "a"), ("a", "c", "b")])
def test_equal_distances_go_to_the_smaller_image_key(keys):
    label_of = {"a": 0, "b": 1, "c": 2}
    bags = [EmbeddedBag(key, label_of[key], torch.tensor([[0.5, 0.5]])) for key in keys]
    result = prune(torch.tensor([[0.4, 0.4]]), torch.tensor([1]), bags, k=2, threshold=1)
    assert result.nearest_labels.tolist() == [[0, 1]]
    assert result.kept.tolist() == [0]


def test_without_images_nothing_stays():
    result = prune(random_prototypes(0), PROTOTYPE_LABELS, [], k=6, threshold=1)
    assert (result.kept.tolist(), result.nearest_labels.shape) == ([], (7, 0))


def test_images_that_are_not_near_are_let_go(monkeypatch):
    monkeypatch.setattr(pruning, "_DISTANCES_PER_BATCH", 10 * len(PROTOTYPE_LABELS))
    alive, most = weakref.WeakSet(), 0

    def bags():
        nonlocal most
        for bag in random_bags(0, num_bags=300):
            features = bag.features.clone()
            alive.add(features)
            most = max(most, len(alive))
            yield bag._replace(features=features)

    prune(random_prototypes(0), PROTOTYPE_LABELS, bags(), k=6, threshold=3)
    assert 0 < most <= 20  # two batches: the one at work, and the next one as it grows


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = ProtoMask(
        Backbone("test_efficientnet"), dim=4, prototype_labels=PROTOTYPE_LABELS, num_classes=4, epsilon=1e-3
    )
    torch.nn.init.normal_(network.last_layer.weight)
    return network.eval()


KEPT = torch.tensor([1, 3, 5])  # class 1 keeps one of three, class 3 none


def test_the_pruned_network_scores_as_if_the_others_had_no_weight(network):
    features, lengths = torch.rand(6, 4), torch.tensor([3, 1, 2])
    smaller = without_pruned(network, KEPT)
    with torch.no_grad():
        whole, pruned = network.classify(features, lengths), smaller.classify(features, lengths)
        expected = whole.similarity[:, KEPT] @ network.last_layer.weight[:, KEPT].T
    assert torch.equal(pruned.similarity, whole.similarity[:, KEPT])
    torch.testing.assert_close(pruned.logits, expected)
    views = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(*(one.features_of(one.encode(views)) for one in (smaller, network)))
    assert not smaller.training


def test_pruning_a_network_leaves_the_network_it_was_given_as_it_is(network):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    smaller = without_pruned(network, KEPT)
    with torch.no_grad():
        smaller.prototypes.add_(1)
        smaller.add_on.weight.add_(1)
        smaller.last_layer.weight.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_pruned_network_comes_back_from_disk_with_the_classes_of_its_prototypes(tmp_path, network):
    smaller = without_pruned(network, KEPT)
    save_model(tmp_path, smaller, class_names=["a", "b", "c", "d"], size_px=64)
    loaded, description = load_model(tmp_path)
    assert loaded.prototype_labels.tolist() == description["settings"]["prototype_labels"] == [0, 2, 1]
    state = loaded.state_dict()
    assert state.keys() == smaller.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in smaller.state_dict().items())
