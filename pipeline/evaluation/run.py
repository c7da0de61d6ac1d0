"""The stage's work: every network of the run on the test images, every metric, and the files that hold them."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import METRICS_DETAIL, PER_IMAGE, WHOLE_IMAGE, write_table
from pipeline.data.bags import BagReader
from pipeline.data.masks import join_masks
from pipeline.data.sample import draw_evenly
from pipeline.errors import PipelineError
from pipeline.evaluation.causes import Causes
from pipeline.evaluation.explanations import Explanations, Subject
from pipeline.evaluation.images import TestImages
from pipeline.evaluation.looks import look_at
from pipeline.evaluation.plots import Explained, write_plots
from pipeline.evaluation.sanity import (
    RANDOMISATIONS,
    Randomisation,
    applies,
    insensitive,
    moved_maps,
    restricted,
    with_random_weights,
    with_shuffled_prototypes,
)
from pipeline.io import progress, write_json
from pipeline.mask_report import patterns_of
from pipeline.metrics.interface import Deletion, Evidence, Look, Metric, Need
from pipeline.metrics.measure import Batch, Measured, measure
from pipeline.metrics.registry import METRICS
from pipeline.metrics.statistics import MeanOverImages
from pipeline.metrics.uncertainty import Bootstrap
from pipeline.model.blackbox import BlackBox
from pipeline.model.encoding import encode
from pipeline.model.files import load_model
from pipeline.model.network import Network, PrototypeNetwork
from pipeline.params import EvaluateParams, Params
from pipeline.report.tables import FULL_TITLES, write_tables
from pipeline.runtime import Runtime
from pipeline.saliency.kinds import NEEDS_PIXELS, why_not
from pipeline.training.embedding import encoded_views
from pipeline.training.feature_store import hash_of_state
from pipeline.training.readers import check_classes
from pipeline.training.seeding import prepare

Scores = dict[str, dict[str, float | None]]

_DECIMALS = 6
_NOT_AGAIN = "not looked at again in a sanity check"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the metrics table.

    Attributes:
        measured: its metrics.
        images: the test images it is about.
        logits: of each of them.
        insensitive: metrics that failed a sanity check, and which; see :func:`pipeline.evaluation.sanity.insensitive`.
        top: prototypes that explain each image, their similarities, and the position of the view or place nearest to
            each; None for a black box.
        shown: what plots show of the explanations; None where there is nothing.
        is_network: whether it is another network than the rows before it, and not another explanation.
    """

    measured: Sequence[Measured]
    images: Sequence[int]
    logits: Tensor
    insensitive: Mapping[tuple[str, str], list[str]]
    top: tuple[Tensor, Tensor, Tensor] | None = None
    shown: Explained | None = None
    is_network: bool = True


def evaluate(
    dataset: Path,
    masks: Path,
    crops: Path,
    trained: Path,
    projected: Path,
    final: Path,
    out: Path,
    *,
    params: Params,
    runtime: Runtime,
) -> dict[str, Scores]:
    """Evaluate the final network, its two earlier states and the black box on the test images.

    Args:
        dataset: folder with ``images.parquet``.
        masks: folder with ``masks.parquet``.
        crops: folder with shards.
        trained: network before projection; holds ``blackbox`` where one was trained.
        projected: network after projection.
        final: network after fine-tuning.
        out: folder that gets ``metrics.json``, ``metrics_detail.parquet``, ``table.{csv,md,tex}``,
            ``per_image.parquet`` and ``plots``.
        params: evaluate, seed, and what decides how pictures are made (dataset, crops).
        runtime: device, workers and cache.

    Returns:
        The content of ``metrics.json``: row, family, metric.
    """
    prepare(params.seed)
    network, description = load_model(final)
    kinds_of_views: set[Literal["bag", "whole"]] = {network.views, BlackBox.views}
    readers = {views: BagReader(crops, "test", views=views) for views in kinds_of_views}
    check_classes(readers[network.views], description["class_names"], final)
    encoder = _Encoder(runtime)
    rows: dict[str, Row] = {}
    if isinstance(network, PrototypeNetwork):
        test = TestImages(dataset, readers[network.views])
        encoded = encoder.encoded(network, test.reader)
        causes = Causes(dataset, masks, params)
        rows |= _explained(network, test, encoded, causes, masks, final, params=params, runtime=runtime)
    else:
        rows[network.head] = _opaque(network, encoder, readers[network.views], params.evaluate)
    states: dict[str, Path] = {}
    if isinstance(network, PrototypeNetwork):
        states |= {f"{network.head}_projected": projected, f"{network.head}_trained": trained}
    if (trained / BlackBox.head).exists():
        states[BlackBox.head] = trained / BlackBox.head
    for name, folder in states.items():
        state, _ = load_model(folder)
        if isinstance(state, PrototypeNetwork):
            _check_same_embedding(network, state, folder)
            rows[name] = _unexplained(state, test, encoder.encoded(state, test.reader), params.evaluate)
        else:
            rows[name] = _opaque(state, encoder, readers[state.views], params.evaluate)
    return _write(out, rows, readers[network.views], params)


