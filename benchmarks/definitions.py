"""What the authors' metric code moves: numbers of a finished run twice, ours and with one of its faults brought back.

    python -m benchmarks.definitions data/dataset data/masks data/crops models/final --sample-images 40

Both are of the same network and the same test images; the faults, one at a time, are the entries of DEVIATIONS.md that
their functions below are named by. Numbers of mask saliency that need no further run of the network are of all test
images, the others, and all of relevance (prp), of a sample, evenly from all classes. Batches are of 16 images in the
order of their keys, as the authors' are.

Prints one JSON line. Of each fault and number: ``ours`` with its 95 % ``interval`` over images, ``theirs``, and the
share of images whose own value is another one (``moved_frac``). Fractions are 0..1; null is not a finite number.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar
from unittest.mock import patch

import pipeline  # noqa: F401  (before torch: it says how OpenMP's threads wait)

# isort: split
import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.device import device_name
from pipeline.artifacts import WHOLE_IMAGE
from pipeline.cli import command_line
from pipeline.data.bags import BagReader
from pipeline.data.masks import join_masks
from pipeline.data.sample import draw_evenly
from pipeline.evaluation.explanations import Explanations, Subject, select
from pipeline.evaluation.images import TestImages
from pipeline.io import progress
from pipeline.metrics import change
from pipeline.metrics.change import mask_iou, relevance, similar_elements
from pipeline.metrics.classification import label_scores, predicted_labels
from pipeline.metrics.complexity import covered_parts
from pipeline.metrics.contrastivity import ActivationEntropy, InterDistance, usage
from pipeline.metrics.interface import Evidence, Look, Metric, Need
from pipeline.metrics.maps import min_max_mask, percentile_mask, positive_mask
from pipeline.metrics.mask_consistency import MaskConsistency
from pipeline.metrics.mask_quality import parts_in_masks
from pipeline.metrics.measure import missing
from pipeline.metrics.part_patterns import coverage_patterns
from pipeline.metrics.registry import METRICS, metric
from pipeline.metrics.statistics import MeanOverImages, Statistic
from pipeline.metrics.uncertainty import Bootstrap
from pipeline.model.files import load_model
from pipeline.model.network import PrototypeNetwork
from pipeline.params import EvaluateParams
from pipeline.runtime import Runtime, keep_freed_memory
from pipeline.saliency import prp
from pipeline.training.embedding import encoded_views

Name = tuple[str, str]
"""Family and key of a metric."""
Found = Mapping[Name, Statistic | float]
Measured = dict[str, Any]

_PER_BATCH = 16
_FAMILIES = ("compactness", "contrastivity", "continuity", "complexity", "completeness")
_NOT_ASKED = "not asked here"


# --- what changes evidence


def compared_with_itself(evidence: Evidence) -> Evidence:
    """B3: continuity compares the image with itself, not with its changed version."""
    return replace(evidence, changed=evidence.look)


def parts_of_last_view(evidence: Evidence, boxes: Tensor) -> Evidence:
    """B4: in continuity, parts are looked up at their places in the last view; those outside of it are dropped."""
    side = evidence.look.maps.shape[-1]
    low, high = boxes[:, None, :2] * side, boxes[:, None, 2:] * side
    located = (evidence.parts - low) / (high - low) * side

    return _each_look(evidence, lambda look: replace(look, covered=covered_parts(look.salient, located)))


def padded_parts(evidence: Evidence) -> Evidence:
    """B5: lists of parts are filled up to one length; each padding is covered where the last pixel is salient."""
    is_padding = evidence.parts.isnan().any(dim=2)[:, None]  # [image, 1, part]

    def padded(look: Look) -> Look:
        return replace(look, covered=torch.cat([look.covered, look.salient[:, :, -1, -1:] & is_padding], dim=2))

    return _each_look(evidence, padded)


def cut_relevance(evidence: Evidence) -> Evidence:
    """B6: relevance is cut to whole numbers before parts are looked up."""

    def cut(look: Look) -> Look:
        return replace(look, covered=covered_parts(relevance(look).trunc() != 0, evidence.parts))

    return _each_look(evidence, cut)


def places_in_lists(evidence: Evidence) -> Evidence:
    """PLC: a location is the position of the nearest view in the list of views; distances are in positions."""

    def listed(look: Look) -> Look:
        position = look.elements.nan_to_num(-math.inf).argmax(dim=2).float()
        return replace(look, centre=torch.stack([position, position], dim=2))  # half of whose Manhattan distance is one

    return _each_look(evidence, listed)


def salient_everywhere(evidence: Evidence) -> Evidence:
    """B15: a map that is 0 on 95 % of the image is salient everywhere; nothing is then outside, where noise goes."""

    def reached(look: Look) -> Look:
        return replace(look, salient=percentile_mask(look.maps, _percentile(evidence)))

    def with_parts(look: Look) -> Look:
        return replace(look, covered=covered_parts(look.salient, evidence.parts))

    look, noised = evidence.look, evidence.noised
    is_whole = reached(look).salient.flatten(2).all(dim=2)  # [image, rank]
    num_ranks = is_whole.shape[1]
    same = replace(
        look,
        logits=look.logits[:, None].expand(-1, num_ranks, -1),
        similarity=look.similarity[:, None].expand(-1, num_ranks, -1),
    )
    mixed = {}
    for name in ("logits", "similarity", "elements", "centre", "maps"):
        before, after = getattr(same, name), getattr(noised, name)
        mixed[name] = torch.where(is_whole.view(*is_whole.shape, *[1] * (after.ndim - 2)), before, after)
    without_noise = replace(evidence, noised=replace(noised, **mixed))
    return _each_look(without_noise, lambda one: with_parts(reached(one)))


# --- what changes numbers


def batch_means(evidence: Evidence) -> Found:
    """B2: means of the means of batches, so images of a short last batch count more."""
    found = {}
    for name in _names(evidence):
        values = statistic(name, evidence).values
        found[name] = float(np.nanmean([np.nanmean(values[part]) for part in _batches(len(values))]))
    return found


def padded_consistency(evidence: Evidence) -> Found:
    """B5: padding counts as one more part, once for each place that it fills, where the last pixel is salient."""
    num_padding = evidence.parts.isnan().any(dim=2).sum(dim=1)  # [image]
    of_padding = evidence.look.salient[:, :, -1, -1] * num_padding[:, None]
    hits = torch.cat([evidence.look.covered, of_padding[:, :, None]], dim=2).double()
    num_prototypes = evidence.look.similarity.shape[1]
    total = hits.new_zeros(num_prototypes, hits.shape[2]).index_add(0, evidence.top.flatten(), hits.flatten(0, 1))
    uses = usage(evidence.top, num_prototypes)
    share = total.sum(dim=1) / (uses * (total > 0).sum(dim=1))  # 0 / 0 where a prototype covers nothing
    return {("complexity", "consistency"): float(share[uses > 0].nan_to_num().mean())}


def by_rank(evidence: Evidence) -> Found:
    """B9: only vectors of equal rank are compared; classes without images count as 0."""
    num_classes = evidence.look.logits.shape[1]
    found = {}
    for key, vectors in (
        ("inter_prototype_distance", evidence.vectors),
        ("inter_feature_distance", evidence.features),
    ):
        of_ranks = [InterDistance(vectors[:, [rank]], evidence.labels) for rank in range(vectors.shape[1])]
        ones = np.ones((1, len(vectors)))
        sums = [np.nan_to_num(of_rank.of_classes(ones)).sum() for of_rank in of_ranks]
        found["contrastivity", key] = float(np.mean(sums) / num_classes)
    return found


def cut_entropy(evidence: Evidence) -> Found:
    """B10: entropies are cut at 1 bit."""
    similarity = evidence.look.similarity
    entropy = ActivationEntropy(similarity, evidence.top).of_prototypes(np.ones((1, len(similarity))))[0]
    is_used = (usage(evidence.top, similarity.shape[1]) > 0).numpy()
    return {("contrastivity", "activation_entropy"): float(np.nanmean(entropy[is_used].clip(0, 1)))}


def one_map_per_batch(evidence: Evidence) -> Found:
    """B12: noised maps of one rank in a batch share a percentile, similarities of elements their range."""
    noised = evidence.noised

    def together(values: Tensor, masked: Callable[[Tensor], Tensor]) -> Tensor:
        def of_batch(values: Tensor) -> Tensor:
            by_rank = values.transpose(0, 1)  # [rank, image, row, column]
            return masked(by_rank.flatten(1, 2)).reshape(by_rank.shape).transpose(0, 1)

        return torch.cat([of_batch(values[part]) for part in _batches(len(values))])

    if noised.maps.is_floating_point():
        percentile = _percentile(evidence)
        salient = together(noised.maps, lambda maps: percentile_mask(maps, percentile)) & positive_mask(noised.maps)
        noised = replace(noised, salient=salient)
    similar = together(noised.elements[:, :, None], lambda rows: min_max_mask(rows, change.ELEMENT_THRESHOLD))
    moved = change.mean_over_ranks(1 - mask_iou(similar_elements(evidence.look), similar))
    altered = replace(evidence, noised=noised)
    names = [("completeness", "saliency_location_change"), ("completeness", "saliency_value_change")]
    return {
        **{name: statistic(name, altered) for name in names},
        ("completeness", "element_location_change"): MeanOverImages(moved.numpy()),
    }


def gaps_spread(evidence: Evidence) -> Found:
    """B16: one rank of one image without a value leaves no number for the set."""
    with patch.object(change, "mean_over_ranks", lambda values: values.double().mean(dim=1)):
        names = [name for name in _names(evidence) if name != ("continuity", "stability")]
        return {name: float(statistic(name, evidence).values.mean()) for name in names}


def scores_of_rows(evidence: Evidence) -> Found:
    """B17: classes choose rows (images) of the scores, not columns."""
    logits, labels = evidence.look.logits, evidence.labels
    return {
        ("classification", "target_score"): float(logits[labels].mean()),
        ("classification", "other_score"): float(logits[~labels].mean()) / (logits.shape[1] - 1),
    }


def means_of_labels(evidence: Evidence) -> Found:
    """B19: precision and F1 of the log are means over batches, of the classes that each batch has or predicts."""
    labels, predicted = evidence.labels.numpy(), predicted_labels(evidence.look.logits.numpy())
    of_batches = [label_scores(predicted[part], labels[part]) for part in _batches(len(labels))]
    return {("log", key): float(np.mean([scores[key] for scores in of_batches])) for key in ("precision", "f1")}


def mixed_channels(features: Tensor, vectors: Tensor) -> Tensor:
    """B1: relevance is shared by the differences of all pairs of channels; brought to a sum of 1 here."""
    difference = (features[:, :, None] - vectors[:, None]).abs().clamp_min(1e-6).double()  # [pair, channel, channel]
    closeness = difference.reciprocal().square()
    shares = (closeness / closeness.sum(dim=2, keepdim=True)).mean(dim=1)
    return shares.to(features.dtype)


def relevance_of_channels(evidence: Evidence) -> Evidence:
    """B1, B6: relevance that is shared by all pairs of channels sums to their number, and is then cut."""
    dim = evidence.vectors.shape[2]
    return cut_relevance(_each_look(evidence, lambda look: replace(look, maps=look.maps * dim)))


# --- patterns of masks


def listed_patterns(test: TestImages, masks: Path) -> dict[str, MaskConsistency]:
    """B18: bits of patterns are places in an image's list of parts, and what fills up the list reads the last pixel.

    Gives mask consistency as it should be (``parts``), with either fault, and with both.
    """
    found: dict[str, list[frozenset[int]]] = {"parts": [], "places": [], "last_pixel": [], "both": []}
    num_parts = len(test.part_names)
    rows = join_masks(test.rows, masks / "masks.parquet", are_all=False)
    for row, stored in progress(rows, what="masks", total=len(test.rows)):
        pixels = [(int(part.x), int(part.y)) for part in row.parts] + [(row.width - 1, row.height - 1)]
        covered = parts_in_masks([mask.rle for mask in stored], np.array(pixels), height=row.height, width=row.width)
        visible, last = covered[:, :-1], covered[:, -1:]
        part_idxs, num_visible = [part.part_idx for part in row.parts], len(row.parts)
        for name, idxs, absent in (
            ("parts", part_idxs, False),
            ("places", list(range(num_visible)), False),
            ("last_pixel", part_idxs, last),
            ("both", list(range(num_visible)), last),
        ):
            bits = np.zeros((len(covered), num_parts), dtype=bool) | absent
            bits[:, idxs] = visible
            found[name].append(coverage_patterns(bits))
    labels = np.array(test.reader.labels)
    return {name: MaskConsistency(patterns, labels) for name, patterns in found.items()}


# --- evidence and numbers


@dataclass(frozen=True, slots=True)
class Asked:
    """Some test images, in the order of their keys, with saliency of one kind; and our numbers of them."""

    saliency: str
    evidence: Evidence
    bootstrap: Bootstrap
    names: frozenset[Name]  # of the metrics that are asked of these images, with this saliency
    known: dict[Name, Statistic] = field(default_factory=dict)

    def with_numbers(self, wrong: Callable[[Evidence], Found]) -> Measured:
        """Put the numbers of a fault beside ours."""
        return self.beside(wrong, wrong(self.evidence))

    def with_evidence(self, wrong: Callable[..., Any], altered: Evidence, names: Sequence[Name]) -> Measured:
        """Put numbers of evidence that a fault has altered beside ours."""
        return self.beside(wrong, {name: statistic(name, altered) for name in names if name in self.names})

    def beside(self, wrong: Callable[..., Any], theirs: Found, ours: Found | None = None) -> Measured:
        """Put their numbers beside ours; OURS has them where they are no declared metrics of the evidence."""
        entry, _, what = (wrong.__doc__ or "").split("\n")[0].partition(": ")
        numbers: Measured = {}
        for name, value in theirs.items():
            if ours is not None:
                own = ours[name]
            elif name in self.names:
                own = self.known[name] = self.known.get(name) or statistic(name, self.evidence)
            else:
                continue
            numbers[".".join(name)] = self._pair(own, value)
        return {
            "entry": entry,
            "wrong": what,
            "saliency": self.saliency,
            "images": len(self.evidence.labels),
            "numbers": numbers,
        }

    def _pair(self, own: Statistic | float, value: Statistic | float) -> Measured:
        pair: Measured = {"ours": self._value(own), "theirs": self._value(value)}
        if isinstance(own, Statistic) and (interval := self.bootstrap.interval(own)) is not None:
            pair["interval"] = [_rounded(interval.low), _rounded(interval.high)]
        if isinstance(own, MeanOverImages) and isinstance(value, MeanOverImages):
            is_equal = np.isclose(own.values, value.values, rtol=1e-9, atol=1e-9, equal_nan=True)
            pair["moved_frac"] = _rounded(1 - is_equal.mean())
        return pair

    def _value(self, value: Statistic | float) -> float | None:
        return _rounded(value.value(self.bootstrap.num_images) if isinstance(value, Statistic) else value)


def statistic(name: Name, evidence: Evidence) -> Any:
    """Compute a declared metric, some images at a time."""
    declared = metric(*name)
    if declared.of_set is not None:
        return declared.of_set(evidence)
    parts = [declared.of_image(select(evidence, part)) for part in _batches(len(evidence.labels))]
    return MeanOverImages(torch.cat(parts).double().numpy())


_Joined = TypeVar("_Joined", Evidence, Look)


def joined(parts: Sequence[_Joined]) -> _Joined:
    """Put evidence about some images after evidence about others: undoes ``select``."""

    def together(name: str, values: list[Any]) -> Any:
        if values[0] is None or name in ("last_layer", "params", "absent"):
            return values[0]
        return joined(values) if is_dataclass(values[0]) else torch.cat(values)

    names = [own.name for own in fields(parts[0])]
    return replace(parts[0], **{name: together(name, [getattr(part, name) for part in parts]) for name in names})


def evidence_of(subject: Subject, saliency: str) -> Evidence:
    """Collect all evidence about the images of a subject, in their order: its sample is all of them, or none."""
    explanations = Explanations(subject, saliency, absent={"deletion": _NOT_ASKED, "scenes": _NOT_ASKED})
    batches = progress(explanations.batches(), what=saliency, total=explanations.num_batches, unit="batch")
    return joined([batch.evidence for batch in batches])


def _names(evidence: Evidence) -> list[Name]:
    """Name the metrics of the paper's families that are means over images and can be had."""

    def is_wanted(declared: Metric) -> bool:
        return declared.family in _FAMILIES and declared.of_image is not None

    wanted = [declared for declared in METRICS if is_wanted(declared) and missing(declared, evidence.absent) is None]
    return [(declared.family, declared.key) for declared in wanted]


