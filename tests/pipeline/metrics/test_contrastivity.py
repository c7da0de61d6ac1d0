import math

import numpy as np
import pytest
import torch

from pipeline.metrics.change import activation_change, box_iou, mask_iou, similar_elements
from pipeline.metrics.contrastivity import (
    METRICS,
    ActivationEntropy,
    InterDistance,
    Unused,
    intra_activation_change,
    intra_box_change,
    intra_distance,
    intra_mask_change,
    intra_point_distance,
    intra_relative_difference,
    usage,
)
from pipeline.metrics.interface import Evidence, Look

NUM_IMAGES, NUM_RANKS, NUM_PROTOTYPES = 12, 3, 7


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vectors(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def over_pairs(values, difference):
    """Average a difference over all ordered pairs of different ranks of each image."""
    num = values.shape[1]
    return [
        np.mean([difference(own[i], own[j]).item() for i in range(num) for j in range(num) if i != j]) for own in values
    ]


def cosine_distance(one, other):
    return 1 - one @ other / (one.norm() * other.norm())


def resamples(num_images, num_draws=4):
    counts = np.random.default_rng(1).multinomial(num_images, np.full(num_images, 1 / num_images), size=num_draws)
    return counts.astype(np.float64), [np.repeat(np.arange(num_images), of_draw) for of_draw in counts]


# --- inside an image


def test_changes_of_masks_are_those_of_all_pairs():
    masks = random(4, 5, 6, 7) > 0.6
    expected = over_pairs(masks, lambda one, other: 1 - mask_iou(one, other))
    np.testing.assert_allclose(intra_mask_change(masks), expected)


def test_changes_of_boxes_are_those_of_all_pairs():
    corners = np.sort(np.random.default_rng(0).integers(0, 9, size=(20, 3, 2, 2)), axis=2)
    corners[:, :, 1] += 1  # none without area
    boxes = torch.from_numpy(corners.reshape(20, 3, 4))
    np.testing.assert_allclose(
        intra_box_change(boxes), over_pairs(boxes, lambda one, other: 1 - box_iou(one, other)), atol=1e-12
    )


@pytest.mark.parametrize("kind", ["graded", "mostly 0", "signed", "mask"])
def test_changes_of_values_are_those_of_all_pairs(kind):
    maps = random(4, 5, 6, 7)
    maps = {"graded": maps, "mostly 0": maps * (maps > 0.9), "signed": maps - 0.3, "mask": maps > 0.6}[kind]
    np.testing.assert_allclose(intra_activation_change(maps), over_pairs(maps, activation_change), atol=1e-12)


def test_equal_maps_do_not_differ():
    maps = random(1, 1, 4, 4).expand(2, 3, 4, 4)
    assert intra_activation_change(maps).tolist() == [0, 0]
    assert intra_mask_change(maps > 0.5).tolist() == [0, 0]


def test_one_empty_map_leaves_its_image_without_a_value():
    maps = random(2, 3, 4, 4)
    maps[0, 1] = 0
    for found in (intra_mask_change(maps > 0), intra_activation_change(maps), intra_activation_change(maps > 0)):
        assert found.isnan().tolist() == [True, False]


def test_distances_of_points_are_those_of_all_pairs():
    points = random(4, 5, 2)
    expected = over_pairs(points, lambda one, other: (one - other).abs().sum())
    np.testing.assert_allclose(intra_point_distance(points), expected)


def test_scores_differ_by_a_share_of_the_larger_one():
    assert intra_relative_difference(torch.tensor([[4.0, 1.0, 2.0]])).item() == pytest.approx((0.75 + 0.5 + 0.5) / 3)


def test_intra_distance_is_that_of_a_plain_loop_over_pairs():
    some = vectors(6, 4, 5)
    np.testing.assert_allclose(intra_distance(some), over_pairs(some, cosine_distance))


def test_equal_vectors_are_at_distance_0_right_angles_at_1_opposites_at_2():
    some = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [-2.0, 0.0]]])
    np.testing.assert_allclose(intra_distance(some), [0, 1, 2], atol=1e-12)


def test_a_vector_without_direction_is_at_distance_1_from_all_and_from_itself():
    some = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert intra_distance(some).tolist() == [(1 + 1 + 1) / 2]


