"""Adapters of the metrics, and of the reference's runs of them over batches.

A run's batches are put together: every image counts the same. Fractions become percent where the reference has it.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.data.boxes import Box
from pipeline.data.masks import encode_mask
from pipeline.evaluation.looks import top_prototypes
from pipeline.evaluation.perturbation import outside_box
from pipeline.metrics.change import (
    ELEMENT_THRESHOLD,
    activation_change,
    box_iou,
    mask_iou,
    point_distance,
    rank_change,
    relative_change,
)
from pipeline.metrics.classification import (
    MeanOfClassScores,
    OfEqualClasses,
    RocAuc,
    f1_of,
    image_weights,
    is_in_top,
    label_scores,
    mean_score,
    precision_of,
    predicted_labels,
    probabilities,
    recall_of,
    roc_auc_of_images,
    roc_curves,
)
from pipeline.metrics.compactness import global_size, local_size, negative_positive_ratio, sparsity
from pipeline.metrics.complexity import (
    Consistency,
    background_overlap,
    covered_parts,
    inside_outside_relevance,
    object_iou,
    object_overlap,
    outside_inside_ratio,
    parts_in_boxes,
)
from pipeline.metrics.continuity import prediction_rank, score_change, stability
from pipeline.metrics.contrastivity import (
    NUM_BINS,
    ActivationEntropy,
    InterDistance,
    intra_activation_change,
    intra_box_change,
    intra_distance,
    intra_mask_change,
    intra_point_distance,
    usage,
)
from pipeline.metrics.maps import box_masks, box_of, clipped, min_max_mask, peak, percentile_mask, positive_mask
from pipeline.metrics.mask_quality import parts_in_masks
from pipeline.metrics.part_patterns import coverage_patterns, pattern_frequencies
from pipeline.metrics.statistics import MeanOverClasses, MeanOverImages
from tests.conformance.answers import Answer, Deviating, Translated, adapter
from tests.conformance.vectors import Case

BY_RANK = "ranks are compared one by one, classes without a distance are 0 (DEVIATIONS.md B9)"
PADDED_PARTS = "parts that are not visible are in no mask (DEVIATIONS.md B18)"


# --- classification

MEAN_OF_CLASSES = {"precision": precision_of, "recall": recall_of, "f1_score": f1_of}


def _classification(name: str, logits: np.ndarray, targets: np.ndarray, params: Mapping[str, Any]) -> float:
    """Compute one number in the reference's sense; where it is balanced, images of all classes weigh the same."""
    balanced = params.get("balanced", False)
    if targets.ndim > 1:
        return _of_several_labels(name, logits, targets.astype(bool), params)
    predicted = predicted_labels(logits)
    if name == "roc_auc_score":
        weights = (image_weights(targets) if balanced else np.ones(len(targets)))[None]
        return float(RocAuc(probabilities(logits), targets).of_classes(weights).mean())
    if name in MEAN_OF_CLASSES:
        mean = MeanOfClassScores(targets, predicted, logits.shape[1], MEAN_OF_CLASSES[name])
        statistic = OfEqualClasses(mean, targets) if balanced else mean
    else:
        is_right = predicted == targets if name == "accuracy" else is_in_top(logits, targets, params["k"])
        by_image = is_right.astype(np.float64)
        statistic = MeanOverClasses(by_image, targets) if balanced else MeanOverImages(by_image)
    return statistic.value(len(targets))


def _of_several_labels(name: str, logits: np.ndarray, targets: np.ndarray, params: Mapping[str, Any]) -> float:
    """As :func:`_classification`; logits are predictions where the reference calls them binary."""
    weights = image_weights(targets) if params.get("balanced", False) else None
    if name == "roc_auc_score":
        return float(np.average(roc_auc_of_images(logits, targets), weights=weights))
    predicted = logits > 0 if params.get("binary") else predicted_labels(logits, params["threshold"])
    return label_scores(predicted, targets, weights)["f1" if name == "f1_score" else name]


@adapter("metrics/general.py", "accuracy", "topk_accuracy", "precision", "recall", "f1_score", "roc_auc_score")
def classification(case: Case) -> Answer:
    name = case.function.split(" ")[1]
    return {"out": _classification(name, case.inputs["logits"], case.inputs["targets"], case.params)}


