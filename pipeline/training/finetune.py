"""The ``finetune`` stage's work: the last layer learns on features of the frozen, projected network."""

import shutil
from pathlib import Path
from typing import Any

from pipeline.artifacts import PROTOTYPES, read_table
from pipeline.data.bags import BagReader
from pipeline.io import new_folder
from pipeline.model.files import load_protomask, save_model
from pipeline.params import Params
from pipeline.runtime import Runtime
from pipeline.training.batches import PooledBags, loader
from pipeline.training.embedding import pooled_features
from pipeline.training.phases import FinetunePhase
from pipeline.training.run import check_classes, class_weights, fit, prepare

_PROTOTYPES = "prototypes.parquet"


def finetune(crops: Path, projected: Path, out: Path, *, params: Params, runtime: Runtime) -> dict[str, Any]:
    """Tune the last layer of a projected network; its prototypes and embedding stay bit for bit what they are.

    The backbone is in evaluation mode, so the features of the training views are computed once (Deviation: the
    authors' code keeps its normalisation statistics moving, DEVIATIONS.md A5).

    Args:
        crops: folder with shards.
        projected: folder of the projected network.
        out: gets ``model.*`` and ``prototypes.parquet``, so that it stands alone.
        params: seed, train.class_weights and finetune are used.
        runtime: device and workers.

    Returns:
        Validation accuracy and best epoch; epoch 0 is the projected network itself.

    Raises:
        PipelineError: PROJECTED was not projected, or on other classes.
    """
    prepare(params.seed)
    network, description = load_protomask(projected)
    read_table(projected / _PROTOTYPES, PROTOTYPES)
    training, validation = BagReader(crops, "train"), BagReader(crops, "val")
    check_classes(training, description["class_names"], projected)
    report: dict[str, Any] = {"epochs": 0, "best_epoch": 0}
    if params.finetune.epochs:
        pooled = pooled_features(network.backbone, training, runtime=runtime, what="features of train")
        pooled_val = pooled_features(network.backbone, validation, runtime=runtime, what="features of val")
        weights = class_weights(training.labels, training.class_names)
        phase = FinetunePhase(
            network,
            l1=params.finetune.l1,
            rates=[([network.last_layer.weight], params.finetune.lr)],
            class_weights=weights if params.train.class_weights else None,
        )
        report = fit(
            phase,
            loader(
                PooledBags(pooled, training.lengths, training.labels),
                params.finetune.batch_images,
                shuffle_seed=params.seed,
            ),
            loader(PooledBags(pooled_val, validation.lengths, validation.labels), params.finetune.batch_images),
            name="finetune",
            epochs=params.finetune.epochs,
            runtime=runtime,
        )
    with new_folder(out) as folder:
        save_model(folder, network, class_names=description["class_names"], size_px=description["size_px"])
        shutil.copyfile(projected / _PROTOTYPES, folder / _PROTOTYPES)
    return report
