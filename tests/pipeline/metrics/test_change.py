import math

import numpy as np
import pytest
import torch

from pipeline.metrics.change import (
    activation_change,
    box_iou,
    change_metrics,
    mask_iou,
    mean_over_ranks,
    point_distance,
    rank_change,
    rank_of,
    relative_change,
    relevance,
    saliency_location_change,
    similar_elements,
    similarity_to,
)
from pipeline.metrics.interface import Evidence, Look
from pipeline.metrics.maps import box_masks

NUM_IMAGES, NUM_RANKS, NUM_PROTOTYPES = 4, 3, 7


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def a_look(seed, *, ranks=()):
    maps = random(NUM_IMAGES, NUM_RANKS, 6, 5, seed=seed)
    return Look(
        logits=random(NUM_IMAGES, *ranks, 5, seed=seed),
        similarity=random(NUM_IMAGES, *ranks, NUM_PROTOTYPES, seed=seed),
        elements=random(NUM_IMAGES, NUM_RANKS, 8, seed=seed + 1),
        centre=random(NUM_IMAGES, NUM_RANKS, 2, seed=seed),
        maps=maps,
        salient=maps > 0.6,
    )


def an_evidence(**others):
    first = a_look(0)
    top = first.similarity.sort(dim=1, descending=True).indices[:, :NUM_RANKS]
    return Evidence(labels=torch.zeros(NUM_IMAGES, dtype=torch.long), look=first, top=top, **others)


def measured(evidence, after):
    return {
        declared.key: declared.of_image(evidence) for declared in change_metrics("family", "changed", after, "somehow")
    }


def test_iou_of_masks_is_that_of_plain_loops():
    one, other = random(2, 3, 5, 4, seed=0) > 0.5, random(2, 3, 5, 4, seed=1) > 0.5
    for place in np.ndindex(2, 3):
        first = {tuple(pixel) for pixel in one[place].nonzero().tolist()}
        second = {tuple(pixel) for pixel in other[place].nonzero().tolist()}
        assert mask_iou(one, other)[place] == pytest.approx(len(first & second) / len(first | second))


def test_two_empty_masks_have_no_iou_and_one_has_none_in_common():
    empty, full = torch.zeros(1, 2, 2, dtype=torch.bool), torch.ones(1, 2, 2, dtype=torch.bool)
    assert mask_iou(empty, empty).isnan().all()
    assert mask_iou(empty, full).tolist() == [0]


def test_iou_of_boxes_is_that_of_the_masks_they_fill():
    corners = np.sort(np.random.default_rng(0).integers(0, 9, size=(2, 200, 2, 2)), axis=2).reshape(2, 200, 4)
    one, other = torch.from_numpy(corners)
    filled = (box_masks(boxes, height=9, width=9) for boxes in (one, other))
    expected = mask_iou(*filled)
    assert (expected == 0).sum() > 20
    torch.testing.assert_close(box_iou(one, other), expected, equal_nan=True)


def test_boxes_apart_in_both_directions_share_nothing():
    assert box_iou(torch.tensor([0, 0, 2, 2]), torch.tensor([5, 5, 9, 9])) == 0


def test_activation_change_compares_sorted_values():
    one, other = random(2, 4, 3, seed=0), random(2, 4, 3, seed=1)
    for place in range(2):
        first, second = sorted(one[place].flatten().tolist()), sorted(other[place].flatten().tolist())
        smaller = sum(map(min, zip(first, second, strict=True)))
        larger = sum(map(max, zip(first, second, strict=True)))
        assert activation_change(one, other)[place] == pytest.approx(1 - smaller / larger)


def test_activation_change_does_not_see_where_values_are():
    maps = random(3, 6, 6)
    assert activation_change(maps, maps.flip(-1)).tolist() == [0, 0, 0]


def test_activation_change_of_masks_is_that_of_their_ones_and_zeros():
    one, other = random(5, 6, 4, seed=0) > 0.7, random(5, 6, 4, seed=1) > 0.3
    torch.testing.assert_close(activation_change(one, other), activation_change(one.double(), other.double()))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_two_maps_of_zeros_have_no_activation_change(dtype):
    nothing = torch.zeros(1, 3, 3, dtype=dtype)
    assert activation_change(nothing, nothing).isnan().all()


def test_elements_that_are_absent_in_both_do_not_count():
    one, other = random(2, 1, 5, seed=0), random(2, 1, 5, seed=1)
    absent = torch.full((2, 1, 3), torch.nan)
    padded = activation_change(torch.cat([absent, one], dim=2), torch.cat([absent, other], dim=2))
    torch.testing.assert_close(padded, activation_change(one, other))


def test_points_are_apart_by_rows_and_columns():
    assert point_distance(torch.tensor([[1, 5]]), torch.tensor([[4, 3]])).tolist() == [5]


def test_a_change_is_relative_to_what_was_before():
    change = relative_change(torch.tensor([2.0, 4.0, 0.0, 0.0]), torch.tensor([3.0, 1.0, 1.0, 0.0]))
    assert change[:3].tolist() == [0.5, 0.75, math.inf]
    assert change[3].isnan()