@adapter("metrics/helpers.py", "label_prediction")
def labels_of_logits(case: Case) -> Answer:
    threshold = case.params["threshold"] if case.params["multi_label"] else None
    return {"out": predicted_labels(case.inputs["logits"], threshold)}


@adapter("metrics/general.py", "get_sample_weights")
def weights_of_images(case: Case) -> Answer:
    targets = case.inputs["targets"]
    return {"out": image_weights(targets.astype(bool) if targets.ndim > 1 else targets)}


@adapter("metrics/general.py", "mean_tp_activation", "mean_tn_activation")
def scores_of_labels(case: Case) -> Answer:
    """In the reference, an image without labels has a score of 0, and one with all of them none at all."""
    logits, targets = (torch.from_numpy(case.inputs[name]) for name in ("logits", "targets"))
    is_label = targets.bool() if targets.ndim > 1 else functional.one_hot(targets, logits.shape[1]).bool()
    if "mean_tp_activation" not in case.function:
        return {"out": mean_score(logits, ~is_label).mean()}
    mean = mean_score(logits, is_label).nan_to_num().mean()
    return {"out": mean if is_label.any(dim=1).all() else Translated(mean, "images without labels count as 0")}


@adapter("metrics/general.py", "roc_curve")
def corners_of_roc_curves(case: Case) -> Answer:
    targets = case.inputs["targets"]
    curves = roc_curves(case.inputs["logits"], targets.astype(bool) if targets.ndim > 1 else targets)
    return {
        name: corners
        for idx, curve in enumerate(curves)
        for name, corners in (
            (f"fpr{idx}", curve.false_positive_frac),
            (f"tpr{idx}", curve.true_positive_frac),
        )
    }


@adapter("techniques/general.py", "evaluate_general")
def classification_of_a_run(case: Case) -> Answer:
    logits, labels = np.concatenate(case.batches("logits")), np.concatenate(case.batches("labels"))
    names = {
        "Accuracy": "accuracy",
        "Precision": "precision",
        "Recall": "recall",
        "F1_score": "f1_score",
        "ROC_AUC": "roc_auc_score",
    }
    answer: dict[str, Any] = {}
    balanced = case.params.get("balanced", True)
    for output in case.expected:
        top = re.fullmatch(r"top-(\d+)_Accuracy", output)
        name, num_top = ("topk_accuracy", int(top[1])) if top else (names[output], 1)
        answer[output] = 100 * _classification(
            name, logits, labels, {**case.params, "balanced": balanced, "k": num_top}
        )
    return answer


# --- compactness


def _scores(case: Case) -> np.ndarray:
    """The similarity of a prototype to an image is that of its nearest view, the largest: [image, prototype]."""
    return np.concatenate([maps.max(axis=(2, 3)) for maps in case.batches("sim")])


@adapter("metrics/compactness.py", "local_explanation_size")
def local_sizes(case: Case) -> Answer:
    similarity = torch.from_numpy(case.inputs["similarity_scores"])
    return {"out": local_size(similarity, case.params["threshold"])}


@adapter("techniques/compactness.py", "evaluate_compactness")
def compactness_of_a_run(case: Case) -> Answer:
    last_layer, epsilon = torch.from_numpy(case.inputs["last_layer"]), case.params["epsilon"]
    return {
        "Global_Size": global_size(last_layer, epsilon),
        "Sparsity": 100 * sparsity(last_layer, epsilon),
        "NPR": negative_positive_ratio(last_layer, epsilon),
        "Local_Size": local_size(torch.from_numpy(_scores(case)), case.params["local_size_threshold"]).mean(),
    }


# --- maps and boxes


SALIENT_PERCENTILE = 95.0
BATCHES = "every batch counts the same, whatever its size (DEVIATIONS.md B2)"
ONE_MAP = "the noised maps of a batch have one range and percentile; batches count the same (DEVIATIONS.md B2, B12)"
LAST_PIXEL = "missing parts are the last pixel (DEVIATIONS.md B5, B18)"
CUT_MAPS = "relevance is cut to whole numbers first, missing parts are the last pixel (DEVIATIONS.md B5, B6)"
SPLIT_BY_HEIGHT = "positions are split with the height of the map; batches count the same (DEVIATIONS.md B2, B11)"
BOXES = "boxes lack their last row and column; batches count the same (DEVIATIONS.md B2, B14)"
MARKED_LATER = "a part lies on the last pixel, which was set in the recorded maps after the output was computed"
BOXES_APART = "boxes apart share nothing (DEVIATIONS.md B13)"
MASKS_OF_MAPS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "percentile_mask": lambda maps: percentile_mask(maps, SALIENT_PERCENTILE),
    "binary_mask": positive_mask,
    "min_max_norm_mask": lambda maps: min_max_mask(maps, ELEMENT_THRESHOLD),
}


