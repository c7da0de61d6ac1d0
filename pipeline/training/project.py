"""The ``project`` stage's work: embed the training split, project, prune, say what each prototype now is."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pipeline.artifacts import PROTOTYPES, write_table
from pipeline.data.bags import BagReader
from pipeline.data.boxes import box_of_place
from pipeline.errors import PipelineError
from pipeline.io import new_folder, progress
from pipeline.model.files import load_model, save_model
from pipeline.model.network import PrototypeNetwork
from pipeline.model.protomask import ProtoMask
from pipeline.params import Params, ProjectParams, PruneParams
from pipeline.runtime import Runtime
from pipeline.training.embedding import accuracy_of, encoded_views, iterate_encoded, outputs
from pipeline.training.nearest import EmbeddedBag
from pipeline.training.projection import Projection, last_batches, project
from pipeline.training.prototype_rows import prototype_rows
from pipeline.training.pruning import Pruning, prune, without_pruned
from pipeline.training.readers import check_classes, open_splits
from pipeline.training.seeding import prepare
from pipeline.training.shared_projection import nearest_elements

_log = logging.getLogger(__name__)


def write_projection(crops: Path, trained: Path, out: Path, *, params: Params, runtime: Runtime) -> dict[str, Any]:
    """Project the prototypes of a trained network onto training views, and prune them where the params say so.

    Prototypes over views, or over places of the feature grid, become the nearest one of their class; those that classes
    share, the nearest one of a class that uses them; PIP-Net's stay what they are and are shown by the one in which
    they are most present. A black box has none and is handed on.

    Args:
        crops: folder with shards.
        trained: folder of the trained network.
        out: gets ``model.*`` and ``prototypes.parquet``, both with the survivors only, numbered from 0.
        params: seed, project and compat are used.
        runtime: device, workers and cache.

    Returns:
        Counts, distances, and validation accuracy before and after; what pruning did, None where it is off.

    Raises:
        PipelineError: TRAINED is on other classes, or no prototype would be left.
    """
    prepare(params.seed)
    network, description = load_model(trained)
    class_names: list[str] = description["class_names"]
    if params.project.prune.enabled and not isinstance(network, ProtoMask):
        raise PipelineError(f"params.yaml: project.prune is for model.head protomask, not {network.head}")
    # copies of views change no minimum, but two prototypes could take the same view
    compat = params.compat.model_copy(update={"equal_bags": False})
    training, validation = open_splits(crops, type(network), compat)
    check_classes(training, class_names, trained)
    rows: list[dict[str, Any]] = []
    report: dict[str, Any] = _report(rows) | {"val_accuracy": None, "prune": None}
    if isinstance(network, PrototypeNetwork):
        encoded_val = encoded_views(network, validation, runtime=runtime, what="features of val")[0]
        before = _accuracy(network, encoded_val, validation)
        bags: Iterable[EmbeddedBag] = _embedded(network, training, runtime)
        if params.project.prune.enabled:
            bags = list(bags)  # needed once more; fine-tuning keeps more of every view
        sources = bags
        if params.compat.project_last_batch:
            sources = last_batches(bags, training.image_keys, training.labels)
        projection = _project(network, sources, params.project)
        if network.is_projected:
            with torch.no_grad():
                network.prototypes.copy_(projection.prototypes)
        rows = _rows(network, projection, training, class_names, runtime)
        report = _report(rows) | {
            "val_accuracy": {"before": before, "after": _accuracy(network, encoded_val, validation)},
            "prune": None,
        }
        if params.project.prune.enabled:
            assert isinstance(network, ProtoMask)
            pruning = _prune(network, bags, params.project.prune)
            network = without_pruned(network, pruning.kept)
            accuracy = _accuracy(network, encoded_val, validation)
            report["prune"] = _pruning_report(pruning, rows, class_names) | {"val_accuracy": accuracy}
            rows = [rows[old] | {"prototype_idx": new} for new, old in enumerate(pruning.kept.tolist())]
    with new_folder(out) as folder:
        save_model(
            folder,
            network,
            class_names=class_names,
            size_px=description["size_px"],
            preparation=description["preparation"],
        )
        write_table(folder / "prototypes.parquet", rows, PROTOTYPES)
    _log.info(
        "%d prototypes on %d distinct views; %s",
        report["num_prototypes"],
        report["num_distinct_views"],
        report["val_accuracy"],
    )
    return report


def _project(network: PrototypeNetwork, bags: Iterable[EmbeddedBag], params: ProjectParams) -> Projection:
    network.cpu()
    if network.is_shared:
        vectors = network.prototypes.detach()
        if not network.is_projected:  # the features found are not kept, so neither is the vector of what found none
            vectors = torch.empty(len(vectors), len(vectors))
        return nearest_elements(network.distances, network.owners(), bags, prototypes=vectors)
    return project(network.prototypes.detach(), network.prototype_classes(), bags, distinct_views=params.distinct_views)


def _report(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count the rows of ``prototypes.parquet``; a duplicate is a prototype whose view an earlier one has as well."""
    projected = [row for row in rows if row["image_key"] is not None]
    num_distinct = len({(row["image_key"], row["view_idx"], row["place_idx"]) for row in projected})
    return {
        "num_prototypes": len(rows),
        "num_projected": len(projected),
        "num_distinct_views": num_distinct,
        "num_duplicates": len(projected) - num_distinct,
        "distance_before": _mean_and_max([row["distance_before"] for row in projected]),
        "distance_after": _mean_and_max([row["distance_after"] for row in projected]),
    }


