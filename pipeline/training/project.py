"""The ``project`` stage's work: embed the training split, project, say what each prototype now is."""

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pipeline.artifacts import PROTOTYPES, write_table
from pipeline.data.bags import BagReader
from pipeline.io import new_folder
from pipeline.model.files import load_protomask, save_model
from pipeline.model.network import ProtoMask
from pipeline.model.prototypes import squared_distance
from pipeline.params import Params
from pipeline.runtime import Runtime
from pipeline.training.embedding import iterate_pooled, pooled_features
from pipeline.training.projection import EmbeddedBag, Projection, project
from pipeline.training.run import check_classes, prepare

_log = logging.getLogger(__name__)


def write_projection(crops: Path, trained: Path, out: Path, *, params: Params, runtime: Runtime) -> dict[str, Any]:
    """Project the prototypes of a trained network onto training views.

    Args:
        crops: folder with shards.
        trained: folder of the trained network.
        out: gets ``model.*`` and ``prototypes.parquet``.
        params: seed and project are used.
        runtime: device and workers.

    Returns:
        Counts, distances, and validation accuracy before and after.
    """
    prepare(params.seed)
    network, description = load_protomask(trained)
    training = BagReader(crops, "train")
    validation = BagReader(crops, "val")
    check_classes(training, description["class_names"], trained)
    pooled_val = pooled_features(network.backbone, validation, runtime=runtime, what="features of val")[:, 0]
    before = _accuracy(network, pooled_val, validation)
    projection = project(
        network.prototypes.detach(),
        network.prototype_labels,
        _embedded(network, training, runtime),
        distinct_views=params.project.distinct_views,
    )
    with torch.no_grad():
        network.prototypes.copy_(projection.prototypes)
    rows = _rows(network, projection, training, description["class_names"], runtime)
    with new_folder(out) as folder:
        save_model(folder, network, class_names=description["class_names"], size_px=description["size_px"])
        write_table(folder / "prototypes.parquet", rows, PROTOTYPES)
    sources = [source for source in projection.sources if source is not None]
    num_distinct = len({(source.image_key, source.view_idx) for source in sources})
    distances = torch.tensor([source.distance_before for source in sources])
    report = {
        "num_prototypes": len(rows),
        "num_projected": len(sources),
        "num_distinct_views": num_distinct,
        "distance_before": {"mean": round(distances.mean().item(), 6), "max": round(distances.max().item(), 6)},
        "val_accuracy": {"before": before, "after": _accuracy(network, pooled_val, validation)},
    }
    _log.info("%d prototypes on %d distinct views; %s", len(rows), num_distinct, report["val_accuracy"])
    return report


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
        row: dict[str, Any] = {"prototype_idx": idx, "label": label, "class_name": class_names[label]}
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