def _batches(num_images: int) -> list[list[int]]:
    return [list(range(start, min(start + _PER_BATCH, num_images))) for start in range(0, num_images, _PER_BATCH)]


def _each_look(evidence: Evidence, alter: Callable[[Look], Look]) -> Evidence:
    looks = {name: getattr(evidence, name) for name in ("look", "changed", "noised")}
    return replace(evidence, **{name: look and alter(look) for name, look in looks.items()})


def _percentile(evidence: Evidence) -> float:
    return 100 * (1 - evidence.params.salient_frac)


def _rounded(value: float) -> float | None:
    return round(float(value), 5) if math.isfinite(value) else None


# --- the measurement

_LOCATION, _VALUE, _PLACE = "saliency_location_change", "saliency_value_change", "location_change"
_TRUE_TO_OBJECT = tuple(
    ("complexity", key)
    for key in (
        "inside_outside_relevance",
        "outside_inside_ratio",
        "object_overlap",
        "background_overlap",
        "object_iou",
        "consistency",
    )
)


def measure(dataset: Path, masks: Path, crops: Path, final: Path, *, sample_images: int, runtime: Runtime) -> Measured:
    """Measure everything about a run; see the module's text.

    Args:
        dataset: has object masks and part locations.
        masks: all of them.
        crops: shards.
        final: the finished network, of one that compares views.
        sample_images: test images for what takes the network to run again.
        runtime: device, workers and cache.
    """
    network, _ = load_model(final)
    assert isinstance(network, PrototypeNetwork)
    assert network.views == "bag"
    assert not network.grid
    params, seed = EvaluateParams(sample_images=sample_images), 0
    test = TestImages(dataset, BagReader(crops, "test"))
    [encoded] = encoded_views(network, test.reader, runtime=runtime, what="features of test")
    every = Subject(
        network=network.cpu().eval(),
        test=test,
        images=range(len(test)),
        encoded=encoded,
        sampled=frozenset(),
        params=params,
        seed=seed,
        device=runtime.torch_device,
    )
    sampled = draw_evenly(test.reader.image_keys, test.reader.labels, sample_images, seed=seed)
    sample = replace(every, sampled=frozenset(sampled)).of_sample()
    of_all, of_some = (
        Bootstrap(len(one.images), num_draws=params.bootstrap_draws, seed=seed) for one in (every, sample)
    )
    whole = _asked("mask", evidence_of(every, "mask"), of_all, lambda needs: True)
    faults = measure_whole(whole) + measure_patterns(whole, test, masks)
    boxes = torch.stack([_last_box(test, image) for image in sample.images])
    by_mask = _asked("mask", evidence_of(sample, "mask"), of_some, lambda needs: bool(needs & {"changed", "noised"}))
    faults += measure_sample(by_mask, boxes)
    by_prp = _asked("prp", evidence_of(sample, "prp"), of_some, lambda needs: "maps" in needs)
    faults += measure_sample(by_prp, boxes)
    with patch.object(prp, "distance_shares", mixed_channels):
        mixed = evidence_of(sample, "prp")
    faults += measure_relevance(by_prp, mixed)
    return {
        "benchmark": "definitions",
        "device": device_name() if runtime.torch_device == "cpu" else torch.cuda.get_device_name(),
        "classes": len(test.reader.class_names),
        "images": len(test),
        "sample_images": len(sample.images),
        "views_per_image": round(float(np.mean(test.reader.lengths)), 2),
        "top_prototypes": params.top_prototypes,
        "images_per_batch": _PER_BATCH,
        "images_with_hidden_parts_frac": _rounded(whole.evidence.parts.isnan().any(dim=2).any(dim=1).double().mean()),
        "prp_maps_0_on_95_percent_frac": _rounded(_share_mostly_zero(by_prp.evidence)),
        "faults": sorted(
            filter(lambda fault: fault["numbers"], faults),
            key=lambda fault: (fault["entry"].lstrip("B").zfill(3), fault["saliency"]),
        ),
    }