def _tensor(case: Case, name: str) -> Tensor:
    return torch.from_numpy(case.inputs[name])


def _inclusive(boxes: Tensor) -> Tensor:
    """Give corners as the reference does: the last column and row inside; an empty box is all 0."""
    return torch.cat([boxes[..., :2], (boxes[..., 2:] - 1).clamp(min=0)], dim=-1)


def _half_open(corners: Tensor) -> Tensor:
    """Make half-open boxes of corners that belong to the box; what is measured need not be pixels."""
    low, high = corners.double().split(2, dim=-1)
    return torch.cat([low, torch.nextafter(high, torch.full_like(high, math.inf))], dim=-1)


def _visible(parts: Tensor) -> Tensor:
    """Parts, NaN where -1 fills up the list."""
    return parts.masked_fill((parts < 0).any(dim=-1, keepdim=True), math.nan)


def _filled_up(parts: Tensor, maps: Tensor) -> Tensor:
    """Parts as the reference looks them up: -1 is the last row or column."""
    height, width = maps.shape[-2:]
    return torch.where(parts < 0, parts + torch.tensor([width, height]), parts)


@adapter("metrics/helpers.py", "percentile_mask", "binary_mask", "min_max_norm_mask")
def masks_of_maps(case: Case) -> Answer:
    """The reference takes the range of all that it is given: several maps are laid below each other."""
    maps = _tensor(case, "map")
    if "percentile" in case.params:
        return {"out": percentile_mask(maps, float(case.params["percentile"])).float()}
    if "threshold" in case.params:
        return {"out": min_max_mask(maps.flatten(0, -2), float(case.params["threshold"])).reshape(maps.shape).float()}
    return {"out": positive_mask(maps).float()}


@adapter("metrics/helpers.py", "bounding_box")
def boxes_of_maps(case: Case) -> Answer:
    return {"out": _inclusive(box_of(MASKS_OF_MAPS[case.params["mask_fn"]](_tensor(case, "map"))))}


@adapter("metrics/helpers.py", "bounding_box_mask")
def filled_boxes(case: Case) -> Answer:
    masks = MASKS_OF_MAPS[case.params["mask_fn"]](_tensor(case, "map"))
    height, width = masks.shape[-2:]
    return {"out": box_masks(box_of(masks), height=height, width=width).float()}


@dataclass(frozen=True)
class Batch:
    """Some images of a run, seen through the top prototypes of each: what a look holds, and similarities as maps."""

    top: Tensor
    similarity: Tensor
    elements: Tensor
    maps: Tensor

    @property
    def is_graded(self) -> bool:
        """Whether saliency is more than a mask."""
        return self.maps.is_floating_point()

    @property
    def salient(self) -> Tensor:
        """Where maps are salient."""
        return percentile_mask(self.maps, SALIENT_PERCENTILE) if self.is_graded else self.maps > 0

    @property
    def relevance(self) -> Tensor:
        """The maps, where they are salient."""
        return clipped(self.maps, self.salient) if self.is_graded else self.salient

    @property
    def corners(self) -> Tensor:
        """Corners of the boxes of maps, found by a percentile, be the maps graded or not."""
        return _inclusive(box_of(percentile_mask(self.maps.float(), SALIENT_PERCENTILE)))

    @property
    def similar(self) -> Tensor:
        """Which elements are similar."""
        return min_max_mask(self.elements, ELEMENT_THRESHOLD)


class BatchAsOneMap(Batch):
    """A batch whose maps of one rank are held against the range and percentile of all of them."""

    @property
    def salient(self) -> Tensor:
        """Where maps are salient."""
        if not self.is_graded:
            return super().salient
        return _as_one_map(self.maps, lambda maps: percentile_mask(maps, SALIENT_PERCENTILE))

    @property
    def corners(self) -> Tensor:
        """Corners of the boxes of maps."""
        masks = _as_one_map(self.maps.float(), lambda maps: percentile_mask(maps, SALIENT_PERCENTILE))
        return _inclusive(box_of(masks))

    @property
    def similar(self) -> Tensor:
        """Which elements are similar."""
        return _as_one_map(self.elements, lambda maps: min_max_mask(maps, ELEMENT_THRESHOLD))


