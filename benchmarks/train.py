"""Throughput of training: the pipeline, and the plain way of the paper's own code, on the same views, in one process.

    python -m benchmarks.train --data CUB_200_2011 --images 48
    python -m benchmarks.train --images 48

Contenders, which have the same images, masks, boxes, network, weights at the start, and steps of the optimiser:

- ``ours``: what the stage ``train`` runs. Views come as JPEGs of their final size out of shards, are packed without
  padding and augmented as one batch; the backbone computes in channels-last memory, in bfloat16 where asked for. The
  warm-up phase learns on views that were encoded once (``encode_s``), each with its mirror image.
- ``plain``: of every view there is a PNG in the size of the image, black outside the mask. To load a bag is to decode
  the image; then for each view to decode its PNG, lay it over the image, cut the box, resize, augment (the same
  kornia modules, one view at a time) and normalise. All bags have as many views as the longest: what is missing are
  copies, each loaded and augmented by itself. Everything is float32 in NCHW memory. The warm-up phase has no store of
  encoded views: it is an epoch with a frozen backbone, in which views are mirrored by chance and not changed otherwise.

What is measured: ``joint``, an epoch of the joint phase from files to weights; ``joint_step``, forward, backward and
optimiser on batches that lie in memory, not augmented; ``warmup``, an epoch of the warm-up phase; and all epochs of the
warm-up phase with the encoding. Per second count bags, and their views without copies. Validation is left out.

Where one way could be favoured, it is the plain one: both have the process's CPU settings, both freeze the same first
layers of the backbone and keep them out of the graph, the plain loop does without Lightning, and its loader pins memory
on CUDA. Pillow decodes and resizes for it, as for the stage ``crops``.

Prints one JSON line. Work per second counts the backbone's products on views without copies. Peaks of memory are the
device's or, on a CPU, this process's, without the processes that load. ``equal`` says that on one batch, not augmented
and with normalisation in evaluation mode (copies shift the statistics of a batch), the distance of every bag to every
prototype and all terms of the loss are the same to 1e-4.
"""

import copy
import ctypes
import itertools
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pipeline  # noqa: F401  (before torch: it says how OpenMP's threads wait)

# isort: split
import lightning as L
import numpy as np
import timm
import torch
import typer
from jaxtyping import Float, Float64, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.device import BF16_PEAK_FLOPS, device_name, timed
from pipeline.artifacts import WHOLE_IMAGE
from pipeline.cli import command_line
from pipeline.data.bags import BagReader
from pipeline.data.boxes import Box
from pipeline.data.catalogue import load_images
from pipeline.data.collect import write_dataset
from pipeline.data.datasets.interface import Dataset, ImageRecord, Listing
from pipeline.data.datasets.registry import open_dataset
from pipeline.data.images import read_image
from pipeline.data.masks import decode_mask, join_masks
from pipeline.data.segmentation import write_masks
from pipeline.data.shards import write_crops
from pipeline.errors import PipelineError
from pipeline.model.protomask import ProtoMask
from pipeline.params import (
    CropsParams,
    DatasetParams,
    JointParams,
    LossParams,
    MasksParams,
    ModelParams,
    Params,
    SyntheticParams,
    TrainParams,
    WarmupParams,
)
from pipeline.runtime import Runtime
from pipeline.segmenters import superpixel
from pipeline.training.augment import Augmentation, make_augmentation
from pipeline.training.batches import EncodedBags, ImageBags, PackedBags, loader, pack
from pipeline.training.embedding import encoded_views
from pipeline.training.fitting import make_trainer
from pipeline.training.phases import Phase
from pipeline.training.readers import class_weights

# private, for what is measured has to be what the stage runs
from pipeline.training.run import _joint_phase, _network, _order, _Run, _warmup_phase
from pipeline.training.seeding import prepare

Measured = dict[str, Any]
Losses = dict[str, Float[Tensor, ""]]
Times = Float64[np.ndarray, "2"]
"""Seconds on the clock, and of this process on all cores: where the machine has other work, only these compare."""

