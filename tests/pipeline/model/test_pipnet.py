import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.model.backbone import Backbone
from pipeline.model.pipnet import PipNet, alignment_loss, presence_loss
from pipeline.params import PipNetLossParams

LENGTHS = torch.tensor([2, 1, 3])
LABELS = torch.tensor([1, 2, 1])
CHANNELS, PROTOTYPES, CLASSES = 4, 5, 3
NO_WEIGHT = {"classification": 0.0, "alignment": 0.0, "presence": 0.0}


class NoBackbone(Backbone):
    """Stands where grids are given and nothing is encoded."""

    def __init__(self, num_channels):
        nn.Module.__init__(self)
        self._network = nn.Identity()
        self.num_channels = num_channels


def make(seed=0, *, channels=CHANNELS, num_prototypes=PROTOTYPES, num_classes=CLASSES, **loss):
    torch.manual_seed(seed)
    return PipNet(
        NoBackbone(channels), num_prototypes=num_prototypes, num_classes=num_classes, loss=PipNetLossParams(**loss)
    )


def grids(num, height=2, width=3, seed=0):
    values = np.random.default_rng(seed).normal(size=(num, CHANNELS, height, width))
    return torch.from_numpy(values).float()


def plain_shares(network, encoded):
    """Softmax over prototypes [place, prototype], one place at a time, row by row."""
    shares = []
    for grid in encoded:
        for row in range(grid.shape[1]):
            for column in range(grid.shape[2]):
                scores = [(w * grid[:, row, column]).sum().item() for w in network.add_on.weight]
                total = sum(math.exp(score) for score in scores)
                shares.append([math.exp(score) / total for score in scores])
    return np.array(shares)


def plain_similarity(network, encoded, lengths):
    per_bag = np.split(plain_shares(network, encoded), np.cumsum(lengths.numpy() * 6)[:-1])
    return np.stack([shares.max(axis=0) for shares in per_bag])


def plain_logits(network, similarity):
    weight = network.last_layer.weight.detach().numpy().astype(np.float64)
    return np.log((similarity @ weight.T) ** 2 + 1)


def test_ragged_bags_are_classified_as_the_paper_does():
    network, encoded = make(), grids(6)
    with torch.no_grad():
        features = network.features_of(encoded)
        output = network.classify(features, LENGTHS * network.elements_per_view(encoded))
    shares = plain_shares(network, encoded)
    similarity = plain_similarity(network, encoded, LENGTHS)
    np.testing.assert_allclose(features, shares, rtol=1e-5)
    np.testing.assert_allclose(output.similarity, similarity, rtol=1e-5)
    np.testing.assert_allclose(output.distance, 1 - similarity, rtol=1e-5)
    np.testing.assert_allclose(output.logits, plain_logits(network, similarity), rtol=1e-5)
    np.testing.assert_allclose(features.gather(0, output.element), similarity, rtol=1e-5)
    assert (output.element[1] // 6 == 2).all()  # the second bag has the third view only
    np.testing.assert_allclose(network.distances(features), 1 - shares, rtol=1e-5)


def test_classes_are_ordered_by_the_weighted_sum_of_similarities():
    network, encoded = make(), grids(6)
    with torch.no_grad():
        output = network.classify(network.features_of(encoded), LENGTHS * 6)
        plain = output.similarity @ network.class_weights().T
    assert torch.equal(output.logits.argsort(dim=1), plain.argsort(dim=1))


def test_small_shares_of_a_place_keep_their_digits():
    network = make()
    features = torch.tensor([[1e-12, 2e-9, 0.5, 0.25, 0.25], [3e-12, 1e-9, 0.5, 0.25, 0.25]])
    output = network.classify(features, torch.tensor([2]))
    assert output.similarity[0].tolist() == pytest.approx([3e-12, 2e-9, 0.5, 0.25, 0.25])
    assert output.element[0].tolist() == [1, 0, 0, 0, 0]


def test_terms_are_those_of_the_paper_over_both_versions():
    network = make(classification=2.0, alignment=3.0, presence=5.0)
    one, other = grids(6), grids(6, seed=1)
    class_weights = torch.tensor([1.0, 2.0, 4.0])
    terms, logits = network.training_terms(one, LENGTHS, LABELS, class_weights=class_weights, other_version=other)
    shares = [plain_shares(network, version) for version in (one, other)]
    alignment = np.mean(
        [-math.log(sum(a * b for a, b in zip(*pair, strict=True))) for pair in zip(*shares, strict=True)]
    )
    similarity = [plain_similarity(network, version, LENGTHS) for version in (one, other)]
    presence = np.mean([-np.log(np.tanh(of_version.sum(axis=0))) for of_version in similarity])
    scores = np.concatenate([plain_logits(network, of_version) for of_version in similarity])
    labels = np.tile(LABELS.numpy(), 2)
    surprise = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(6), labels]
    weight = class_weights.numpy()[labels]
    classification = (weight * surprise).sum() / weight.sum()
    assert terms["alignment"].item() == pytest.approx(alignment, rel=1e-5)
    assert terms["presence"].item() == pytest.approx(presence, rel=1e-5)
    assert terms["classification"].item() == pytest.approx(classification, rel=1e-5)
    expected = 2 * classification + 3 * alignment + 5 * presence
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(logits.detach(), scores[:3], rtol=1e-5)