def _as_one_map(maps: Tensor, masked: Callable[[Tensor], Tensor]) -> Tensor:
    by_rank = maps.transpose(0, 1)  # [rank, image, height, width]
    return masked(by_rank.flatten(1, 2)).reshape(by_rank.shape).transpose(0, 1)


def _peaks(case: Case, output: str, elements: Tensor) -> Tensor:
    """Find the most similar elements, on maps as wide as the reference takes them for."""
    if output in case.intended:
        return peak(elements)
    height = elements.shape[2]
    flat = elements.flatten(2)
    return peak(functional.pad(flat, (0, -flat.shape[2] % height), value=-math.inf).unflatten(2, (-1, height)))


def _batches(case: Case, suffix: str = "", kind: type[Batch] = Batch) -> list[Batch]:
    """Collect the looks of a run at its batches, through the top prototypes of the first look.

    Args:
        case: the run.
        suffix: of the names of similarities and saliency.
        kind: what to make of a batch.
    """
    found = []
    for first, sim, sal in zip(*(case.batches(name) for name in ("sim", f"sim{suffix}", f"sal{suffix}")), strict=True):
        top = _top_of(torch.from_numpy(first), case.params["k"])
        images = torch.arange(len(top))[:, None]
        # where each rank has images of its own, there is an axis of ranks before that of images
        own = (images, top) if sim.ndim == 4 else (torch.arange(top.shape[1]), images, top)
        similarity = torch.from_numpy(sim).amax(dim=(-2, -1))
        if sim.ndim == 5:
            similarity = similarity.transpose(0, 1)
        found.append(kind(top, similarity, torch.from_numpy(sim)[own], torch.from_numpy(sal)[own]))
    return found


def _top_of(elements: Tensor, num: int) -> Tensor:
    """Rank prototypes by their similarity to images, that of the nearest element."""
    return top_prototypes(elements.amax(dim=(2, 3)), num)


def _mean(case: Case, output: str, values: Sequence[Tensor], how: str = BATCHES) -> Any:
    """Average the values of images, or of their ranks, the way the expected number does.

    Args:
        case: the run.
        output: name of the number.
        values: of each batch.
        how: the values were translated where images do not count the same.
    """
    if output in case.intended:
        return torch.cat([of_batch.double() for of_batch in values]).mean()
    return Translated(torch.stack([of_batch.double().mean() for of_batch in values]).mean(), how)


# --- contrastivity


@adapter("metrics/contrastivity.py", "intra_mask_location_change")
def intra_mask_changes(case: Case) -> Answer:
    return {"out": intra_mask_change(_tensor(case, "map_batch") > 0)}


@adapter("metrics/contrastivity.py", "intra_bb_location_change")
def intra_box_changes(case: Case) -> Answer:
    return {"out": intra_box_change(_tensor(case, "bb_batch"))}


@adapter("metrics/contrastivity.py", "intra_mask_activation_change")
def intra_activation_changes(case: Case) -> Answer:
    return {"out": intra_activation_change(_tensor(case, "map_batch"))}


@adapter("metrics/contrastivity.py", "max_activation_location_change")
def intra_peak_distances(case: Case) -> Answer:
    return {"out": intra_point_distance(peak(_tensor(case, "map_batch")))}


@adapter("metrics/contrastivity.py", "get_feature_vectors")
def features_at_peaks(case: Case) -> Answer:
    return {"out": _at_peaks(_tensor(case, "feature_map"), peak(_tensor(case, "map_batch")))}


def _at_peaks(features: Tensor, peaks: Tensor) -> Tensor:
    """Look up features [image, dim, height, width] at places [image, rank, 2]."""
    return features[torch.arange(len(features))[:, None], :, peaks[..., 0], peaks[..., 1]]


@adapter("metrics/contrastivity.py", "intra_vector_distance")
def intra_distances(case: Case) -> Answer:
    return {"out": intra_distance(_tensor(case, "vectors"))}


