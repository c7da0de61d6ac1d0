"""A training run: warm-up and joint phase of ProtoMask, and of the black box beside it."""

import contextlib
import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from dvclive import Live
from jaxtyping import Float
from scmrepo.exceptions import SCMError
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.data.bags import BagReader
from pipeline.errors import PipelineError
from pipeline.io import new_folder, write_json
from pipeline.model.backbone import Backbone
from pipeline.model.files import save_model
from pipeline.model.network import BlackBox, ProtoMask
from pipeline.params import JointParams, ModelParams, Params, TrainParams, WarmupParams
from pipeline.runtime import Runtime, keep_freed_memory
from pipeline.training.augment import make_augmentation
from pipeline.training.batches import ImageBags, PackedBags, PooledBags, loader, pack
from pipeline.training.callbacks import Curves, KeepBest, PhaseProgress
from pipeline.training.embedding import decoding_workers, pooled_features
from pipeline.training.initialise import prototypes_from_features, whitening
from pipeline.training.phases import BlackBoxPhase, JointPhase, Phase, Rates

_log = logging.getLogger(__name__)

Head = Literal["protomask", "blackbox"]


def train(crops: Path, out: Path, curves: Path, *, params: Params, runtime: Runtime) -> dict[str, Any]:
    """Train ProtoMask, and the black box when ``train.baseline`` says so.

    Epochs are chosen on validation images only.

    Args:
        crops: folder with shards.
        out: gets ``model.*``; and ``blackbox/model.*``.
        curves: gets DVCLive's folders ``protomask`` and ``blackbox``.
        params: seed, model and train are used.
        runtime: device and workers.

    Returns:
        Per network: validation accuracy and best epoch of each phase.

    Raises:
        PipelineError: no shards, a class without training images, a backbone that cannot be built.
    """
    prepare(params.seed)
    rehearse(crops, params=params, runtime=runtime)
    report: dict[str, Any] = {}
    with new_folder(out) as folder, new_folder(curves) as live_folder:
        for head, target in _heads(params.train, folder):
            prepare(params.seed)
            network, reader, report[head] = _train_head(head, crops, live_folder / head, params, runtime)
            save_model(target, network, class_names=reader.class_names, size_px=reader.size_px)
        write_json(live_folder / "summary.json", report)
    return report


