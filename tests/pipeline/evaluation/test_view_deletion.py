import numpy as np
import pytest
import torch

from pipeline.evaluation import view_deletion
from pipeline.evaluation.view_deletion import deletion_curves, view_importance
from pipeline.model.backbone import Backbone
from pipeline.model.pipnet import PipNet
from pipeline.model.protomask import ProtoMask

NUM_CLASSES, DIM = 3, 4
LENGTHS = [3, 1, 5, 2]
KEYS = ["a", "b", "c", "d"]
SETTINGS = {"num_steps": 6, "num_random": 2, "seed": 0}


def network_of(head):
    torch.manual_seed(0)
    backbone = Backbone("test_efficientnet")
    if head == "pipnet":
        return PipNet(backbone, num_prototypes=DIM, num_classes=NUM_CLASSES).eval()
    labels = torch.arange(NUM_CLASSES).repeat_interleave(2)
    return ProtoMask(backbone, dim=DIM, prototype_labels=labels, num_classes=NUM_CLASSES, epsilon=1e-3).eval()


class Bags:
    """Bags of features, PER_VIEW elements each view, and how important each view is said to be."""

    def __init__(self, per_view=1, lengths=LENGTHS, keys=KEYS):
        rng = np.random.default_rng(0)
        of_bag = {
            key: (
                rng.random((length * per_view, DIM), dtype=np.float32),
                rng.integers(0, 3, length),
                rng.integers(0, 3),
            )
            for key, length in zip(KEYS, LENGTHS, strict=True)
        }
        self.keys, self.lengths, self.per_view = list(keys), list(lengths), per_view
        self.features = [torch.from_numpy(of_bag[key][0]) for key in keys]
        self.importance = torch.full((len(keys), max(lengths)), 99.0)  # beyond a bag's length, nobody reads it
        for place, (key, length) in enumerate(zip(keys, lengths, strict=True)):
            self.importance[place, :length] = torch.from_numpy(of_bag[key][1])
        self.predicted = torch.tensor([int(of_bag[key][2]) for key in keys])

    def curves(self, network, **changed):
        return deletion_curves(
            network,
            torch.cat(self.features),
            torch.tensor(self.lengths),
            self.predicted,
            self.importance,
            self.keys,
            **{**SETTINGS, **changed},
        )

    def chosen(self, places):
        return Bags(self.per_view, [self.lengths[place] for place in places], [self.keys[place] for place in places])


def names():
    return ("removed", "inserted", "removed_at_random", "inserted_at_random")


def plain_probability(network, bags, place, views):
    """One partial bag at a time."""
    if not views:
        return 1 / NUM_CLASSES
    per_view = bags.per_view
    elements = [bags.features[place][view * per_view : (view + 1) * per_view] for view in sorted(views)]
    with torch.no_grad():
        logits = network.classify(torch.cat(elements), torch.tensor([len(views) * per_view])).logits
    return logits.softmax(dim=1)[0, bags.predicted[place]].item()


def plain_curve(network, bags, place, order, num_steps, *, removes):
    values = [
        plain_probability(network, bags, place, order[num:] if removes else order[:num])
        for num in range(len(order) + 1)
    ]
    shares = np.linspace(0, 1, len(order) + 1)
    return np.interp(np.arange(num_steps + 1) / num_steps, shares, values)


@pytest.mark.parametrize(("head", "per_view"), [("protomask", 1), ("pipnet", 4)])
def test_curves_are_those_of_a_plain_loop_over_partial_bags(head, per_view):
    network, bags = network_of(head), Bags(per_view)
    curves = bags.curves(network)
    for place, length in enumerate(LENGTHS):
        importance = bags.importance[place].tolist()
        order = sorted(range(length), key=lambda view: (-importance[view], view))
        for removes, curve in ((True, curves.removed), (False, curves.inserted)):
            expected = plain_curve(network, bags, place, order, SETTINGS["num_steps"], removes=removes)
            np.testing.assert_allclose(curve[place], expected, rtol=1e-5)


def test_one_random_order_is_an_order_of_the_views():
    network, bags = network_of("protomask"), Bags().chosen([0])
    curves = bags.curves(network, num_random=1)
    orders = [(a, b, c) for a in range(3) for b in range(3) for c in range(3) if len({a, b, c}) == 3]
    matching = [
        order
        for order in orders
        if np.allclose(curves.removed_at_random[0], plain_curve(network, bags, 0, order, 6, removes=True), rtol=1e-5)
        and np.allclose(curves.inserted_at_random[0], plain_curve(network, bags, 0, order, 6, removes=False), rtol=1e-5)
    ]
    assert len(matching) == 1