@adapter("metrics/contrastivity.py", "inter_class_vector_distance")
def inter_distances(case: Case) -> Answer:
    """Classes without a distance are 0 in the reference's result, and NaN in the intended one."""
    vectors, identity = _tensor(case, "vectors"), _tensor(case, "class_identity")
    labels, num_classes = identity.argmax(dim=1), identity.shape[1]
    return {
        "all_pairs": _inter_by_class(vectors, labels, num_classes),
        "out": Translated(_inter_by_rank(vectors, labels, num_classes), BY_RANK),
    }


def _inter_by_class(vectors: Tensor, labels: Tensor, num_classes: int) -> np.ndarray:
    distance = np.full(num_classes, np.nan)
    statistic = InterDistance(vectors, labels)
    distance[statistic.classes] = statistic.of_classes(np.ones((1, len(labels))))[0]
    return distance


def _inter_by_rank(vectors: Tensor, labels: Tensor, num_classes: int) -> np.ndarray:
    by_rank = [_inter_by_class(vectors[:, [rank]], labels, num_classes) for rank in range(vectors.shape[1])]
    distance: np.ndarray = np.nan_to_num(by_rank).mean(axis=0)
    return distance


@adapter("metrics/contrastivity.py", "activation_entropy")
def entropies(case: Case) -> Answer:
    similarity = _tensor(case, "similarity_scores")
    return {"out": _entropies(similarity, torch.zeros(len(similarity), 1, dtype=torch.long), case.params["bins"])}


def _entropies(similarity: Tensor, top: Tensor, num_bins: int = NUM_BINS) -> np.ndarray:
    entropy: np.ndarray = ActivationEntropy(similarity, top, num_bins).of_prototypes(np.ones((1, len(similarity))))[0]
    return entropy


@adapter("techniques/contrastivity.py", "evaluate_contrastivity")
def contrastivity_of_a_run(case: Case) -> Answer:
    elements = [torch.from_numpy(sim) for sim in case.batches("sim")]
    tops = [_top_of(of_batch, case.params["k"]) for of_batch in elements]
    answer: dict[str, Any] = {}
    if "sal_0" in case.inputs:
        batches = _batches(case)
        if case.params["use_bbox"]:
            return {"VLC": _percent(_mean(case, "VLC", [intra_box_change(batch.corners) for batch in batches], BOXES))}
        answer |= {
            "VLC": _mean(case, "VLC", [intra_mask_change(batch.salient) for batch in batches]),
            "VAC": _mean(case, "VAC", [intra_activation_change(batch.relevance) for batch in batches]),
            "PLC": _mean(
                case,
                "PLC",
                [intra_point_distance(_peaks(case, "PLC", batch.elements)) for batch in batches],
                SPLIT_BY_HEIGHT,
            ),
            "PALC": _mean(case, "PALC", [intra_mask_change(batch.similar) for batch in batches]),
        }
        answer = {name: _percent(value) if name != "PLC" else value for name, value in answer.items()}
    prototypes = _tensor(case, "protos")
    answer["Intra_PD"] = _mean(case, "Intra_PD", [intra_distance(prototypes[top]) for top in tops])
    if "labels_0" not in case.inputs:
        return answer
    top, labels = torch.cat(tops), torch.from_numpy(np.concatenate(case.batches("labels")))
    features = [
        _at_peaks(torch.from_numpy(feat).reshape(*feat.shape[:2], *sim.shape[2:]), peak(batch.elements))
        for feat, sim, batch in zip(case.batches("feat"), elements, _batches(case), strict=True)
    ]
    used = usage(top, len(prototypes)).numpy()
    entropy = _entropies(torch.cat([sim.amax(dim=(2, 3)) for sim in elements]), top)[used > 0]
    return answer | {
        "Intra_FD": _mean(case, "Intra_FD", [intra_distance(own) for own in features]),
        "Inter_PD": Translated(_inter_by_rank(prototypes[top], labels, case.params["num_classes"]).mean(), BY_RANK),
        "Inter_FD": Translated(_inter_by_rank(torch.cat(features), labels, case.params["num_classes"]).mean(), BY_RANK),
        "entropy": Translated(entropy.clip(0, 1).mean(), "entropies are cut at 1 bit (DEVIATIONS.md B10)"),
        "histogram_ids": np.flatnonzero(used),
        "histogram_counts": used[used > 0],
    }