def measure_whole(asked: Asked) -> list[Measured]:
    """Measure what needs every image looked at, and no further run of the network."""
    ours = _of_labels(asked.evidence)
    return [
        asked.with_numbers(batch_means),
        asked.with_numbers(padded_consistency),
        asked.with_numbers(by_rank),
        asked.with_numbers(cut_entropy),
        asked.with_evidence(places_in_lists, places_in_lists(asked.evidence), [("contrastivity", _PLACE)]),
        asked.with_numbers(gaps_spread),
        asked.with_numbers(scores_of_rows),
        asked.beside(means_of_labels, means_of_labels(asked.evidence), ours),
    ]


def measure_patterns(asked: Asked, test: TestImages, masks: Path) -> list[Measured]:
    """Measure mask consistency, which hangs on no network."""
    found = listed_patterns(test, masks)
    theirs = {("mask_consistency", name): value for name, value in found.items() if name != "parts"}
    return [asked.beside(listed_patterns, theirs, dict.fromkeys(theirs, found["parts"]))]


def measure_sample(asked: Asked, boxes: Tensor) -> list[Measured]:
    """Measure what is asked of the sample, with saliency of one kind."""
    evidence = asked.evidence
    continuity = [name for name in _names(evidence) if name[0] == "continuity"]
    stability = [("continuity", "stability")]
    places = [("continuity", _PLACE), ("completeness", _PLACE)]
    found = [
        asked.with_numbers(batch_means),
        asked.with_evidence(compared_with_itself, compared_with_itself(evidence), continuity),
        asked.with_evidence(parts_of_last_view, parts_of_last_view(evidence, boxes), stability),
        asked.with_evidence(padded_parts, padded_parts(evidence), stability),
        asked.with_numbers(padded_consistency),
        asked.with_evidence(places_in_lists, places_in_lists(evidence), places),
        asked.with_numbers(one_map_per_batch),
        asked.with_numbers(gaps_spread),
    ]
    if evidence.look.maps.is_floating_point():
        cut = [("complexity", "consistency"), *stability]
        changes = [(family, key) for family in ("continuity", "completeness") for key in (_LOCATION, _VALUE)]
        noise = [name for name in _names(evidence) if name[0] == "completeness" and name not in changes]
        everywhere = [("contrastivity", _LOCATION), *_TRUE_TO_OBJECT, *stability, *changes, *noise]
        found += [
            asked.with_evidence(cut_relevance, cut_relevance(evidence), cut),
            asked.with_evidence(salient_everywhere, salient_everywhere(evidence), everywhere),
        ]
    return found


