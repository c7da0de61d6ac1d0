"""The ``finetune`` stage's work: the last layer learns on features of the frozen, projected network."""

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from pipeline.artifacts import PROTOTYPES, read_table, write_table
from pipeline.data.bags import BagReader
from pipeline.io import new_folder
from pipeline.model.files import load_model, save_model
from pipeline.model.network import PrototypeNetwork
from pipeline.params import Params
from pipeline.runtime import Runtime
from pipeline.training.augment import make_augmentation
from pipeline.training.batches import EncodedBags, EpochOrder, ImageBags, PackedBags, loader
from pipeline.training.embedding import decoding_workers, encoded_views
from pipeline.training.fitting import fit
from pipeline.training.phases import FinetunePhase
from pipeline.training.prototype_rows import prototype_rows
from pipeline.training.readers import check_classes, class_weights, open_splits
from pipeline.training.seeding import prepare

_PROTOTYPES = "prototypes.parquet"


def finetune(crops: Path, projected: Path, out: Path, *, params: Params, runtime: Runtime) -> dict[str, Any]:
    """Tune the last layer of a projected network; its prototypes and embedding stay bit for bit what they are.

    The backbone is in evaluation mode, so the features of the training views are computed once (Deviation: the
    authors' code augments here, too, and keeps its normalisation statistics moving, DEVIATIONS.md A5;
    ``compat.moving_finetune`` does so). A black box has nothing to tune and is handed on.

    Args:
        crops: folder with shards.
        projected: folder of the projected network.
        out: gets ``model.*`` and ``prototypes.parquet`` with the new weights.
        params: seed, finetune, compat and, of train, class_weights, what augments and what makes batches are used.
        runtime: device, workers and cache.

    Returns:
        Validation accuracy and best epoch; epoch 0 is the projected network itself.

    Raises:
        PipelineError: PROJECTED was not projected, or on other classes.
    """
    prepare(params.seed)
    network, description = load_model(projected)
    rows: list[dict[str, Any]] = read_table(projected / _PROTOTYPES, PROTOTYPES).to_pylist()
    training, validation = open_splits(crops, type(network), params.compat)
    check_classes(training, description["class_names"], projected)
    report: dict[str, Any] = {"epochs": 0, "best_epoch": 0}
    if params.finetune.epochs and isinstance(network, PrototypeNetwork):
        moving = params.compat.moving_finetune
        batches = _images if moving else _encoded
        weights = class_weights(training.labels, training.class_names)
        joint = params.train.joint
        phase = FinetunePhase(
            network,
            l1=params.finetune.l1,
            rates=[([network.tuned()], params.finetune.lr)],
            class_weights=weights if params.train.class_weights else None,
            augmentation=make_augmentation(
                joint.augmentation, per=joint.augment_per, wrapped_borders=params.compat.wrapped_borders
            ),
            moving_statistics=moving,
            drops_last_window=moving and params.compat.dropped_window,
            is_first=False,
        )
        report = fit(
            phase,
            *batches(network, training, validation, params, runtime),
            name="finetune",
            epochs=params.finetune.epochs,
            runtime=runtime,
            accumulate_batches=params.train.accumulate_batches if moving else 1,
            hands_on_last=params.compat.last_epoch,
        )
    with new_folder(out) as folder:
        save_model(
            folder,
            network,
            class_names=description["class_names"],
            size_px=description["size_px"],
            preparation=description["preparation"],
        )
        if isinstance(network, PrototypeNetwork):
            tuned = prototype_rows(network, description["class_names"])
            rows = [row | known for row, known in zip(rows, tuned, strict=True)]
        write_table(folder / _PROTOTYPES, rows, PROTOTYPES)
    return report


def _encoded(
    network: PrototypeNetwork, training: BagReader, validation: BagReader, params: Params, runtime: Runtime
) -> tuple[DataLoader[PackedBags], DataLoader[PackedBags]]:
    """Batch the views as the frozen backbone encodes them."""
    bags, val_bags = (
        EncodedBags(encoded_views(network, reader, runtime=runtime, what=what), reader.lengths, reader.labels)
        for reader, what in ((training, "features of train"), (validation, "features of val"))
    )
    batch_images = params.finetune.batch_images
    order = EpochOrder(training.labels, params.seed)
    return loader(bags, batch_images, order=order), loader(val_bags, batch_images)


def _images(
    network: PrototypeNetwork, training: BagReader, validation: BagReader, params: Params, runtime: Runtime
) -> tuple[DataLoader[PackedBags], DataLoader[PackedBags]]:
    """Batch the views themselves, as in the joint phase: the backbone sees them augmented."""
    batch_images, num_workers = params.train.batch_images, decoding_workers(runtime)
    order = EpochOrder(training.labels, params.seed)
    return (
        loader(ImageBags(training), batch_images, num_workers=num_workers, order=order),
        loader(ImageBags(validation), batch_images, num_workers=num_workers),
    )