def _percent(value: Any) -> Any:
    return Translated(100 * value.value, value.how) if isinstance(value, Translated) else 100 * value


# --- changes: continuity and output completeness


@adapter("metrics/output_completeness.py", "mask_location_change")
def mask_changes(case: Case) -> Answer:
    return {"out": 1 - mask_iou(_tensor(case, "map_batch1") > 0, _tensor(case, "map_batch2") > 0)}


@adapter("metrics/output_completeness.py", "bb_location_change")
def box_changes(case: Case) -> Answer:
    return {"out": 1 - box_iou(_tensor(case, "bb_batch1"), _tensor(case, "bb_batch2"))}


@adapter("metrics/output_completeness.py", "activation_change")
def activation_changes(case: Case) -> Answer:
    return {"out": activation_change(_tensor(case, "map_batch1"), _tensor(case, "map_batch2"))}


@adapter("metrics/output_completeness.py", "max_activation_location_change")
def peak_distances(case: Case) -> Answer:
    return {"out": point_distance(peak(_tensor(case, "map_batch1")), peak(_tensor(case, "map_batch2")))}


@adapter("metrics/output_completeness.py", "max_activation_change")
def changes_of_the_largest(case: Case) -> Answer:
    """The reference keeps the axes of the map."""
    before, after = (_tensor(case, name).amax(dim=(2, 3)) for name in ("map_batch1", "map_batch2"))
    return {"out": relative_change(before, after)[..., None, None]}


@adapter("metrics/output_completeness.py", "rank_change")
def rank_changes(case: Case) -> Answer:
    return {"out": rank_change(_tensor(case, "topk"), _tensor(case, "scores"))}


@adapter("metrics/output_completeness.py", "add_gaussian_noise", "gaussian_noise_mask")
def noise_outside(case: Case) -> Answer:
    """The noise is part of the case, as it is added: of what the project does, that leaves the place."""
    image, noise = _tensor(case, "image"), _tensor(case, "noise")
    x0, y0, x1, y1 = map(float, case.params["bb"])
    height, width = image.shape[1:]
    side_px = max(height, width)  # views are square
    outside = outside_box([Box(0, 0, side_px, side_px)], (x0, y0, x1 + 1, y1 + 1), side_px)[:, :height, :width]
    return {"out": noise * outside + (image if "add_gaussian_noise" in case.function else 0)}


def _changes(case: Case, before: Sequence[Batch], after: Sequence[Batch], how: str) -> dict[str, Any]:
    """Compute what continuity and output completeness share."""

    def mean(output: str, change: Callable[[Batch, Batch], Tensor], how: str = how) -> Any:
        return _mean(case, output, [change(*pair) for pair in zip(before, after, strict=True)], how)

    def location(batch: Batch) -> Tensor:
        return _peaks(case, "PLC", batch.elements)

    def largest(batch: Batch) -> Tensor:
        return batch.elements.amax(dim=(2, 3))

    answer = {
        "VAC": _percent(mean("VAC", lambda one, other: activation_change(one.relevance, other.relevance))),
        "PLC": mean("PLC", lambda one, other: point_distance(location(one), location(other)), SPLIT_BY_HEIGHT),
        "PSC": _percent(mean("PSC", lambda one, other: relative_change(largest(one), largest(other)))),
        "PRC": mean("PRC", lambda one, other: rank_change(one.top, other.similarity)),
        "PALC": _percent(mean("PALC", lambda one, other: 1 - mask_iou(one.similar, other.similar))),
        "PAC": _percent(mean("PAC", lambda one, other: activation_change(one.elements, other.elements))),
    }
    if not case.params["use_bbox"]:
        return answer | {"VLC": _percent(mean("VLC", lambda one, other: 1 - mask_iou(one.salient, other.salient)))}
    boxed = _percent(mean("VLC", lambda one, other: 1 - box_iou(one.corners, other.corners), BOXES))
    are_apart = any(
        bool(
            (
                torch.maximum(one.corners, other.corners)[..., :2] > torch.minimum(one.corners, other.corners)[..., 2:]
            ).any()
        )
        for one, other in zip(before, after, strict=True)
    )
    return answer | {"VLC": Deviating(boxed.value, BOXES_APART) if are_apart else boxed}


