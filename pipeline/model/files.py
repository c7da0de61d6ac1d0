"""Models on disk: ``model.safetensors`` beside ``model.json``, which holds all that is needed to build the network."""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import PipelineError
from pipeline.io import read_json, write_json
from pipeline.model.backbone import Backbone
from pipeline.model.network import BlackBox, ProtoMask

_TENSORS = "model.safetensors"
_DESCRIPTION = "model.json"
_KEYS = {
    "blackbox": {"backbone", "class_names", "head", "size_px"},
    "protomask": {"backbone", "class_names", "dim", "head", "prototype_labels", "similarity_epsilon", "size_px"},
}


def save_model(folder: Path, network: ProtoMask | BlackBox, *, class_names: list[str], size_px: int) -> None:
    """Write the network into FOLDER, with what a reader of its predictions needs.

    Args:
        folder: created if need be.
        network: on any device.
        class_names: in label order.
        size_px: side of the views it was trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description: dict[str, Any] = {
        "head": "protomask" if isinstance(network, ProtoMask) else "blackbox",
        "backbone": network.backbone.name,
        "class_names": class_names,
        "size_px": size_px,
    }
    if isinstance(network, ProtoMask):
        description["dim"] = network.prototypes.shape[1]
        description["similarity_epsilon"] = network.epsilon
        description["prototype_labels"] = network.prototype_labels.tolist()
    state = {key: value.detach().cpu().contiguous() for key, value in sorted(network.state_dict().items())}
    save_file(state, folder / _TENSORS)
    write_json(folder / _DESCRIPTION, description)


def load_protomask(folder: Path) -> tuple[ProtoMask, dict[str, Any]]:
    """Build the ProtoMask network saved in FOLDER, in evaluation mode on the CPU; also give its description.

    Raises:
        PipelineError: missing, damaged, or another kind of network.
    """
    network, description = _load(folder, "protomask")
    assert isinstance(network, ProtoMask)
    return network, description


def load_blackbox(folder: Path) -> tuple[BlackBox, dict[str, Any]]:
    """Build the black box saved in FOLDER, in evaluation mode on the CPU; also give its description.

    Raises:
        PipelineError: missing, damaged, or another kind of network.
    """
    network, description = _load(folder, "blackbox")
    assert isinstance(network, BlackBox)
    return network, description


def _load(folder: Path, head: Literal["protomask", "blackbox"]) -> tuple[nn.Module, dict[str, Any]]:
    path = folder / _DESCRIPTION
    description: dict[str, Any] = read_json(path)
    kind = description.get("head") if isinstance(description, dict) else None
    if kind in _KEYS and kind != head:
        raise PipelineError(f"{path}: is a {kind} network, expected {head}")
    if kind is None or not _KEYS[head] <= description.keys():
        raise PipelineError(f"{path} does not describe a {head} network: delete it and run `dvc repro`")
    backbone = Backbone(description["backbone"])
    num_classes = len(description["class_names"])
    network: ProtoMask | BlackBox
    if head == "protomask":
        network = ProtoMask(
            backbone,
            dim=description["dim"],
            prototype_labels=torch.tensor(description["prototype_labels"]),
            num_classes=num_classes,
            epsilon=description["similarity_epsilon"],
        )
    else:
        network = BlackBox(backbone, num_classes=num_classes)
    try:
        network.load_state_dict(load_file(folder / _TENSORS), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PipelineError(
            f"{folder / _TENSORS}: cannot be loaded ({reason}); run `dvc checkout` or `dvc repro`"
        ) from None
    return network.eval(), description
