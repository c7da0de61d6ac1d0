import math

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.model.backbone import Backbone
from pipeline.model.places import mean_of_bags, places_of
from pipeline.model.protopool import ProtoPool, orthogonality_loss
from pipeline.params import ProtoPoolLossParams

LENGTHS = torch.tensor([2, 1, 3])
LABELS = torch.tensor([1, 2, 1])
EPSILON = 1e-3
CHANNELS, PROTOTYPES, CLASSES, SLOTS = 4, 7, 3, 2
NO_WEIGHT = {"cross_entropy": 0.0, "cluster": 0.0, "separation": 0.0, "orthogonality": 0.0}


class NoBackbone(Backbone):
    """Stands where grids are given and nothing is encoded."""

    def __init__(self):
        nn.Module.__init__(self)
        self._network = nn.Identity()
        self.num_channels = CHANNELS


def make(seed=0, *, num_prototypes=PROTOTYPES, slots=SLOTS, num_classes=CLASSES, **loss):
    torch.manual_seed(seed)
    return ProtoPool(
        NoBackbone(),
        dim=6,
        num_prototypes=num_prototypes,
        slots_per_class=slots,
        num_classes=num_classes,
        epsilon=EPSILON,
        loss=ProtoPoolLossParams(**loss),
    )


def choose(network, chosen):
    """Let the slots of each class hold the prototypes in CHOSEN."""
    with torch.no_grad():
        network.slot_logits.copy_(nn.functional.one_hot(torch.tensor(chosen), len(network.prototypes)) * 3.0)
    return network


def grids(num, height=2, width=3, seed=0):
    values = np.random.default_rng(seed).normal(size=(num, CHANNELS, height, width))
    return torch.from_numpy(values).float()


def plain_comparison(network, encoded, lengths):
    """Focal similarity and least distance [bag, prototype], one place and one prototype at a time."""
    similarity, distance = np.zeros((2, len(lengths), len(network.prototypes)))
    views = encoded.split(lengths.tolist())
    with torch.no_grad():
        for bag, of_bag in enumerate(views):
            for idx, prototype in enumerate(network.prototypes):
                distances = [
                    ((torch.sigmoid(network.add_on(grid[:, row, column])) - prototype) ** 2).sum().item()
                    for grid in of_bag
                    for row in range(grid.shape[1])
                    for column in range(grid.shape[2])
                ]
                similarities = [math.log((d + 1) / (d + EPSILON)) for d in distances]
                similarity[bag, idx] = max(similarities) - sum(similarities) / len(similarities)
                distance[bag, idx] = min(distances)
    return similarity, distance


def test_weights_start_at_one_for_own_slots_and_at_zero_for_others():
    network = make()
    assert network.last_layer.weight.tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    assert network.last_layer.bias is None
    assert 0 <= network.prototypes.min() < network.prototypes.max() < 1