def _mean_and_max(distances: list[float]) -> dict[str, float] | None:
    if not distances:
        return None
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


def _embedded(network: PrototypeNetwork, reader: BagReader, runtime: Runtime) -> Iterator[EmbeddedBag]:
    bags = iter(zip(reader.image_keys, reader.labels, reader.lengths, strict=True))
    network.cpu()  # what encodes goes to the device and comes back with what it gives
    for encoded, *_ in iterate_encoded(network, reader, runtime=runtime, what="features of train"):
        start = 0
        per_view = network.elements_per_view(encoded)
        with torch.no_grad():
            features = network.features_of(encoded)
        while start < len(features):
            ((image_key, label, length),) = islice(bags, 1)
            yield EmbeddedBag(image_key, label, features[start : start + length * per_view].clone())
            start += length * per_view


def _accuracy(network: PrototypeNetwork, encoded: torch.Tensor, reader: BagReader) -> float:
    return accuracy_of(outputs(network, encoded, reader.lengths).logits, reader.labels)


@torch.no_grad()
def _rows(
    network: PrototypeNetwork, projection: Projection, reader: BagReader, class_names: list[str], runtime: Runtime
) -> list[dict[str, Any]]:
    """Describe each prototype; its source view is embedded anew, as whoever loads the model will."""
    network.to(runtime.torch_device).eval()
    position = {image_key: bag_idx for bag_idx, image_key in enumerate(reader.image_keys)}
    rows: list[dict[str, Any]] = []
    known = prototype_rows(network, class_names)
    first = torch.from_numpy(reader.views(0)[:1]).permute(0, 3, 1, 2)
    per_view = network.elements_per_view(network.encode(first.to(runtime.torch_device)))
    for idx, source in enumerate(progress(projection.sources, what="sources", total=len(known), unit="prototype")):
        row: dict[str, Any] = dict.fromkeys(PROTOTYPES.names) | known[idx]
        if source is not None:
            bag_idx = position[source.image_key]
            pixels = torch.from_numpy(reader.views(bag_idx)).permute(0, 3, 1, 2)
            view_idx, place_idx = divmod(source.view_idx, per_view)
            encoded = network.encode(pixels[view_idx : view_idx + 1].to(runtime.torch_device))
            view = reader.rows(bag_idx)[view_idx]
            distance = network.distances(network.features_of(encoded)[place_idx][None])
            row |= {
                "image_key": source.image_key,
                "view_idx": view.view_idx,
                "place_idx": place_idx if network.grid else None,
                "mask_idx": view.mask_idx,
                "box": list(box_of_place(view.box, place_idx, encoded.shape[2:]) if network.grid else view.box),
                "distance_before": source.distance_before,
                "distance_after": distance[0, idx].item(),
            }
        rows.append(row)
    return rows
