import math

import numpy as np
import pytest
import torch

from pipeline.metrics.complexity import (
    METRICS,
    Consistency,
    background_overlap,
    covered_parts,
    inside_outside_relevance,
    object_iou,
    object_overlap,
    outside_inside_ratio,
    parts_in_boxes,
    salient_area,
)
from pipeline.metrics.interface import Evidence, Look

NUM_PROTOTYPES = 6


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_the_salient_area_is_the_share_of_pixels():
    salient = random(4, 3, 6, 5) > 0.5
    for image, rank in np.ndindex(4, 3):
        assert salient_area(salient)[image, rank] == pytest.approx(int(salient[image, rank].sum()) / 30)


def test_overlaps_are_those_of_plain_loops():
    salient, objects = random(4, 3, 6, 5) > 0.5, random(4, 6, 5, seed=1) > 0.5
    for image, rank in np.ndindex(4, 3):
        found = {tuple(pixel) for pixel in salient[image, rank].nonzero().tolist()}
        wanted = {tuple(pixel) for pixel in objects[image].nonzero().tolist()}
        for measured, expected in (
            (object_overlap, len(found & wanted) / len(wanted)),
            (background_overlap, len(found - wanted) / len(found)),
            (object_iou, len(found & wanted) / len(found | wanted)),
        ):
            assert measured(salient, objects)[image, rank] == pytest.approx(expected)


def test_overlaps_of_nothing_are_0():
    nothing = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    for measured in (object_overlap, background_overlap, object_iou):
        assert measured(nothing, nothing[:, 0]).tolist() == [[0]]


def test_relevances_are_those_of_plain_loops():
    maps = random(4, 3, 6, 5) * (random(4, 3, 6, 5, seed=2) > 0.4)
    objects = random(4, 6, 5, seed=1) > 0.5
    for image, rank in np.ndindex(4, 3):
        values = maps[image, rank]
        inside = [
            v for v, is_in in zip(values.flatten().tolist(), objects[image].flatten(), strict=True) if is_in and v
        ]
        outside = [
            v for v, is_in in zip(values.flatten().tolist(), objects[image].flatten(), strict=True) if not is_in and v
        ]
        difference = (np.mean(inside) - np.mean(outside)) / values.max().item()
        assert inside_outside_relevance(maps, objects)[image, rank] == pytest.approx(difference)
        ratio = np.mean(outside) / np.mean(inside)
        assert outside_inside_ratio(maps, objects)[image, rank] == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("columns", "difference", "ratio"), [([0], 1, 0), ([2], -1, math.inf), ([0, 2], 0, 1), ([], 0, math.inf)]
)
def test_relevance_of_a_mask_says_only_on_which_sides_it_is(columns, difference, ratio):
    mask, objects = torch.zeros(1, 1, 2, 3, dtype=torch.bool), torch.zeros(1, 2, 3, dtype=torch.bool)
    objects[..., 0] = True
    mask[..., columns] = True
    assert inside_outside_relevance(mask, objects).item() == difference
    assert outside_inside_ratio(mask, objects).item() == ratio


def test_object_masks_of_another_frame_are_refused():
    with pytest.raises(ValueError, match=r"\(6, 5\).*\(7, 5\)"):
        object_overlap(torch.ones(2, 3, 7, 5, dtype=torch.bool), torch.ones(2, 6, 5, dtype=torch.bool))


def test_a_part_is_covered_where_its_pixel_is_salient():
    salient = torch.zeros(1, 2, 4, 6, dtype=torch.bool)
    salient[0, 0, 3, 5] = salient[0, 1, 1, 2] = True
    parts = torch.tensor([[[5.9, 3.9], [2.0, 1.0], [1.999, 1.0], [5.0, 0.0]]])
    assert covered_parts(salient, parts).tolist() == [[[True, False, False, False], [False, True, False, False]]]


def test_parts_that_are_absent_or_outside_of_the_frame_are_never_covered():
    everything = torch.ones(1, 2, 4, 6, dtype=torch.bool)
    parts = torch.tensor([[[math.nan, math.nan], [-1.0, -1.0], [-0.1, 2.0], [6.0, 0.0], [0.0, 4.0], [0.0, 0.0]]])
    assert covered_parts(everything, parts)[0, 1].tolist() == [False] * 5 + [True]


