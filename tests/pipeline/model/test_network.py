import numpy as np
import pytest
import torch

from pipeline.model.backbone import Backbone
from pipeline.model.blackbox import BlackBox
from pipeline.model.protomask import ProtoMask

PROTOTYPE_LABELS = torch.tensor([2, 0, 1, 1, 2])
LENGTHS = [3, 1, 2]
ONE_EACH = torch.tensor([1, 1])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = ProtoMask(
        Backbone("test_efficientnet"), dim=6, prototype_labels=PROTOTYPE_LABELS, num_classes=3, epsilon=1e-3
    )
    return network.eval()


def random_views(num, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (num, 3, 64, 64), dtype=np.uint8)
    return torch.from_numpy(pixels)


def test_the_network_starts_with_prototypes_in_the_unit_cube_and_weights_to_their_own_class(network):
    assert network.prototypes.shape == (5, 6)
    assert 0 <= network.prototypes.min() < network.prototypes.max() < 1
    assert network.last_layer.weight.tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [1, 0, 0, 0, 1]]
    assert network.last_layer.bias is None


def test_features_are_those_of_the_paper_convolution_first_then_pooling(network):
    views = random_views(4)
    with torch.no_grad():
        grid = network.backbone(views)
        weight = network.add_on.weight[:, :, None, None]
        convolved = torch.nn.functional.conv2d(grid, weight, network.add_on.bias)
        expected = torch.sigmoid(convolved.mean(dim=(2, 3)))
        features = network.features_of(network.encode(views))
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    assert ((features > 0) & (features < 1)).all()


def test_a_batch_of_bags_is_classified_as_a_plain_loop_does(network):
    views = random_views(6)
    with torch.no_grad():
        output = network(views, torch.tensor(LENGTHS))
        features = network.features_of(network.encode(views))
        start = 0
        for bag, length in enumerate(LENGTHS):
            for prototype, vector in enumerate(network.prototypes):
                distances = ((features[start : start + length] - vector) ** 2).sum(dim=1)
                least = distances.min()
                assert output.distance[bag, prototype].item() == pytest.approx(least.item(), rel=1e-5)
                assert output.element[bag, prototype].item() == start + distances.argmin().item()
                similarity = torch.log((least + 1) / (least + 1e-3))
                assert output.similarity[bag, prototype].item() == pytest.approx(similarity.item(), rel=1e-5)
            logits = network.last_layer.weight @ output.similarity[bag]
            torch.testing.assert_close(output.logits[bag], logits)
            start += length


def test_a_bag_gets_the_same_answer_alone_as_among_others(network):
    views = random_views(6)
    with torch.no_grad():
        together = network(views, torch.tensor(LENGTHS))
        start = 0
        for bag, length in enumerate(LENGTHS):
            alone = network(views[start : start + length], torch.tensor([length]))
            torch.testing.assert_close(alone.logits[0], together.logits[bag], atol=1e-4, rtol=1e-4)
            assert torch.equal(alone.element[0] + start, together.element[bag])
            start += length


def test_the_order_of_bags_is_the_order_of_answers(network):
    views = random_views(6)
    with torch.no_grad():
        forwards = network(views, torch.tensor(LENGTHS)).logits
        backwards = network(torch.cat(list(reversed(views.split(LENGTHS)))), torch.tensor(LENGTHS[::-1])).logits
    torch.testing.assert_close(backwards, forwards.flip(0), atol=1e-4, rtol=1e-4)


def test_prototype_labels_travel_with_the_weights(network):
    assert network.state_dict()["prototype_labels"].tolist() == PROTOTYPE_LABELS.tolist()


def test_a_black_box_starts_undecided_and_reads_whole_images():
    torch.manual_seed(0)
    blackbox = BlackBox(Backbone("test_efficientnet"), num_classes=3).eval()
    views = random_views(2)
    with torch.no_grad():
        assert blackbox.logits_of(blackbox.encode(views), ONE_EACH).tolist() == [[0, 0, 0], [0, 0, 0]]
        blackbox.classifier.weight.normal_()
        blackbox.classifier.bias.normal_()
        expected = blackbox.backbone.pooled(views) @ blackbox.classifier.weight.T + blackbox.classifier.bias
        torch.testing.assert_close(blackbox.logits_of(blackbox.encode(views), ONE_EACH), expected)
