import pytest
import torch

from pipeline.evaluation.looks import look_at, top_prototypes
from tests.small_networks import HEADS_WITH_PROTOTYPES, LENGTHS, encoded_of, network_of


def boxes_of():
    corner = torch.rand(sum(LENGTHS), 2, generator=torch.Generator().manual_seed(2)) / 2
    return torch.cat([corner, corner + 0.25], dim=1)


@pytest.mark.parametrize("head", HEADS_WITH_PROTOTYPES)
def test_a_look_at_many_bags_is_what_each_bag_gives_by_itself(head):
    network = network_of(head)
    encoded, boxes = encoded_of(network), boxes_of()
    seen, top = look_at(network, encoded, LENGTHS, boxes, 3)
    per_view = network.elements_per_view(encoded)
    assert seen.look.elements.shape == (4, 3, 4 * per_view)
    start = 0
    for bag, length in enumerate(LENGTHS):
        own, box = encoded[start : start + length], boxes[start : start + length]
        start += length
        with torch.no_grad():
            features = network.features_of(own)
            output = network.classify(features, torch.tensor([length * per_view]))
            similarity = network.similarities(features)
        assert torch.allclose(seen.look.logits[bag], output.logits[0], atol=1e-5)
        assert torch.allclose(seen.look.similarity[bag], output.similarity[0], atol=1e-5)
        for rank, prototype in enumerate(top[bag].tolist()):
            others = torch.cat([output.similarity[0, :prototype], output.similarity[0, prototype + 1 :]])
            assert int((others > output.similarity[0, prototype]).sum()) <= rank
            of_elements = seen.look.elements[bag, rank]
            assert torch.allclose(of_elements[: length * per_view], similarity[:, prototype], atol=1e-5)
            assert of_elements[length * per_view :].isnan().all()
            element = int(seen.element[bag, rank])
            assert element == int(similarity[:, prototype].argmax())
            assert torch.allclose(seen.features[bag, rank], features[element], atol=1e-5)
            view, place = divmod(element, per_view)
            assert int(seen.view[bag, rank]) == view
            side = int(per_view**0.5)
            x0, y0, x1, y1 = box[view].tolist()
            centre = (x0 + (place % side + 0.5) / side * (x1 - x0), y0 + (place // side + 0.5) / side * (y1 - y0))
            assert seen.look.centre[bag, rank].tolist() == pytest.approx(centre, abs=1e-6)


def test_looking_through_given_prototypes_does_not_rank_again():
    network = network_of("protomask")
    wanted = torch.tensor([[5, 0], [1, 1], [2, 3], [0, 5]])
    seen, top = look_at(network, encoded_of(network), LENGTHS, boxes_of(), wanted, num_elements=9)
    assert torch.equal(top, wanted)
    assert seen.look.elements.shape == (4, 2, 9)
    assert torch.allclose(seen.look.elements[1, 0], seen.look.elements[1, 1], equal_nan=True)


def test_the_steps_in_which_bags_are_taken_do_not_matter(monkeypatch):
    network = network_of("protopnet")
    encoded, boxes = encoded_of(network), boxes_of()
    at_once, _ = look_at(network, encoded, LENGTHS, boxes, 3)
    monkeypatch.setattr("pipeline.evaluation.looks._BAGS_PER_STEP", 1)
    one_by_one, _ = look_at(network, encoded, LENGTHS, boxes, 3)
    for name in ("logits", "similarity", "elements", "centre"):
        assert torch.allclose(getattr(one_by_one.look, name), getattr(at_once.look, name), atol=1e-5, equal_nan=True)
    assert torch.equal(one_by_one.element, at_once.element)


def test_equally_similar_prototypes_are_ranked_by_index():
    similarity = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_prototypes(similarity, 3).tolist() == [[1, 2, 3], [0, 1, 2]]
    assert top_prototypes(similarity, 9).shape == (2, 4)
