"""The ``project`` stage's work: embed the training split, project, prune, say what each prototype now is."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pipeline.artifacts import PROTOTYPES, write_table
from pipeline.data.bags import BagReader
from pipeline.errors import PipelineError
from pipeline.io import new_folder
from pipeline.model.files import load_protomask, save_model
from pipeline.model.network import ProtoMask
from pipeline.model.prototypes import squared_distance
from pipeline.params import Params, PruneParams
from pipeline.runtime import Runtime
from pipeline.training.embedding import iterate_pooled, pooled_features
from pipeline.training.nearest import EmbeddedBag
from pipeline.training.projection import Projection, project
from pipeline.training.pruning import Pruning, prune, without_pruned
from pipeline.training.run import check_classes, prepare

_log = logging.getLogger(__name__)


def write_projection(crops: Path, trained: Path, out: Path, *, params: Params, runtime: Runtime) -> dict[str, Any]:
    """Project the prototypes of a trained network onto training views, and prune them where the params say so.

    Args:
        crops: folder with shards.
        trained: folder of the trained network.
        out: gets ``model.*`` and ``prototypes.parquet``, both with the survivors only, numbered from 0.
        params: seed and project are used.
        runtime: device and workers.

    Returns:
        Counts, distances, and validation accuracy before and after; what pruning did, None where it is off.

    Raises:
        PipelineError: TRAINED is on other classes, or no prototype would be left.
    """
    prepare(params.seed)
    network, description = load_protomask(trained)
    class_names: list[str] = description["class_names"]
    training = BagReader(crops, "train")
    validation = BagReader(crops, "val")
    check_classes(training, class_names, trained)
    pooled_val = pooled_features(network.backbone, validation, runtime=runtime, what="features of val")[:, 0]
    before = _accuracy(network, pooled_val, validation)
    bags: Iterable[EmbeddedBag] = _embedded(network, training, runtime)
    if params.project.prune.enabled:
        bags = list(bags)  # needed once more; fine-tuning keeps more of every view
    projection = project(
        network.prototypes.detach(),
        network.prototype_labels,
        bags,
        distinct_views=params.project.distinct_views,
    )
    with torch.no_grad():
        network.prototypes.copy_(projection.prototypes)
    rows = _rows(network, projection, training, class_names, runtime)
    report = _report(rows) | {
        "val_accuracy": {"before": before, "after": _accuracy(network, pooled_val, validation)},
        "prune": None,
    }
    if params.project.prune.enabled:
        pruning = _prune(network, bags, params.project.prune)
        network = without_pruned(network, pruning.kept)
        accuracy = _accuracy(network, pooled_val, validation)
        report["prune"] = _pruning_report(pruning, rows, class_names) | {"val_accuracy": accuracy}
        rows = [rows[old] | {"prototype_idx": new} for new, old in enumerate(pruning.kept.tolist())]
    with new_folder(out) as folder:
        save_model(folder, network, class_names=class_names, size_px=description["size_px"])
        write_table(folder / "prototypes.parquet", rows, PROTOTYPES)
    _log.info(
        "%d prototypes on %d distinct views; %s",
        report["num_prototypes"],
        report["num_distinct_views"],
        report["val_accuracy"],
    )
    return report


def _report(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count the rows of ``prototypes.parquet``; a duplicate is a prototype whose view an earlier one has as well."""
    projected = [row for row in rows if row["image_key"] is not None]
    num_distinct = len({(row["image_key"], row["view_idx"]) for row in projected})
    return {
        "num_prototypes": len(rows),
        "num_projected": len(projected),
        "num_distinct_views": num_distinct,
        "num_duplicates": len(projected) - num_distinct,
        "distance_before": _mean_and_max([row["distance_before"] for row in projected]),
        "distance_after": _mean_and_max([row["distance_after"] for row in projected]),
    }


def _mean_and_max(distances: list[float]) -> dict[str, float]:
    values = torch.tensor(distances)
    return {"mean": round(values.mean().item(), 6), "max": round(values.max().item(), 6)}