def test_many_random_orders_come_near_the_mean_of_all_orders():
    network, bags = network_of("protomask"), Bags().chosen([0])
    orders = [(a, b, c) for a in range(3) for b in range(3) for c in range(3) if len({a, b, c}) == 3]
    expected = np.mean([plain_curve(network, bags, 0, order, 6, removes=True) for order in orders], axis=0)
    spread = np.std([plain_curve(network, bags, 0, order, 6, removes=True) for order in orders], axis=0).max()
    assert spread > 1e-3
    curve = bags.curves(network, num_random=400).removed_at_random[0].numpy()
    assert np.abs(curve - expected).max() < 5 * spread / 20


def test_curves_start_and_end_at_the_whole_and_the_empty_bag():
    network, bags = network_of("protomask"), Bags()
    curves = bags.curves(network)
    whole = [plain_probability(network, bags, place, range(length)) for place, length in enumerate(LENGTHS)]
    for name in names():
        curve = getattr(curves, name)
        full, empty = (0, -1) if name.startswith("removed") else (-1, 0)
        np.testing.assert_allclose(curve[:, full], whole, rtol=1e-5)
        np.testing.assert_allclose(curve[:, empty], [1 / NUM_CLASSES] * len(LENGTHS), rtol=1e-6)


@pytest.mark.parametrize("head", ["protomask", "pipnet"])
def test_similarities_of_zero_make_all_classes_equally_probable(head):
    network = network_of(head)
    scores = network.last_layer(torch.zeros(1, network.class_weights().shape[1]))
    assert scores.softmax(dim=1).tolist() == [pytest.approx([1 / NUM_CLASSES] * NUM_CLASSES)]


def test_a_bag_of_one_view_has_the_same_curve_in_every_order():
    curves = Bags().chosen([1]).curves(network_of("protomask"))
    torch.testing.assert_close(curves.removed, curves.removed_at_random)
    torch.testing.assert_close(curves.removed, curves.inserted.flip(1))
    steps = curves.removed[0].diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("places", [[2], [3, 0], [3, 2, 1, 0]])
def test_curves_do_not_depend_on_which_other_images_there_are(places):
    network, bags = network_of("protomask"), Bags()
    together, apart = bags.curves(network), bags.chosen(places).curves(network)
    for name in names():
        torch.testing.assert_close(getattr(apart, name), getattr(together, name)[places])


@pytest.mark.parametrize("elements_per_step", [1, 7, 10_000])
def test_curves_do_not_depend_on_how_many_bags_are_classified_together(monkeypatch, elements_per_step):
    network, bags = network_of("pipnet"), Bags(per_view=4)
    expected = bags.curves(network)
    monkeypatch.setattr(view_deletion, "_ELEMENTS_PER_STEP", elements_per_step)
    curves = bags.curves(network)
    for name in names():
        torch.testing.assert_close(getattr(curves, name), getattr(expected, name))


def test_random_orders_hang_on_the_seed_and_on_the_key():
    network, bags = network_of("protomask"), Bags().chosen([2])
    own = bags.curves(network, num_random=1)
    again, other_seed = bags.curves(network, num_random=1), bags.curves(network, num_random=1, seed=1)
    bags.keys = ["another"]
    other_key = bags.curves(network, num_random=1)
    assert torch.equal(again.removed_at_random, own.removed_at_random)
    for other in (other_seed, other_key):
        assert not torch.equal(other.removed_at_random, own.removed_at_random)
        assert torch.equal(other.removed, own.removed)


def test_importance_is_what_the_prototypes_nearest_to_a_view_contribute():
    rng = np.random.default_rng(0)
    num_images, num_prototypes, num_ranks, num_views = 5, 8, 4, 3
    similarity = torch.from_numpy(rng.random((num_images, num_prototypes)))
    weights = torch.from_numpy(rng.normal(size=(NUM_CLASSES, num_prototypes)))
    top = torch.from_numpy(np.stack([rng.permutation(num_prototypes)[:num_ranks] for _ in range(num_images)]))
    view = torch.from_numpy(rng.integers(0, num_views, (num_images, num_ranks)))
    predicted = torch.from_numpy(rng.integers(0, NUM_CLASSES, num_images))
    importance = view_importance(top, view, similarity, weights, predicted, num_views=num_views)
    for image in range(num_images):
        expected = [0.0] * num_views
        for rank in range(num_ranks):
            prototype = int(top[image, rank])
            weight = weights[predicted[image], prototype].item()
            expected[int(view[image, rank])] += similarity[image, prototype].item() * weight
        assert importance[image].tolist() == pytest.approx(expected)
    assert (importance == 0).any()  # a view that is nearest to nothing