def test_alignment_is_nothing_where_versions_agree_on_one_prototype():
    certain = nn.functional.one_hot(torch.tensor([0, 2, 1]), 3).float()
    assert alignment_loss(certain, certain).item() == pytest.approx(0, abs=1e-6)
    assert alignment_loss(certain, certain.roll(1, dims=1)).item() == pytest.approx(-math.log(1e-12), rel=1e-5)


def test_each_version_learns_towards_the_other_as_it_stands():
    one, other = (torch.rand(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    one.requires_grad_()
    other.requires_grad_()
    gradients = torch.autograd.grad(alignment_loss(one, other), [one, other])
    forwards = -torch.log((one * other.detach()).sum(dim=1)).mean() / 2
    backwards = -torch.log((one.detach() * other).sum(dim=1)).mean() / 2
    expected = torch.autograd.grad(forwards + backwards, [one, other])
    torch.testing.assert_close(gradients, expected)


def test_a_prototype_that_is_nowhere_in_the_batch_costs_much():
    everywhere, nowhere = torch.full((8, 2), 0.9), torch.tensor([[0.9, 0.0]] * 8)
    assert presence_loss(everywhere).item() == pytest.approx(0, abs=1e-4)
    assert presence_loss(nowhere).item() == pytest.approx(-math.log(1e-8) / 2, rel=1e-3)


def test_without_another_version_the_loss_has_no_alignment():
    network = make(classification=2.0, alignment=3.0, presence=5.0).eval()
    terms, logits = network.training_terms(grids(6), LENGTHS, LABELS, class_weights=None)
    assert terms["alignment"].item() == 0
    expected = 2 * nn.functional.cross_entropy(logits, LABELS) + 5 * terms["presence"]
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("term", "learn"), [("classification", 2), ("alignment", 1), ("presence", 1)])
def test_every_weighted_term_gives_a_gradient(term, learn):
    network = make(**NO_WEIGHT | {term: 1.0})
    terms, _ = network.training_terms(grids(6), LENGTHS, LABELS, class_weights=None, other_version=grids(6, seed=1))
    terms["loss"].backward()
    learning = network.learning()
    found = [parameter.grad.abs().max() > 1e-6 for name in ("addon", "prototypes") for parameter in learning[name]]
    assert found == [True, learn == 2]  # only classification reaches the last layer


def test_classification_rests_in_the_first_epochs_of_the_first_phase_only():
    network = make(classification=2.0, alignment=3.0, presence=5.0, pretraining_epochs=2)

    def counts():
        terms, _ = network.training_terms(grids(6), LENGTHS, LABELS, class_weights=None, other_version=grids(6, seed=1))
        rest = terms["loss"] - 3 * terms["alignment"] - 5 * terms["presence"]
        assert rest.item() == pytest.approx(0, abs=1e-5) or rest.item() == pytest.approx(
            2 * terms["classification"].item(), rel=1e-4
        )
        return abs(rest.item()) > 1e-3

    assert counts()  # before anything was said
    seen = []
    for is_first_phase in (True, False):
        for epoch in range(3):
            network.start_epoch(epoch, is_first_phase=is_first_phase)
            seen.append(counts())
    assert seen == [False, False, True, True, True, True]
    network.start_epoch(0, is_first_phase=True)
    network.eval()
    assert counts()  # losses of validation are comparable


def test_weights_start_near_one_and_never_fall_below_zero():
    network = make(num_prototypes=200)
    assert network.last_layer.weight.mean().item() == pytest.approx(1, abs=0.02)
    assert network.last_layer.weight.std().item() == pytest.approx(0.1, abs=0.02)
    optimizer = torch.optim.SGD([network.last_layer.weight], lr=1.0)
    network.last_layer.weight.sum().mul(1.05).backward()
    optimizer.step()
    assert (network.last_layer.weight < 0).any()
    before = network.last_layer.weight.detach().clone()
    network.after_step()
    assert torch.equal(network.last_layer.weight, before.clamp(min=0))
    assert network.last_layer.weight.requires_grad


def test_tuning_is_classification_alone_whatever_l1_is():
    network, encoded = make(), grids(6)
    output = network.classify(network.features_of(encoded), LENGTHS * 6)
    terms = network.tuning_terms(output, LABELS, class_weights=None, l1=100.0)
    assert terms["loss"].item() == pytest.approx(nn.functional.cross_entropy(output.logits, LABELS).item())
    [gradient] = torch.autograd.grad(terms["loss"], [network.tuned()])
    assert gradient.abs().max() > 1e-6


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


def test_all_classes_share_all_prototypes_and_a_prototype_is_named_by_its_largest_weight():
    network = make()
    assert network.owners().shape == (PROTOTYPES, CLASSES)
    assert network.owners().all()
    with torch.no_grad():
        network.last_layer.weight.copy_(torch.tensor([[0.0, 2, 1, 3, 0], [1, 2, 0, 3, 0], [2, 1, 0, 4, 0]]))
    assert network.prototype_classes().tolist() == [2, 0, 0, 2, 0]


def test_prototypes_are_the_rows_of_the_convolution_and_saved_once():
    network = make()
    assert network.prototypes is network.add_on.weight
    assert network.prototypes.shape == (PROTOTYPES, CHANNELS)
    assert set(network.state_dict()) == {"add_on.weight", "last_layer.weight"}
    assert network.settings() == {"num_prototypes": PROTOTYPES}


def test_the_seed_decides_the_start():
    one, again, other = (make(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)


def test_it_learns_to_share_out_places_and_to_tell_classes_apart():
    rng = np.random.default_rng(0)
    labels = torch.arange(4).repeat(8)
    pattern = torch.zeros(32, CHANNELS + 4, 3, 3)
    pattern[torch.arange(32), labels, rng.integers(0, 3, 32), rng.integers(0, 3, 32)] = 3  # one channel per class
    pattern[:, 4] = 3 * (pattern.sum(dim=1) == 0)  # and one for the background
    versions = [pattern + 0.3 * torch.from_numpy(rng.normal(size=pattern.shape)).float() for _ in range(2)]
    network = make(channels=CHANNELS + 4, num_prototypes=16, num_classes=4, pretraining_epochs=20)
    optimizer = torch.optim.Adam([p for group in network.learning().values() for p in group], lr=0.05)
    lengths = torch.ones(32, dtype=torch.long)
    first = None
    for epoch in range(120):
        network.start_epoch(epoch, is_first_phase=True)
        terms, logits = network.training_terms(
            versions[0], lengths, labels, class_weights=None, other_version=versions[1]
        )
        first = first or terms["alignment"].item()
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        network.after_step()
    assert (logits.argmax(dim=1) == labels).float().mean() >= 0.95
    assert terms["alignment"].item() < first / 5
    assert network.last_layer.weight.min() >= 0
