"""The metrics once more, the plain way: one map, one pair of maps, one image, one part, one box at a time.

The definitions are those of ``pipeline.metrics``, so the numbers are the same. Maps must be salient somewhere.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import (
    balanced_accuracy_score,
    precision_recall_fscore_support,
    roc_auc_score,
    top_k_accuracy_score,
)
from torch import Tensor

from pipeline.metrics.interface import Evidence

Known = Any
"""Evidence, its tensors as arrays."""
OfImage = Callable[[Known, int], float]
OfSet = Callable[[Known], float]

_ENTROPY_BINS, _LEAST_FREQUENCY, _CALIBRATION_BINS = 10, 1e-3, 15


def as_arrays(evidence: Evidence) -> Known:
    """Take the tensors of evidence as arrays; nothing is copied."""

    def converted(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.numpy()
        if is_dataclass(value) and not isinstance(value, type):
            return SimpleNamespace(**{own.name: converted(getattr(value, own.name)) for own in fields(value)})
        return value

    return converted(evidence)


# --- maps and boxes


def percentile_mask(values: np.ndarray, percentile: float) -> np.ndarray:
    """Choose the pixels of one map that reach its percentile, in the map's precision."""
    mask: np.ndarray = values >= np.quantile(values, values.dtype.type(percentile / 100))
    return mask


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Find the box of one mask."""
    rows, columns = np.nonzero(mask)
    if len(rows) == 0:
        return 0, 0, 0, 0
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    either = (one | other).sum()
    return float((one & other).sum() / either) if either else math.nan


def _value_change(one: np.ndarray, other: np.ndarray) -> float:
    first, second = (np.sort(values.ravel()).astype(np.float64) for values in (one, other))
    return float(1 - np.nansum(np.minimum(first, second)) / np.nansum(np.maximum(first, second)))


def _relevance(look: Known, image: int, rank: int) -> np.ndarray:
    maps, salient = look.maps[image, rank], look.salient[image, rank]
    relevance: np.ndarray = maps & salient if maps.dtype == bool else np.where(salient, maps, maps.dtype.type(0))
    return relevance


def _similar_elements(look: Known, image: int, rank: int) -> np.ndarray:
    values = look.elements[image, rank]
    least, largest = np.nanmin(values), np.nanmax(values)
    mask: np.ndarray = (values - least) / (largest - least) > 0.5
    return mask


def _similarity(look: Known, image: int, rank: int, prototype: int) -> float:
    scores = look.similarity[image] if look.similarity.ndim == 2 else look.similarity[image, rank]
    return float(scores[prototype])


def _nanmean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return float(np.mean(present)) if present else math.nan


# --- changes


def _changes(after: Callable[[Known], Known]) -> dict[str, OfImage]:
    def over_ranks(change: Callable[[Known, Known, Known, int, int], float]) -> OfImage:
        def of_image(known: Known, image: int) -> float:
            ranks = range(known.top.shape[1])
            return _nanmean([change(known, known.look, after(known), image, rank) for rank in ranks])

        return of_image

    def location(known: Known, before: Known, after: Known, image: int, rank: int) -> float:
        return 1 - _iou(before.salient[image, rank], after.salient[image, rank])

    def value(known: Known, before: Known, after: Known, image: int, rank: int) -> float:
        return _value_change(_relevance(before, image, rank), _relevance(after, image, rank))

    def place(known: Known, before: Known, after: Known, image: int, rank: int) -> float:
        return float(np.abs(before.centre[image, rank] - after.centre[image, rank]).sum() / 2)

    def similarity(known: Known, before: Known, after: Known, image: int, rank: int) -> float:
        first, second = (_similarity(look, image, rank, known.top[image, rank]) for look in (before, after))
        return abs(first - second) / first

    def moved(known: Known, before: Known, after: Known, image: int, rank: int) -> float:
        scores = after.similarity[image] if after.similarity.ndim == 2 else after.similarity[image, rank]
        order = np.argsort(-scores, kind="stable").tolist()
        return float(abs(order.index(known.top[image, rank]) - rank))

    def element_location(known: Known, before: Known, after: Known, image: int, rank: int) -> float:
        return 1 - _iou(_similar_elements(before, image, rank), _similar_elements(after, image, rank))

    def element_value(known: Known, before: Known, after: Known, image: int, rank: int) -> float:
        return _value_change(before.elements[image, rank], after.elements[image, rank])

    return {
        "saliency_location_change": over_ranks(location),
        "saliency_value_change": over_ranks(value),
        "location_change": over_ranks(place),
        "similarity_change": over_ranks(similarity),
        "rank_change": over_ranks(moved),
        "element_location_change": over_ranks(element_location),
        "element_value_change": over_ranks(element_value),
    }


def _score_change(known: Known, image: int) -> float:
    before, after = known.look.logits[image], known.changed.logits[image]
    return _value_change(before, after) if min(before.min(), after.min()) >= 0 else math.nan


def _prediction_rank(known: Known, image: int) -> float:
    order = np.argsort(-known.changed.logits[image], kind="stable").tolist()
    return float(order.index(known.look.logits[image].argmax()))


def _stability(known: Known, image: int) -> float:
    ranks = []
    for before, after in zip(known.look.covered[image], known.changed.covered[image], strict=True):
        either = sum(one or other for one, other in zip(before, after, strict=True))
        both = sum(one and other for one, other in zip(before, after, strict=True))
        ranks.append(both / either if either else math.nan)
    return _nanmean(ranks)


# --- contrastivity


def _over_pairs(difference: Callable[[Known, int, int, int], float]) -> OfImage:
    def of_image(known: Known, image: int) -> float:
        pairs = itertools.combinations(range(known.top.shape[1]), 2)
        return float(np.mean([difference(known, image, one, other) for one, other in pairs]))

    return of_image


def _pair_similarity(known: Known, image: int, one: int, other: int) -> float:
    first, second = (_similarity(known.look, image, rank, known.top[image, rank]) for rank in (one, other))
    return abs(first - second) / max(first, second)


def _cosine_distance(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(1 - one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _inter_distance(vectors: Callable[[Known], np.ndarray]) -> OfSet:
    def of_set(known: Known) -> float:
        unit = vectors(known).astype(np.float64)
        unit = unit / np.linalg.norm(unit, axis=2, keepdims=True)
        of_class = []
        for label in np.unique(known.labels):
            own, rest = np.flatnonzero(known.labels == label), np.flatnonzero(known.labels != label)
            distances = [
                1 - one @ other
                for image, other_image in itertools.product(own, rest)
                for one, other in itertools.product(unit[image], unit[other_image])
            ]
            of_class.append(np.mean(distances))
        return float(np.mean(of_class))

    return of_set


def _activation_entropy(known: Known) -> float:
    entropies = []
    for prototype in np.unique(known.top):
        share = known.look.similarity[:, prototype] / known.look.similarity[:, prototype].max()
        counts = Counter(min(int(value * share.dtype.type(_ENTROPY_BINS)), _ENTROPY_BINS - 1) for value in share)
        frequencies = [count / len(share) for count in counts.values() if count / len(share) >= _LEAST_FREQUENCY]
        entropies.append(-sum(frequency * math.log2(frequency) for frequency in frequencies))
    return float(np.mean(entropies))


def _unused(known: Known) -> float:
    num = known.look.similarity.shape[1]
    return sum(not (known.top == prototype).any() for prototype in range(num)) / num


# --- complexity


def _over_ranks(measured: Callable[[Known, int, int], float]) -> OfImage:
    return lambda known, image: _nanmean([measured(known, image, rank) for rank in range(known.top.shape[1])])


def _object_overlap(known: Known, image: int, rank: int) -> float:
    salient, thing = known.look.salient[image, rank], known.object_mask[image]
    return float((salient & thing).sum() / max(thing.sum(), 1))


def _background_overlap(known: Known, image: int, rank: int) -> float:
    salient, thing = known.look.salient[image, rank], known.object_mask[image]
    return float((salient & ~thing).sum() / max(salient.sum(), 1))


def _salient_area(known: Known, image: int, rank: int) -> float:
    salient = known.look.salient[image, rank]
    return float(salient.sum() / salient.size)


def _object_iou(known: Known, image: int, rank: int) -> float:
    return _iou(known.look.salient[image, rank], known.object_mask[image])


def _mean_relevances(known: Known, image: int, rank: int) -> tuple[float, float, float]:
    values, thing = _relevance(known.look, image, rank).astype(np.float64), known.object_mask[image]
    inside, outside = (chosen[chosen != 0] for chosen in (values[thing], values[~thing]))
    return inside.mean() if len(inside) else 0.0, outside.mean() if len(outside) else 0.0, values.max()


def _inside_outside(known: Known, image: int, rank: int) -> float:
    inside, outside, largest = _mean_relevances(known, image, rank)
    return 0.0 if inside == outside else (inside - outside) / largest


def _outside_inside(known: Known, image: int) -> float:
    inside, outside, _ = np.mean([_mean_relevances(known, image, rank) for rank in range(known.top.shape[1])], axis=0)
    return float(outside / inside) if inside > 0 else math.nan


def _consistency(known: Known) -> float:
    of_prototypes = []
    for prototype in np.unique(known.top):
        uses = [
            known.look.covered[image, rank]
            for image, rank in itertools.product(range(len(known.top)), range(known.top.shape[1]))
            if known.top[image, rank] == prototype
        ]
        shares = [sum(bool(hit[part]) for hit in uses) / len(uses) for part in range(known.look.covered.shape[2])]
        covered = [share for share in shares if share > 0]
        of_prototypes.append(np.mean(covered) if covered else 0.0)
    return float(np.mean(of_prototypes))


# --- mask consistency


def _mask_consistency(*, without_no_part: bool) -> OfSet:
    def of_set(known: Known) -> float:
        of_class = []
        for label in np.unique(known.labels):
            images = np.flatnonzero(known.labels == label)
            found = Counter(pattern for image in images for pattern in known.patterns[image])
            shares = [n / len(images) for pattern, n in found.items() if not (without_no_part and pattern == 0)]
            of_class.append(np.mean(shares) if shares else math.nan)
        return _nanmean(of_class)

    return of_set


# --- classification


def _probabilities(known: Known) -> np.ndarray:
    powers = np.exp(known.look.logits.astype(np.float64) - known.look.logits.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _class_weights(known: Known) -> np.ndarray:
    weights: np.ndarray = len(known.labels) / np.bincount(known.labels)[known.labels].astype(np.float64)
    return weights


def _top_k(known: Known) -> float:
    classes = np.arange(known.look.logits.shape[1])
    return float(
        top_k_accuracy_score(
            known.labels,
            known.look.logits,
            k=known.params.top_classes,
            sample_weight=_class_weights(known),
            labels=classes,
        )
    )


def _macro(position: int) -> OfSet:
    def of_set(known: Known) -> float:
        scores = precision_recall_fscore_support(
            known.labels,
            known.look.logits.argmax(axis=1),
            average="macro",
            sample_weight=_class_weights(known),
            zero_division=0,
        )
        return float(scores[position])

    return of_set


def _roc_auc(known: Known) -> float:
    probability, weights = _probabilities(known), _class_weights(known)
    areas = [
        roc_auc_score(known.labels == label, probability[:, label], sample_weight=weights)
        for label in np.unique(known.labels)
    ]
    return float(np.mean(areas))


def _calibration_error(known: Known) -> float:
    probability = _probabilities(known)
    sure, is_right = probability.max(axis=1), probability.argmax(axis=1) == known.labels
    error = 0.0
    edges = np.linspace(0, 1, _CALIBRATION_BINS + 1)
    for low, high in itertools.pairwise(edges):
        held = (low < sure) & (sure <= high)
        if held.any():
            error += held.mean() * abs(is_right[held].mean() - sure[held].mean())
    return float(error)


def _other_score(known: Known, image: int) -> float:
    scores = known.look.logits[image].astype(np.float64)
    return float(np.mean([score for label, score in enumerate(scores) if label != known.labels[image]]))


# --- compactness


def _global_size(known: Known) -> float:
    epsilon = known.params.weight_epsilon
    return float(sum(any(weight > epsilon for weight in column) for column in known.last_layer.T))


def _sparsity(known: Known) -> float:
    return float(np.mean([abs(weight) <= known.params.weight_epsilon for weight in known.last_layer.ravel()]))


def _negative_positive(known: Known) -> float:
    epsilon, weights = known.params.weight_epsilon, known.last_layer.ravel()
    return sum(bool(weight < -epsilon) for weight in weights) / sum(bool(weight > epsilon) for weight in weights)


def _local_size(known: Known, image: int) -> float:
    scores = known.look.similarity[image]
    largest = scores.max()
    return float(sum(bool(score / largest > known.params.local_size_threshold) for score in scores))


# --- deletion


def _area(curve: Callable[[Known], np.ndarray]) -> OfImage:
    def of_image(known: Known, image: int) -> float:
        values = curve(known)[image].astype(np.float64)
        return float(np.trapezoid(values) / (len(values) - 1))

    return of_image


_removed, _inserted = _area(lambda known: known.deletion.removed), _area(lambda known: known.deletion.inserted)
_removed_at_random = _area(lambda known: known.deletion.removed_at_random)
_inserted_at_random = _area(lambda known: known.deletion.inserted_at_random)


# --- causal


def _visible(known: Known, image: int) -> Iterator[int]:
    return (part for part, is_visible in enumerate(known.scenes.visible[image]) if is_visible)


def _claimed_most(known: Known, image: int) -> list[int]:
    claimed = known.scenes.claimed[image]
    positive = [part for part in _visible(known, image) if claimed[part] > 0]
    largest = max((claimed[part] for part in positive), default=0)
    return [part for part in positive if claimed[part] == largest]


def _single_deletion(known: Known, image: int) -> float:
    predicted, parts = known.look.logits[image].argmax(), list(_visible(known, image))
    whole = float(known.look.logits[image, predicted])
    drops = [whole - float(known.scenes.without[image, part, predicted]) for part in parts]
    claims = [float(known.scenes.claimed[image, part]) for part in parts]
    if len(set(drops)) < 2 or len(set(claims)) < 2:
        return math.nan
    return float(spearmanr(drops, claims).statistic)


def _check(
    parts_of: Callable[[Known, int], list[int]], scores: Callable[[Known], np.ndarray], *, stays: bool
) -> OfImage:
    def of_image(known: Known, image: int) -> float:
        predicted = known.look.logits[image].argmax()
        if known.scenes.none[image].argmax() == predicted:
            return math.nan
        found = [float((scores(known)[image, part].argmax() == predicted) == stays) for part in parts_of(known, image)]
        return _nanmean(found)

    return of_image


def _unclaimed(known: Known, image: int) -> list[int]:
    return [part for part in _visible(known, image) if known.scenes.claimed[image, part] <= 0]


def _target_sensitivity(known: Known, image: int) -> float:
    logits, scenes = known.look.logits[image].astype(np.float64), known.scenes
    predicted = logits.argmax()
    if predicted != known.labels[image]:
        return math.nan
    of_class = []
    for label in range(len(logits)):
        in_order = []
        for one, other in itertools.permutations(_visible(known, image), 2):
            if not scenes.differs[image, label, one] or scenes.differs[image, label, other]:
                continue
            lost = [
                (logits[predicted] - float(scenes.without[image, part, predicted]))
                - (logits[label] - float(scenes.without[image, part, label]))
                for part in (one, other)
            ]
            if lost[0] > lost[1]:
                first, second = scenes.claimed[image, one], scenes.claimed[image, other]
                in_order.append(1.0 if first > second else 0.5 if first == second else 0.0)
        if in_order:
            of_class.append(float(np.mean(in_order)))
    return _nanmean(of_class)


def _sufficiency(known: Known, image: int) -> float:
    predicted = known.look.logits[image].argmax()
    none = float(known.scenes.none[image, predicted])
    gap = float(known.look.logits[image, predicted]) - none
    if gap <= 0:
        return math.nan
    parts = _claimed_most(known, image)
    return _nanmean([min(max((float(known.scenes.only[image, part, predicted]) - none) / gap, 0), 1) for part in parts])


OF_IMAGE: dict[tuple[str, str], OfImage] = {
    ("classification", "accuracy"): lambda known, image: float(
        known.look.logits[image].argmax() == known.labels[image]
    ),
    ("classification", "target_score"): lambda known, image: float(known.look.logits[image, known.labels[image]]),
    ("classification", "other_score"): _other_score,
    ("compactness", "local_size"): _local_size,
    ("contrastivity", "saliency_location_change"): _over_pairs(
        lambda known, image, one, other: 1 - _iou(known.look.salient[image, one], known.look.salient[image, other])
    ),
    ("contrastivity", "saliency_value_change"): _over_pairs(
        lambda known, image, one, other: _value_change(
            _relevance(known.look, image, one), _relevance(known.look, image, other)
        )
    ),
    ("contrastivity", "location_change"): _over_pairs(
        lambda known, image, one, other: float(
            np.abs(known.look.centre[image, one] - known.look.centre[image, other]).sum() / 2
        )
    ),
    ("contrastivity", "similarity_change"): _over_pairs(_pair_similarity),
    ("contrastivity", "element_location_change"): _over_pairs(
        lambda known, image, one, other: (
            1 - _iou(_similar_elements(known.look, image, one), _similar_elements(known.look, image, other))
        )
    ),
    ("contrastivity", "intra_prototype_distance"): _over_pairs(
        lambda known, image, one, other: _cosine_distance(known.vectors[image, one], known.vectors[image, other])
    ),
    ("contrastivity", "intra_feature_distance"): _over_pairs(
        lambda known, image, one, other: _cosine_distance(known.features[image, one], known.features[image, other])
    ),
    **{("continuity", key): change for key, change in _changes(lambda known: known.changed).items()},
    ("continuity", "score_change"): _score_change,
    ("continuity", "prediction_rank"): _prediction_rank,
    ("continuity", "stability"): _stability,
    ("complexity", "inside_outside_relevance"): _over_ranks(_inside_outside),
    ("complexity", "outside_inside_ratio"): _outside_inside,
    ("complexity", "object_overlap"): _over_ranks(_object_overlap),
    ("complexity", "background_overlap"): _over_ranks(_background_overlap),
    ("complexity", "object_iou"): _over_ranks(_object_iou),
    ("complexity", "salient_area"): _over_ranks(_salient_area),
    **{("completeness", key): change for key, change in _changes(lambda known: known.noised).items()},
    ("deletion", "removed"): _removed,
    ("deletion", "inserted"): _inserted,
    ("deletion", "removal_gain"): lambda known, image: _removed_at_random(known, image) - _removed(known, image),
    ("deletion", "insertion_gain"): lambda known, image: _inserted(known, image) - _inserted_at_random(known, image),
    ("causal", "single_deletion"): _single_deletion,
    ("causal", "deletion_check"): _check(_claimed_most, lambda known: known.scenes.without, stays=False),
    ("causal", "preservation_check"): _check(_claimed_most, lambda known: known.scenes.only, stays=True),
    ("causal", "unclaimed_parts_check"): _check(_unclaimed, lambda known: known.scenes.without, stays=True),
    ("causal", "target_sensitivity"): _target_sensitivity,
    ("causal", "sufficiency"): _sufficiency,
}
"""Metrics of one image, by family and key."""

OF_SET: dict[tuple[str, str], OfSet] = {
    ("classification", "balanced_accuracy"): lambda known: float(
        balanced_accuracy_score(known.labels, known.look.logits.argmax(axis=1))
    ),
    ("classification", "topk_accuracy"): _top_k,
    ("classification", "precision"): _macro(0),
    ("classification", "recall"): _macro(1),
    ("classification", "f1"): _macro(2),
    ("classification", "roc_auc"): _roc_auc,
    ("classification", "calibration_error"): _calibration_error,
    ("compactness", "global_size"): _global_size,
    ("compactness", "sparsity"): _sparsity,
    ("compactness", "negative_positive_ratio"): _negative_positive,
    ("contrastivity", "inter_prototype_distance"): _inter_distance(lambda known: known.vectors),
    ("contrastivity", "inter_feature_distance"): _inter_distance(lambda known: known.features),
    ("contrastivity", "activation_entropy"): _activation_entropy,
    ("contrastivity", "unused"): _unused,
    ("complexity", "consistency"): _consistency,
    ("mask_consistency", "mask_consistency"): _mask_consistency(without_no_part=False),
    ("mask_consistency", "mask_consistency_of_parts"): _mask_consistency(without_no_part=True),
}
"""Metrics of all images, by family and key."""
