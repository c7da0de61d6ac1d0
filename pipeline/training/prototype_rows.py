"""What every prototype of a network is, as rows of ``prototypes.parquet``."""

from collections.abc import Sequence
from typing import Any

import torch

from pipeline.model.network import PrototypeNetwork


@torch.no_grad()
def prototype_rows(network: PrototypeNetwork, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Name index, class and weight of each prototype; the weight is that of its similarity in its class's score."""
    labels = network.prototype_classes().tolist()
    weights = network.class_weights().cpu()
    return [
        {
            "prototype_idx": idx,
            "label": label,
            "class_name": class_names[label],
            "weight": float(weights[label, idx]),
        }
        for idx, label in enumerate(labels)
    ]