def _prune(network: ProtoMask, bags: Iterable[EmbeddedBag], params: PruneParams) -> Pruning:
    network.cpu()
    pruning = prune(network.prototypes.detach(), network.prototype_labels, bags, k=params.k, threshold=params.threshold)
    if len(pruning.kept) == 0:
        raise PipelineError(
            f"params.yaml: project.prune leaves no prototype: none has {params.threshold} images of its class among "
            f"the {params.k} nearest; lower threshold, train longer, or set project.prune.enabled to false"
        )
    return pruning


def _pruning_report(pruning: Pruning, rows: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> dict[str, Any]:
    """Say who went, by the numbers before pruning, and which classes can no longer be predicted."""
    kept = set(pruning.kept.tolist())
    pruned = [row for row in rows if row["prototype_idx"] not in kept]
    surviving = {rows[idx]["label"] for idx in kept}
    without = [name for label, name in enumerate(class_names) if label not in surviving]
    _log.info("%d of %d prototypes pruned", len(pruned), len(rows))
    if without:
        _log.warning("%d classes have no prototype left: %s", len(without), ", ".join(without))
    return {
        "num_kept": len(kept),
        "num_pruned": len(pruned),
        "pruned": [
            {
                "prototype_idx": row["prototype_idx"],
                "class_name": row["class_name"],
                "image_key": row["image_key"],
                "view_idx": row["view_idx"],
                "num_own": int(pruning.num_own[row["prototype_idx"]]),
            }
            for row in pruned
        ],
        "classes_without_prototypes": without,
    }


def _embedded(network: ProtoMask, reader: BagReader, runtime: Runtime) -> Iterator[EmbeddedBag]:
    bags = iter(zip(reader.image_keys, reader.labels, reader.lengths, strict=True))
    for pooled in iterate_pooled(network.backbone, reader, runtime=runtime, what="features of train"):
        start = 0
        with torch.no_grad():
            features = network.cpu().features_of_pooled(pooled[:, 0])
        while start < len(features):
            ((image_key, label, length),) = islice(bags, 1)
            yield EmbeddedBag(image_key, label, features[start : start + length].clone())
            start += length
        network.backbone.to(runtime.torch_device)


@torch.no_grad()
def _accuracy(network: ProtoMask, pooled: torch.Tensor, reader: BagReader) -> float:
    network.cpu().eval()
    output = network.classify(network.features_of_pooled(pooled), torch.tensor(reader.lengths))
    return round((output.logits.argmax(dim=1) == torch.tensor(reader.labels)).float().mean().item(), 6)


@torch.no_grad()
def _rows(
    network: ProtoMask, projection: Projection, reader: BagReader, class_names: list[str], runtime: Runtime
) -> list[dict[str, Any]]:
    """Describe each prototype; its source view is embedded anew, as whoever loads the model will."""
    network.to(runtime.torch_device).eval()
    position = {image_key: bag_idx for bag_idx, image_key in enumerate(reader.image_keys)}
    rows: list[dict[str, Any]] = []
    for idx, (label, source) in enumerate(zip(network.prototype_labels.tolist(), projection.sources, strict=True)):
        row: dict[str, Any] = dict.fromkeys(PROTOTYPES.names)
        row |= {"prototype_idx": idx, "label": label, "class_name": class_names[label]}
        if source is not None:
            bag_idx = position[source.image_key]
            view = reader.rows(bag_idx)[source.view_idx]
            pixels = torch.from_numpy(reader.views(bag_idx)[source.view_idx]).permute(2, 0, 1)[None]
            feature = network.features(pixels.to(runtime.torch_device))
            row |= {
                "image_key": source.image_key,
                "view_idx": source.view_idx,
                "mask_idx": view.mask_idx,
                "box": list(view.box),
                "distance_before": source.distance_before,
                "distance_after": squared_distance(feature, network.prototypes[idx : idx + 1]).item(),
            }
        rows.append(row)
    return rows