def _explained(
    network: PrototypeNetwork,
    test: TestImages,
    encoded: Tensor,
    causes: Causes,
    masks: Path,
    folder: Path,
    *,
    params: Params,
    runtime: Runtime,
) -> dict[str, Row]:
    """Measure the finished network: a row with everything, and one for each further kind of saliency."""
    settings = params.evaluate
    network.cpu().eval()
    kinds = [kind for kind in settings.saliency if why_not(kind, network) is None]
    if not kinds:
        reasons = "; ".join(f"{kind}: {why_not(kind, network)}" for kind in settings.saliency)
        raise PipelineError(f"evaluate.saliency names nothing that {folder} has ({reasons}): add another kind")
    sampled = draw_evenly(test.reader.image_keys, test.reader.labels, settings.sample_images, seed=params.seed)
    subject = Subject(
        network=network,
        test=test,
        images=range(len(test)),
        encoded=encoded,
        sampled=frozenset(sampled),
        params=settings,
        seed=params.seed,
        device=runtime.torch_device,
    )
    absent: dict[Need, str] = {**causes.absent}
    if network.views == "whole":
        absent["deletion"] = f"`{network.head}` is shown one view, the whole image"
    patterns = None
    if "parts" in test.absent:
        absent["patterns"] = test.absent["parts"]
    else:
        patterns = _patterns(test, masks)
    rows = {}
    for position, kind in enumerate(kinds):
        is_first = position == 0
        metrics = METRICS if is_first else tuple(declared for declared in METRICS if "maps" in declared.needs)
        asked = subject.of_sample() if kind in NEEDS_PIXELS and not is_first else subject
        row = _of_kind(asked, kind, metrics, patterns, absent, causes, is_first=is_first)
        rows[network.head if is_first else f"{network.head}_{kind}"] = row
    return rows


def _patterns(test: TestImages, masks: Path) -> tuple[frozenset[int], ...]:
    """Find the part patterns of all stored masks of the test images."""
    joined = join_masks(test.rows, masks / "masks.parquet", are_all=False)
    num_parts = len(test.part_names)
    return tuple(
        patterns_of(row, own, num_parts) for row, own in progress(joined, what="part patterns", total=len(test.rows))
    )


def _of_kind(
    subject: Subject,
    kind: str,
    metrics: Sequence[Metric],
    patterns: tuple[frozenset[int], ...] | None,
    absent: Mapping[Need, str],
    causes: Causes,
    *,
    is_first: bool,
) -> Row:
    """Measure a network with one kind of saliency, and check what the metrics are worth."""
    explanations = Explanations(subject, kind, absent=absent, extra=causes.add)
    deletions: list[Deletion] = []

    def batches() -> Iterator[Batch]:
        what = f"metrics, {kind}"
        for batch in progress(explanations.batches(), what=what, total=explanations.num_batches, unit="batch"):
            if batch.evidence.deletion is not None:
                deletions.append(batch.evidence.deletion)
            yield batch

    measured = measure(metrics, batches(), lambda: replace(explanations.whole(), patterns=patterns))
    look = explanations.base.look
    return Row(
        measured=measured,
        images=subject.images,
        logits=look.logits,
        insensitive=_insensitive(subject, kind, metrics, measured, explanations, absent, causes, is_first=is_first),
        top=(explanations.top, look.similarity.gather(1, explanations.top), explanations.seen.element),
        shown=_shown(explanations, subject.network, deletions) if is_first else None,
        is_network=is_first,
    )


def _shown(explanations: Explanations, network: PrototypeNetwork, deletions: Sequence[Deletion]) -> Explained:
    return Explained(
        top=explanations.top,
        features=explanations.seen.features,
        prototypes=_as_features(network),
        prototype_labels=network.prototype_classes(),
        deletion=_joined(deletions),
    )


def _as_features(network: PrototypeNetwork) -> Tensor:
    """Give the prototypes as points among the features; where features are shares of prototypes, a share of 1."""
    vectors = network.prototypes.detach()
    return vectors if network.is_projected else torch.eye(len(vectors))