def prepare(seed: int) -> None:
    """Seed every generator and ask for the deterministic variant of every operation."""
    keep_freed_memory()
    warnings.filterwarnings("ignore", module=r"lightning\..*")  # hints on loader workers, missing loggers
    L.seed_everything(seed, workers=True, verbose=False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # the deterministic mode also fills every new tensor; nothing here reads memory that was not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def rehearse(crops: Path, *, params: Params, runtime: Runtime) -> None:
    """Run one batch of two images through every network, forwards, backwards and in validation, and throw it away.

    What would stop a run after an hour (a wrong shape, too little memory, a loss that is not finite) stops it here.

    Raises:
        PipelineError: a loss is not finite.
    """
    with _untouched_generators():
        for head, _ in _heads(params.train, Path()):
            reader = _reader(head, crops, "train")
            images = ImageBags(reader)
            batch = pack([images[bag_idx] for bag_idx in range(min(2, len(reader)))])
            network = _network(head, reader, params.model)
            settings = _joint_settings if params.train.joint.epochs else _warmup_settings
            phase = _phase(network, params.train, settings(network, reader, params.train))
            bags: DataLoader[PackedBags] = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
            trainer = _trainer(runtime, epochs=1, fast_dev_run=True)
            trainer.fit(phase, bags, bags)
            for name, value in trainer.callback_metrics.items():
                if not torch.isfinite(value):
                    raise PipelineError(f"params.yaml: the first batch gives {name} = {value}; check train and model")
    _log.info("rehearsal passed: one batch through every network")


def class_weights(labels: Sequence[int], class_names: Sequence[str]) -> Float[Tensor, " class"]:
    """Weigh classes by inverse frequency, N / (C * n_c), as the authors' code does.

    Raises:
        PipelineError: a class has no training image.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    if (counts == 0).any():
        raise PipelineError(
            f"class {class_names[int(counts.argmin())]!r} has no training image with views: check crops.empty_bag, or"
            " leave it out of dataset.classes"
        )
    return torch.from_numpy(len(labels) / (len(class_names) * counts)).float()


def check_classes(reader: BagReader, class_names: Sequence[str], folder: Path) -> None:
    """Make sure that the network in FOLDER, which knows CLASS_NAMES, was trained on shards like the reader's.

    Raises:
        PipelineError: it was not.
    """
    if reader.class_names != list(class_names):
        raise PipelineError(f"{folder}: its network knows other classes than the shards: run `dvc repro train`")


def fit(
    phase: Phase,
    training: DataLoader[PackedBags],
    validation: DataLoader[PackedBags],
    *,
    name: str,
    epochs: int,
    runtime: Runtime,
    live: Live | None = None,
    accumulate_batches: int = 1,
) -> dict[str, Any]:
    """Run one phase and leave the network at its best epoch on the validation images, the start included.

    Args:
        phase: holds the network.
        training: batches to learn from.
        validation: batches to choose on.
        name: of the phase; names its bar.
        epochs: passes over the training images.
        runtime: device.
        live: gets the curves.
        accumulate_batches: batches per step.

    Returns:
        ``epochs``, ``best_epoch`` (0 is the start) and ``val_accuracy``.
    """
    best = KeepBest()
    callbacks: list[L.Callback] = [best, PhaseProgress(name)]
    if live is not None:
        callbacks.append(Curves(live))
    trainer = _trainer(runtime, epochs=epochs, callbacks=callbacks, accumulate_grad_batches=accumulate_batches)
    start = trainer.validate(phase, validation, verbose=False)[0]
    best.start_from(phase.network, accuracy=start["val/accuracy"], loss=start["val/loss"])
    trainer.fit(phase, training, validation)
    _log.info("%s: validation accuracy %.4f, epoch %d of %d", name, best.accuracy, best.epoch, epochs)
    return {"epochs": epochs, "best_epoch": best.epoch, "val_accuracy": round(best.accuracy, 6)}


def _trainer(runtime: Runtime, *, epochs: int, **settings: Any) -> L.Trainer:
    device = runtime.torch_device
    kind, _, number = device.partition(":")
    return L.Trainer(
        accelerator={"cuda": "gpu"}.get(kind, kind),
        devices=[int(number)] if number else 1,
        max_epochs=epochs,
        deterministic="warn",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tempfile.gettempdir(),  # nothing is written there without a logger and checkpoints
        **settings,
    )


def _heads(params: TrainParams, folder: Path) -> list[tuple[Head, Path]]:
    """Say which networks a run trains, and where in FOLDER each is kept."""
    heads: list[tuple[Head, Path]] = [("protomask", folder)]
    return [*heads, ("blackbox", folder / "blackbox")] if params.baseline else heads


def _train_head(
    head: Head, crops: Path, curves: Path, params: Params, runtime: Runtime
) -> tuple[ProtoMask | BlackBox, BagReader, dict[str, Any]]:
    training, validation = _reader(head, crops, "train"), _reader(head, crops, "val")
    network = _network(head, training, params.model)
    train_params = params.train
    start_on_features = train_params.addon_init == "pca" or train_params.prototype_init == "features"
    report: dict[str, Any] = {}
    with _live(curves) as live:
        if train_params.warmup.epochs or (head == "protomask" and start_on_features):
            pooled, pooled_val = _both_pooled(network.backbone, training, validation, params, runtime)
            if isinstance(network, ProtoMask):
                _start(network, pooled, training, train_params, params.seed)
            if train_params.warmup.epochs:
                warmup = _phase(network, train_params, _warmup_settings(network, training, train_params))
                report["warmup"] = _warm_up(
                    warmup, (pooled, training), (pooled_val, validation), params=params, runtime=runtime, live=live
                )
        if train_params.joint.epochs:
            joint = _phase(network, train_params, _joint_settings(network, training, train_params))
            report["joint"] = _joint(joint, training, validation, params=params, runtime=runtime, live=live)
    return network, training, report


def _reader(head: Head, crops: Path, split: str) -> BagReader:
    return BagReader(crops, split, views="bag" if head == "protomask" else "whole")


def _network(head: Head, reader: BagReader, params: ModelParams) -> ProtoMask | BlackBox:
    num_classes = len(reader.class_names)
    weights = Path(params.weights) if params.weights else None
    backbone = Backbone(params.backbone, weights=weights, pretrained=params.pretrained)
    if head == "blackbox":
        return BlackBox(backbone, num_classes=num_classes)
    return ProtoMask(
        backbone,
        dim=params.dim,
        prototype_labels=torch.arange(num_classes).repeat_interleave(params.prototypes_per_class),
        num_classes=num_classes,
        epsilon=params.similarity_epsilon,
    )


def _phase(network: ProtoMask | BlackBox, params: TrainParams, settings: dict[str, Any]) -> Phase:
    if isinstance(network, ProtoMask):
        return JointPhase(network, loss=params.loss, **settings)
    return BlackBoxPhase(network, **settings)


def _live(folder: Path) -> Live:
    try:
        return Live(str(folder), dvcyaml=False, save_dvc_exp=False)
    except SCMError as error:
        raise PipelineError(f"DVCLive cannot read the git repository ({error}): make a first commit") from None


def _both_pooled(
    backbone: Backbone, training: BagReader, validation: BagReader, params: Params, runtime: Runtime
) -> tuple[Tensor, Tensor]:
    mirror = params.train.warmup.flip and params.train.warmup.epochs > 0
    return (
        pooled_features(backbone, training, runtime=runtime, what="features of train", mirror=mirror),
        pooled_features(backbone, validation, runtime=runtime, what="features of val"),
    )


def _warm_up(
    phase: Phase,
    training: tuple[Tensor, BagReader],
    validation: tuple[Tensor, BagReader],
    *,
    params: Params,
    runtime: Runtime,
    live: Live,
) -> dict[str, Any]:
    bags, val_bags = (PooledBags(pooled, reader.lengths, reader.labels) for pooled, reader in (training, validation))
    warmup = params.train.warmup
    return fit(
        phase,
        loader(bags, warmup.batch_images, shuffle_seed=params.seed),
        loader(val_bags, warmup.batch_images),
        name="warmup",
        epochs=warmup.epochs,
        runtime=runtime,
        live=live,
    )


def _joint(
    phase: Phase, training: BagReader, validation: BagReader, *, params: Params, runtime: Runtime, live: Live
) -> dict[str, Any]:
    num_workers = decoding_workers(runtime)
    batch_images = params.train.batch_images
    return fit(
        phase,
        loader(ImageBags(training), batch_images, num_workers=num_workers, shuffle_seed=params.seed + 1),
        loader(ImageBags(validation), batch_images, num_workers=num_workers),
        name="joint",
        epochs=params.train.joint.epochs,
        runtime=runtime,
        live=live,
        accumulate_batches=params.train.accumulate_batches,
    )


def _warmup_settings(network: ProtoMask | BlackBox, training: BagReader, params: TrainParams) -> dict[str, Any]:
    return {
        "rates": _head_rates(network, params.warmup),
        "class_weights": _weights(training, params),
        "draw_mirror": params.warmup.flip,
    }


def _joint_settings(network: ProtoMask | BlackBox, training: BagReader, params: TrainParams) -> dict[str, Any]:
    joint = params.joint
    network.backbone.train_last(joint.trainable_layers)
    learning = [parameter for parameter in network.backbone.parameters() if parameter.requires_grad]
    return {
        "rates": [(learning, joint.lr_backbone), *_head_rates(network, joint)],
        "class_weights": _weights(training, params),
        "augmentation": make_augmentation(joint.augmentation),
        "lr_step_epochs": joint.lr_step_epochs,
        "lr_gamma": joint.lr_gamma,
    }


def _head_rates(network: ProtoMask | BlackBox, params: WarmupParams | JointParams) -> Rates:
    """Give what lies on the backbone its rates; the black box's classifier takes the add-on layer's."""
    if isinstance(network, ProtoMask):
        return [(list(network.add_on.parameters()), params.lr_addon), ([network.prototypes], params.lr_prototypes)]
    return [(list(network.classifier.parameters()), params.lr_addon)]


def _weights(training: BagReader, params: TrainParams) -> Tensor | None:
    weights = class_weights(training.labels, training.class_names)
    return weights if params.class_weights else None


@torch.no_grad()
def _start(network: ProtoMask, pooled: Tensor, training: BagReader, params: TrainParams, seed: int) -> None:
    """Let the add-on layer and the prototypes start where the params say."""
    network.cpu()
    if params.addon_init == "pca":
        weight, bias = whitening(pooled[:, 0], len(network.add_on.weight))
        network.add_on.weight[: len(weight)] = weight
        network.add_on.bias[: len(bias)] = bias
    if params.prototype_init == "features":
        view_labels = torch.tensor(training.labels).repeat_interleave(torch.tensor(training.lengths))
        features = network.features_of_pooled(pooled[:, 0])
        start = prototypes_from_features(features, view_labels, network.prototype_labels, seed=seed)
        network.prototypes.copy_(start)


@contextlib.contextmanager
def _untouched_generators() -> Iterator[None]:
    """Put the states of all random generators back at the end."""
    numpy_state = copy.deepcopy(np.random.get_state())  # noqa: NPY002  # Lightning seeds this one
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
    np.random.set_state(numpy_state)  # noqa: NPY002
