import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.model.prototypes import squared_distance
from pipeline.training import projection
from pipeline.training.nearest import EmbeddedBag
from pipeline.training.projection import project

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"
PROTOTYPE_LABELS = torch.tensor([1, 0, 1, 2, 0, 1])  # unequal numbers, out of order


def golden_cases():
    """The push cases of the vectors; a single None, which skips, where the vectors are absent."""
    if not (GOLDEN / "index.json").exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="needs ../shared/golden"))]
    files = {entry["file"]: entry for entry in json.loads((GOLDEN / "index.json").read_text())["files"]}
    return [pytest.param(case, id=case["id"]) for case in files["push.npz"]["cases"]]


def test_the_golden_vectors_have_six_projections():
    if golden_cases()[0].values == (None,):
        pytest.skip("needs ../shared/golden")
    assert len(golden_cases()) == 6


@pytest.mark.parametrize("case", golden_cases())
def test_projection_is_the_intended_one_of_the_golden_vectors(case):
    """Equal distances: theirs go to the image that the loader gives first, ours to the smaller image key.

    The vectors' image ids are in no order, so keys are made of the loader's positions: then both rules agree.
    """
    name = case["id"]
    with np.load(GOLDEN / "push.npz") as stored:
        arrays = {key.removeprefix(f"{name}."): stored[key] for key in stored.files if key.startswith(f"{name}.")}
    z, labels = torch.from_numpy(arrays["in.z"]), arrays["in.labels"]
    bags = [EmbeddedBag(f"{position:05d}", int(labels[position]), z[position]) for position in range(len(z))]
    per_class = case["params"]["prototypes_per_class"]
    prototypes = torch.from_numpy(arrays["in.prototypes"])
    prototype_labels = torch.arange(case["params"]["num_classes"]).repeat_interleave(per_class)
    # theirs lets prototypes share a view
    result = project(prototypes, prototype_labels, bags, distinct_views=False)
    tolerance = {"atol": case["atol"], "rtol": case["rtol"]}
    np.testing.assert_allclose(result.prototypes, arrays["fix.prototypes"], **tolerance)
    found = [[-1, -1] if source is None else [int(source.image_key), source.view_idx] for source in result.sources]
    assert found == arrays["fix.source"][:, 1:].tolist()
    distances = [np.nan if source is None else source.distance_before for source in result.sources]
    np.testing.assert_allclose(distances, arrays["fix.min_dist"], **tolerance)


def random_bags(seed, num_bags=12, labels=(0, 1, 2), dim=4):
    rng = np.random.default_rng(seed)
    return [
        EmbeddedBag(
            f"image-{idx:02d}",
            labels[idx % len(labels)],
            torch.from_numpy(rng.random((rng.integers(1, 5), dim))).float(),
        )
        for idx in range(num_bags)
    ]


def random_prototypes(seed, dim=4):
    return torch.from_numpy(np.random.default_rng(100 + seed).random((len(PROTOTYPE_LABELS), dim))).float()


def all_pairs(prototypes, bags):
    """(distance, image_key, view_idx, prototype_idx) of every prototype and every view of its class, nearest first."""
    pairs = []
    for bag in bags:
        distance = squared_distance(bag.features, prototypes)
        for idx, label in enumerate(PROTOTYPE_LABELS.tolist()):
            if label == bag.label:
                pairs += [(distance[view, idx].item(), bag.image_key, view, idx) for view in range(len(bag.features))]
    return sorted(pairs)


def found(result):
    return [None if source is None else (source.image_key, source.view_idx) for source in result.sources]


def plain_projection(prototypes, prototype_labels, bags, *, distinct_views):
    """What projection is, prototype by prototype and view by view; distances bag by bag."""
    of_class = {}
    for idx, label in enumerate(prototype_labels.tolist()):
        of_class.setdefault(label, []).append(idx)
    ranked = [[] for _ in prototypes]
    for bag in bags:
        owned = of_class.get(bag.label, [])
        if owned:
            distance = squared_distance(bag.features, prototypes[owned])
            for column, idx in enumerate(owned):
                for view, value in enumerate(distance[:, column].tolist()):
                    ranked[idx].append((value, bag.image_key, view, bag.features[view]))
    chosen = [min(views, key=lambda found: found[:3], default=None) for views in ranked]
    if distinct_views:
        for owned in of_class.values():
            pairs = sorted((found[:3], idx, found) for idx in owned for found in ranked[idx])
            served, taken = set(), set()
            for (_, *view), idx, found in pairs:
                if idx not in served and tuple(view) not in taken:
                    chosen[idx] = found
                    served.add(idx)
                    taken.add(tuple(view))
    projected = prototypes.clone()
    for idx, found in enumerate(chosen):
        if found is not None:
            projected[idx] = found[3]
    return projected, [None if found is None else (found[1], found[2], found[0]) for found in chosen]