def _joined(deletions: Sequence[Deletion]) -> Deletion | None:
    if not deletions:
        return None
    names = ("removed", "inserted", "removed_at_random", "inserted_at_random")
    return Deletion(**{name: torch.cat([getattr(part, name) for part in deletions]) for name in names})


def _insensitive(
    subject: Subject,
    kind: str,
    metrics: Sequence[Metric],
    measured: Sequence[Measured],
    explanations: Explanations,
    absent: Mapping[Need, str],
    causes: Causes,
    *,
    is_first: bool,
) -> dict[tuple[str, str], list[str]]:
    """Check on the sampled images what the metrics of a row are worth."""
    sampled = np.array([idx for idx, image in enumerate(subject.images) if image in subject.sampled])
    whole = explanations.whole()
    tried = [one for one in measured if any(applies(one.declared, randomisation) for randomisation in RANDOMISATIONS)]
    real = {one.name: statistic for one in tried if (statistic := restricted(one, whole, sampled)) is not None}
    # looking at noised and changed images again for every kind, and at scenes for every backbone, would take longest
    not_again: dict[Need, str] = {} if is_first else {"changed": _NOT_AGAIN, "noised": _NOT_AGAIN}
    randomised: dict[Randomisation, list[Measured]] = {}
    for randomisation in progress(RANDOMISATIONS, what=f"sanity, {kind}", total=len(RANDOMISATIONS), unit="check"):
        altered = _altered(subject.of_sample(), randomisation)
        costly: dict[Need, str] = {"scenes": _NOT_AGAIN} if randomisation == "weights" else {}
        checked = Explanations(
            altered,
            kind,
            absent={**absent, **not_again, **costly},
            top=None if randomisation == "weights" else explanations.top[torch.from_numpy(sampled)],
            known=explanations.kept_maps or None if randomisation == "maps" else None,
            altered=functools.partial(moved_maps, seed=subject.seed) if randomisation == "maps" else None,
            extra=causes.add,
        )
        wanted = [declared for declared in metrics if applies(declared, randomisation)]
        randomised[randomisation] = measure(wanted, checked.batches(), checked.whole)
    bootstrap = Bootstrap(len(sampled), num_draws=subject.params.bootstrap_draws, seed=subject.seed)
    return insensitive(real, randomised, bootstrap)


def _altered(subject: Subject, randomisation: Randomisation) -> Subject:
    """Randomise the network of a subject; where its backbone changes, encode the views again."""
    if randomisation == "maps":
        return subject
    if randomisation == "prototypes":
        return replace(subject, network=with_shuffled_prototypes(subject.network, seed=subject.seed))
    network = with_random_weights(subject.network, seed=subject.seed)
    encoded = [encode(network, [subject.test.views(image)], subject.device)[0] for image in subject.images]
    return replace(subject, network=network, encoded=torch.cat(encoded))


def _unexplained(state: PrototypeNetwork, test: TestImages, encoded: Tensor, params: EvaluateParams) -> Row:
    """Measure an earlier state of the network: what needs no maps."""
    state.cpu().eval()
    images = range(len(test))
    seen, top = look_at(state, encoded, test.reader.lengths, test.box_shares(images), params.top_prototypes)
    evidence = Evidence(
        labels=torch.tensor(test.reader.labels),
        look=seen.look,
        top=top,
        vectors=state.prototypes.detach()[top],
        features=seen.features,
        last_layer=state.class_weights().detach(),
        params=params,
    )
    wanted = [declared for declared in METRICS if set(declared.needs) <= {"prototypes"}]
    similarity = seen.look.similarity.gather(1, top)
    measured = _measured_at_once(wanted, evidence)
    return Row(measured, images, seen.look.logits, {}, top=(top, similarity, seen.element))


def _opaque(network: Network, encoder: "_Encoder", reader: BagReader, params: EvaluateParams) -> Row:
    """Measure a network without prototypes."""
    encoded = encoder.encoded(network, reader)
    with torch.no_grad():
        logits = network.cpu().logits_of(encoded, torch.tensor(reader.lengths))
    num = len(logits)
    look = Look(
        logits=logits,
        similarity=torch.empty(num, 0),
        elements=torch.empty(num, 0, 0),
        centre=torch.empty(num, 0, 2),
    )
    evidence = Evidence(labels=torch.tensor(reader.labels), look=look, params=params)
    wanted = [declared for declared in METRICS if not declared.needs]
    return Row(_measured_at_once(wanted, evidence), range(len(reader)), logits, {})


def _measured_at_once(metrics: Sequence[Metric], evidence: Evidence) -> list[Measured]:
    return measure(metrics, [Batch(np.arange(len(evidence.labels)), evidence)], lambda: evidence)