def test_boxes_hold_parts_up_to_their_far_sides():
    boxes = torch.tensor([[[1, 2, 4, 5]]])
    parts = torch.tensor([[[1.0, 2.0], [3.9, 4.9], [4.0, 3.0], [0.9, 3.0], [math.nan, math.nan]]])
    assert parts_in_boxes(boxes, parts).tolist() == [[[True, True, False, False, False]]]


def plain_consistency(top, covered):
    of_prototype = []
    for prototype in sorted(set(top.ravel().tolist())):
        used = [(image, rank) for image, rank in np.argwhere(top == prototype)]
        shares = [
            sum(covered[image, rank, part] for image, rank in used) / len(used) for part in range(covered.shape[2])
        ]
        ever = [share for share in shares if share > 0]
        of_prototype.append(np.mean(ever) if ever else 0.0)
    return np.mean(of_prototype)


def some_uses(num_images=15):
    rng = np.random.default_rng(0)
    top = np.stack([rng.permutation(NUM_PROTOTYPES)[:3] for _ in range(num_images)])
    covered = rng.random((num_images, 3, 4)) > 0.8
    covered[top == 2] = False  # never covers anything
    return top, covered


def test_consistency_is_that_of_plain_loops():
    top, covered = some_uses()
    assert Consistency(top, covered, NUM_PROTOTYPES).value(len(top)) == pytest.approx(plain_consistency(top, covered))


def test_consistency_of_a_resample_is_that_of_the_images_repeated():
    top, covered = some_uses()
    counts = np.random.default_rng(1).multinomial(len(top), np.full(len(top), 1 / len(top)), size=4)
    found = Consistency(top, covered, NUM_PROTOTYPES)(counts.astype(np.float64))
    for draw, of_draw in zip(found, counts, strict=True):
        images = np.repeat(np.arange(len(top)), of_draw)
        assert draw == pytest.approx(plain_consistency(top[images], covered[images]))


def test_without_images_there_is_no_consistency():
    top, covered = some_uses()
    assert np.isnan(Consistency(top, covered, NUM_PROTOTYPES)(np.zeros((1, len(top))))).all()


def an_evidence(images=slice(None)):
    maps, objects = random(5, 3, 6, 6), random(5, 6, 6, seed=1) > 0.5
    salient = maps > 0.5
    parts = 6 * random(5, 4, 2, seed=3)
    look = Look(
        logits=torch.zeros(5, 2)[images],
        similarity=torch.zeros(5, NUM_PROTOTYPES)[images],
        elements=torch.zeros(5, 3, 2)[images],
        centre=torch.zeros(5, 3, 2)[images],
        maps=maps[images],
        salient=salient[images],
        covered=covered_parts(salient, parts)[images],
    )
    return Evidence(
        labels=torch.zeros(5, dtype=torch.long)[images],
        look=look,
        top=torch.arange(3).repeat(5, 1)[images],
        object_mask=objects[images],
        parts=parts[images],
    )


def test_an_image_has_the_same_values_alone_as_among_others():
    of_images = [declared for declared in METRICS if declared.of_image is not None]
    assert len(of_images) == 6
    for declared in of_images:
        alone = torch.cat([declared.of_image(an_evidence(slice(image, image + 1))) for image in range(5)])
        torch.testing.assert_close(alone, declared.of_image(an_evidence()))


def test_graded_saliency_counts_only_where_it_is_salient():
    evidence = an_evidence()
    difference = next(declared for declared in METRICS if declared.key == "inside_outside_relevance")
    look = evidence.look
    expected = inside_outside_relevance(look.maps * look.salient, evidence.object_mask).mean(dim=1)
    torch.testing.assert_close(difference.of_image(evidence), expected)


def test_consistency_is_declared_from_the_parts_that_are_covered():
    evidence = an_evidence()
    declared = next(declared for declared in METRICS if declared.key == "consistency")
    expected = plain_consistency(evidence.top.numpy(), evidence.look.covered.numpy())
    assert declared.of_set(evidence).value(5) == pytest.approx(expected)
