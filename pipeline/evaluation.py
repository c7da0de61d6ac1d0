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
from pipeline.model.blackbox import BlackBox
from pipeline.model.files import load_model
from pipeline.model.network import Network, PrototypeNetwork
from pipeline.params import EvaluateParams, Params
from pipeline.report.tables import write_tables
from pipeline.runtime import Runtime
from pipeline.training.embedding import encoded_views, outputs
from pipeline.training.feature_store import hash_of_state
from pipeline.training.readers import check_classes
from pipeline.training.seeding import prepare

_log = logging.getLogger(__name__)

Scores = dict[str, dict[str, float | None]]

_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Predictions:
    """What one network says of the test images; the last two fields are None for a black box."""

    logits: Float[np.ndarray, "image class"]
    similarity: Float[np.ndarray, "image prototype"] | None = None
    view: Int[np.ndarray, "image prototype"] | None = None  # position of the nearest view, or place, in the bag


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
        runtime: device, workers and cache.

    Returns:
        The content of ``metrics.json``: row, family, metric.
    """
    prepare(params.seed)
    network, description = load_model(final)
    head = network.head
    readers: dict[str, BagReader] = {
        views: BagReader(crops, "test", views=views) for views in (network.views, BlackBox.views)
    }
    check_classes(readers[network.views], description["class_names"], final)
    states = {head: final}
    if isinstance(network, PrototypeNetwork):
        states |= {f"{head}_projected": projected, f"{head}_trained": trained}
    if (trained / BlackBox.head).exists():
        states[BlackBox.head] = trained / BlackBox.head
    encoder = _Encoder(runtime)
    predictions: dict[str, Predictions] = {}
    metrics: dict[str, Scores] = {}
    for row, folder in states.items():
        state, _ = load_model(folder)
        if row != BlackBox.head:
            _check_same_embedding(network, state, folder)
        reader = readers[state.views]
        predictions[row] = _predict(state, encoder.encoded(state, reader), reader)
        metrics[row] = _score(state, predictions[row], np.asarray(reader.labels), params.evaluate)
    write_table(out / "per_image.parquet", _per_image(predictions, readers, params.evaluate), PER_IMAGE)
    write_tables(out, metrics)
    write_json(out / "metrics.json", metrics)
    return metrics


def _check_same_embedding(final: Network, state: Network, folder: Path) -> None:
    """The states of a network share one embedding; only normalisation statistics, no parameters, may differ."""
    own, other = (dict(one.named_parameters()) for one in (final, state))
    for key, value in own.items():
        if key.startswith(("backbone.", "add_on.")) and (key not in other or not torch.equal(value, other[key])):
            raise PipelineError(f"{folder}: its {key} is not that of the final network: run `dvc repro finetune`")


class _Encoder:
    """Encodes the test images once for all states of a network that share a backbone."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._last: tuple[tuple[str, str, bool], Tensor] | None = None

    def encoded(self, network: Network, reader: BagReader) -> Tensor:
        key = (hash_of_state(network.backbone.state_dict()), network.views, network.grid)
        if self._last is None or self._last[0] != key:
            what = "features of test" + (", whole" if network.views == "whole" else "")
            self._last = key, encoded_views(network, reader, runtime=self._runtime, what=what)[0]
        return self._last[1]


@torch.no_grad()
def _predict(network: Network, encoded: Tensor, reader: BagReader) -> Predictions:
    if not isinstance(network, PrototypeNetwork):
        return Predictions(network.cpu().logits_of(encoded, torch.tensor(reader.lengths)).numpy())
    output = outputs(network, encoded, reader.lengths)
    return Predictions(output.logits.numpy(), output.similarity.numpy(), output.element.numpy())


def _score(
    network: Network, predictions: Predictions, labels: Int[np.ndarray, " image"], params: EvaluateParams
) -> Scores:
    scores = {
        "classification": _rounded(classification_metrics(predictions.logits, labels, top_classes=params.top_classes))
    }
    if not isinstance(network, PrototypeNetwork):
        return scores
    assert predictions.similarity is not None
    last_layer = network.class_weights().detach().numpy()
    top = top_prototypes(predictions.similarity, params.top_prototypes)  # [image, rank]
    vectors = network.prototypes.detach().numpy()[top]  # [image, rank, dim]
    inter = inter_distance(vectors, labels)
    return scores | {
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
    predictions: Mapping[str, Predictions], readers: Mapping[str, BagReader], params: EvaluateParams
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    reader = next(iter(readers.values()))  # all have the same images
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
