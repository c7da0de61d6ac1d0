"""Adapters of the network, its losses and the projection."""

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.metrics.compactness import global_size, negative_positive_ratio, sparsity
from pipeline.model.backbone import Backbone
from pipeline.model.losses import finetune_loss, joint_loss
from pipeline.model.network import BagOutput
from pipeline.model.protomask import ProtoMask
from pipeline.model.prototypes import log_similarity, squared_distance
from pipeline.params import LossParams
from pipeline.training.nearest import EmbeddedBag
from pipeline.training.projection import project
from pipeline.training.pruning import prune
from tests.conformance.answers import Answer, Deviating, Lacking, Translated, adapter
from tests.conformance.vectors import Case

AUTHORS_EPSILON = 1e-14
# below, rounding in the reference's single precision is no small part of the distance, and moves the similarity
RELIABLE_DISTANCE = 1e-3
HANGING_ON_SIMILARITY = frozenset(
    [
        "logits",
        "explain_logits",
        "explain_similarity",
        "classification_loss",
        "loss",
        "grad_prototypes",
        "grad_last_layer",
    ]
)
HANGING_ON_THE_CUT = frozenset(["cluster_cost", "separation_cost", "loss", "grad_prototypes"])


class _NoBackbone(Backbone):
    """Stands where features are given and nothing is embedded."""

    def __init__(self, num_channels: int) -> None:
        nn.Module.__init__(self)
        self.num_channels = num_channels


def _network(case: Case) -> ProtoMask:
    prototypes, last_layer, identity = (
        torch.from_numpy(case.inputs[name]).float() for name in ("prototypes", "last_layer", "identity")
    )
    network = ProtoMask(
        _NoBackbone(prototypes.shape[1]),
        dim=prototypes.shape[1],
        prototype_labels=identity.argmax(dim=1),
        num_classes=len(last_layer),
        epsilon=AUTHORS_EPSILON,
    )
    with torch.no_grad():
        network.prototypes.copy_(prototypes)
        network.last_layer.weight.copy_(last_layer)
    return network


@adapter("functional/l2conv.py", "L2SquaredConv2d.forward")
def distances(case: Case) -> Answer:
    distance = squared_distance(*(torch.from_numpy(case.inputs[name]) for name in ("z", "prototypes")))
    return {"d2": distance, "similarity": log_similarity(distance, AUTHORS_EPSILON)}


@adapter("functional/activation.py", "LogActivation.forward")
def similarities(case: Case) -> Answer:
    return {"similarity": log_similarity(torch.from_numpy(case.inputs["d2"]), AUTHORS_EPSILON)}


@adapter("models/protomask/protomask.py", "compute_loss")
def classification_and_losses(case: Case) -> Answer:
    """Forward pass and loss of a batch whose bags have equally many views, with gradients."""
    network = _network(case)
    z = torch.from_numpy(case.inputs["z"]).float()  # [bag, view, dim]
    num_bags, num_views, dim = z.shape
    features = z.flatten(0, 1)
    output = network.classify(features, torch.full((num_bags,), num_views))
    by_view = squared_distance(features, network.prototypes).unflatten(0, (num_bags, num_views))
    terms = _finetune_terms if case.params["mode"] == "fine_tune" else _joint_terms
    results: dict[str, Tensor] = {
        "d2": by_view,
        "min_d2": output.distance,
        "logits": output.logits,
        "explain_logits": output.logits,
        "explain_similarity": log_similarity(by_view, AUTHORS_EPSILON).transpose(1, 2)[..., None],
        **terms(case, network, output),
    }
    answer: dict[str, object] = {name: value.detach() for name, value in results.items()}
    answer["explain_features"] = Lacking("features are inputs of the case, not results")
    if terms is _joint_terms and (output.distance > dim).any():
        how = "distances are cut at dim before the loss (DEVIATIONS.md A17)"
        answer |= {name: Translated(answer[name], how) for name in HANGING_ON_THE_CUT & answer.keys()}
    if by_view.min() < RELIABLE_DISTANCE:
        reason = "rounding and ties decide the similarity of a near-perfect match (DEVIATIONS.md distances)"
        answer |= {name: Deviating(results[name].detach(), reason) for name in HANGING_ON_SIMILARITY & results.keys()}
    return answer


