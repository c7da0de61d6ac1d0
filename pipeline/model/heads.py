"""The networks by the name of their heads: built from params, and built again from what ``model.json`` says."""

from collections.abc import Mapping
from typing import Any, cast

import torch

from pipeline.model.backbone import Backbone
from pipeline.model.blackbox import BlackBox
from pipeline.model.network import Network
from pipeline.model.pipnet import PipNet
from pipeline.model.protomask import ProtoMask
from pipeline.model.protopnet import ProtoPNet
from pipeline.model.protopool import ProtoPool
from pipeline.model.prototypes import Pooling
from pipeline.params import CompatParams, ModelParams, TrainParams

HEADS: Mapping[str, type[Network]] = {
    network.head: network for network in (ProtoMask, BlackBox, ProtoPNet, PipNet, ProtoPool)
}
"""Every kind of network, by the name that ``model.head`` gives it."""


def settings_from(head: str, model: ModelParams, num_classes: int) -> dict[str, Any]:
    """Say what, beside backbone and classes, the network of HEAD is made of; as ``Network.settings`` does."""
    owned = [label for label in range(num_classes) for _ in range(model.prototypes_per_class)]
    num_shared = model.shared_prototypes or len(owned)
    space = {"dim": model.dim, "similarity_epsilon": model.similarity_epsilon}
    pooling = {"kind": model.pooling, "k": model.pooling_k, "temperature": model.pooling_temperature}
    by_head: dict[str, dict[str, Any]] = {
        "blackbox": {},
        "protomask": {**space, "prototype_labels": owned, "pooling": pooling},
        "protopnet": {**space, "prototype_labels": owned},
        "pipnet": {"num_prototypes": num_shared},
        "protopool": {**space, "num_prototypes": num_shared, "slots_per_class": model.slots_per_class},
    }
    return by_head[head]


def make(
    head: str,
    backbone: Backbone,
    num_classes: int,
    settings: Mapping[str, Any],
    *,
    train: TrainParams | None = None,
    compat: CompatParams | None = None,
) -> Network:
    """Make the network of HEAD, untrained.

    Args:
        head: a key of ``HEADS``.
        backbone: encodes views.
        num_classes: rows of its last layer.
        settings: as :func:`settings_from` or ``Network.settings`` gives them.
        train: weights of the loss; only training needs them.
        compat: departures of the authors' code; likewise.

    Raises:
        KeyError: a setting is missing.
    """
    train = train or TrainParams()
    given: dict[str, Any] = {"num_classes": num_classes}
    for key in ("dim", "num_prototypes", "slots_per_class"):
        if key in settings:
            given[key] = settings[key]
    if "similarity_epsilon" in settings:
        given["epsilon"] = settings["similarity_epsilon"]
    if "prototype_labels" in settings:
        given["prototype_labels"] = torch.tensor(settings["prototype_labels"], dtype=torch.long)
    if head == "protomask":
        given |= {"pooling": Pooling(**settings["pooling"]), "loss": train.loss, "compat": compat}
    elif head != "blackbox":
        given["loss"] = {"protopnet": train.protopnet, "pipnet": train.pipnet, "protopool": train.protopool}[head]
    network: Network = cast(Any, HEADS[head])(backbone, **given)
    return network