def test_ragged_bags_are_classified_as_a_plain_loop_over_places_and_slots_does():
    network, encoded = choose(make(), [[0, 3], [3, 5], [6, 6]]), grids(6)
    with torch.no_grad():
        network.last_layer.weight.normal_()
        features = network.features_of(encoded)
        output = network.classify(features, LENGTHS * network.elements_per_view(encoded))
    similarity, distance = plain_comparison(network, encoded, LENGTHS)
    by_slot = similarity[:, [0, 3, 3, 5, 6, 6]]
    weight = network.last_layer.weight.detach().numpy()
    np.testing.assert_allclose(output.similarity, similarity, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(output.distance, distance, rtol=1e-4)
    np.testing.assert_allclose(output.logits, by_slot @ weight.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.distances(features).detach().gather(0, output.element), output.distance)


def test_class_scores_are_the_class_weights_times_the_similarities():
    network, encoded = choose(make(), [[0, 3], [3, 5], [6, 6]]), grids(6)
    with torch.no_grad():
        network.last_layer.weight.normal_()
        output = network.classify(network.features_of(encoded), LENGTHS * 6)
        torch.testing.assert_close(output.similarity @ network.class_weights().T, output.logits)
        by_hand = network.last_layer.weight
        expected = torch.stack(
            [
                by_hand[:, 0],
                torch.zeros(3),
                torch.zeros(3),
                by_hand[:, 1] + by_hand[:, 2],
                torch.zeros(3),
                by_hand[:, 3],
                by_hand[:, 4] + by_hand[:, 5],
            ],
            dim=1,
        )
        torch.testing.assert_close(network.class_weights(), expected)


def test_a_bag_of_equal_places_has_no_focal_similarity():
    network = make()
    features = torch.rand(1, 6, generator=torch.Generator().manual_seed(0)).expand(9, 6)
    similarity = network.classify(features, torch.tensor([4, 5])).similarity
    assert similarity.min() >= 0
    assert similarity.max() < 1e-5


def test_the_choice_is_one_prototype_per_slot_the_one_with_the_largest_logit():
    network = make()
    chosen = network.chosen()
    assert chosen.shape == (CLASSES, SLOTS)
    logits = network.slot_logits.tolist()
    assert chosen.tolist() == [[slot.index(max(slot)) for slot in of_class] for of_class in logits]
    held = network.owners()
    assert held.dtype == torch.bool
    assert [set(torch.nonzero(held[:, label]).flatten().tolist()) for label in range(CLASSES)] == [
        set(of_class) for of_class in chosen.tolist()
    ]


def test_a_prototype_is_named_by_its_owner_with_the_largest_weight():
    network = choose(make(), [[0, 3], [3, 5], [5, 5]])
    with torch.no_grad():
        network.last_layer.weight[0, 1] = 0.5  # of class 0 to its prototype 3
        network.last_layer.weight[0, 5] = 9.0  # of class 0 to prototype 5, in a slot of class 2: no owner
    assert network.prototype_classes().tolist()[0] == 0
    assert network.prototype_classes().tolist()[3] == 1
    assert network.prototype_classes().tolist()[5] == 2  # two slots of weight 1
    assert network.owners()[1].sum() == 0
    assert network.prototype_classes()[1] == 0  # left over


def test_terms_in_evaluation_are_those_of_the_paper_with_hard_slots():
    weights = {"cross_entropy": 2.0, "cluster": 3.0, "separation": 5.0, "orthogonality": 7.0}
    chosen = [[0, 3], [3, 5], [6, 6]]
    network, encoded = choose(make(**weights), chosen).eval(), grids(6)
    class_weights = torch.tensor([1.0, 2.0, 4.0])
    terms, logits = network.training_terms(encoded, LENGTHS, LABELS, class_weights=class_weights)
    torch.testing.assert_close(logits, network.logits_of(encoded, LENGTHS))
    _, distance = plain_comparison(network, encoded, LENGTHS)
    own, foreign = [], []
    for bag, label in enumerate(LABELS.tolist()):
        own.append(min(distance[bag, idx] for idx in chosen[label]))
        foreign.append(min(distance[bag, idx] for idx in range(PROTOTYPES) if idx not in chosen[label]))
    surprise = -torch.log_softmax(logits, dim=1)[torch.arange(3), LABELS]
    cross_entropy = ((class_weights[LABELS] * surprise).sum() / class_weights[LABELS].sum()).item()
    assert terms["cross_entropy"].item() == pytest.approx(cross_entropy, rel=1e-5)
    assert terms["cluster"].item() == pytest.approx(np.mean(own), rel=1e-5)
    assert terms["separation"].item() == pytest.approx(np.mean(foreign), rel=1e-5)
    # slots give their prototype e^3 times as much as the others; those of the last class agree
    share = np.array([math.exp(3)] + [1.0] * 6)
    apart = (2 * share[0] * share[1] + 5) / (share**2).sum()
    orthogonality = (2 * apart + 2 * apart + 2 * 1) / 6
    assert terms["orthogonality"].item() == pytest.approx(orthogonality, rel=1e-5)
    expected = 2 * cross_entropy + 3 * np.mean(own) - 5 * np.mean(foreign) + 7 * orthogonality
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_slots_are_orthogonal_by_the_cosine_of_all_pairs_of_a_class():
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 4, 5)))
    share = logits.exp() / logits.exp().sum(dim=2, keepdim=True)
    pairs = [
        (one @ other / (one.norm() * other.norm())).item()
        for of_class in share
        for i, one in enumerate(of_class)
        for j, other in enumerate(of_class)
        if i != j
    ]
    assert orthogonality_loss(logits).item() == pytest.approx(sum(pairs) / 12)
    assert orthogonality_loss(100 * torch.eye(6).reshape(2, 3, 6)).item() == pytest.approx(0, abs=1e-6)
    assert orthogonality_loss(torch.zeros(2, 3, 6)).item() == pytest.approx(2, abs=1e-6)


