"""Adapters of the metrics, and of the reference's runs of them over batches.

A run's batches are put together: every image counts the same. Fractions become percent where the reference has it.
"""

import math
import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.data.masks import encode_mask
from pipeline.metrics.classification import classification_metrics
from pipeline.metrics.compactness import local_size, weight_metrics
from pipeline.metrics.contrastivity import inter_distance, intra_distance
from pipeline.metrics.mask_consistency import coverage_patterns, pattern_frequencies
from pipeline.metrics.mask_quality import parts_in_masks
from tests.conformance.answers import Answer, Deviating, Lacking, Skip, Translated, adapter
from tests.conformance.vectors import Case

LARGEST_COPY = 2_000_000  # images
NO_LOCATION = Lacking("no location and activation metrics of contrastivity yet")
NO_FEATURES = Lacking("no feature distances of contrastivity yet")
BY_RANK = "ranks are compared one by one, classes without a distance are 0 (DEVIATIONS.md B9)"
PADDED_PARTS = "parts that are not visible are in no mask (DEVIATIONS.md B18)"


# --- classification


def _classification(name: str, logits: np.ndarray, labels: np.ndarray, *, balanced: bool, k: int = 1) -> Any:
    """Compute one metric in the reference's sense."""
    if name in ("precision", "recall", "f1_score"):
        return _mean_over_classes(name, logits, labels, balanced=balanced)
    if name == "topk_accuracy" and not balanced:
        by_image = [
            classification_metrics(logits[[idx]], labels[[idx]], top_classes=k)["topk_accuracy"]
            for idx in range(len(labels))
        ]
        return Translated(np.mean(by_image), "each image is a set of its own, of one class (DEVIATIONS.md accuracy)")
    if name == "accuracy":
        name = "balanced_accuracy" if balanced else "accuracy"
    return classification_metrics(logits, labels, top_classes=k)[name]


def _mean_over_classes(name: str, logits: np.ndarray, labels: np.ndarray, *, balanced: bool) -> Any:
    """Compute precision, recall or F1: the reference has weights of images, and all classes that are predicted."""
    hows = []
    present, predicted = set(labels.tolist()), set(logits.argmax(axis=1).tolist())
    if balanced and name != "recall":  # weights of classes do not move a recall
        copies = _of_equal_classes(labels)
        logits, labels = logits[copies], labels[copies]
        hows.append("images are copied until all classes weigh the same (DEVIATIONS.md precision, F1)")
    key = "f1" if name == "f1_score" else name
    value = classification_metrics(logits, labels, top_classes=1)[key]
    if not predicted <= present:
        value *= len(present) / len(present | predicted)
        hows.append("classes that are only predicted enter the mean as 0 (DEVIATIONS.md absent classes)")
    return Translated(value, "; ".join(hows)) if hows else value