@pytest.mark.parametrize("with_ranks", [False, True])
def test_ranks_are_places_in_a_stable_order(with_ranks):
    scores = (random(5, *([3] if with_ranks else []), 9) * 4).round()  # with ties
    wanted = torch.randint(9, (5, 3), generator=torch.Generator().manual_seed(0))
    for image, rank in np.ndindex(5, 3):
        own = scores[image, rank] if with_ranks else scores[image]
        order = sorted(range(9), key=lambda item: (-own[item].item(), item))
        assert rank_of(scores, wanted)[image, rank] == order.index(wanted[image, rank].item())


def test_prototypes_that_stay_the_first_in_their_order_do_not_move():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    assert rank_change(torch.tensor([[1, 3, 2]]), scores).tolist() == [[0, 0, 0]]
    assert rank_change(torch.tensor([[0, 1, 3]]), scores).tolist() == [[3, 1, 1]]


def test_ranks_without_a_value_do_not_enter_the_mean():
    means = mean_over_ranks(torch.tensor([[1.0, torch.nan, 3.0], [torch.nan] * 3, [math.inf, 0.0, 0.0]]))
    assert means[0] == 2
    assert means[1].isnan()
    assert means[2] == math.inf


def test_nothing_changes_from_a_look_to_itself():
    evidence = an_evidence()
    changes = measured(evidence, lambda own: own.look)
    assert len(changes) == 7
    for key, change in changes.items():
        assert change.tolist() == [0] * NUM_IMAGES, key


@pytest.mark.parametrize("ranks", [(), (NUM_RANKS,)])
def test_changes_are_those_of_plain_loops(ranks):
    evidence = an_evidence(changed=a_look(5, ranks=ranks))
    before, after, top = evidence.look, evidence.changed, evidence.top
    expected = {key: np.zeros((NUM_IMAGES, NUM_RANKS)) for key in measured(evidence, lambda own: own.changed)}
    for image, rank in np.ndindex(NUM_IMAGES, NUM_RANKS):
        place, prototype = (image, rank), int(top[image, rank])
        scores = after.similarity[place] if ranks else after.similarity[image]
        old, new = before.similarity[image, prototype], scores[prototype]
        (one, other), (element, new_element) = (
            [getattr(look, name)[place] for look in (before, after)] for name in ("maps", "elements")
        )
        salient, new_salient = one > 0.6, other > 0.6
        in_half, new_in_half = (own > own.min() + 0.5 * (own.max() - own.min()) for own in (element, new_element))
        moved = (scores > new).sum() - rank
        values = {
            "saliency_location_change": 1 - (salient & new_salient).sum() / (salient | new_salient).sum(),
            "saliency_value_change": 1 - ratio_of_sorted(one * salient, other * new_salient),
            "location_change": (before.centre[place] - after.centre[place]).abs().sum() / 2,
            "similarity_change": (old - new).abs() / old,
            "rank_change": moved.abs(),
            "element_location_change": 1 - (in_half & new_in_half).sum() / (in_half | new_in_half).sum(),
            "element_value_change": 1 - ratio_of_sorted(element, new_element),
        }
        for key, value in values.items():
            expected[key][place] = value
    for key, change in measured(evidence, lambda own: own.changed).items():
        np.testing.assert_allclose(change, expected[key].mean(axis=1), rtol=1e-5, err_msg=key)


def ratio_of_sorted(one, other):
    first, second = one.flatten().sort().values, other.flatten().sort().values
    return torch.minimum(first, second).sum() / torch.maximum(first, second).sum()


def test_only_metrics_of_saliency_need_maps():
    needs = {
        declared.key: declared.needs for declared in change_metrics("family", "noised", lambda own: own.noised, "so")
    }
    with_maps = {key for key, needed in needs.items() if "maps" in needed}
    assert with_maps == {"saliency_location_change", "saliency_value_change"}
    assert all({"prototypes", "noised"} <= set(needed) for needed in needs.values())


def test_maps_count_where_they_are_salient():
    look = a_look(0)
    assert torch.equal(relevance(look) != 0, look.salient)
    assert torch.equal(relevance(look)[look.salient], look.maps[look.salient])


def test_absent_elements_are_not_similar():
    look = a_look(0)
    look.elements[:, :, 5:] = torch.nan
    similar = similar_elements(look)
    assert similar.shape == (NUM_IMAGES, NUM_RANKS, 1, 8)
    assert not similar[..., 5:].any()
    assert similar[..., :5].any(dim=(2, 3)).all()


def test_where_ranks_have_images_of_their_own_their_similarity_is_looked_up_there():
    top = torch.tensor([[4, 2]])
    scores = torch.arange(14.0).reshape(1, 2, 7)
    look = Look(logits=scores, similarity=scores, elements=scores, centre=torch.zeros(1, 2, 2))
    assert similarity_to(look, top).tolist() == [[4, 9]]


def test_masks_that_are_empty_before_and_after_have_no_location_change():
    nothing = Look(
        logits=torch.zeros(1, 2),
        similarity=torch.zeros(1, 2),
        elements=torch.zeros(1, 1, 2),
        centre=torch.zeros(1, 1, 2),
        salient=torch.zeros(1, 1, 3, 3, dtype=torch.bool),
    )
    assert saliency_location_change(nothing, nothing).isnan().all()
