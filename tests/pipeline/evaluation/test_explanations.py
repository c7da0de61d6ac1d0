"""Evidence about changed and noised images, against each image by itself, from its pixels on."""

import numpy as np
import pytest
import torch

from pipeline.data.bags import BagReader
from pipeline.evaluation.explanations import Explanations, Subject, select
from pipeline.evaluation.images import TestImages
from pipeline.evaluation.perturbation import changed_views, noise_like
from pipeline.model.encoding import encode
from pipeline.model.files import load_model
from pipeline.params import EvaluateParams
from tests.pipeline.evaluation.test_run import CLASS_NAMES, LENGTHS, PART_NAMES, SIDE_PX, write_crops, write_models

PARAMS = EvaluateParams(top_prototypes=3, map_side_px=32, noise_std=0.4)
SAMPLED = frozenset({0, 3, 4, 9})


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explanations")
    write_crops(folder / "crops")
    network, _ = load_model(write_models(folder / "models") / "final")
    test = TestImages(folder / "dataset", BagReader(folder / "crops", "test"))
    images = range(len(LENGTHS))
    encoded = torch.cat(encode(network.eval(), [test.views(image) for image in images], "cpu"))
    return Subject(
        network=network,
        test=test,
        images=images,
        encoded=encoded,
        sampled=SAMPLED,
        params=PARAMS,
        seed=5,
        device="cpu",
    )


@pytest.fixture(scope="module", params=["mask", "view"])
def explained(request, subject):
    """Batches of one kind of saliency, as one evidence per image."""
    explanations = Explanations(subject, request.param, absent={})
    found = {}
    for batch in explanations.batches():
        for place, position in enumerate(batch.positions.tolist()):
            found[position] = select(batch.evidence, [place])
    return request.param, found, explanations


def plain_map(subject, kind, image, view):
    """Ask for each pixel of the frame which pixel of the view lies at its centre."""
    row = subject.test.view_rows(image)[view]
    mask = subject.test.reader.mask(row)
    frame = np.zeros((32, 32), dtype=bool)
    for y, x in np.ndindex(32, 32):
        column, line = (x + 0.5) * SIDE_PX / 32 - row.box.x0, (y + 0.5) * SIDE_PX / 32 - row.box.y0
        if 0 <= column < row.box.width_px and 0 <= line < row.box.height_px:
            at = int(line / row.box.height_px * len(mask)), int(column / row.box.width_px * len(mask))
            frame[y, x] = kind == "view" or mask[at]
    return frame


def plain_look(subject, pixels, top):
    """Similarities, nearest views and scores of one bag, straight from its pixels."""
    with torch.no_grad():
        output = subject.network(pixels, torch.tensor([len(pixels)]))
        features = subject.network.features_of(subject.network.encode(pixels))
        elements = subject.network.similarities(features)[:, top].T
    return output.logits[0], output.similarity[0], output.element[0][top], elements


def test_every_image_is_explained_and_only_sampled_ones_are_looked_at_again(explained):
    _, found, _ = explained
    assert sorted(found) == list(range(len(LENGTHS)))
    for position, evidence in found.items():
        assert evidence.look.maps.dtype == torch.bool
        assert (evidence.changed is not None) == (evidence.noised is not None) == (position in SAMPLED)
        assert ("changed" in evidence.absent) == (position not in SAMPLED)


def test_maps_objects_and_parts_of_each_image_are_those_of_the_plain_loops(subject, explained):
    kind, found, explanations = explained
    for image, evidence in found.items():
        for rank in range(3):
            expected = plain_map(subject, kind, image, int(explanations.seen.view[image, rank]))
            np.testing.assert_array_equal(evidence.look.maps[0, rank].numpy(), expected)
            for part, (x, y) in enumerate(evidence.parts[0].tolist()):
                is_covered = not np.isnan(x) and bool(expected[int(y), int(x)])
                assert bool(evidence.look.covered[0, rank, part]) == is_covered
        assert evidence.object_mask[0].sum() == 16 * 16
        assert evidence.object_mask[0, 8:24, 8:24].all()
    assert len(PART_NAMES) == 3


