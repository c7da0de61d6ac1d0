import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.model.backbone import Backbone
from pipeline.model.protopnet import ProtoPNet
from pipeline.params import ProtoPNetLossParams

PROTOTYPE_LABELS = torch.tensor([2, 0, 1, 1, 2])  # unequal numbers, out of order
LENGTHS = torch.tensor([2, 1, 3])
LABELS = torch.tensor([1, 2, 1])
EPSILON = 1e-3
CHANNELS = 4
NO_WEIGHT = {"cross_entropy": 0.0, "cluster": 0.0, "separation": 0.0}


class NoBackbone(Backbone):
    """Stands where grids are given and nothing is encoded."""

    def __init__(self):
        nn.Module.__init__(self)
        self._network = nn.Identity()
        self.num_channels = CHANNELS


def make(seed=0, labels=PROTOTYPE_LABELS, num_classes=3, dim=6, **loss):
    torch.manual_seed(seed)
    return ProtoPNet(
        NoBackbone(),
        dim=dim,
        prototype_labels=labels,
        num_classes=num_classes,
        epsilon=EPSILON,
        loss=ProtoPNetLossParams(**loss),
    )


def grids(num, height=2, width=3, seed=0):
    values = np.random.default_rng(seed).normal(size=(num, CHANNELS, height, width))
    return torch.from_numpy(values).float()


def plain_distances(network, encoded, lengths):
    """Squared distance [bag, prototype] and nearest place, one place and one prototype at a time."""
    weight, bias = network.add_on.weight, network.add_on.bias
    _, _, height, width = encoded.shape
    distance = torch.full((len(lengths), len(network.prototypes)), math.inf)
    element = torch.full(distance.shape, -1)
    view, place = 0, 0
    for bag, length in enumerate(lengths.tolist()):
        for grid in encoded[view : view + length]:
            for row in range(height):
                for column in range(width):
                    z = torch.sigmoid(weight @ grid[:, row, column] + bias)
                    for idx, prototype in enumerate(network.prototypes):
                        value = ((z - prototype) ** 2).sum()
                        if value < distance[bag, idx]:
                            distance[bag, idx], element[bag, idx] = value, place
                    place += 1
        view += length
    return distance, element


def test_weights_start_at_one_for_the_own_class_and_at_minus_a_half_for_others():
    network = make()
    assert network.last_layer.weight.tolist() == [
        [-0.5, 1, -0.5, -0.5, -0.5],
        [-0.5, -0.5, 1, 1, -0.5],
        [1, -0.5, -0.5, -0.5, 1],
    ]
    assert network.last_layer.bias is None
    assert 0 <= network.prototypes.min() < network.prototypes.max() < 1


def test_ragged_bags_are_classified_as_a_plain_loop_over_places_does():
    network, encoded = make(), grids(6)
    with torch.no_grad():
        output = network.classify(network.features_of(encoded), LENGTHS * network.elements_per_view(encoded))
        distance, element = plain_distances(network, encoded, LENGTHS)
        similarity = torch.log((distance + 1) / (distance + EPSILON))
        torch.testing.assert_close(output.distance, distance)
        torch.testing.assert_close(output.similarity, similarity)
        torch.testing.assert_close(output.logits, similarity @ network.last_layer.weight.T)
        torch.testing.assert_close(network.logits_of(encoded, LENGTHS), output.logits)
        assert torch.equal(output.element, element)
        assert torch.equal(network.distances(network.features_of(encoded)).amin(dim=0), output.distance.amin(dim=0))