@pytest.mark.parametrize("views_per_batch", [1, 7, 1000])
@pytest.mark.parametrize("distinct_views", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("steps", [None, 3], ids=["no ties", "many ties"])
def test_projection_is_to_the_last_bit_what_a_plain_loop_gives(
    monkeypatch, steps, seed, distinct_views, views_per_batch
):
    rng = np.random.default_rng(seed)

    def random_features(num):
        values = rng.random((num, 5))
        return torch.from_numpy(values if steps is None else np.round(values * steps) / 4).float()

    # class 3 has no image, class 4 fewer views than prototypes, class 5 no prototype
    prototype_labels = torch.from_numpy(rng.permutation([0] * 4 + [1] * 1 + [2] * 6 + [3] * 2 + [4] * 3))
    labels = [*rng.choice([0, 1, 2, 5], 60).tolist(), 4]
    keys = rng.permutation(len(labels)).tolist()
    bags = [
        EmbeddedBag(f"image-{key:02d}", label, random_features(2 if label == 4 else rng.integers(1, 5)))
        for key, label in zip(keys, labels, strict=True)
    ]
    prototypes = random_features(len(prototype_labels))
    monkeypatch.setattr(projection, "_VALUES_PER_BATCH", views_per_batch * prototypes.shape[1])
    result = project(prototypes, prototype_labels, iter(bags), distinct_views=distinct_views)
    expected, sources = plain_projection(prototypes, prototype_labels, bags, distinct_views=distinct_views)
    assert torch.equal(result.prototypes, expected)
    assert [
        None if source is None else (source.image_key, source.view_idx, source.distance_before)
        for source in result.sources
    ] == sources
    assert sources.count(None) == 2
    distances = [source[2] for source in sources if source is not None]
    assert (len(set(distances)) < len(distances)) == (steps is not None)


@pytest.mark.parametrize("distinct_views", [False, True])
def test_features_that_no_prototype_needs_any_more_are_let_go(monkeypatch, distinct_views):
    monkeypatch.setattr(projection, "_VALUES_PER_BATCH", 10 * 4)
    alive, most = weakref.WeakSet(), 0

    def bags():
        nonlocal most
        for bag in random_bags(0, num_bags=300):
            features = bag.features.clone()
            alive.add(features)
            most = max(most, len(alive))
            yield bag._replace(features=features)

    project(random_prototypes(0), PROTOTYPE_LABELS, bags(), distinct_views=distinct_views)
    assert 0 < most <= 20  # two batches: the one at work, and the next one as it grows


@pytest.mark.parametrize("seed", range(4))
def test_each_prototype_takes_the_nearest_view_of_its_class_in_the_whole_split(seed):
    prototypes, bags = random_prototypes(seed), random_bags(seed)
    result = project(prototypes, PROTOTYPE_LABELS, bags, distinct_views=False)
    features = {(bag.image_key, view): bag.features[view] for bag in bags for view in range(len(bag.features))}
    for idx, source in enumerate(result.sources):
        distance, image_key, view, _ = next(pair for pair in all_pairs(prototypes, bags) if pair[3] == idx)
        assert (source.image_key, source.view_idx) == (image_key, view)
        assert source.distance_before == pytest.approx(distance)
        assert torch.equal(result.prototypes[idx], features[image_key, view])


@pytest.mark.parametrize("seed", range(4))
def test_distinct_views_go_to_the_nearest_pair_first(seed):
    bags = random_bags(seed)
    # prototypes of a class that lie together want the same views
    prototypes = torch.full((6, 4), 0.5) + 0.01 * random_prototypes(seed)
    expected, taken = {}, set()
    for _, image_key, view, idx in all_pairs(prototypes, bags):
        if idx not in expected and (image_key, view) not in taken:
            expected[idx] = (image_key, view)
            taken.add((image_key, view))
    result = project(prototypes, PROTOTYPE_LABELS, bags, distinct_views=True)
    assert found(result) == [expected[idx] for idx in range(6)]
    assert len(set(found(result))) == 6
    shared = project(prototypes, PROTOTYPE_LABELS, bags, distinct_views=False)
    assert len(set(found(shared))) < 6  # the choice made a difference


@pytest.mark.parametrize("distinct_views", [False, True])
def test_neither_the_order_of_bags_nor_the_run_they_come_in_matters(distinct_views):
    prototypes, bags = random_prototypes(0), random_bags(0, num_bags=20)
    bags[7] = bags[7]._replace(features=bags[1].features.clone(), label=bags[1].label)  # exact ties between images
    expected = project(prototypes, PROTOTYPE_LABELS, bags, distinct_views=distinct_views)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(bags))
        result = project(prototypes, PROTOTYPE_LABELS, (bags[i] for i in order), distinct_views=distinct_views)
        assert result.sources == expected.sources
        assert torch.equal(result.prototypes, expected.prototypes)