def test_two_slots_on_one_prototype_are_driven_apart_even_when_hard():
    network = choose(make(**NO_WEIGHT | {"orthogonality": 1.0}), [[0, 3], [3, 5], [6, 6]])
    with torch.no_grad():
        network.slot_logits += 0.1 * torch.rand(network.slot_logits.shape)
    optimizer = torch.optim.Adam([network.slot_logits], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        terms, _ = network.training_terms(grids(6), LENGTHS, LABELS, class_weights=None)
        terms["loss"].backward()
        optimizer.step()
    assert all(len(set(of_class)) == SLOTS for of_class in network.chosen().tolist())


def test_training_mixes_similarities_by_the_drawn_shares():
    network, encoded = make(gumbel_epochs=30).train(), grids(6)
    network.start_epoch(0, is_first_phase=True)
    torch.manual_seed(5)
    terms, logits = network.training_terms(encoded, LENGTHS, LABELS, class_weights=None)
    torch.manual_seed(5)
    noise = -torch.empty_like(network.slot_logits).exponential_().log()
    temperature = 1 / math.sqrt(1e6 / 30)  # the paper's alpha, 3.4e4, rounds 1 / (0.001^2 * 30)
    scores = ((network.slot_logits / temperature + noise) / 0.5).detach().numpy().astype(np.float64)
    share = np.exp(scores - scores.max(axis=2, keepdims=True))
    share /= share.sum(axis=2, keepdims=True)  # [class, slot, prototype]
    similarity, distance = plain_comparison(network, encoded, LENGTHS)
    expected = np.einsum("bp,csp->bc", similarity, share)  # weights are 1 and 0
    np.testing.assert_allclose(logits.detach(), expected, rtol=1e-4, atol=1e-5)
    drawn = share.argmax(axis=2)
    own = [min(distance[bag, list(drawn[label])]) for bag, label in enumerate(LABELS.tolist())]
    assert terms["cluster"].item() == pytest.approx(np.mean(own), rel=1e-5)


def test_the_choice_hardens_over_the_first_phase_and_stays_hard():
    network = make(gumbel_epochs=30).train()
    with torch.no_grad():
        network.slot_logits.mul_(0.01)
    encoded = grids(6)
    hard = network.eval().logits_of(encoded, LENGTHS)

    def difference(epoch, is_first_phase):
        network.train().start_epoch(epoch, is_first_phase=is_first_phase)
        drawn = [network.training_terms(encoded, LENGTHS, LABELS, class_weights=None)[1] for _ in range(200)]
        return (torch.stack(drawn) - hard).abs().mean().item()

    first, middle, last, after, later = (
        difference(*when) for when in [(0, True), (7, True), (29, True), (100, True), (0, False)]
    )
    assert first > 1.2 * middle > 1.2 * last
    assert after == pytest.approx(last, rel=0.3)
    assert later == pytest.approx(last, rel=0.3)


def test_at_the_last_temperature_training_scores_as_evaluation_does():
    network, encoded = choose(make(), [[0, 3], [3, 5], [6, 6]]), grids(6)  # logits of 0 and 3: clear choices
    network.train().start_epoch(0, is_first_phase=False)
    _, logits = network.training_terms(encoded, LENGTHS, LABELS, class_weights=None)
    torch.testing.assert_close(logits, network.eval().logits_of(encoded, LENGTHS))


def test_only_training_terms_draw_and_they_hang_on_the_seed_alone():
    network, encoded = make(), grids(6)

    def scores(seed):
        torch.manual_seed(seed)
        network.start_epoch(0, is_first_phase=True)
        return network.training_terms(encoded, LENGTHS, LABELS, class_weights=None)[1]

    network.train()
    assert torch.equal(scores(0), scores(0))
    assert not torch.equal(scores(0), scores(1))
    assert torch.equal(network.logits_of(encoded, LENGTHS), network.logits_of(encoded, LENGTHS))
    network.eval()
    assert torch.equal(scores(0), scores(1))
    before = torch.get_rng_state()
    network.logits_of(encoded, LENGTHS)
    assert torch.equal(torch.get_rng_state(), before)


def test_where_training_stands_in_its_schedule_does_not_matter_to_a_loaded_network():
    network, encoded = make(seed=1), grids(6)
    network.start_epoch(0, is_first_phase=True)
    rebuilt = make(seed=2)
    rebuilt.load_state_dict(network.state_dict())
    assert rebuilt.settings() == network.settings()
    assert network.settings() == {
        "dim": 6,
        "num_prototypes": PROTOTYPES,
        "similarity_epsilon": EPSILON,
        "slots_per_class": SLOTS,
    }
    for one, other in ((network.train(), rebuilt.train()), (network.eval(), rebuilt.eval())):
        assert torch.equal(one.logits_of(encoded, LENGTHS), other.logits_of(encoded, LENGTHS))
        assert torch.equal(one.owners(), other.owners())


@pytest.mark.parametrize(
    ("term", "reached"),
    [
        ("cross_entropy", [True, True, True, True]),
        ("cluster", [True, True, True, False]),
        ("separation", [True, True, True, False]),
        ("orthogonality", [False, False, False, True]),
    ],
)
def test_every_weighted_term_gives_a_gradient(term, reached):
    network = make(**NO_WEIGHT | {term: 1.0}).train()
    network.start_epoch(0, is_first_phase=True)
    terms, _ = network.training_terms(grids(6), LENGTHS, LABELS, class_weights=None)
    terms["loss"].backward()
    learning = network.learning()
    learned = [*learning["addon"], *learning["prototypes"]]  # weight and bias of the add-on, prototypes, slots
    assert [parameter.grad is not None and parameter.grad.abs().max().item() > 1e-6 for parameter in learned] == reached
    assert id(network.tuned()) not in {id(parameter) for parameter in learned}


def test_a_class_that_has_the_whole_pool_has_nothing_to_be_separated_from():
    network = choose(make(num_prototypes=2), [[0, 1], [0, 0], [1, 1]]).eval()
    labels = torch.tensor([0, 1, 0])
    terms, _ = network.training_terms(grids(6), LENGTHS, labels, class_weights=None)
    _, distance = plain_comparison(network, grids(6), LENGTHS)
    assert terms["separation"].item() == pytest.approx(distance[1, 1] / 3, rel=1e-5)
    terms["loss"].backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


def test_tuning_adds_the_weights_of_other_classes_slots():
    network, encoded = make(), grids(6)
    with torch.no_grad():
        network.last_layer.weight.copy_(torch.arange(18).reshape(3, 6) - 9.0)
    output = network.classify(network.features_of(encoded), LENGTHS * 6)
    terms = network.tuning_terms(output, LABELS, class_weights=None, l1=0.25)
    foreign = [7, 6, 5, 4, 3, 2, 1, 2, 3, 4, 5, 6]  # |weight| outside the class's own two slots
    assert terms["foreign_weight_l1"].item() == sum(foreign)
    cross_entropy = nn.functional.cross_entropy(output.logits, LABELS).item()
    assert terms["loss"].item() == pytest.approx(cross_entropy + 0.25 * sum(foreign), rel=1e-6)


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


def test_the_seed_decides_the_start():
    one, again, other = (make(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["slot_logits"], other["slot_logits"])


def test_it_learns_slots_that_tell_classes_apart():
    labels = torch.arange(4).repeat(8)
    encoded = 0.3 * grids(32, height=3, width=3)
    at = torch.from_numpy(np.random.default_rng(1).integers(0, 3, (2, 32)))
    encoded[torch.arange(32), labels, at[0], at[1]] += 3  # one channel per class, at any place
    network = make(num_prototypes=12, slots=3, num_classes=4, gumbel_epochs=40)
    optimizer = torch.optim.Adam([p for group in network.learning().values() for p in group], lr=0.05)
    lengths = torch.ones(32, dtype=torch.long)
    for epoch in range(150):
        network.train().start_epoch(epoch, is_first_phase=True)
        terms, _ = network.training_terms(encoded, lengths, labels, class_weights=None)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    logits = network.eval().logits_of(encoded, lengths)  # with hard slots
    assert (logits.argmax(dim=1) == labels).float().mean() >= 0.75  # by chance: 0.25


def test_places_are_lined_up_view_after_view_and_row_by_row():
    encoded = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2).float()
    lined_up = [encoded[view, :, row, column] for view in range(2) for row in range(2) for column in range(2)]
    assert torch.equal(places_of(encoded), torch.stack(lined_up))
    channels_last = encoded.contiguous(memory_format=torch.channels_last)
    assert torch.equal(places_of(channels_last), torch.stack(lined_up))
    pooled = torch.rand(4, 3)
    assert torch.equal(places_of(pooled), pooled)


def test_means_of_ragged_bags_are_those_of_each_alone():
    values = torch.from_numpy(np.random.default_rng(0).random((7, 3))).float().requires_grad_()
    means = mean_of_bags(values, torch.tensor([4, 1, 2]))
    expected = torch.stack([part.mean(dim=0) for part in values.split([4, 1, 2])])
    torch.testing.assert_close(means, expected)
    weight = torch.arange(9.0).reshape(3, 3)
    gradients = [torch.autograd.grad((weight * result).sum(), values)[0] for result in (means, expected)]
    torch.testing.assert_close(*gradients)
