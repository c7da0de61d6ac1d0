import weakref

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.model.backbone import Backbone
from pipeline.model.protopool import ProtoPool
from pipeline.model.prototypes import squared_distance
from pipeline.training import shared_projection
from pipeline.training.nearest import EmbeddedBag
from pipeline.training.projection import project
from pipeline.training.shared_projection import nearest_elements

# prototypes of one, two, three and no class; class 3 has no image, class 4 no prototype
OWNERS = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 0]]).bool()


def random_bags(seed, num_bags=30, labels=(0, 1, 2, 4), dim=4, steps=None):
    rng = np.random.default_rng(seed)
    keys = rng.permutation(num_bags).tolist()
    bags = []
    for idx, key in enumerate(keys):
        values = rng.random((rng.integers(1, 6), dim))
        features = torch.from_numpy(values if steps is None else np.round(values * steps) / 4).float()
        bags.append(EmbeddedBag(f"image-{key:02d}", labels[idx % len(labels)], features))
    return bags


def random_prototypes(seed, num=len(OWNERS), dim=4):
    return torch.from_numpy(np.random.default_rng(100 + seed).random((num, dim))).float()


def to(prototypes):
    return lambda features: squared_distance(features, prototypes)


def plain_nearest(prototypes, owners, bags):
    """The nearest element of each prototype, one prototype and one element at a time: (distance, key, element)."""
    found = []
    for prototype, of in zip(prototypes, owners.tolist(), strict=True):
        pairs = [
            (squared_distance(feature[None], prototype[None]).item(), bag.image_key, element, feature)
            for bag in bags
            if of[bag.label]
            for element, feature in enumerate(bag.features)
        ]
        found.append(min(pairs, key=lambda pair: pair[:3], default=None))
    return found


@pytest.mark.parametrize("elements_per_batch", [1, 7, 1000])
@pytest.mark.parametrize("steps", [None, 3], ids=["no ties", "many ties"])
@pytest.mark.parametrize("seed", range(3))
def test_each_prototype_takes_the_nearest_element_of_its_owners_images(monkeypatch, seed, steps, elements_per_batch):
    prototypes, bags = random_prototypes(seed), random_bags(seed, steps=steps)
    monkeypatch.setattr(shared_projection, "_VALUES_PER_BATCH", elements_per_batch * max(prototypes.shape))
    result = nearest_elements(to(prototypes), OWNERS, iter(bags), prototypes=prototypes)
    expected = plain_nearest(prototypes, OWNERS, bags)
    assert [pair is None for pair in expected] == [False, False, False, True, True]
    for idx, pair in enumerate(expected):
        source = result.sources[idx]
        if pair is None:
            assert source is None
            assert torch.equal(result.prototypes[idx], prototypes[idx])
        else:
            assert (source.image_key, source.view_idx) == (pair[1], pair[2])
            assert source.distance_before == pytest.approx(pair[0], rel=1e-6)
            assert torch.equal(result.prototypes[idx], pair[3])


def test_neither_the_order_of_bags_nor_the_run_they_come_in_matters(monkeypatch):
    prototypes, bags = random_prototypes(0), random_bags(0, steps=3)
    expected = nearest_elements(to(prototypes), OWNERS, bags, prototypes=prototypes)
    monkeypatch.setattr(shared_projection, "_VALUES_PER_BATCH", 5 * max(prototypes.shape))
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(bags))
        result = nearest_elements(to(prototypes), OWNERS, (bags[i] for i in order), prototypes=prototypes)
        assert result.sources == expected.sources
        assert torch.equal(result.prototypes, expected.prototypes)


@pytest.mark.parametrize("keys", [("b", "a", "c"), ("c", "b", "a"), ("a", "c", "b")])
@pytest.mark.parametrize("elements_per_batch", [1, 100])
def test_equal_distances_go_to_the_smaller_image_key_then_to_the_smaller_element(monkeypatch, keys, elements_per_batch):
    features = torch.tensor([[0.9, 0.9], [0.5, 0.5], [0.5, 0.5]])
    prototypes = torch.tensor([[0.4, 0.4]])
    monkeypatch.setattr(shared_projection, "_VALUES_PER_BATCH", elements_per_batch * 2)
    bags = [EmbeddedBag(key, 0, features) for key in keys]
    result = nearest_elements(to(prototypes), torch.tensor([[True]]), bags, prototypes=prototypes)
    assert [(source.image_key, source.view_idx) for source in result.sources] == [("a", 1)]


