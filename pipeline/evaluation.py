"""The run of the metrics over the test images: predictions once, every metric from them."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.artifacts import PER_IMAGE, write_table
from pipeline.data.bags import BagReader
from pipeline.errors import PipelineError
from pipeline.io import write_json
from pipeline.metrics.classification import classification_metrics
from pipeline.metrics.compactness import local_size, weight_metrics
from pipeline.metrics.contrastivity import inter_distance, intra_distance
from pipeline.model.files import load_blackbox, load_protomask
from pipeline.model.network import BagOutput, ProtoMask
from pipeline.params import EvaluateParams, Params
from pipeline.report.tables import write_tables
from pipeline.runtime import Runtime
from pipeline.training.embedding import pooled_features
from pipeline.training.run import check_classes, prepare

_log = logging.getLogger(__name__)

Scores = dict[str, dict[str, float | None]]

_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Predictions:
    """What one network says of the test images; the last two fields are None for a black box."""

    logits: Float[np.ndarray, "image class"]
    similarity: Float[np.ndarray, "image prototype"] | None = None
    view: Int[np.ndarray, "image prototype"] | None = None  # view_idx of the nearest view


def evaluate(
    crops: Path, trained: Path, projected: Path, final: Path, out: Path, *, params: Params, runtime: Runtime
) -> dict[str, Scores]:
    """Evaluate the final network, its two earlier states and the black box on the test images.

    Args:
        crops: folder with shards.
        trained: network before projection; holds ``blackbox`` where one was trained.
        projected: network after projection.
        final: network after fine-tuning.
        out: folder that gets ``metrics.json``, ``table.{csv,md,tex}`` and ``per_image.parquet``.
        params: evaluate is used.
        runtime: device and workers.

    Returns:
        The content of ``metrics.json``: row, family, metric.
    """
    prepare(params.seed)
    reader = BagReader(crops, "test")
    labels = np.asarray(reader.labels)
    network, description = load_protomask(final)
    check_classes(reader, description["class_names"], final)
    pooled = pooled_features(network.backbone, reader, runtime=runtime, what="features of test")[:, 0]
    predictions: dict[str, Predictions] = {}
    metrics: dict[str, Scores] = {}
    for row, folder in (("protomask", final), ("protomask_projected", projected), ("protomask_trained", trained)):
        state, _ = load_protomask(folder)
        _check_same_backbone(network, state, folder)
        predictions[row] = _predict(state, pooled, reader)
        metrics[row] = _score_protomask(state, predictions[row], labels, params.evaluate)
    if (trained / "blackbox").exists():
        whole = BagReader(crops, "test", views="whole")
        blackbox, _ = load_blackbox(trained / "blackbox")
        pooled_whole = pooled_features(blackbox.backbone, whole, runtime=runtime, what="features of test, whole")
        with torch.no_grad():
            logits = blackbox.cpu().classifier(pooled_whole[:, 0]).numpy()
        predictions["blackbox"] = Predictions(logits)
        metrics["blackbox"] = {
            "classification": _rounded(classification_metrics(logits, labels, top_classes=params.evaluate.top_classes))
        }
    write_table(out / "per_image.parquet", _per_image(predictions, reader, params.evaluate), PER_IMAGE)
    write_tables(out, metrics)
    write_json(out / "metrics.json", metrics)
    return metrics


def _check_same_backbone(final: ProtoMask, state: ProtoMask, folder: Path) -> None:
    """The three states share one embedding: only prototypes and last layer differ, so features are computed once."""
    final_state, other = final.cpu().state_dict(), state.state_dict()
    for key, value in final_state.items():
        if key.startswith(("backbone.", "add_on.")) and (key not in other or not torch.equal(value, other[key])):
            raise PipelineError(f"{folder}: its {key} is not that of the final network: run `dvc repro finetune`")


@torch.no_grad()
def _predict(network: ProtoMask, pooled: Tensor, reader: BagReader) -> Predictions:
    lengths = torch.tensor(reader.lengths)
    output: BagOutput = network.classify(network.features_of_pooled(pooled), lengths)
    first_view = torch.cumsum(lengths, 0) - lengths
    return Predictions(output.logits.numpy(), output.similarity.numpy(), (output.view - first_view[:, None]).numpy())


def _score_protomask(
    network: ProtoMask, predictions: Predictions, labels: Int[np.ndarray, " image"], params: EvaluateParams
) -> Scores:
    assert predictions.similarity is not None
    last_layer = network.last_layer.weight.detach().numpy()
    top = top_prototypes(predictions.similarity, params.top_prototypes)  # [image, rank]
    vectors = network.prototypes.detach().numpy()[top]  # [image, rank, dim]
    inter = inter_distance(vectors, labels)
    return {
        "classification": _rounded(classification_metrics(predictions.logits, labels, top_classes=params.top_classes)),
        "compactness": _rounded(
            {
                **weight_metrics(last_layer, epsilon=params.weight_epsilon),
                "local_size": float(local_size(predictions.similarity, threshold=params.local_size_threshold).mean()),
            }
        ),
        "contrastivity": _rounded(
            {
                "intra_prototype_distance": float(intra_distance(vectors).mean()),
                "inter_prototype_distance": float(np.mean(list(inter.values()))) if inter else None,
            }
        ),
    }


def top_prototypes(similarity: Float[np.ndarray, "image prototype"], num: int) -> Int[np.ndarray, "image rank"]:
    """Rank the prototypes of each image by similarity; equal ones by index."""
    return np.argsort(-similarity, axis=1, kind="stable")[:, :num]


def _rounded(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    """Round to six decimals; what is not a number becomes None (JSON's null)."""
    return {
        key: None if value is None or not math.isfinite(value) else round(value, _DECIMALS)
        for key, value in scores.items()
    }


def _per_image(
    predictions: Mapping[str, Predictions], reader: BagReader, params: EvaluateParams
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for row, predicted in predictions.items():
        probability = torch.softmax(torch.from_numpy(predicted.logits), dim=1).numpy()
        top = None
        if predicted.similarity is not None:
            top = top_prototypes(predicted.similarity, params.top_prototypes)
        for idx, (image_key, label) in enumerate(zip(reader.image_keys, reader.labels, strict=True)):
            entry: dict[str, Any] = {
                "row": row,
                "image_key": image_key,
                "label": label,
                "predicted": int(predicted.logits[idx].argmax()),
                "confidence": float(probability[idx].max()),
                "label_probability": float(probability[idx, label]),
            }
            if top is not None and predicted.similarity is not None and predicted.view is not None:
                entry["top_prototypes"] = top[idx].tolist()
                entry["top_similarities"] = predicted.similarity[idx, top[idx]].tolist()
                entry["top_views"] = predicted.view[idx, top[idx]].tolist()
            rows.append(entry)
    return rows