def measure_relevance(asked: Asked, mixed: Evidence) -> list[Measured]:
    """Measure what comes of relevance that starts at the wrong channels: of the evidence MIXED."""
    names = [name for name in _names(asked.evidence) if "maps" in metric(*name).needs]
    consistency = [("complexity", "consistency")]
    return [
        asked.with_evidence(mixed_channels, mixed, [*names, *consistency]),
        asked.with_evidence(
            relevance_of_channels, relevance_of_channels(mixed), [*consistency, ("continuity", "stability")]
        ),
    ]


def _asked(saliency: str, evidence: Evidence, bootstrap: Bootstrap, is_wanted: Callable[[set[Need]], bool]) -> Asked:
    """Put down which metrics can be had, and are wanted for what they need."""
    had = [declared for declared in METRICS if missing(declared, evidence.absent) is None]
    names = frozenset((declared.family, declared.key) for declared in had if is_wanted(set(declared.needs)))
    return Asked(saliency, evidence, bootstrap, names)


def _last_box(test: TestImages, image: int) -> Tensor:
    """Give the box of the last view that has a mask (the authors' bags have no others), as shares of the sides."""
    own = [idx for idx, row in enumerate(test.view_rows(image)) if row.mask_idx != WHOLE_IMAGE]
    return test.box_shares([image])[own[-1] if own else -1]