def test_a_single_prototype_differs_from_nothing():
    for found in (
        intra_distance(torch.ones(2, 1, 3)),
        intra_mask_change(torch.ones(2, 1, 3, 3, dtype=torch.bool)),
        intra_box_change(torch.tensor([[[0, 0, 1, 1]]])),
        intra_activation_change(torch.ones(2, 1, 3, 3)),
        intra_point_distance(torch.ones(2, 1, 2)),
        intra_relative_difference(torch.ones(2, 1)),
    ):
        assert found.isnan().all()


# --- between classes


def plain_inter_distance(some, labels):
    by_class = {}
    for label in sorted(set(labels.tolist())):
        pairs = [
            cosine_distance(one, other).item()
            for image in range(len(labels))
            for rest in range(len(labels))
            if labels[image] == label and labels[rest] != label
            for one in some[image]
            for other in some[rest]
        ]
        if pairs:
            by_class[label] = np.mean(pairs)
    return by_class


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inter_distance_is_that_of_a_plain_loop_over_pairs(dtype):
    some, labels = vectors(7, 3, 5).to(dtype), torch.tensor([4, 0, 0, 4, 2, 2, 2])
    statistic, expected = InterDistance(some, labels), plain_inter_distance(some, labels)
    assert statistic.classes.tolist() == list(expected) == [0, 2, 4]
    np.testing.assert_allclose(statistic.of_classes(np.ones((1, 7)))[0], list(expected.values()), atol=1e-6)
    assert statistic.value(7) == pytest.approx(np.mean(list(expected.values())), abs=1e-6)


def test_inter_distance_of_a_resample_is_that_of_the_images_repeated():
    some, labels = vectors(7, 3, 5), torch.tensor([4, 0, 0, 4, 2, 2, 2])
    weights, images = resamples(7)
    for found, chosen in zip(InterDistance(some, labels)(weights), images, strict=True):
        assert found == pytest.approx(np.mean(list(plain_inter_distance(some[chosen], labels[chosen]).values())))


def test_inter_distance_does_not_depend_on_ranks():
    some = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    labels = torch.tensor([0, 1])
    assert InterDistance(some, labels).value(2) == InterDistance(some.flip(1), labels).value(2) == pytest.approx(0.5)


def test_one_class_alone_has_no_inter_distance():
    assert math.isnan(InterDistance(torch.ones(3, 2, 4), torch.tensor([1, 1, 1])).value(3))


# --- activations


def some_uses():
    similarity = random(NUM_IMAGES, NUM_PROTOTYPES)
    similarity[:, 5] = 0.01  # in no top
    return similarity, similarity.sort(dim=1, descending=True).indices[:, :NUM_RANKS]


def plain_entropy(values, scale, num_bins):
    shares = [value / scale for value in values]
    counts = [
        sum(low / num_bins <= share < (low + 1) / num_bins or (share == 1 and low == num_bins - 1) for share in shares)
        for low in range(num_bins)
    ]
    return -sum(count / len(shares) * math.log2(count / len(shares)) for count in counts if count)


@pytest.mark.parametrize("num_bins", [4, 10])
def test_entropy_is_that_of_plain_loops_over_the_prototypes_that_explain_an_image(num_bins):
    similarity, top = some_uses()
    used = sorted(set(top.flatten().tolist()))
    assert 5 not in used
    expected = np.mean(
        [plain_entropy(similarity[:, idx].tolist(), similarity[:, idx].max().item(), num_bins) for idx in used]
    )
    assert ActivationEntropy(similarity, top, num_bins).value(NUM_IMAGES) == pytest.approx(expected)


def test_entropy_of_a_resample_is_that_of_the_images_repeated_at_the_scale_of_all():
    similarity, top = some_uses()
    weights, images = resamples(NUM_IMAGES)
    scale = similarity.amax(dim=0).tolist()
    for found, chosen in zip(ActivationEntropy(similarity, top)(weights), images, strict=True):
        used = set(top[chosen].flatten().tolist())
        expected = [plain_entropy(similarity[chosen, idx].tolist(), scale[idx], 10) for idx in used]
        assert found == pytest.approx(np.mean(expected))