def test_with_one_class_each_it_is_the_projection_of_unshared_prototypes():
    labels = torch.tensor([1, 0, 1, 2, 0, 1])
    prototypes, bags = random_prototypes(0, num=6), random_bags(0, labels=(0, 1, 2))
    owners = nn.functional.one_hot(labels).bool()
    result = nearest_elements(to(prototypes), owners, bags, prototypes=prototypes)
    expected = project(prototypes, labels, bags, distinct_views=False)
    assert result.sources == expected.sources
    assert torch.equal(result.prototypes, expected.prototypes)


def test_any_distance_will_do():
    shares = [torch.tensor([[0.7, 0.3], [0.2, 0.8]]), torch.tensor([[0.9, 0.1], [0.6, 0.4]])]
    bags = [EmbeddedBag("one", 0, shares[0]), EmbeddedBag("other", 1, shares[1])]
    owners = torch.ones(2, 2, dtype=torch.bool)
    result = nearest_elements(lambda features: 1 - features, owners, bags, prototypes=torch.eye(2))
    assert [(source.image_key, source.view_idx) for source in result.sources] == [("other", 0), ("one", 1)]
    assert [source.distance_before for source in result.sources] == pytest.approx([0.1, 0.2])
    assert torch.equal(result.prototypes, torch.tensor([[0.9, 0.1], [0.2, 0.8]]))


def test_without_images_prototypes_stay_what_they_are():
    prototypes = random_prototypes(0)
    result = nearest_elements(to(prototypes), OWNERS, [], prototypes=prototypes)
    assert result.sources == (None,) * len(prototypes)
    assert torch.equal(result.prototypes, prototypes)


def test_features_that_no_prototype_needs_any_more_are_let_go(monkeypatch):
    prototypes = random_prototypes(0)
    monkeypatch.setattr(shared_projection, "_VALUES_PER_BATCH", 10 * max(prototypes.shape))
    alive, most = weakref.WeakSet(), 0

    def bags():
        nonlocal most
        for bag in random_bags(0, num_bags=300):
            features = bag.features.clone()
            alive.add(features)
            most = max(most, len(alive))
            yield bag._replace(features=features)

    nearest_elements(to(prototypes), OWNERS, bags(), prototypes=prototypes)
    assert 0 < most <= 22  # two batches: the one at work, and the next one as it grows


def test_projected_prototypes_of_a_pool_come_from_classes_that_hold_them():
    class NoBackbone(Backbone):
        def __init__(self):
            nn.Module.__init__(self)
            self._network = nn.Identity()
            self.num_channels = 3

    torch.manual_seed(0)
    network = ProtoPool(NoBackbone(), dim=4, num_prototypes=6, slots_per_class=2, num_classes=4, epsilon=1e-3)
    with torch.no_grad():
        encoded = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 3, 2, 2))).float()
        places = network.features_of(encoded).split(network.elements_per_view(encoded))
        bags = [EmbeddedBag(f"image-{idx:02d}", idx % 4, features) for idx, features in enumerate(places)]
        result = nearest_elements(network.distances, network.owners(), bags, prototypes=network.prototypes)
    labels = {bag.image_key: bag.label for bag in bags}
    num_held = 0
    for idx, (source, of) in enumerate(zip(result.sources, network.owners(), strict=True)):
        if not of.any():
            assert source is None
            continue
        num_held += 1
        assert of[labels[source.image_key]]
        candidates = torch.cat([bag.features for bag in bags if of[bag.label]])
        least = (candidates - network.prototypes[idx]).square().sum(dim=1).min().item()
        assert source.distance_before == pytest.approx(least, rel=1e-5)
    assert 2 <= num_held <= 6