def test_a_changed_image_is_what_its_changed_pixels_say(subject, explained):
    kind, found, _ = explained
    for image in SAMPLED:
        evidence = found[image]
        key = subject.test.rows[image].image_key
        pixels = changed_views(subject.test.views(image), PARAMS.perturbation, seed=5, image_key=key)
        top = evidence.top[0]
        logits, similarity, nearest, elements = plain_look(subject, pixels, top)
        assert torch.allclose(evidence.changed.logits[0], logits, atol=1e-4)
        assert torch.allclose(evidence.changed.similarity[0], similarity, atol=1e-4)
        assert torch.allclose(evidence.changed.elements[0, :, : LENGTHS[image]], elements, atol=1e-4)
        for rank in range(3):
            expected = plain_map(subject, kind, image, int(nearest[rank]))
            np.testing.assert_array_equal(evidence.changed.maps[0, rank].numpy(), expected)


def test_a_noised_image_is_noised_outside_the_box_of_each_ranks_saliency(subject, explained):
    kind, found, _ = explained
    num_moved = 0
    for image in SAMPLED:
        evidence = found[image]
        views = subject.test.views(image)
        noise = noise_like(views, seed=5, image_key=subject.test.rows[image].image_key)
        top = evidence.top[0]
        for rank in range(3):
            rows, columns = np.nonzero(evidence.look.salient[0, rank].numpy())
            kept = (np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])) * SIDE_PX / 32
            pixels = views.float() / 255
            for view, row in enumerate(subject.test.view_rows(image)):
                for y, x in np.ndindex(SIDE_PX, SIDE_PX):
                    column = row.box.x0 + (x + 0.5) / SIDE_PX * row.box.width_px
                    line = row.box.y0 + (y + 0.5) / SIDE_PX * row.box.height_px
                    if not (kept[0] <= column < kept[2] and kept[1] <= line < kept[3]):
                        pixels[view, :, y, x] += 0.4 * noise[view, :, y, x]
            logits, similarity, nearest, elements = plain_look(subject, pixels.clamp(0, 1), top)
            assert torch.allclose(evidence.noised.logits[0, rank], logits, atol=1e-4)
            assert torch.allclose(evidence.noised.similarity[0, rank], similarity, atol=1e-4)
            assert torch.allclose(evidence.noised.elements[0, rank, : LENGTHS[image]], elements[rank], atol=1e-4)
            expected = plain_map(subject, kind, image, int(nearest[rank]))
            np.testing.assert_array_equal(evidence.noised.maps[0, rank].numpy(), expected)
            num_moved += not torch.allclose(similarity, evidence.look.similarity[0], atol=1e-4)
    assert num_moved > 3


def test_the_evidence_about_all_images_has_their_covered_parts_and_no_maps(explained):
    _, found, explanations = explained
    whole = explanations.whole()
    assert whole.look.maps is None
    assert torch.equal(whole.look.covered, torch.cat([found[image].look.covered for image in range(len(LENGTHS))]))
    assert len(whole.labels) == len(LENGTHS)
    assert whole.last_layer.shape == (len(CLASS_NAMES), 8)


def test_the_sampled_images_by_themselves_are_explained_alike(subject, explained):
    kind, found, _ = explained
    alone = subject.of_sample()
    assert alone.images == sorted(SAMPLED)
    for batch in Explanations(alone, kind, absent={}).batches():
        for place, position in enumerate(batch.positions.tolist()):
            expected = found[alone.images[position]]
            evidence = select(batch.evidence, [place])
            assert torch.equal(evidence.look.maps, expected.look.maps)
            assert torch.allclose(evidence.noised.similarity, expected.noised.similarity, atol=1e-4)


def test_what_is_absent_is_not_looked_at(subject):
    explanations = Explanations(subject, "mask", absent={"changed": "no", "noised": "no"})
    batches = list(explanations.batches())
    assert all(batch.evidence.changed is None and batch.evidence.noised is None for batch in batches)
    assert all(batch.evidence.absent["changed"] == "no" for batch in batches)


def test_altered_maps_are_what_everything_is_made_of(subject):
    explanations = Explanations(
        subject, "mask", absent={}, altered=lambda maps, keys: torch.zeros_like(maps), top=torch.zeros(11, 2).long()
    )
    for batch in explanations.batches():
        assert not batch.evidence.look.salient.any()
        assert not batch.evidence.look.covered.any()
        assert torch.equal(batch.evidence.top, torch.zeros(len(batch.positions), 2).long())