@adapter("techniques/output_completeness.py", "evaluate_output_completeness")
def output_completeness_of_a_run(case: Case) -> Answer:
    if case.intended:
        return _changes(case, _batches(case), _batches(case, "_new"), BATCHES)
    return _changes(case, _batches(case), _batches(case, "_new", BatchAsOneMap), ONE_MAP)


@adapter("metrics/continuity.py", "classification_activation_change")
def score_changes(case: Case) -> Answer:
    return {"out": score_change(_tensor(case, "logits1"), _tensor(case, "logits2"))}


@adapter("metrics/continuity.py", "classification_rank_change")
def prediction_ranks(case: Case) -> Answer:
    return {"out": prediction_rank(_tensor(case, "logits1"), _tensor(case, "logits2"))}


@adapter("metrics/continuity.py", "stability_score_bb")
def stabilities_of_boxes(case: Case) -> Answer:
    parts = _visible(_tensor(case, "partlocs")).double()
    covered = (parts_in_boxes(_half_open(_tensor(case, name)), parts) for name in ("bb_batch1", "bb_batch2"))
    return {"out": stability(*covered)}


@adapter("metrics/continuity.py", "stability_score_mask")
def stabilities_of_masks(case: Case) -> Answer:
    parts, maps = _tensor(case, "partlocs"), [_tensor(case, name) for name in ("map_batch1", "map_batch2")]
    found = stability(*(_covered_as_cut(own, parts) for own in maps))
    height, width = maps[0].shape[2:]
    if (parts == torch.tensor([width - 1, height - 1])).all(dim=2).any():
        return {"out": Deviating(found, MARKED_LATER)}
    return {"out": Translated(found, CUT_MAPS)}


def _covered_as_cut(maps: Tensor, parts: Tensor) -> Tensor:
    return covered_parts(maps.trunc() != 0, _filled_up(parts, maps))


@adapter("techniques/continuity.py", "evaluate_continuity")
def continuity_of_a_run(case: Case) -> Answer:
    """A case may give one look alone: then nothing changes."""
    before = _batches(case)
    after = _batches(case, "_new") if "sal_new_0" in case.inputs else before
    parts = [torch.from_numpy(parts) for parts in case.batches("parts")]
    answer = {"Stability": Translated(100 * _stability(case, before, after, parts), CUT_MAPS)}
    if "logits_0" not in case.inputs:
        return answer
    scores = [
        tuple(map(torch.from_numpy, pair))
        for pair in zip(case.batches("logits"), case.batches("logits_new"), strict=True)
    ]
    return answer | {
        **_changes(case, before, after, BATCHES),
        "CAC": _percent(_mean(case, "CAC", [score_change(*pair) for pair in scores])),
        "CRC": _mean(case, "CRC", [prediction_rank(*pair) for pair in scores]),
    }


def _stability(case: Case, before: Sequence[Batch], after: Sequence[Batch], parts: Sequence[Tensor]) -> Tensor:
    """Average over all ranks of a batch that have a value, then over the batches in which one has."""

    def covered(batch: Batch, own: Tensor) -> Tensor:
        if case.params.get("use_bbox"):
            return parts_in_boxes(_half_open(batch.corners), _visible(own).double())
        return _covered_as_cut(batch.relevance.float(), own)

    of_batches = [
        stability(covered(one, own), covered(other, own)).nanmean()
        for one, other, own in zip(before, after, parts, strict=True)
    ]
    return torch.stack(of_batches).nanmean()


# --- complexity


MASKS_OF_VALUES = "objects are measured by the sum of their mask's values"


@adapter("metrics/complexity.py", "mask_intersection_over_union")
def ious_with_objects(case: Case) -> Answer:
    return {"out": object_iou(_tensor(case, "map_batch") != 0, _tensor(case, "mask_batch") != 0)}


@adapter("metrics/complexity.py", "mask_overlap")
def object_overlaps(case: Case) -> Answer:
    values = _tensor(case, "mask_batch")
    overlap = object_overlap(_tensor(case, "map_batch") != 0, values != 0)
    if torch.equal(values, (values != 0).to(values.dtype)):
        return {"out": overlap}
    size = (values != 0).sum(dim=(1, 2)) / values.sum(dim=(1, 2))
    return {"out": Translated(overlap * size[:, None], MASKS_OF_VALUES)}


@adapter("metrics/complexity.py", "background_overlap")
def background_overlaps(case: Case) -> Answer:
    return {"out": background_overlap(_tensor(case, "map_batch") != 0, _tensor(case, "mask_batch") != 0)}


