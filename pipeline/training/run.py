"""A training run: warm-up and joint phase of a network, and of the black box beside it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from dvclive import Live
from scmrepo.exceptions import SCMError
from torch import Tensor
from torch.utils.data import DataLoader

import pipeline
from pipeline.data.bags import BagReader
from pipeline.errors import PipelineError
from pipeline.io import new_folder, sha256_of, write_json
from pipeline.model.backbone import Backbone
from pipeline.model.blackbox import BlackBox
from pipeline.model.files import save_model
from pipeline.model.heads import HEADS, make, settings_from
from pipeline.model.network import Network, PrototypeNetwork
from pipeline.params import CompatParams, JointParams, ModelParams, Params, TrainParams, WarmupParams
from pipeline.runtime import Runtime
from pipeline.training.augment import make_augmentation
from pipeline.training.batches import EncodedBags, EpochOrder, ImageBags, PackedBags, loader, pack
from pipeline.training.embedding import Versions, decoding_workers, encoded_views
from pipeline.training.feature_store import hash_of_state
from pipeline.training.fitting import Checkpoints, fit, make_trainer
from pipeline.training.initialise import features_of_views, prototypes_from_features, whitening
from pipeline.training.phases import Rates, TrainingPhase
from pipeline.training.readers import class_weights, open_splits
from pipeline.training.seeding import prepare, untouched_generators

_log = logging.getLogger(__name__)

_CODE = ("data/bags.py", "model", "training")  # an edit there and a stopped run starts anew
_PACKAGES = ("torch", "lightning", "kornia", "timm")  # likewise another version of these


@dataclass(frozen=True, slots=True)
class _Run:
    """What all phases of one network share."""

    training: BagReader
    validation: BagReader
    params: Params
    runtime: Runtime


def train(crops: Path, out: Path, curves: Path, *, params: Params, runtime: Runtime) -> dict[str, Any]:
    """Train the network of ``model.head``, and the black box when ``train.baseline`` says so.

    Epochs are chosen on validation images only. A run that was stopped goes on after its last whole epoch, and ends
    with the same files.

    Args:
        crops: folder with shards.
        out: gets ``model.*``; and ``blackbox/model.*``.
        curves: gets DVCLive's folders ``network`` and ``blackbox``, and ``summary.json``.
        params: seed, model, train and compat are used.
        runtime: device, workers and cache.

    Returns:
        ``network`` and ``blackbox``: validation accuracy and best epoch of each phase.

    Raises:
        PipelineError: no shards, a class without training images, a backbone that cannot be built.
    """
    prepare(params.seed)
    rehearse(crops, params=params, runtime=runtime)
    report: dict[str, Any] = {}
    kept: list[Checkpoints] = []
    with new_folder(out) as folder, new_folder(curves) as live_folder:
        for head, role, target in _heads(params, folder):
            prepare(params.seed)
            run = _Run(*open_splits(crops, HEADS[head], params.compat), params, runtime)
            network = _network(head, run.training, params.model, params.train, params.compat)
            kept.append(_checkpoints(network, run))
            with _live(live_folder / role) as live:
                report[role] = _train(network, run, live, kept[-1])
            save_model(
                target,
                network,
                class_names=run.training.class_names,
                size_px=run.training.size_px,
                preparation=run.training.preparation,
            )
        write_json(live_folder / "summary.json", report)
    for checkpoints in kept:
        checkpoints.discard()
    return report


def rehearse(crops: Path, *, params: Params, runtime: Runtime) -> None:
    """Run one batch of two images through every network, forwards, backwards and in validation, and throw it away.

    What would stop a run after an hour (a wrong shape, a loss that is not finite) stops it here.

    Raises:
        PipelineError: a loss is not finite.
    """
    with untouched_generators():
        for head, _, _ in _heads(params, Path()):
            run = _Run(*open_splits(crops, HEADS[head], params.compat), params, runtime)
            images = ImageBags(run.training)
            batch = pack([images[bag_idx] for bag_idx in range(min(2, len(images)))])
            network = _network(head, run.training, params.model, params.train, params.compat)
            phase = _joint_phase(network, run) if params.train.joint.epochs else _warmup_phase(network, run)
            bags: DataLoader[PackedBags] = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
            trainer = make_trainer(runtime, epochs=1, fast_dev_run=True)
            trainer.fit(phase, bags, bags)
            for name, value in trainer.callback_metrics.items():
                if not torch.isfinite(value):
                    raise PipelineError(f"params.yaml: the first batch gives {name} = {value}; check train and model")
    _log.info("rehearsal passed: one batch through every network")


def _heads(params: Params, folder: Path) -> list[tuple[str, str, Path]]:
    """Say which networks a run trains: head, role (which names its curves), and where in FOLDER it is kept."""
    heads: list[tuple[str, str, Path]] = [(params.model.head, "network", folder)]
    if params.train.baseline and params.model.head != BlackBox.head:
        heads.append((BlackBox.head, BlackBox.head, folder / BlackBox.head))
    return heads


def _network(
    head: str, reader: BagReader, params: ModelParams, train_params: TrainParams, compat: CompatParams
) -> Network:
    weights = Path(params.weights) if params.weights else None
    backbone = Backbone(params.backbone, weights=weights, pretrained=params.pretrained)
    num_classes = len(reader.class_names)
    settings = settings_from(head, params, num_classes)
    return make(head, backbone, num_classes, settings, train=train_params, compat=compat)


def _checkpoints(network: Network, run: _Run) -> Checkpoints:
    """Find the folder for exactly this run: other params, weights, data, code or device have another."""
    if run.runtime.cache is None:
        return Checkpoints(None)
    folder = Path(pipeline.__file__).parent
    files = [file for name in _CODE for file in sorted([folder / name, *(folder / name).rglob("*.py")])]
    params = run.params.model_dump_json(include={"seed", "model", "train", "compat"})
    parts = [
        params,
        hash_of_state(network.backbone.state_dict()),
        run.training.fingerprint(),
        run.validation.fingerprint(),
        *(sha256_of(file.read_bytes()) for file in files if file.is_file()),
        *(version(package) for package in _PACKAGES),
        run.runtime.torch_device,
        str(torch.get_num_threads()),
    ]
    key = sha256_of("\n".join(parts).encode())[:16]
    checkpoints = Checkpoints(run.runtime.cache / "training" / f"{network.head}-{key}")
    checkpoints.remove_abandoned()
    return checkpoints


def _train(network: Network, run: _Run, live: Live, checkpoints: Checkpoints) -> dict[str, Any]:
    """Run the phases one after the other; each goes on from the best epoch of the one before."""
    train_params = run.params.train
    report: dict[str, Any] = {}
    if train_params.warmup.epochs:
        report["warmup"] = _warm_up(network, run, live, checkpoints)
    elif not checkpoints.has("joint"):
        _start(network, run)
    if train_params.joint.epochs:
        report["joint"] = _fit_jointly(network, run, live, checkpoints)
    return report


def _live(folder: Path) -> Live:
    try:
        return Live(str(folder), dvcyaml=False, save_dvc_exp=False)
    except SCMError as error:
        raise PipelineError(f"DVCLive cannot read the git repository ({error}): make a first commit") from None


def _warm_up(network: Network, run: _Run, live: Live, checkpoints: Checkpoints) -> dict[str, Any]:
    warmup = run.params.train.warmup
    encoded = _encoded_training(network, run)
    encoded_val = encoded_views(network, run.validation, runtime=run.runtime, what="features of val")
    if not checkpoints.has("warmup"):
        _start(network, run, encoded)
    bags = EncodedBags(encoded, run.training.lengths, run.training.labels)
    val_bags = EncodedBags(encoded_val, run.validation.lengths, run.validation.labels)
    return fit(
        _warmup_phase(network, run),
        loader(bags, warmup.batch_images, order=_order(run, run.params.seed)),
        loader(val_bags, warmup.batch_images),
        name="warmup",
        epochs=warmup.epochs,
        live=live,
        checkpoint=checkpoints.path("warmup"),
        **_choice(run),
    )


def _fit_jointly(network: Network, run: _Run, live: Live, checkpoints: Checkpoints) -> dict[str, Any]:
    train_params = run.params.train
    torch.manual_seed(run.params.seed)  # so that the draws do not hang on where the phase before was taken up again
    num_workers = decoding_workers(run.runtime)
    batch_images = train_params.batch_images
    return fit(
        _joint_phase(network, run),
        loader(
            ImageBags(run.training),
            batch_images,
            num_workers=num_workers,
            order=_order(run, run.params.seed + 1),
        ),
        loader(ImageBags(run.validation), batch_images, num_workers=num_workers),
        name="joint",
        epochs=train_params.joint.epochs,
        live=live,
        accumulate_batches=train_params.accumulate_batches,
        checkpoint=checkpoints.path("joint"),
        **_choice(run),
    )


def _order(run: _Run, seed: int) -> EpochOrder:
    return EpochOrder(run.training.labels, seed, run.params.train.sampling)


def _choice(run: _Run) -> dict[str, Any]:
    """Say on which device a phase runs and which of its epochs is kept."""
    return {
        "runtime": run.runtime,
        "patience_epochs": run.params.train.patience_epochs,
        "ema_decay": run.params.train.ema_decay,
        "hands_on_last": run.params.compat.last_epoch,
    }


def _warmup_phase(network: Network, run: _Run) -> TrainingPhase:
    warmup = run.params.train.warmup
    return TrainingPhase(
        network,
        rates=_head_rates(network, warmup),
        class_weights=_weights(run),
        draw_mirror=warmup.flip,
    )


def _joint_phase(network: Network, run: _Run) -> TrainingPhase:
    train_params = run.params.train
    joint = train_params.joint
    network.backbone.train_last(joint.trainable_layers)
    learning = [parameter for parameter in network.backbone.parameters() if parameter.requires_grad]
    return TrainingPhase(
        network,
        rates=[(learning, joint.lr_backbone), *_head_rates(network, joint)],
        class_weights=_weights(run),
        augmentation=make_augmentation(
            joint.augmentation, per=joint.augment_per, wrapped_borders=run.params.compat.wrapped_borders
        ),
        lr_step_epochs=joint.lr_step_epochs,
        lr_gamma=joint.lr_gamma,
        bfloat16=train_params.precision == "bfloat16",
        drops_last_window=run.params.compat.dropped_window,
        is_first=not train_params.warmup.epochs,
    )


def _head_rates(network: Network, params: WarmupParams | JointParams) -> Rates:
    """Give what lies on the backbone its rates."""
    rates: Mapping[str, float] = {"addon": params.lr_addon, "prototypes": params.lr_prototypes}
    return [(parameters, rates[kind]) for kind, parameters in network.learning().items()]


def _weights(run: _Run) -> Tensor | None:
    weights = class_weights(run.training.labels, run.training.class_names)
    return weights if run.params.train.class_weights else None


def _encoded_training(network: Network, run: _Run) -> Versions:
    warmup = run.params.train.warmup
    mirror = (warmup.flip or network.num_versions == 2) and warmup.epochs > 0
    return encoded_views(network, run.training, runtime=run.runtime, what="features of train", mirror=mirror)


@torch.no_grad()
def _start(network: Network, run: _Run, encoded: Versions | None = None) -> None:
    """Let the add-on layer and the prototypes start where the params say."""
    train_params = run.params.train
    from_features = train_params.prototype_init == "features"
    if not isinstance(network, PrototypeNetwork) or not network.is_projected:
        return
    # of single places, the small components are noise: blown up to unit variance, they drown the others
    from_components = train_params.addon_init == "pca" and not network.grid
    if not from_features and not from_components:
        return
    views = (encoded or _encoded_training(network, run))[0]
    _log.info("finding where the add-on layer and the prototypes start")
    network.cpu()
    if from_components:
        weight, bias = whitening(views, len(network.add_on.weight))
        network.add_on.weight[: len(weight)] = weight
        network.add_on.bias[: len(bias)] = bias
    if from_features:
        start = prototypes_from_features(
            *features_of_views(network, views, run.training.lengths, run.training.labels),
            network.prototype_classes(),
            is_shared=network.is_shared,
            seed=run.params.seed,
        )
        network.prototypes.copy_(start)
