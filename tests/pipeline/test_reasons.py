import math

import pytest
import torch

from pipeline.model.network import BagOutput
from pipeline.reasons import explain_outputs
from pipeline.training.embedding import outputs
from tests.small_networks import HEADS_WITH_PROTOTYPES, LENGTHS, encoded_of, network_of

TOP = 3


def explained(network, labels, top=TOP):
    encoded = encoded_of(network)
    output = outputs(network, encoded, LENGTHS)
    per_view = network.elements_per_view(encoded)
    found = explain_outputs(output, network.class_weights(), labels, elements_per_view=per_view, top=top)
    return output, found, per_view


@pytest.mark.parametrize("head", HEADS_WITH_PROTOTYPES)
def test_reasons_are_what_a_loop_over_prototypes_finds(head):
    network = network_of(head)
    with torch.no_grad():
        network.class_weights().add_(torch.randn(3, 6, generator=torch.Generator().manual_seed(3)))
    weights = network.class_weights()
    labels = [0, 1, 2, None]
    output, found, per_view = explained(network, labels)
    assert len(found) == len(LENGTHS)
    for bag, (explanation, label) in enumerate(zip(found, labels, strict=True)):
        scores = output.logits[bag].tolist()
        predicted = scores.index(max(scores))
        assert explanation.predicted.label == predicted == explanation.ranking[0][0]
        assert (explanation.true is None) == (label is None or label == predicted)
        for score in explanation.class_scores:
            products = [float(output.similarity[bag, p] * weights[score.label, p]) for p in range(6)]
            order = sorted(range(6), key=lambda p: (-products[p], p))[:TOP]
            assert [reason.prototype_idx for reason in score.reasons] == order
            assert score.total == pytest.approx(sum(products), abs=1e-5)
            assert sum(reason.contribution for reason in score.reasons) + score.rest == pytest.approx(score.total)
            for reason in score.reasons:
                assert reason.contribution == pytest.approx(reason.similarity * reason.weight)
                element = int(output.element[bag, reason.prototype_idx])
                assert (reason.view_idx, reason.place_idx or 0) == divmod(element, per_view)
                assert (reason.place_idx is None) == (per_view == 1)
                assert reason.view_idx < LENGTHS[bag]


@pytest.mark.parametrize("head", HEADS_WITH_PROTOTYPES)
def test_the_total_is_the_score_or_what_the_score_grows_with(head):
    network = network_of(head)
    output, found, _ = explained(network, [None] * len(LENGTHS))
    for bag, explanation in enumerate(found):
        logit = float(output.logits[bag, explanation.predicted.label])
        total = explanation.predicted.total
        assert logit == pytest.approx(math.log1p(total**2) if head == "pipnet" else total, abs=1e-5)


def test_probabilities_are_those_of_the_softmax_and_classes_are_ranked_by_them():
    output = BagOutput(
        logits=torch.tensor([[0.0, 2.0, 1.0, 2.0]]).log(),
        similarity=torch.ones(1, 2),
        distance=torch.zeros(1, 2),
        element=torch.zeros(1, 2, dtype=torch.long),
    )
    (found,) = explain_outputs(output, torch.ones(4, 2), [2], elements_per_view=1, top=9, num_ranked=3)
    assert [label for label, _ in found.ranking] == [1, 3, 2]  # equal ones by label
    assert [probability for _, probability in found.ranking] == pytest.approx([0.4, 0.4, 0.2])
    assert found.true.label == 2
    assert found.true.probability == pytest.approx(0.2)
    assert [reason.prototype_idx for reason in found.true.reasons] == [0, 1]  # no more than there are


def test_what_is_asked_beside_an_image_does_not_change_its_explanation():
    network = network_of("protomask")
    _, together, _ = explained(network, [0, 1, 2, 0])
    encoded = encoded_of(network)
    alone = outputs(network, encoded[: LENGTHS[0]], LENGTHS[:1])
    (found,) = explain_outputs(alone, network.class_weights(), [0], elements_per_view=1, top=TOP)
    assert [reason.prototype_idx for reason in found.predicted.reasons] == [
        reason.prototype_idx for reason in together[0].predicted.reasons
    ]
    assert found.predicted.total == pytest.approx(together[0].predicted.total, abs=1e-5)