def _of_labels(evidence: Evidence) -> Found:
    scores = label_scores(predicted_labels(evidence.look.logits.numpy()), evidence.labels.numpy())
    return {("log", key): scores[key] for key in ("precision", "f1")}


def _share_mostly_zero(evidence: Evidence) -> float:
    return float(percentile_mask(evidence.look.maps, _percentile(evidence)).flatten(2).all(dim=2).double().mean())


def main(
    dataset: Annotated[Path, typer.Argument(help="With images.parquet; object masks and part locations.")],
    masks: Annotated[Path, typer.Argument(help="With masks.parquet.")],
    crops: Annotated[Path, typer.Argument(help="Shards.")],
    final: Annotated[Path, typer.Argument(help="The finished network.")],
    sample_images: Annotated[int, typer.Option(min=2, help="For what takes the network to run again.")] = 40,
    cache: Annotated[Path | None, typer.Option(help="Keep encoded views here, for further calls.")] = None,
    device: str = "cpu",
) -> None:
    """Measure a run and print the line."""
    keep_freed_memory()  # as the stages do
    runtime = Runtime(device=device, cache=cache)
    print(json.dumps(measure(dataset, masks, crops, final, sample_images=sample_images, runtime=runtime)))


app = command_line(main)

if __name__ == "__main__":
    app()