@pytest.mark.parametrize("keys", [("b", "a", "c"), ("c", "b", "a"), ("a", "c", "b")])
def test_equal_distances_go_to_the_smaller_image_key_then_to_the_smaller_view(keys):
    features = torch.tensor([[0.9, 0.9], [0.5, 0.5], [0.5, 0.5]])
    bags = [EmbeddedBag(key, 0, features) for key in keys]
    result = project(torch.tensor([[0.4, 0.4]]), torch.tensor([0]), bags, distinct_views=False)
    assert found(result) == [("a", 1)]


def test_where_views_are_fewer_than_prototypes_they_are_shared():
    features = torch.tensor([[0.1, 0.1], [0.9, 0.9]])
    prototypes = torch.tensor([[0.2, 0.2], [0.15, 0.15], [0.3, 0.3], [0.8, 0.8]])
    result = project(
        prototypes, torch.zeros(4, dtype=torch.long), [EmbeddedBag("only", 0, features)], distinct_views=True
    )
    # the nearest pairs first: prototype 1 takes view 0, prototype 3 view 1; the others share what is nearest to them
    assert found(result) == [("only", 0), ("only", 0), ("only", 0), ("only", 1)]


def test_views_are_distinct_within_a_class_only():
    bags = [EmbeddedBag("a", 0, torch.tensor([[0.5, 0.5]])), EmbeddedBag("b", 1, torch.tensor([[0.5, 0.5]]))]
    result = project(torch.full((2, 2), 0.4), torch.tensor([0, 1]), bags, distinct_views=True)
    assert found(result) == [("a", 0), ("b", 0)]


@pytest.mark.parametrize("distinct_views", [False, True])
def test_a_class_without_views_keeps_its_prototypes(distinct_views):
    prototypes = random_prototypes(0)
    result = project(prototypes, PROTOTYPE_LABELS, random_bags(0, labels=(0, 1)), distinct_views=distinct_views)
    assert [idx for idx, source in enumerate(result.sources) if source is None] == [3]
    assert torch.equal(result.prototypes[3], prototypes[3])
    assert not torch.equal(result.prototypes[0], prototypes[0])


def test_views_of_a_class_without_prototypes_are_passed_over():
    bags = random_bags(0, labels=(0, 1, 2, 7))
    result = project(random_prototypes(0), PROTOTYPE_LABELS, bags, distinct_views=True)
    of_bag = {bag.image_key: bag.label for bag in bags}
    assert [of_bag[image_key] for image_key, _ in found(result)] == PROTOTYPE_LABELS.tolist()


def test_the_learned_prototypes_are_left_as_they_are():
    prototypes = random_prototypes(0)
    before = prototypes.clone()
    project(prototypes, PROTOTYPE_LABELS, random_bags(0), distinct_views=True)
    assert torch.equal(prototypes, before)


def test_a_projected_prototype_projects_onto_itself():
    bags = random_bags(0)
    once = project(random_prototypes(0), PROTOTYPE_LABELS, bags, distinct_views=True)
    twice = project(once.prototypes, PROTOTYPE_LABELS, bags, distinct_views=True)
    assert found(twice) == found(once)
    assert max(source.distance_before for source in twice.sources) < 1e-12