def test_terms_are_those_of_the_paper():
    weights = {"cross_entropy": 2.0, "cluster": 3.0, "separation": 5.0}
    network, encoded = make(**weights), grids(6)
    class_weights = torch.tensor([1.0, 2.0, 4.0])
    terms, logits = network.training_terms(encoded, LENGTHS, LABELS, class_weights=class_weights)
    with torch.no_grad():
        distance, _ = plain_distances(network, encoded, LENGTHS)
    own, foreign = [], []
    for bag, label in enumerate(LABELS.tolist()):
        by_owner = [(of == label, distance[bag, idx].item()) for idx, of in enumerate(PROTOTYPE_LABELS.tolist())]
        own.append(min(value for is_own, value in by_owner if is_own))
        foreign.append(min(value for is_own, value in by_owner if not is_own))
    surprise = -torch.log_softmax(logits, dim=1)[torch.arange(3), LABELS]
    cross_entropy = ((class_weights[LABELS] * surprise).sum() / class_weights[LABELS].sum()).item()
    assert terms["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-5)
    assert terms["cluster"].item() == pytest.approx(np.mean(own), rel=1e-5)
    assert terms["separation"].item() == pytest.approx(np.mean(foreign), rel=1e-5)
    expected = 2 * cross_entropy + 3 * np.mean(own) - 5 * np.mean(foreign)
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("term", list(NO_WEIGHT))
def test_every_weighted_term_gives_all_that_learns_a_gradient(term):
    network = make(**NO_WEIGHT | {term: 1.0})
    terms, _ = network.training_terms(grids(6), LENGTHS, LABELS, class_weights=None)
    terms["loss"].backward()
    learning = network.learning()
    assert [parameter.grad.abs().max() > 1e-6 for group in learning.values() for parameter in group] == [True] * 3
    assert {id(parameter) for group in learning.values() for parameter in group}.isdisjoint({id(network.tuned())})


def test_tuning_adds_the_weights_to_other_classes():
    network, encoded = make(), grids(6)
    output = network.classify(network.features_of(encoded), LENGTHS * 6)
    terms = network.tuning_terms(output, LABELS, class_weights=None, l1=0.25)
    cross_entropy = nn.functional.cross_entropy(output.logits, LABELS).item()
    assert terms["loss"].item() == pytest.approx(cross_entropy + 0.25 * 10 * 0.5, rel=1e-6)


def test_a_bag_gets_the_same_answer_alone_as_among_others_in_any_order():
    network, encoded = make().eval(), grids(6)
    with torch.no_grad():
        together = network.logits_of(encoded, LENGTHS)
        views = encoded.split(LENGTHS.tolist())
        for bag, of_bag in enumerate(views):
            alone = network.logits_of(of_bag, LENGTHS[bag : bag + 1])
            torch.testing.assert_close(alone[0], together[bag], atol=1e-6, rtol=1e-6)
        backwards = network.logits_of(torch.cat(views[::-1]), LENGTHS.flip(0))
        torch.testing.assert_close(backwards.flip(0), together, atol=1e-6, rtol=1e-6)


def test_prototypes_belong_to_their_classes():
    network = make()
    assert network.owners().long().argmax(dim=1).tolist() == PROTOTYPE_LABELS.tolist()
    assert network.owners().sum(dim=1).tolist() == [1] * 5
    assert torch.equal(network.prototype_classes(), PROTOTYPE_LABELS)
    assert torch.equal(network.class_weights(), network.last_layer.weight)


def test_the_seed_decides_the_start():
    one, again, other = (make(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["prototypes"], other["prototypes"])


def test_settings_and_state_rebuild_the_network():
    network, encoded = make(seed=1), grids(6)
    settings = network.settings()
    assert settings == {"dim": 6, "prototype_labels": PROTOTYPE_LABELS.tolist(), "similarity_epsilon": EPSILON}
    rebuilt = make(seed=2)
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt.logits_of(encoded, LENGTHS), network.logits_of(encoded, LENGTHS))


def test_it_learns_to_find_the_place_that_tells_classes_apart():
    labels = torch.arange(4).repeat(8)
    encoded = 0.3 * grids(32, height=3, width=3)
    at = torch.from_numpy(np.random.default_rng(1).integers(0, 3, (2, 32)))
    encoded[torch.arange(32), labels, at[0], at[1]] += 3  # one channel per class, at any place
    network = make(labels=torch.arange(4).repeat_interleave(2), num_classes=4)
    optimizer = torch.optim.Adam([p for group in network.learning().values() for p in group], lr=0.03)
    lengths = torch.ones(32, dtype=torch.long)
    for _ in range(60):
        terms, logits = network.training_terms(encoded, lengths, labels, class_weights=None)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    assert (logits.argmax(dim=1) == labels).float().mean() >= 0.95
