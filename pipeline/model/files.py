"""Models on disk: ``model.safetensors`` beside ``model.json``, which holds all that is needed to build the network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pipeline.errors import PipelineError
from pipeline.io import read_json, write_json
from pipeline.model.backbone import Backbone
from pipeline.model.heads import HEADS, make
from pipeline.model.network import Network

_TENSORS = "model.safetensors"
_DESCRIPTION = "model.json"


def save_model(
    folder: Path,
    network: Network,
    *,
    class_names: list[str],
    size_px: int,
    preparation: Mapping[str, Any] | None = None,
) -> None:
    """Write the network into FOLDER, with what a reader of its predictions needs.

    Args:
        folder: created if need be.
        network: on any device.
        class_names: in label order.
        size_px: side of the views it was trained on.
        preparation: how images became these views; see :class:`pipeline.data.preparation.Preparation`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description: dict[str, Any] = {
        "head": network.head,
        "backbone": network.backbone.name,
        "class_names": class_names,
        "size_px": size_px,
        "preparation": preparation,
        "settings": network.settings(),
    }
    state = {key: value.detach().cpu().contiguous() for key, value in sorted(network.state_dict().items())}
    save_file(state, folder / _TENSORS)
    write_json(folder / _DESCRIPTION, description)


def _read_description(folder: Path) -> dict[str, Any]:
    """Read what the network saved in FOLDER is: head, backbone, class_names, size_px, preparation, settings.

    Raises:
        PipelineError: missing or damaged.
    """
    path = folder / _DESCRIPTION
    description: dict[str, Any] = read_json(path)
    keys = {"head", "backbone", "class_names", "size_px", "preparation", "settings"}
    if not isinstance(description, dict) or not keys <= description.keys() or description["head"] not in HEADS:
        raise PipelineError(f"{path} does not describe a network: delete it and run `dvc repro`")
    return description


def load_model(folder: Path) -> tuple[Network, dict[str, Any]]:
    """Build the network saved in FOLDER, in evaluation mode on the CPU; also give its description.

    Raises:
        PipelineError: missing or damaged.
    """
    description = _read_description(folder)
    try:
        network = make(
            description["head"],
            Backbone(description["backbone"]),
            len(description["class_names"]),
            description["settings"],
        )
    except (KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise PipelineError(
            f"{folder / _DESCRIPTION} does not describe a {description['head']} network ({reason}): delete it and run"
            " `dvc repro`"
        ) from None
    try:
        network.load_state_dict(load_file(folder / _TENSORS), strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PipelineError(
            f"{folder / _TENSORS}: cannot be loaded ({reason}); run `dvc checkout` or `dvc repro`"
        ) from None
    return network.eval(), description
