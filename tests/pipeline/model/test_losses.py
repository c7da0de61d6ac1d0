import math

import numpy as np
import pytest
import torch

from pipeline.model.losses import (
    cluster_loss,
    diversity_loss,
    finetune_loss,
    foreign_weight_l1,
    joint_loss,
    separation_loss,
)
from pipeline.model.prototypes import log_similarity, squared_distance
from pipeline.params import LossParams

NO_WEIGHT = {"cross_entropy": 0.0, "cluster": 0.0, "separation": 0.0, "diversity": 0.0}


@pytest.fixture
def problem():
    """Five images, seven prototypes that three classes own in unequal numbers, out of order."""
    rng = np.random.default_rng(0)
    return {
        "distance": torch.from_numpy(rng.random((5, 7))),
        "labels": torch.tensor([2, 0, 1, 1, 2]),
        "prototype_labels": torch.tensor([0, 1, 2, 2, 0, 2, 1]),
        "prototypes": torch.from_numpy(rng.random((7, 4))),
        "logits": torch.from_numpy(rng.normal(size=(5, 3))),
    }


def test_cluster_and_separation_are_mean_nearest_distances_to_own_and_to_other_classes(problem):
    own, foreign = [], []
    for bag, label in enumerate(problem["labels"].tolist()):
        mine = [
            problem["distance"][bag, idx].item() for idx, of in enumerate(problem["prototype_labels"]) if of == label
        ]
        others = [
            problem["distance"][bag, idx].item() for idx, of in enumerate(problem["prototype_labels"]) if of != label
        ]
        own.append(min(mine))
        foreign.append(min(others))
    arguments = (problem["distance"], problem["labels"], problem["prototype_labels"])
    assert cluster_loss(*arguments).item() == pytest.approx(sum(own) / 5)
    assert separation_loss(*arguments).item() == pytest.approx(sum(foreign) / 5)


def test_distances_beyond_the_feature_dimension_do_not_saturate():
    distance = torch.tensor([[1000.0, 3000.0]], requires_grad=True)
    labels = torch.tensor([0, 1])
    cluster_loss(distance, labels[:1], labels).backward()
    assert distance.grad.tolist() == [[1.0, 0.0]]


def test_diversity_takes_the_plain_sum_over_ordered_pairs_where_classes_own_different_numbers(problem):
    by_image = []
    for label in problem["labels"].tolist():
        own = [
            vector for vector, of in zip(problem["prototypes"], problem["prototype_labels"], strict=True) if of == label
        ]
        total = sum(math.sqrt(((one - other) ** 2).sum().item()) for one in own for other in own)
        by_image.append(math.exp(-0.001 * total))
    result = diversity_loss(problem["prototypes"], problem["labels"], problem["prototype_labels"])
    assert result.item() == pytest.approx(np.mean(by_image), rel=1e-12)


def test_diversity_of_single_prototypes_is_one():
    result = diversity_loss(torch.rand(3, 4), torch.tensor([0, 2]), torch.tensor([0, 1, 2]))
    assert result.item() == 1.0


def test_coincident_prototypes_have_a_finite_gradient_and_others_are_still_pushed_apart():
    prototypes = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.2, 0.5]], requires_grad=True)
    labels = torch.zeros(3, dtype=torch.long)
    diversity_loss(prototypes, labels[:1], labels).backward()
    assert prototypes.grad.isfinite().all()
    # a step against the gradient takes the third away from the two at its right
    assert prototypes.grad[2, 0] > 0
    assert prototypes.grad[0, 0] < 0
    assert torch.equal(prototypes.grad[0], prototypes.grad[1])


def joint_terms(problem, prototypes, **settings):
    features = torch.from_numpy(np.random.default_rng(1).random((5, 4)))
    distance = squared_distance(features, prototypes)
    logits = log_similarity(distance, 1e-4) @ torch.nn.functional.one_hot(problem["prototype_labels"]).double()
    return joint_loss(
        logits,
        distance,
        prototypes,
        problem["labels"],
        problem["prototype_labels"],
        class_weights=None,
        **settings,
    )


@pytest.mark.parametrize("term", list(NO_WEIGHT))
def test_every_weighted_term_of_the_joint_loss_gives_the_prototypes_a_gradient(problem, term):
    prototypes = problem["prototypes"].requires_grad_()
    gradients = []
    for weight in (1.0, 2.0):
        terms = joint_terms(problem, prototypes, weights=LossParams(**NO_WEIGHT | {term: weight}))
        gradients += torch.autograd.grad(terms["loss"], prototypes)
    assert gradients[0].abs().max() > 1e-6
    torch.testing.assert_close(gradients[1], 2 * gradients[0])


def test_a_constant_diversity_term_has_its_value_and_no_gradient(problem):
    prototypes = problem["prototypes"].requires_grad_()
    plain, constant = (
        joint_terms(problem, prototypes, weights=LossParams(diversity=weight), constant_diversity=True)
        for weight in (0.0, 50.0)
    )
    assert constant["diversity"].item() == pytest.approx(
        joint_terms(problem, prototypes, weights=LossParams())["diversity"].item()
    )
    assert constant["loss"].item() > plain["loss"].item()
    gradients = [torch.autograd.grad(terms["loss"], prototypes)[0] for terms in (plain, constant)]
    assert torch.equal(gradients[0], gradients[1])


def test_saturating_terms_end_at_the_largest_distance_and_stop_pulling(problem):
    prototypes = (problem["prototypes"] + 10).requires_grad_()
    terms = joint_terms(problem, prototypes, weights=LossParams(**NO_WEIGHT | {"cluster": 1.0}), largest_distance=4.0)
    assert terms["cluster"].item() == terms["separation"].item() == 4.0
    (gradient,) = torch.autograd.grad(terms["loss"], prototypes)
    assert not gradient.any()


def test_the_joint_loss_is_the_weighted_sum_of_its_terms_with_separation_subtracted(problem):
    weights = LossParams(cross_entropy=2.0, cluster=3.0, separation=5.0, diversity=7.0)
    class_weights = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    terms = joint_loss(class_weights=class_weights, weights=weights, **problem)
    log_probability = torch.log_softmax(problem["logits"], dim=1)
    weight_of_image = class_weights[problem["labels"]]
    picked = log_probability[torch.arange(5), problem["labels"]]
    cross_entropy = -(weight_of_image * picked).sum() / weight_of_image.sum()
    assert terms["cross_entropy"].item() == pytest.approx(cross_entropy.item())
    expected = 2 * cross_entropy + 3 * terms["cluster"] - 5 * terms["separation"] + 7 * terms["diversity"]
    assert terms["loss"].item() == pytest.approx(expected.item())


def test_foreign_weights_are_those_to_other_classes():
    last_layer = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, 0.5]])
    assert foreign_weight_l1(last_layer, torch.tensor([0, 1, 1])).item() == 2 + 3 + 4


def test_the_finetune_loss_adds_the_weighted_foreign_weights(problem):
    last_layer = torch.from_numpy(np.random.default_rng(2).normal(size=(3, 7)))
    terms = finetune_loss(
        problem["logits"], last_layer, problem["labels"], problem["prototype_labels"], class_weights=None, l1=0.25
    )
    expected = torch.nn.functional.cross_entropy(problem["logits"], problem["labels"])
    expected = expected + 0.25 * foreign_weight_l1(last_layer, problem["prototype_labels"])
    assert terms["loss"].item() == pytest.approx(expected.item())