class _Encoder:
    """Encodes the test images once for all networks that share a backbone."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._last: tuple[tuple[str, bool], BagReader, Tensor] | None = None

    def encoded(self, network: Network, reader: BagReader) -> Tensor:
        key = (hash_of_state(network.backbone.state_dict()), network.grid)
        if self._last is not None and self._last[0] == key:
            _, known, encoded = self._last
            if known is reader:
                return encoded
            if (positions := _positions_of_whole_images(known)) is not None and known.image_keys == reader.image_keys:
                return encoded[positions]
        what = "features of test" + (", whole" if network.views == "whole" else "")
        self._last = key, reader, encoded_views(network, reader, runtime=self._runtime, what=what)[0]
        return self._last[2]


def _positions_of_whole_images(reader: BagReader) -> list[int] | None:
    """Find the view of each bag that shows the whole image, among all views; None where a bag has none."""
    positions: list[int] = []
    start = 0
    for bag_idx, length in enumerate(reader.lengths):
        found = [idx for idx, row in enumerate(reader.rows(bag_idx)) if row.mask_idx == WHOLE_IMAGE]
        if len(found) != 1:
            return None
        positions.append(start + found[0])
        start += length
    return positions


def _check_same_embedding(final: Network, state: Network, folder: Path) -> None:
    """The states of a network share one embedding; only normalisation statistics, no parameters, may differ."""
    own, other = (dict(one.named_parameters()) for one in (final, state))
    for key, value in own.items():
        if key.startswith(("backbone.", "add_on.")) and (
            key not in other or not torch.equal(value.cpu(), other[key].cpu())  # evaluating one leaves it on a device
        ):
            raise PipelineError(f"{folder}: its {key} is not that of the final network: run `dvc repro finetune`")


def _write(out: Path, rows: Mapping[str, Row], reader: BagReader, params: Params) -> dict[str, Scores]:
    """Write all outs."""
    details = []
    metrics: dict[str, Scores] = {}
    for name, row in rows.items():
        num_images = len(row.logits)
        bootstrap = Bootstrap(num_images, num_draws=params.evaluate.bootstrap_draws, seed=params.seed)
        for one in progress(row.measured, what=f"intervals, {name}", total=len(row.measured), unit="metric"):
            interval = None if one.statistic is None or one.value is None else bootstrap.interval(one.statistic)
            details.append(
                {
                    "row": name,
                    "family": one.declared.family,
                    "metric": one.declared.key,
                    "value": one.value,
                    "low": None if interval is None else interval.low,
                    "high": None if interval is None else interval.high,
                    "num_images": 0 if one.statistic is None else one.statistic.num_images,
                    "reason": one.reason,
                    "insensitive_to": row.insensitive.get(one.name),
                }
            )
            value = None if one.value is None else round(one.value, _DECIMALS)
            metrics.setdefault(name, {}).setdefault(one.declared.family, {})[one.declared.key] = value
    write_table(out / "metrics_detail.parquet", details, METRICS_DETAIL)
    write_table(out / "per_image.parquet", _per_image(rows, reader), PER_IMAGE)
    write_tables(out, details, num_draws=params.evaluate.bootstrap_draws)
    first = next(iter(rows.values()))
    write_plots(
        out / "plots",
        labels=torch.tensor(reader.labels),
        logits={FULL_TITLES[name]: row.logits for name, row in rows.items() if row.is_network},
        explained=first.shown,
        class_names=reader.class_names,
        seed=params.seed,
    )
    write_json(out / "metrics.json", metrics)
    return metrics


def _per_image(rows: Mapping[str, Row], reader: BagReader) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for name, row in rows.items():
        probability = torch.softmax(row.logits, dim=1)
        confidence, predicted = probability.max(dim=1)
        by_metric = {
            f"{one.declared.family}.{one.declared.key}": one.statistic.values
            for one in row.measured
            if isinstance(one.statistic, MeanOverImages)
        }
        for idx, image in enumerate(row.images):
            label = reader.labels[image]
            entry: dict[str, Any] = {
                "row": name,
                "image_key": reader.image_keys[image],
                "label": label,
                "predicted": int(predicted[idx]),
                "confidence": float(confidence[idx]),
                "label_probability": float(probability[idx, label]),
                "values": [(key, float(values[idx])) for key, values in by_metric.items() if not np.isnan(values[idx])],
            }
            if row.top is not None:
                top, similarity, shown = row.top
                entry["top_prototypes"] = top[idx].tolist()
                entry["top_similarities"] = similarity[idx].tolist()
                entry["top_views"] = shown[idx].tolist()
            entries.append(entry)
    return entries