def _of_equal_classes(labels: np.ndarray) -> np.ndarray:
    """Give each image as often as it takes for all classes to be equally large: what weights stand for."""
    counts = Counter(labels.tolist())
    multiple = math.lcm(*counts.values())
    if multiple * len(counts) > LARGEST_COPY:
        raise Skip("images have no weights in precision and F1 (DEVIATIONS.md precision, F1)")
    return np.repeat(np.arange(len(labels)), [multiple // counts[label] for label in labels.tolist()])


@adapter("metrics/general.py", "accuracy", "topk_accuracy", "precision", "recall", "f1_score")
def classification(case: Case) -> Answer:
    labels = case.inputs["targets"]
    if labels.ndim > 1:
        raise Skip("an image has one class: no metrics of several labels")
    name = case.function.split(" ")[1]
    balanced = case.params.get("balanced", True)
    k = case.params["k"] if name == "topk_accuracy" else 1
    return {"out": _classification(name, case.inputs["logits"], labels, balanced=balanced, k=k)}


@adapter("techniques/general.py", "evaluate_general")
def classification_of_a_run(case: Case) -> Answer:
    logits, labels = np.concatenate(case.batches("logits")), np.concatenate(case.batches("labels"))
    names = {"Accuracy": "accuracy", "Precision": "precision", "Recall": "recall", "F1_score": "f1_score"}
    answer: dict[str, Any] = {}
    for output in case.expected:
        top = re.fullmatch(r"top-(\d+)_Accuracy", output)
        if top is None and output not in names:
            answer[output] = Lacking("no ROC curves")
            continue
        name, k = ("topk_accuracy", int(top[1])) if top else (names[output], 1)
        try:
            value = _classification(name, logits, labels, balanced=case.params.get("balanced", True), k=k)
        except Skip as skip:
            answer[output] = Lacking(str(skip))
        else:
            in_percent = replace(value, value=100 * value.value) if isinstance(value, Translated) else 100 * value
            answer[output] = in_percent
    return answer


# --- compactness


def _scores(case: Case) -> np.ndarray:
    """The similarity of a prototype to an image is that of its nearest view, the largest: [image, prototype]."""
    return np.concatenate([maps.max(axis=(2, 3)) for maps in case.batches("sim")])


@adapter("metrics/compactness.py", "local_explanation_size")
def local_sizes(case: Case) -> Answer:
    similarity = case.inputs["similarity_scores"]
    return {"out": local_size(similarity, threshold=case.params["threshold"])}


@adapter("techniques/compactness.py", "evaluate_compactness")
def compactness_of_a_run(case: Case) -> Answer:
    weights = weight_metrics(case.inputs["last_layer"], epsilon=case.params["epsilon"])
    assert weights["sparsity"] is not None
    return {
        "Global_Size": weights["global_size"],
        "Sparsity": 100 * weights["sparsity"],
        "NPR": weights["negative_positive_ratio"],
        "Local_Size": local_size(_scores(case), threshold=case.params["local_size_threshold"]).mean(),
    }


# --- contrastivity


@adapter("metrics/contrastivity.py", "intra_vector_distance")
def intra_distances(case: Case) -> Answer:
    vectors = case.inputs["vectors"]
    if not vectors.any(axis=2).all():
        raise Skip("vectors of length 0 have no direction: features are sigmoids, above 0")
    return {"out": intra_distance(vectors)}


@adapter("metrics/contrastivity.py", "inter_class_vector_distance")
def inter_distances(case: Case) -> Answer:
    """Classes without a distance are 0 in the reference's result, and NaN in the intended one."""
    vectors, identity = case.inputs["vectors"], case.inputs["class_identity"]
    labels, num_classes = identity.argmax(axis=1), identity.shape[1]
    all_pairs = np.full(num_classes, np.nan)
    for label, distance in inter_distance(vectors, labels).items():
        all_pairs[label] = distance
    return {"all_pairs": all_pairs, "out": Translated(_inter_by_rank(vectors, labels, num_classes), BY_RANK)}


def _inter_by_rank(vectors: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    distance = np.zeros((vectors.shape[1], num_classes))
    for rank, of_rank in enumerate(distance):
        for label, found in inter_distance(vectors[:, [rank]], labels).items():
            of_rank[label] = found
    return distance.mean(axis=0)


@adapter("techniques/contrastivity.py", "evaluate_contrastivity")
def contrastivity_of_a_run(case: Case) -> Answer:
    answer: dict[str, Any] = {
        **dict.fromkeys(("VLC", "VAC", "PLC", "PALC"), NO_LOCATION),
        **dict.fromkeys(("Intra_FD", "Inter_FD"), NO_FEATURES),
        "entropy": Lacking("no activation entropy yet"),
        **dict.fromkeys(("histogram_ids", "histogram_counts"), Lacking("no histogram of top prototypes")),
    }
    if "Intra_PD" in case.expected:
        top = np.argsort(-_scores(case), axis=1, kind="stable")[:, : case.params["k"]]  # [image, rank]
        answer["Intra_PD"] = intra_distance(case.inputs["protos"][top]).mean()
        if "Inter_PD" in case.expected:
            labels = np.concatenate(case.batches("labels"))
            by_class = _inter_by_rank(case.inputs["protos"][top], labels, case.params["num_classes"])
            answer["Inter_PD"] = Translated(by_class.mean(), BY_RANK)
    return answer


# --- mask consistency


def _patterns(masks: np.ndarray, parts: np.ndarray) -> frozenset[int]:
    """Find the patterns of one image; parts are numbered by their place in the list, which -1 fills."""
    visible = np.flatnonzero((parts >= 0).all(axis=1))
    height, width = masks.shape[1:]
    covered = np.zeros((len(masks), len(parts)), dtype=bool)
    covered[:, visible] = parts_in_masks(
        [encode_mask(mask > 0) for mask in masks],
        np.floor(parts[visible]).astype(np.int64),
        height=height,
        width=width,
    )
    return coverage_patterns(covered)


@adapter("metrics/complexity.py", "mask_consistency")
def patterns_of_a_batch(case: Case) -> Answer:
    parts = case.inputs["partlocs"]
    by_image = [_patterns(masks, own) for masks, own in zip(case.inputs["map_batch"], parts, strict=True)]
    found = np.array(sorted(frozenset().union(*by_image)), dtype=np.int64)
    return {"out": Deviating(found, PADDED_PARTS) if (parts < 0).any() else found}


@adapter("techniques/mask_consistency.py", "evaluate_mask_consistency")
def mask_consistency_of_a_run(case: Case) -> Answer:
    """Frequencies of the patterns of each class, one class per row, filled up with -1."""
    patterns = [
        _patterns(masks[:num], parts)
        for masks, num, parts in zip(*(case.inputs[name] for name in ("masks", "nmask", "parts")), strict=True)
    ]
    by_class = pattern_frequencies(patterns, case.inputs["labels"].tolist(), num_classes=case.params["num_classes"])
    longest = max(map(len, by_class), default=0)
    frequencies = np.full((len(by_class), longest), -1.0)
    ids = np.full((len(by_class), longest), -1)
    for row, found in enumerate(by_class):
        frequencies[row, : len(found)] = list(found.values())
        ids[row, : len(found)] = list(found)
    lengths = np.array([len(found) for found in by_class])
    if case.intended or not (case.inputs["parts"] < 0).any():
        return {"hist": frequencies, "hist_len": lengths, "patterns": ids}
    return {"hist": Deviating(frequencies, PADDED_PARTS), "hist_len": Deviating(lengths, PADDED_PARTS)}