@adapter("metrics/complexity.py", "outside_inside_relevance_ratio")
def relevance_ratios(case: Case) -> Answer:
    return {"out": outside_inside_ratio(_tensor(case, "activation_map_batch"), _tensor(case, "mask_batch") != 0)}


@adapter("metrics/complexity.py", "inside_outside_relevance")
def relevance_differences(case: Case) -> Answer:
    return {"out": inside_outside_relevance(_tensor(case, "activation_map_batch"), _tensor(case, "mask_batch") != 0)}


@adapter("metrics/complexity.py", "boundingbox_consistency")
def parts_of_boxes(case: Case) -> Answer:
    parts = _visible(_tensor(case, "partlocs")).double()
    return {"out": _ids_of(parts_in_boxes(_half_open(_tensor(case, "bb_batch")), parts), case)}


@adapter("metrics/complexity.py", "map_consistency")
def parts_of_maps(case: Case) -> Answer:
    """Where nothing else is intended, maps are ones and zeros."""
    return {"out": _ids_of(covered_parts(_tensor(case, "map_batch") > 0, _visible(_tensor(case, "partlocs"))), case)}


def _ids_of(covered: Tensor, case: Case) -> Tensor:
    return covered * _tensor(case, "partlocs_ids")[:, None]


@adapter("techniques/complexity.py", "evaluate_complexity")
def complexity_of_a_run(case: Case) -> Answer:
    """Object masks are pictures, with channels before or after the pixels; parts are known by number."""
    batches = _batches(case)
    maps = [batch.relevance for batch in batches]
    objects = [_object_masks(seg, own) for seg, own in zip(case.batches("seg"), maps, strict=True)]

    def mean(output: str, measured: Callable[[Tensor, Tensor], Tensor], *, of_masks: bool) -> Any:
        values = [measured(own != 0 if of_masks else own, mask) for own, mask in zip(maps, objects, strict=True)]
        return _mean(case, output, values)

    return {
        "Object_Overlap": _percent(mean("Object_Overlap", object_overlap, of_masks=True)),
        "Background_Overlap": _percent(mean("Background_Overlap", background_overlap, of_masks=True)),
        "IOU": _percent(mean("IOU", object_iou, of_masks=True)),
        "IOR": mean("IOR", inside_outside_relevance, of_masks=False),
        "OIRR": mean("OIRR", outside_inside_ratio, of_masks=False),
        "Consistency": 100 * _consistency(case, batches),
    }


def _object_masks(pictures: np.ndarray, maps: Tensor) -> Tensor:
    axis = 1 if pictures.shape[2:] == maps.shape[2:] else 3
    return min_max_mask(torch.from_numpy(pictures).sum(dim=axis), 0.5)


def _consistency(case: Case, batches: Sequence[Batch]) -> float:
    by_number = []
    numbers = [torch.from_numpy(ids)[..., 0].long() for ids in case.batches("part_ids")]
    num_parts = 1 + max(int(own.max()) for own in numbers)
    for batch, parts, own in zip(batches, map(torch.from_numpy, case.batches("parts")), numbers, strict=True):
        covered = covered_parts(batch.relevance > 0, _visible(parts))  # [image, rank, place in the list]
        index = own.clamp(min=0)[:, None].expand_as(covered)
        found = torch.zeros(*covered.shape[:2], num_parts, dtype=torch.long)
        by_number.append(found.scatter_add(2, index, covered.long()) > 0)
    top, covered = torch.cat([batch.top for batch in batches]), torch.cat(by_number)
    return Consistency(top.numpy(), covered.numpy(), batches[0].similarity.shape[1]).value(len(top))


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
    """Where nothing else is intended, missing parts are looked up as the reference does."""
    masks, parts = case.inputs["map_batch"], case.inputs["partlocs"]
    if "out" not in case.intended:
        parts = _filled_up(torch.from_numpy(parts), torch.from_numpy(masks)).numpy()
    by_image = [_patterns(*of_image) for of_image in zip(masks, parts, strict=True)]
    found = np.array(sorted(frozenset().union(*by_image)), dtype=np.int64)
    return {"out": Translated(found, LAST_PIXEL) if (case.inputs["partlocs"] < 0).any() else found}


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