def _finetune_terms(case: Case, network: ProtoMask, output: BagOutput) -> dict[str, Tensor]:
    terms = finetune_loss(
        output.logits,
        network.last_layer.weight,
        torch.from_numpy(case.inputs["labels"]).long(),
        network.prototype_labels,
        class_weights=_class_weights(case),
        l1=case.params["coefs"]["l1"],
    )
    [gradient] = torch.autograd.grad(terms["loss"], [network.last_layer.weight])
    return {
        "classification_loss": terms["cross_entropy"],
        "l1": terms["foreign_weight_l1"],
        "loss": terms["loss"],
        "grad_last_layer": gradient,
    }


def _joint_terms(case: Case, network: ProtoMask, output: BagOutput) -> dict[str, Tensor]:
    """The reference cuts distances at the number of features, the largest that the unit cube allows."""
    weights = case.params["coefs"]
    terms = joint_loss(
        output.logits,
        output.distance.clamp_max(network.prototypes.shape[1]),
        network.prototypes,
        torch.from_numpy(case.inputs["labels"]).long(),
        network.prototype_labels,
        class_weights=_class_weights(case),
        weights=LossParams(
            cross_entropy=weights["crs_ent"],
            cluster=weights["clst"],
            separation=weights["sep"],
            diversity=weights["div"],
        ),
    )
    [gradient] = torch.autograd.grad(terms["loss"], [network.prototypes])
    return {
        "classification_loss": terms["cross_entropy"],
        "div_loss": terms["diversity"],
        "cluster_cost": terms["cluster"],
        "separation_cost": terms["separation"],
        "loss": terms["loss"],
        "grad_prototypes": gradient,
    }


def _class_weights(case: Case) -> Tensor | None:
    weights = case.inputs.get("class_weights")
    return None if weights is None else torch.from_numpy(weights).float()


@adapter("models/protomask/protomask.py", "ProtoMask.global_explanation_size")
def weights_of_the_last_layer(case: Case) -> Answer:
    last_layer, epsilon = torch.from_numpy(case.inputs["last_layer"]), case.params["epsilon"]
    return {
        "global_size": global_size(last_layer, epsilon),
        "sparsity": sparsity(last_layer, epsilon),
        "npr": negative_positive_ratio(last_layer, epsilon),
    }


@adapter("models/protomask/push.py", "push_prototypes")
def projection(case: Case) -> Answer:
    """Image keys are made of the loader's positions, so that equal distances go to the same image under both rules."""
    z, labels = torch.from_numpy(case.inputs["z"]), case.inputs["labels"]
    prototype_labels = torch.arange(case.params["num_classes"]).repeat_interleave(case.params["prototypes_per_class"])
    result = project(
        torch.from_numpy(case.inputs["prototypes"]),
        prototype_labels,
        [EmbeddedBag(f"{position:08d}", int(labels[position]), z[position]) for position in range(len(z))],
        distinct_views=False,  # the reference lets prototypes share a view
    )
    sources = np.full((len(prototype_labels), 3), -1)
    distance = np.full(len(prototype_labels), np.nan)
    for idx, source in enumerate(result.sources):
        if source is not None:
            position = int(source.image_key)
            sources[idx] = case.inputs["img_ids"][position], position, source.view_idx
            distance[idx] = source.distance_before
    return {"prototypes": result.prototypes, "source": sources, "min_dist": distance}


@adapter("models/protomask/prune.py", "prune_prototypes")
def pruning(case: Case) -> Answer:
    """The vectors' images are in the loader's order, by which equal distances are decided under both rules."""
    z, labels = torch.from_numpy(case.inputs["z"]), case.inputs["labels"]
    identity = torch.from_numpy(case.inputs["identity"])  # [prototype, class]
    prototypes, last_layer = (torch.from_numpy(case.inputs[name]) for name in ("prototypes", "last_layer"))
    result = prune(
        prototypes,
        identity.argmax(dim=1),
        [EmbeddedBag(f"{position:08d}", int(labels[position]), z[position]) for position in range(len(z))],
        k=case.params["k"],
        threshold=case.params["prune_threshold"],
    )
    return {
        "kept": result.kept,
        "nearest_labels": result.nearest_labels,
        "prototypes": prototypes[result.kept],
        "last_layer": last_layer[:, result.kept],
        "identity": identity[result.kept],
    }