_IMAGES_PER_CLASS = 8
_BAGS_COMPARED = 4
_LARGEST_DIFFERENCE = 1e-4
_BATCHES_IN_MEMORY = 8


@dataclass(frozen=True, slots=True)
class CutOut:
    """One view of the plain way: a PNG in the size of the image, black outside the mask, and the box to be cut."""

    path: Path
    box: Box


@dataclass(frozen=True, slots=True)
class CutOutBag:
    """One image of the plain way; VIEWS with the copies that make all bags equally long."""

    image: Path
    label: int
    views: tuple[CutOut, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """What both contenders train on, and how."""

    params: Params
    runtime: Runtime
    workers: int
    epochs: int
    reader: BagReader
    plain_bags: Sequence[CutOutBag]

    @property
    def device(self) -> str:
        """Where the network is."""
        return self.runtime.torch_device

    @property
    def run(self) -> _Run:
        """The task as the stage's functions take it; nothing is validated here."""
        return _Run(self.reader, self.reader, self.params, self.runtime)

    @property
    def num_views(self) -> int:
        """Views of all bags, copies not counted."""
        return sum(self.reader.lengths)

    def rates(self, times: Sequence[Times], *, num_bags: int, num_views: int) -> Measured:
        """Average TIMES, and say what was done per second."""
        seconds, cpu_seconds = np.mean(times, axis=0).tolist()
        return {
            "seconds": _rounded(seconds),
            "cpu_seconds": _rounded(cpu_seconds),
            "bags_per_s": _rounded(num_bags / seconds),
            "views_per_s": _rounded(num_views / seconds),
        }


class FewImages(Dataset):
    """Some training images of the first classes of another data set, and the others that the stages insist on.

    That is one test image of each class, and one validation image. Equally many images are taken of each class, as far
    as they go.
    """

    def __init__(self, whole: Dataset, num_images: int) -> None:
        self._whole = whole
        self._num_images = num_images

    def listing(self) -> Listing:
        """List them.

        Raises:
            PipelineError: there are too few.
        """
        listing = self._whole.listing()
        class_names = listing.class_names[: _num_classes(self._num_images, len(listing.class_names))]
        of_class = [
            [record for record in listing.records if record.label == label] for label in range(len(class_names))
        ]
        rounds = itertools.zip_longest(*([r for r in records if r.split == "train"] for records in of_class))
        training = [record for one_round in rounds for record in one_round if record is not None]
        if len(training) <= self._num_images:
            raise PipelineError(
                f"--images {self._num_images}: the first {len(class_names)} classes have {len(training)} training"
                " images, and one more is needed"
            )
        validation = replace(training[self._num_images], split="val")
        test = [next(r for r in records if r.split == "test") for records in of_class]
        return Listing(class_names, [*training[: self._num_images], validation, *test])

    def image_bytes(self, record: ImageRecord) -> bytes:
        """As the whole data set."""
        return self._whole.image_bytes(record)


def _num_classes(num_images: int, available: int) -> int:
    return max(2, min(available, num_images // _IMAGES_PER_CLASS))


def prepare_data(home: Path, params: Params, num_images: int, runtime: Runtime) -> tuple[BagReader, list[CutOutBag]]:
    """Run the stages dataset, masks and crops in HOME, write the plain way's pictures there, and open both."""
    dataset, masks, crops = home / "dataset", home / "masks", home / "crops"
    source = FewImages(open_dataset(params.dataset, params.seed), num_images)
    write_dataset(source, dataset, params=params.dataset, seed=params.seed, runtime=runtime)
    write_masks(dataset, masks, store=home / "masks.sqlite", params=params.masks, runtime=runtime)
    write_crops(dataset, masks, crops, params=params.crops, runtime=runtime)
    return BagReader(crops, "train"), _write_cut_outs(home)


def _write_cut_outs(home: Path) -> list[CutOutBag]:
    reader = BagReader(home / "crops", "train", equal_lengths=True)
    rows_of = {bag[0].image_key: bag for bag in map(reader.rows, range(len(reader)))}
    folder = home / "cut_outs"
    folder.mkdir()
    bags = []
    for image_row, masks in join_masks(load_images(home / "dataset").rows, home / "masks" / "masks.parquet"):
        if image_row.image_key not in rows_of:
            continue
        image = read_image(image_row.path)
        views = []
        for row in rows_of[image_row.image_key]:
            path = folder / f"{row.image_key}.{row.view_idx:02d}.png"
            views.append(CutOut(path, row.box))
            if path.exists():  # this is a copy
                continue
            inside = np.ones(image.shape[:2], dtype=bool)
            if row.mask_idx != WHOLE_IMAGE:
                inside = decode_mask(masks[row.mask_idx].rle, height=image_row.height, width=image_row.width)
            Image.fromarray(np.where(inside[..., None], image, np.uint8(0))).save(path)
        bags.append(CutOutBag(image_row.path, image_row.label, tuple(views)))
    return bags


class CutOutBags(TorchDataset[tuple[Tensor, int]]):
    """The plain way's bags, loaded view by view: [view, 3, side, side], normalised, and the label."""

    def __init__(
        self, bags: Sequence[CutOutBag], size_px: int, mean: Tensor, std: Tensor, augmentation: Augmentation
    ) -> None:
        self._bags = bags
        self._size = (size_px, size_px)
        self._mean, self._std = mean.view(3, 1, 1), std.view(3, 1, 1)
        self._augmentation = augmentation

    def __len__(self) -> int:
        return len(self._bags)

    def __getitem__(self, bag_idx: int) -> tuple[Tensor, int]:
        bag = self._bags[bag_idx]
        image = read_image(bag.image)
        return torch.stack([self._view(image, cut_out) for cut_out in bag.views]), bag.label

    def _view(self, image: np.ndarray, cut_out: CutOut) -> Tensor:
        cut = read_image(cut_out.path)
        filled = np.where(cut.any(axis=2, keepdims=True), cut, image)
        crop = Image.fromarray(filled).crop(cut_out.box).resize(self._size, Image.Resampling.BILINEAR)
        view = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
        augmented: Tensor = self._augmentation(view[None], torch.tensor([1]))[0]  # float, 0..1
        return (augmented - self._mean) / self._std


class PlainNetwork(nn.Module):
    """The network of the paper's code, with the weights of one of ours, and the same parameters learning."""

    prototype_labels: Tensor

    def __init__(self, ours: ProtoMask) -> None:
        super().__init__()
        self.trunk: Any = timm.create_model(ours.backbone.name, num_classes=0)
        prefix = "_network."
        self.trunk.load_state_dict({k.removeprefix(prefix): v for k, v in ours.backbone.state_dict().items()})
        learning = {k.removeprefix(prefix): p.requires_grad for k, p in ours.backbone.named_parameters()}
        for name, parameter in self.trunk.named_parameters():
            parameter.requires_grad_(learning[name])
        dim, channels = ours.add_on.weight.shape
        self.add_on = nn.Conv2d(channels, dim, kernel_size=1)
        self.add_on.load_state_dict(
            {"weight": ours.add_on.weight.detach()[..., None, None], "bias": ours.add_on.bias.detach()}
        )
        self.prototypes = nn.Parameter(ours.prototypes.detach().clone())
        self.last_layer = copy.deepcopy(ours.last_layer).requires_grad_(False)
        self.register_buffer("prototype_labels", ours.prototype_labels.clone())
        self.epsilon = ours.epsilon

    def train(self, mode: bool = True) -> "PlainNetwork":
        """Switch to training mode, except for what is frozen as a whole."""
        super().train(mode)
        for module in self.trunk.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self

    def forward(
        self, views: Float[Tensor, "bag view 3 side side"]
    ) -> tuple[Float[Tensor, "bag class"], Float[Tensor, "bag prototype"]]:
        """Give class scores, and the distance of each bag to each prototype."""
        grid = self.add_on(self.trunk.forward_features(views.flatten(0, 1)))
        z = torch.sigmoid(grid.mean(dim=(2, 3)))  # [bag * view, dim]
        p = self.prototypes
        distance = functional.relu(z.square().sum(dim=1, keepdim=True) - 2 * (z @ p.T) + p.square().sum(dim=1))
        least = distance.view(*views.shape[:2], -1).min(dim=1).values
        return self.last_layer(torch.log((least + 1) / (least + self.epsilon))), least

    def losses(
        self, views: Float[Tensor, "bag view 3 side side"], labels: Int[Tensor, " bag"], class_weights: Tensor
    ) -> Losses:
        """Compute the terms of the joint loss, with the default weights."""
        logits, distance = self(views)
        weights, largest = LossParams(), distance.shape[1] + float(self.prototypes.shape[1])
        own = (labels[:, None] == self.prototype_labels).float()
        owned = self.prototypes.view(logits.shape[1], -1, self.prototypes.shape[1])[labels]  # [bag, prototype, dim]
        spread = torch.linalg.vector_norm(owned[:, :, None] - owned[:, None], dim=3).sum(dim=(1, 2))
        terms = {
            "cross_entropy": functional.cross_entropy(logits, labels, weight=class_weights),
            "cluster": (largest - ((largest - distance) * own).max(dim=1).values).mean(),
            "separation": (largest - ((largest - distance) * (1 - own)).max(dim=1).values).mean(),
            "diversity": torch.exp(-0.001 * spread).mean(),
        }
        loss = (
            weights.cross_entropy * terms["cross_entropy"]
            + weights.cluster * terms["cluster"]
            - weights.separation * terms["separation"]
            + weights.diversity * terms["diversity"]
        )
        return {"loss": loss, **terms}


def largest_difference(network: ProtoMask, task: Task) -> float:
    """Classify the same decoded views both ways; the largest difference in a distance or in a term of the loss."""
    bags = [ImageBags(task.reader)[bag_idx] for bag_idx in range(min(_BAGS_COMPARED, len(task.reader)))]
    packed, (padded, labels) = pack(bags), _padded(network, bags, longest=max(task.reader.lengths))
    weights = _class_weights(task)
    with torch.no_grad():
        network = _with_statistics_of(packed.views, network)
        encoded = network.encode(packed.views)
        ours, _ = network.training_terms(encoded, packed.lengths, packed.labels, class_weights=weights)
        ours["distance"] = network.classify(network.features_of(encoded), packed.lengths).distance
        plain = PlainNetwork(network).eval()
        theirs = {**plain.losses(padded, labels, weights), "distance": plain(padded)[1]}
    assert ours.keys() == theirs.keys()
    return float(max((ours[name] - theirs[name]).abs().max() for name in ours))


def _with_statistics_of(views: Tensor, network: ProtoMask) -> ProtoMask:
    """Copy NETWORK, in evaluation mode; without statistics, random weights hardly tell one view from another."""
    network = copy.deepcopy(network).train()
    for module in network.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0
    network.encode(views)
    return network.eval()


def _padded(network: ProtoMask, bags: Sequence[PackedBags], *, longest: int) -> tuple[Tensor, Tensor]:
    """Normalise the views of each bag and repeat them until there are LONGEST: [bag, view, 3, side, side]; labels."""
    mean, std = network.backbone.mean.cpu(), network.backbone.std.cpu()
    views = [((bag.views.float() / 255 - mean) / std)[torch.arange(longest) % len(bag.views)] for bag in bags]
    return torch.stack(views), torch.cat([bag.labels for bag in bags])


def _class_weights(task: Task) -> Tensor:
    return class_weights(task.reader.labels, task.reader.class_names)


class Clock(L.Callback):  # type: ignore[misc]  # untyped here
    """Takes the time of Lightning's epochs; the first one is to warm up.

    Attributes:
        epochs: from the end of one epoch to that of the next, so with everything between them.
        steps: from the begin of an epoch's first step to its end.
    """

    def __init__(self, device: str) -> None:
        self.epochs: list[Times] = []
        self.steps: list[Times] = []
        self._device = device
        self._first_step = np.zeros(2)
        self._last_end: Times | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: PackedBags, batch_idx: int
    ) -> None:
        """Start with the first step."""
        if batch_idx == 0:
            self._first_step = _now(self._device)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note an epoch."""
        now = _now(self._device)
        if self._last_end is not None:
            self.epochs.append(now - self._last_end)
            self.steps.append(now - self._first_step)
        self._last_end = now


def _now(device: str) -> Times:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def _ours(phase: Phase, batches: DataLoader[PackedBags], task: Task, *, epochs: int) -> tuple[Clock, float]:
    """Let Lightning run one epoch more than EPOCHS; the clock, and the loss of the last one."""
    clock = Clock(task.device)
    trainer = make_trainer(task.runtime, epochs=1 + epochs, callbacks=[clock])
    trainer.fit(phase, batches)
    return clock, float(trainer.callback_metrics["train/loss"])


def ours_joint(network: ProtoMask, task: Task) -> tuple[Measured, Measured]:
    """Measure epochs from the shards, and steps on batches in memory."""
    run, batch_images = task.run, task.params.train.batch_images
    bags = ImageBags(task.reader)
    batches = loader(bags, batch_images, num_workers=task.workers, order=_order(run, task.params.seed))
    (clock, loss), peak_mib = _measured(
        task, lambda: _ours(_joint_phase(network, run), batches, task, epochs=task.epochs)
    )
    epoch = {**_rates_of_epoch(task, clock.epochs), "loss": _rounded(loss), "peak_mib": peak_mib}

    in_memory = list(itertools.islice(loader(bags, batch_images), _BATCHES_IN_MEMORY))
    num_bags, num_views = sum(len(batch.labels) for batch in in_memory), sum(len(batch.views) for batch in in_memory)
    in_memory = [PackedBags(*(tensor.to(task.device) for tensor in batch)) for batch in in_memory]
    not_augmented = task.params.train.joint.model_copy(update={"augmentation": "none"})
    train = task.params.train.model_copy(update={"joint": not_augmented})
    phase = _joint_phase(network, replace(run, params=task.params.model_copy(update={"train": train})))
    clock, _ = _ours(phase, DataLoader(in_memory, batch_size=None), task, epochs=task.epochs)  # type: ignore[arg-type]
    return epoch, task.rates(clock.steps, num_bags=num_bags, num_views=num_views)


def ours_warmup(network: ProtoMask, task: Task) -> Measured:
    """Measure the encoding, and epochs on what it gives: as many as the phase has."""
    run, warmup = task.run, task.params.train.warmup
    _encode_one(network, task)
    start = _now(task.device)
    encoded = encoded_views(network, task.reader, runtime=task.runtime, what="features", mirror=warmup.flip)
    encode_s = float((_now(task.device) - start)[0])
    bags = EncodedBags(encoded, task.reader.lengths, task.reader.labels)
    batches = loader(bags, warmup.batch_images, order=_order(run, task.params.seed))
    (clock, loss), peak_mib = _measured(
        task, lambda: _ours(_warmup_phase(network, run), batches, task, epochs=warmup.epochs)
    )
    epoch = _rates_of_epoch(task, clock.epochs)
    return {**epoch, "encode_s": _rounded(encode_s), "loss": _rounded(loss), "peak_mib": peak_mib}


def _encode_one(network: ProtoMask, task: Task) -> None:
    with torch.no_grad():
        network.backbone.to(task.device).eval()(ImageBags(task.reader)[0].views.to(task.device))


def plain_joint(network: ProtoMask, task: Task) -> tuple[Measured, Measured]:
    """Measure epochs from the pictures, and steps on batches in memory."""
    joint = task.params.train.joint
    network.backbone.train_last(joint.trainable_layers)
    plain = PlainNetwork(network).to(task.device).train()
    learning = [parameter for parameter in plain.trunk.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(
        [
            {"params": learning, "lr": joint.lr_backbone},
            {"params": plain.add_on.parameters(), "lr": joint.lr_addon},
            {"params": [plain.prototypes], "lr": joint.lr_prototypes},
        ]
    )
    batches = _plain_loader(network, task, make_augmentation(joint.augmentation))
    (times, loss), peak_mib = _measured(task, lambda: _plain_epochs(plain, batches, optimizer, task))
    epoch = {**_rates_of_epoch(task, times), "loss": _rounded(loss), "peak_mib": peak_mib}

    packed, in_memory = ImageBags(task.reader), []
    num_bags = min(len(packed), _BATCHES_IN_MEMORY * task.params.train.batch_images)
    for first in range(0, num_bags, task.params.train.batch_images):
        stop = min(num_bags, first + task.params.train.batch_images)
        bags = [packed[bag_idx] for bag_idx in range(first, stop)]
        padded = _padded(network, bags, longest=max(task.reader.lengths))
        in_memory.append([tensor.to(task.device) for tensor in padded])
    times, _ = _plain_epochs(plain, in_memory, optimizer, task)
    num_views = sum(task.reader.lengths[:num_bags])
    return epoch, task.rates(times, num_bags=num_bags, num_views=num_views)


def plain_warmup(network: ProtoMask, task: Task) -> Measured:
    """Measure epochs from the pictures with a frozen backbone."""
    warmup = task.params.train.warmup
    network.backbone.requires_grad_(False)
    plain = PlainNetwork(network).to(task.device).train()
    optimizer = torch.optim.Adam(
        [
            {"params": plain.add_on.parameters(), "lr": warmup.lr_addon},
            {"params": [plain.prototypes], "lr": warmup.lr_prototypes},
        ]
    )
    batches = _plain_loader(network, task, make_augmentation("flip" if warmup.flip else "none"))
    (times, loss), peak_mib = _measured(task, lambda: _plain_epochs(plain, batches, optimizer, task))
    return {**_rates_of_epoch(task, times), "loss": _rounded(loss), "peak_mib": peak_mib}


def _plain_loader(network: ProtoMask, task: Task, augmentation: Augmentation) -> DataLoader[tuple[Tensor, int]]:
    mean, std = network.backbone.mean.cpu(), network.backbone.std.cpu()
    return DataLoader(
        CutOutBags(task.plain_bags, task.reader.size_px, mean, std, augmentation),
        batch_size=task.params.train.batch_images,
        shuffle=True,
        num_workers=task.workers,
        persistent_workers=task.workers > 0,
        multiprocessing_context="spawn" if task.workers > 0 else None,
        pin_memory=task.device.startswith("cuda"),
    )


def _plain_epochs(
    plain: PlainNetwork, batches: Iterable[Sequence[Tensor]], optimizer: torch.optim.Optimizer, task: Task
) -> tuple[list[Times], float]:
    """Train to warm up, then whole epochs: the times of each, and the mean loss of the last one."""
    weights = _class_weights(task).to(task.device)

    def train(some: Iterable[Sequence[Tensor]]) -> float:
        losses, sizes = [], []
        for views, labels in some:
            optimizer.zero_grad()
            on_device = labels.to(task.device, non_blocking=True)
            loss = plain.losses(views.to(task.device, non_blocking=True), on_device, weights)["loss"]
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.detach())
            sizes.append(len(labels))
        return float(np.average(torch.stack(losses).cpu().numpy(), weights=sizes))

    train(batches if task.workers else itertools.islice(batches, 1))  # a first batch comes before all loaders are up
    times, mean_loss = [], math.nan
    for _ in range(task.epochs):
        start = _now(task.device)
        mean_loss = train(batches)
        times.append(_now(task.device) - start)
    return times, mean_loss


def _measured(task: Task, work: Callable[[], Any]) -> tuple[Any, int]:
    """Do WORK: its result, and the peak of memory in MiB, of the device or, on a CPU, of the process."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # what the contender before freed was kept, see runtime.keep_freed_memory
        trim(0)
    result, _, peak_mib = timed(task.device, work)
    return result, peak_mib


def _rates_of_epoch(task: Task, times: Sequence[Times]) -> Measured:
    return task.rates(times, num_bags=len(task.reader), num_views=task.num_views)


def flops_per_view(network: ProtoMask, size_px: int) -> int:
    """Count the floating-point operations of one training step on one view: the backbone's products.

    Forwards through all layers, and twice as much backwards through those that learn. PyTorch's own count of the
    backward pass takes grouped convolutions for full ones, so only the forward pass is counted with it.
    """
    backbone = copy.deepcopy(network.backbone).cpu().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone(torch.zeros(1, 3, size_px, size_px))
    counts = {name: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}
    learning = sum(
        counts.get(f"Backbone.{name}", 0)
        for name, module in backbone.named_modules()
        if not list(module.children()) and any(parameter.requires_grad for parameter in module.parameters())
    )
    return int(counts["Global"] + 2 * learning)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def measure(
    home: Path,
    *,
    params: Params,
    num_images: int,
    device: str,
    workers: int | None,
    epochs: int,
) -> Measured:
    """Prepare the data in HOME and measure everything.

    Args:
        home: an empty folder.
        params: of all stages.
        num_images: bags to train on.
        device: as in runtime.yaml.
        workers: processes that load, for either contender; None takes none on a CPU, and all cores on CUDA.
        epochs: timed ones.

    Returns:
        The line.
    """
    preparing = Runtime(device=device)
    on_gpu = preparing.torch_device.startswith("cuda")
    if workers is None:
        workers = preparing.num_workers if on_gpu else 0
    reader, plain_bags = prepare_data(home, params, num_images, preparing)
    runtime = preparing.model_copy(update={"workers": workers, "cache": None})  # whatever the environment says
    task = Task(params, runtime, workers, epochs, reader, plain_bags)

    prepare(params.seed)
    network = _network("protomask", reader, params.model, params.train, params.compat)
    assert isinstance(network, ProtoMask)
    difference = largest_difference(network, task)
    warmup = {
        "ours": ours_warmup(copy.deepcopy(network), task),
        "plain": plain_warmup(copy.deepcopy(network), task),
    }
    plain_start = copy.deepcopy(network)
    ours_epoch, ours_step = ours_joint(network, task)
    flops = flops_per_view(network, reader.size_px)
    plain_epoch, plain_step = plain_joint(plain_start, task)
    phases = {
        "joint": {"ours": ours_epoch, "plain": plain_epoch},
        "joint_step": {"ours": ours_step, "plain": plain_step},
        "warmup": warmup,
    }

    gpu = torch.cuda.get_device_name() if on_gpu else None
    peak_flops = next((peak for name, peak in BF16_PEAK_FLOPS.items() if gpu and name in gpu), None)
    for measured in (ours_epoch, plain_epoch, ours_step, plain_step):
        achieved = flops * measured["views_per_s"]
        measured["tflops"] = _rounded(achieved / 1e12)
        measured["share_of_bf16_peak"] = None if peak_flops is None else _rounded(achieved / peak_flops)
    warmup_epochs = params.train.warmup.epochs
    whole_warmup = {
        "epochs": warmup_epochs,
        "ours_s": _rounded(warmup["ours"]["encode_s"] + warmup_epochs * warmup["ours"]["seconds"]),
        "plain_s": _rounded(warmup_epochs * warmup["plain"]["seconds"]),
    }
    return {
        "benchmark": "train",
        "device": gpu or device_name(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "workers": workers,
        "data": params.dataset.name,
        "backbone": params.model.backbone,
        "pretrained": params.model.pretrained,
        "size_px": params.crops.size_px,
        "trainable_layers": params.train.joint.trainable_layers,
        "augmentation": params.train.joint.augmentation,
        "precision": {"ours": params.train.precision, "plain": "float32"},
        "batch_images": params.train.batch_images,
        "epochs": epochs,
        "images": len(reader),
        "views": task.num_views,
        "copies": sum(len(bag.views) for bag in plain_bags) - task.num_views,
        "longest_bag": max(reader.lengths),
        "prototypes": len(network.prototypes),
        "gflops_per_view": _rounded(flops / 1e9),
        "equal": difference <= _LARGEST_DIFFERENCE,
        "largest_difference": float(f"{difference:.2g}"),
        **phases,
        "whole_warmup": whole_warmup,
        "ratio": {
            **_ratios(phases, "seconds"),
            "whole_warmup": round(whole_warmup["plain_s"] / whole_warmup["ours_s"], 2),
        },
        "ratio_of_cpu_seconds": None if on_gpu or workers else _ratios(phases, "cpu_seconds"),
    }


def _ratios(phases: dict[str, dict[str, Measured]], unit: str) -> dict[str, float]:
    return {name: round(both["plain"][unit] / both["ours"][unit], 2) for name, both in phases.items()}


def main(
    data: Annotated[Path | None, typer.Option(help="Folder CUB_200_2011; without it, synthetic birds.")] = None,
    device: str = "auto",
    images: Annotated[int, typer.Option(min=2, help="Bags to train on.")] = 48,
    max_views: Annotated[int, typer.Option(min=1, help="Masks per image that become views.")] = 8,
    min_area_frac: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of the image that a mask covers; 0.1 makes bags unequal.")
    ] = 0.005,
    backbone: Annotated[str, typer.Option(help="A convolutional network of timm.")] = "tf_efficientnet_lite0",
    pretrained: bool = True,
    size: Annotated[int, typer.Option(min=32, help="Side of the views, pixels.")] = 224,
    batch_images: Annotated[int, typer.Option(min=1, help="Bags per step, in both phases.")] = 16,
    trainable_layers: Annotated[str, typer.Option(help="A number, or all.")] = "2",
    augmentation: Annotated[
        Literal["none", "flip", "light", "medium"], typer.Option(help="Of the joint phase.")
    ] = "light",
    precision: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of our joint phase.")] = "float32",
    epochs: Annotated[int, typer.Option(min=1, help="How many are timed.")] = 1,
    workers: Annotated[int | None, typer.Option(help="Processes that load; default: 0, on CUDA all cores.")] = None,
) -> None:
    """Time both ways of training."""
    params = make_params(
        data,
        num_images=images,
        crops=CropsParams(max_views=max_views, min_area_frac=min_area_frac, size_px=size),
        model=ModelParams(backbone=backbone, pretrained=pretrained),
        batch_images=batch_images,
        precision=precision,
        joint=JointParams(
            epochs=1,
            trainable_layers=_layers(trainable_layers),
            augmentation=augmentation,
        ),
    )
    with tempfile.TemporaryDirectory() as home:
        line = measure(Path(home), params=params, num_images=images, device=device, workers=workers, epochs=epochs)
    print(json.dumps(line))


def _layers(text: str) -> int | Literal["all"]:
    if text == "all":
        return "all"
    if not text.isdigit() or int(text) == 0:
        raise typer.BadParameter(f"--trainable-layers is {text!r}: give a number of at least 1, or all")
    return int(text)


def make_params(
    data: Path | None,
    *,
    num_images: int,
    crops: CropsParams,
    model: ModelParams,
    batch_images: int,
    precision: Literal["float32", "bfloat16"],
    joint: JointParams,
) -> Params:
    """Put params together: the demo's, or with DATA those of the preset cub200-superpixel, with what is given.

    The add-on layer and the prototypes start at random, which costs an epoch nothing and keeps distances away from 0,
    where the logarithm would magnify rounding.
    """
    num_species = SyntheticParams().num_species
    per_species = -(-num_images // _num_classes(num_images, num_species)) + 1  # one to validate on
    synthetic = SyntheticParams(train_per_species=max(4, per_species), test_per_species=1)
    dataset = DatasetParams(synthetic=synthetic) if data is None else DatasetParams(name="cub200", source=str(data))
    return Params(
        dataset=dataset,
        masks=MasksParams(weights=str(superpixel.__file__)),
        crops=crops,
        model=model,
        train=TrainParams(
            prototype_init="uniform",
            addon_init="random",
            batch_images=batch_images,
            precision=precision,
            warmup=WarmupParams(batch_images=batch_images),
            joint=joint,
            baseline=False,
        ),
    )


app = command_line(main)

if __name__ == "__main__":
    app()
