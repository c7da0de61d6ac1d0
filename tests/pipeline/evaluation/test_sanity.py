import numpy as np
import torch

from pipeline.evaluation.sanity import applies, insensitive, moved_maps, with_random_weights, with_shuffled_prototypes
from pipeline.metrics.interface import Metric
from pipeline.metrics.measure import Measured
from pipeline.metrics.statistics import Constant, MeanOverImages
from pipeline.metrics.uncertainty import Bootstrap
from pipeline.model.backbone import Backbone
from pipeline.model.pipnet import PipNet
from pipeline.model.protomask import ProtoMask

VIEWS = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def protomask():
    torch.manual_seed(0)
    labels = torch.arange(3).repeat_interleave(4)
    backbone = Backbone("test_efficientnet")
    return ProtoMask(backbone, dim=5, prototype_labels=labels, num_classes=3, epsilon=1e-4).eval()


def state_of(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def same(one, other):
    return {key: torch.equal(one[key], other[key]) for key in one}


def test_random_weights_change_the_embedding_and_leave_prototypes_last_layer_and_the_network_itself():
    network = protomask()
    before = state_of(network)
    altered = with_random_weights(network, seed=1)
    assert all(same(before, state_of(network)).values())
    changed = same(before, altered.state_dict())
    assert changed["prototypes"]
    assert changed["last_layer.weight"]
    assert not changed["add_on.weight"]
    assert not all(equal for key, equal in changed.items() if key.startswith("backbone."))
    assert not torch.allclose(altered.encode(VIEWS), network.encode(VIEWS))
    again = with_random_weights(network, seed=1)
    assert all(same(altered.state_dict(), again.state_dict()).values())


def test_random_weights_do_not_touch_the_generator_of_others():
    network = protomask()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with_random_weights(network, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_shuffled_prototypes_are_the_same_ones_in_another_order():
    network = protomask()
    altered = with_shuffled_prototypes(network, seed=0)
    before, after = network.prototypes.detach(), altered.prototypes.detach()
    assert not torch.equal(before, after)
    assert torch.equal(before.sort(dim=0).values, after.sort(dim=0).values)
    unlike = {key for key, equal in same(state_of(network), altered.state_dict()).items() if not equal}
    assert unlike == {"prototypes"}


def test_prototypes_that_are_rows_of_the_layer_are_shuffled_and_randomised_too():
    torch.manual_seed(0)
    network = PipNet(Backbone("test_efficientnet"), num_prototypes=6, num_classes=3).eval()
    shuffled = with_shuffled_prototypes(network, seed=0)
    assert not torch.equal(shuffled.add_on.weight, network.add_on.weight)
    assert not torch.equal(with_random_weights(network, seed=0).add_on.weight, network.add_on.weight)


def test_moved_maps_keep_their_values_and_lose_their_place():
    maps = torch.zeros(2, 3, 16, 16)
    maps[:, :, 2:5, 3:9] = torch.arange(1, 19.0).view(3, 6)
    moved = moved_maps(maps, ["a", "b"], seed=0)
    assert torch.equal(moved.flatten(2).sort(dim=2).values, maps.flatten(2).sort(dim=2).values)
    assert not torch.equal(moved, maps)
    assert torch.equal(moved_maps(maps[1:], ["b"], seed=0)[0], moved[1])
    for of_rank in moved.flatten(0, 1):  # in one piece
        rows, columns = of_rank.nonzero().unbind(dim=1)
        assert rows.max() - rows.min() == 2
        assert columns.max() - columns.min() == 5
    places = {tuple(of_rank.nonzero()[0].tolist()) for of_rank in moved.flatten(0, 1)}
    assert len(places) > 3


def test_a_map_that_fills_the_frame_goes_round():
    maps = torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 1
    moved = moved_maps(maps, ["a"], seed=0)
    assert not torch.equal(moved, maps)
    assert torch.equal(moved.flatten(2).sort(dim=2).values, maps.flatten(2).sort(dim=2).values)


def metric(key, direction="higher", needs=("prototypes",), of_set=False):
    value = {"of_set": lambda evidence: Constant(1.0)} if of_set else {"of_image": lambda evidence: evidence.labels}
    return Metric(
        key=key, family="family", title=key, unit="ratio", direction=direction, formula="", needs=needs, **value
    )


def test_maps_concern_metrics_of_maps_alone_and_patterns_concern_none():
    assert applies(metric("a"), "weights")
    assert applies(metric("a"), "prototypes")
    assert not applies(metric("a"), "maps")
    assert applies(metric("a", needs=("maps",)), "maps")
    assert not applies(metric("a", needs=("parts", "patterns")), "weights")
    assert not applies(metric("a", direction="neither"), "weights")


def test_a_metric_that_stays_or_gets_better_is_named_and_one_that_gets_worse_is_not():
    rng = np.random.default_rng(0)
    values = rng.normal(size=40)
    randomised_by = {"better": 1.0, "same": 0.0, "worse": -1.0}
    cases = {}
    for change, shift in randomised_by.items():
        for direction in ("higher", "lower"):
            declared = metric(f"{change}_{direction}", direction)
            better = shift if direction == "higher" else -shift
            after = MeanOverImages(values + better + 0.1 * rng.normal(size=40))
            cases[declared] = after
    real = {("family", declared.key): MeanOverImages(values) for declared in cases}
    altered = [Measured(declared, after, after.value(40), None) for declared, after in cases.items()]
    found = insensitive(real, {"weights": altered}, Bootstrap(40, num_draws=200, seed=0))
    assert found == {
        ("family", "better_higher"): ["weights"],
        ("family", "better_lower"): ["weights"],
        ("family", "same_higher"): ["weights"],
        ("family", "same_lower"): ["weights"],
        ("family", "worse_higher"): [],
        ("family", "worse_lower"): [],
    }


def test_what_has_no_value_after_a_randomisation_or_is_not_about_images_was_not_tried():
    values = MeanOverImages(np.arange(5.0))
    constant, absent = metric("constant", of_set=True), metric("absent")
    altered = [Measured(constant, Constant(1.0), 1.0, None), Measured(absent, None, None, "no")]
    real = {("family", "constant"): Constant(1.0), ("family", "absent"): values}
    assert insensitive(real, {"prototypes": altered}, Bootstrap(5, num_draws=30, seed=0)) == {}