def test_entropy_of_even_similarities_may_exceed_one_bit():
    similarity = torch.arange(1, 11)[:, None] / 10 - 0.05
    similarity[-1] = 1.0
    assert ActivationEntropy(similarity, torch.zeros(10, 1, dtype=torch.long)).value(10) == pytest.approx(math.log2(10))


def test_bins_with_less_than_a_thousandth_of_the_images_do_not_count():
    similarity = torch.ones(2000, 1)
    similarity[0] = 0.0
    of_few = ActivationEntropy(similarity, torch.zeros(2000, 1, dtype=torch.long)).value(2000)
    assert of_few == pytest.approx(-1999 / 2000 * math.log2(1999 / 2000))


def test_similarities_that_are_all_0_have_no_entropy():
    similarity, top = torch.zeros(4, 2), torch.tensor([[0]] * 4)
    similarity[:, 1] = 1.0
    found = ActivationEntropy(similarity, top).of_prototypes(np.ones((1, 4)))[0]
    assert np.isnan(found[0])
    assert found[1] == 0


def test_uses_are_counted_per_prototype_and_unused_ones_have_a_share():
    top = torch.tensor([[0, 3], [3, 1], [3, 0]])
    assert usage(top, 5).tolist() == [2, 1, 0, 3, 0]
    statistic = Unused(top, 5)
    assert statistic.value(3) == 2 / 5
    np.testing.assert_allclose(statistic(np.array([[1.0, 0, 0], [0, 3, 0], [0, 0, 1]])), [3 / 5, 3 / 5, 3 / 5])


# --- declarations


def an_evidence(images=slice(None)):
    similarity, top = some_uses()
    maps = random(NUM_IMAGES, NUM_RANKS, 6, 5)
    look = Look(
        logits=random(NUM_IMAGES, 2)[images],
        similarity=similarity[images],
        elements=random(NUM_IMAGES, NUM_RANKS, 8)[images],
        centre=random(NUM_IMAGES, NUM_RANKS, 2)[images],
        maps=maps[images],
        salient=(maps > 0.6)[images],
    )
    return Evidence(
        labels=torch.arange(NUM_IMAGES)[images] % 3,
        look=look,
        top=top[images],
        vectors=vectors(NUM_PROTOTYPES, 4)[top][images],
        features=vectors(NUM_IMAGES, NUM_RANKS, 4)[images],
    )


def test_an_image_has_the_same_values_alone_as_among_others():
    of_images = [declared for declared in METRICS if declared.of_image is not None]
    assert len(of_images) == 7
    for declared in of_images:
        alone = torch.cat([declared.of_image(an_evidence(slice(image, image + 1))) for image in range(NUM_IMAGES)])
        torch.testing.assert_close(alone, declared.of_image(an_evidence()))


def test_metrics_are_declared_on_the_evidence_they_are_about():
    evidence = an_evidence()
    look, top = evidence.look, evidence.top
    expected = {
        "saliency_location_change": intra_mask_change(look.salient),
        "saliency_value_change": intra_activation_change(look.maps * look.salient),
        "location_change": intra_point_distance(look.centre) / 2,
        "similarity_change": intra_relative_difference(look.similarity.gather(1, top)),
        "element_location_change": intra_mask_change(similar_elements(look)),
        "intra_prototype_distance": intra_distance(evidence.vectors),
        "inter_prototype_distance": InterDistance(evidence.vectors, evidence.labels).value(NUM_IMAGES),
        "intra_feature_distance": intra_distance(evidence.features),
        "inter_feature_distance": InterDistance(evidence.features, evidence.labels).value(NUM_IMAGES),
        "activation_entropy": ActivationEntropy(look.similarity, top).value(NUM_IMAGES),
        "unused": 2 / NUM_PROTOTYPES if len(set(top.flatten().tolist())) == 5 else 1 / NUM_PROTOTYPES,
    }
    assert [declared.key for declared in METRICS] == list(expected)
    for declared in METRICS:
        if declared.of_image is not None:
            torch.testing.assert_close(declared.of_image(evidence), expected[declared.key])
        else:
            assert declared.of_set(evidence).value(NUM_IMAGES) == pytest.approx(expected[declared.key])
