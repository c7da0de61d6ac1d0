"""Classification: how often the right class is found, and how far a network's own word on that can be trusted.

In the table an image has one class, and the one with the highest score is predicted; of equal scores, that of the lower
class. The functions for arrays also take several labels per image: a bool matrix, in which a class is predicted where
its score exceeds a threshold.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support, roc_curve
from torch import Tensor
from torch.nn import functional

from pipeline.metrics.interface import Evidence, Metric
from pipeline.metrics.statistics import (
    MeanOverClasses,
    Statistic,
    Values,
    Weights,
    mean_of_present,
    quotient,
    sums_of_groups,
)

NUM_BINS = 15
"""Bins of the confidence, equally wide, each with its upper bound (Guo et al. 2017, arXiv 1706.04599)."""

Labels = Int[np.ndarray, " image"] | Bool[np.ndarray, "image class"]
"""One class per image, or which classes it has."""

Counts = Float[np.ndarray, "draw class"]


# --- predictions


def predicted_labels(logits: Float[np.ndarray, "image class"], threshold: float | None = None) -> Labels:
    """Predict one class per image or, with a threshold, all classes whose score exceeds it."""
    predicted: np.ndarray = logits.argmax(axis=1) if threshold is None else logits > threshold
    return predicted


def is_in_top(
    logits: Float[np.ndarray, "image class"], labels: Int[np.ndarray, " image"], num_top: int
) -> Bool[np.ndarray, " image"]:
    """Say whether the class of an image is among its NUM_TOP highest scores; all of them where there are fewer."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :num_top]
    found: np.ndarray = (order == labels[:, None]).any(axis=1)
    return found


def probabilities(logits: Float[np.ndarray, "image class"]) -> Float[np.ndarray, "image class"]:
    """Apply the softmax, in double precision, so that confident predictions differ from each other."""
    return torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()


def mean_score(logits: Float[Tensor, "image class"], is_chosen: Bool[Tensor, "image class"]) -> Float[Tensor, " image"]:
    """Average the scores of the chosen classes of each image; NaN where none is."""
    return torch.where(is_chosen, logits.double(), 0.0).sum(dim=1) / is_chosen.sum(dim=1)


# --- one set of images


def image_weights(targets: Labels) -> Float[np.ndarray, " image"]:
    """Weigh images so that all classes weigh the same.

    An image weighs the number of images over that of its class; with several labels, the sum of this over its classes.
    """
    if targets.ndim == 1:
        count = np.bincount(targets)
        return len(targets) / count[targets].astype(np.float64)
    num = targets.sum(axis=0)
    weights: np.ndarray = targets @ np.divide(len(targets), num, out=np.zeros(len(num)), where=num > 0)
    return weights


def label_scores(
    predicted: Labels, targets: Labels, weights: Float[np.ndarray, " image"] | None = None
) -> dict[str, float]:
    """Compute accuracy, precision, recall and F1 by scikit-learn, 0 for 0/0.

    With one class per image, the last three are means over the classes that are labelled or predicted. With several
    labels, they are means over images, and an image is right when all its labels are.
    """
    precision, recall, f1, _ = precision_recall_fscore_support(
        targets,
        predicted,
        average="macro" if targets.ndim == 1 else "samples",
        sample_weight=weights,
        zero_division=0,
    )
    return {
        "accuracy": float(accuracy_score(targets, predicted, sample_weight=weights)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }


def confusion(
    predicted: Int[np.ndarray, " image"], targets: Int[np.ndarray, " image"], num_classes: int
) -> Int[np.ndarray, "class class"]:
    """Count images by their class (row) and the predicted one (column)."""
    counts: np.ndarray = confusion_matrix(targets, predicted, labels=np.arange(num_classes))
    return counts


@dataclass(frozen=True, slots=True)
class RocCurve:
    """How many images of a class are found, against how many others are taken for it, as the threshold falls.

    Corners only, from (0, 0) to (1, 1). NaN where the class has no image, or every image.
    """

    false_positive_frac: Float[np.ndarray, " corner"]
    true_positive_frac: Float[np.ndarray, " corner"]


def roc_curves(scores: Float[np.ndarray, "image class"], targets: Labels) -> list[RocCurve]:
    """Draw the curve of each class against all others.

    Args:
        scores: the higher, the more of the class; logits and probabilities give different curves.
        targets: one class per image, or several.
    """
    curves = []
    for class_idx in range(scores.shape[1]):
        is_class = targets == class_idx if targets.ndim == 1 else targets[:, class_idx]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)  # it gives NaN then
            false_positive, true_positive, _ = roc_curve(is_class, scores[:, class_idx])
        curves.append(RocCurve(false_positive, true_positive))
    return curves


def roc_auc_of_images(
    logits: Float[np.ndarray, "image class"], targets: Bool[np.ndarray, "image class"]
) -> Float[np.ndarray, " image"]:
    """Compute, for each image, the share of pairs of a label and another class in which the label has the higher score.

    Equal scores count half; NaN where an image has no label, or all.
    """
    areas: np.ndarray = roc_areas(logits.T, targets.T, np.ones((1, logits.shape[1])))[0]
    return areas


@dataclass(frozen=True, slots=True)
class Reliability:
    """Confidence and accuracy by bins of confidence; NaN where a bin has no image."""

    confidence: Float[np.ndarray, " bin"]
    accuracy: Float[np.ndarray, " bin"]
    share: Float[np.ndarray, " bin"]


def reliability(confidence: Float[np.ndarray, " image"], is_right: Bool[np.ndarray, " image"]) -> Reliability:
    """Compare how sure a network is with how often it is right, bin by bin.

    Args:
        confidence: probability of the predicted class.
        is_right: whether the prediction is.
    """
    weights = np.ones((1, len(confidence)))
    bins = _bin_of(confidence)
    num, sure, right = (
        sums_of_groups(weights, bins, NUM_BINS, values)[0]
        for values in (None, confidence.astype(np.float64), is_right.astype(np.float64))
    )
    return Reliability(quotient(sure, num), quotient(right, num), num / len(confidence))


def _bin_of(confidence: Float[np.ndarray, " image"]) -> Int[np.ndarray, " image"]:
    bins: np.ndarray = np.digitize(confidence, np.linspace(0, 1, NUM_BINS + 1)[1:-1], right=True)
    return bins


# --- statistics


def roc_areas(
    scores: Float[np.ndarray, "item group"],
    is_member: Bool[np.ndarray, "item group"],
    weights: Float[np.ndarray, "draw item"],
) -> Float[np.ndarray, "draw group"]:
    """Compute, for each group, how likely a member has a higher score than another item; equal scores count half.

    Args:
        scores: of each item in each group.
        is_member: whether the item belongs to the group.
        weights: of each draw.

    Returns:
        The area under the ROC curve; NaN where members, or others, weigh nothing.
    """
    weights = np.asfortranarray(weights)
    areas = np.full((len(weights), scores.shape[1]), np.nan)
    for group, (score, is_own) in enumerate(zip(scores.T, is_member.T, strict=True)):
        levels = np.unique(score[is_own])
        num = len(levels)
        if num == 0:
            continue
        below, up_to = np.searchsorted(levels, score, "left"), np.searchsorted(levels, score, "right")
        # others by slot: 2k lies between level k - 1 and level k, 2k + 1 at level k; then the members, level by level
        slot = np.where(is_own, 2 * num + 1 + below, below + up_to)
        sums = sums_of_groups(weights, slot, 3 * num + 1)
        others, own = sums[:, : 2 * num + 1], sums[:, 2 * num + 1 :]
        lower = others.cumsum(axis=1)[:, 0:-1:2]
        won = (own * (lower + others[:, 1::2] / 2)).sum(axis=1)
        areas[:, group] = quotient(won, own.sum(axis=1) * others.sum(axis=1))
    return areas


class RocAuc(Statistic):
    """The mean over classes of the area under the ROC curve of the class against all others.

    Classes without images, or with all of them, do not count.
    """

    def __init__(self, scores: Float[np.ndarray, "image class"], labels: Int[np.ndarray, " image"]) -> None:
        self._scores = scores
        self._is_class = labels[:, None] == np.arange(scores.shape[1])
        self.num_images = len(labels)

    def __call__(self, weights: Weights) -> Values:
        """Compute it for each draw of weights."""
        return mean_of_present(self.of_classes(weights))

    def of_classes(self, weights: Weights) -> Counts:
        """Give the area of each class; NaN where it has none."""
        return roc_areas(self._scores, self._is_class, weights)


class MeanOfClassScores(Statistic):
    """The mean, over the classes that are labelled or predicted, of a score made of counts.

    As scikit-learn's macro average.

    Args:
        labels: true classes.
        predicted: the classes found.
        num_classes: how many there can be.
        score: makes the score of the right predictions, the images and the predictions of each class.
    """

    def __init__(
        self,
        labels: Int[np.ndarray, " image"],
        predicted: Int[np.ndarray, " image"],
        num_classes: int,
        score: Callable[[Counts, Counts, Counts], Counts],
    ) -> None:
        self._labels = labels
        self._predicted = predicted
        self._num_classes = num_classes
        self._score = score
        self.num_images = len(labels)

    def __call__(self, weights: Weights) -> Values:
        """Compute it for each draw of weights."""
        weights = np.asfortranarray(weights)
        is_right = (self._labels == self._predicted).astype(np.float64)
        right = sums_of_groups(weights, self._labels, self._num_classes, is_right)
        labelled = sums_of_groups(weights, self._labels, self._num_classes)
        predicted = sums_of_groups(weights, self._predicted, self._num_classes)
        scores = self._score(right, labelled, predicted)
        return mean_of_present(np.where(labelled + predicted > 0, scores, np.nan))


def precision_of(right: Counts, labelled: Counts, predicted: Counts) -> Counts:
    """TP / (TP + FP), 0 for 0/0."""
    return _share(right, predicted)


def recall_of(right: Counts, labelled: Counts, predicted: Counts) -> Counts:
    """TP / (TP + FN), 0 for 0/0."""
    return _share(right, labelled)


def f1_of(right: Counts, labelled: Counts, predicted: Counts) -> Counts:
    """2 TP / (2 TP + FP + FN), 0 for 0/0."""
    return _share(2 * right, labelled + predicted)


def _share(part: Counts, whole: Counts) -> Counts:
    """Divide; 0 for 0/0."""
    share: np.ndarray = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return share


class OfEqualClasses(Statistic):
    """Another statistic, of images weighted so that all classes weigh the same in each draw: :func:`image_weights`."""

    def __init__(self, statistic: Statistic, labels: Int[np.ndarray, " image"]) -> None:
        self._statistic = statistic
        self._labels = labels
        self._num_classes = int(labels.max(initial=-1)) + 1
        self.num_images = statistic.num_images

    def __call__(self, weights: Weights) -> Values:
        """Compute it for each draw of weights."""
        weights = np.asfortranarray(weights)
        of_class = sums_of_groups(weights, self._labels, self._num_classes)
        factor = np.divide(1.0, of_class, out=np.zeros_like(of_class), where=of_class > 0)
        return self._statistic((weights.T * factor.T[self._labels]).T)


class CalibrationError(Statistic):
    """How far confidence and accuracy lie apart: over bins of confidence, |accuracy - confidence| by share of images.

    Args:
        confidence: probability of the predicted class.
        is_right: whether the prediction is.
    """

    def __init__(self, confidence: Float[np.ndarray, " image"], is_right: Bool[np.ndarray, " image"]) -> None:
        self._bins = _bin_of(confidence)
        self._excess = is_right - confidence.astype(np.float64)
        self.num_images = len(confidence)

    def __call__(self, weights: Weights) -> Values:
        """Compute it for each draw of weights."""
        excess = sums_of_groups(np.asfortranarray(weights), self._bins, NUM_BINS, self._excess)
        return quotient(np.abs(excess).sum(axis=1), weights.sum(axis=1))


# --- metrics


def _arrays(evidence: Evidence) -> tuple[Float[np.ndarray, "image class"], Int[np.ndarray, " image"]]:
    return evidence.look.logits.cpu().numpy(), evidence.labels.cpu().numpy()


def _is_right(evidence: Evidence) -> Float[Tensor, " image"]:
    return (evidence.look.logits.argmax(dim=1) == evidence.labels).double()


def _balanced_accuracy(evidence: Evidence) -> Statistic:
    logits, labels = _arrays(evidence)
    return MeanOverClasses((predicted_labels(logits) == labels).astype(np.float64), labels)


def _topk_accuracy(evidence: Evidence) -> Statistic:
    logits, labels = _arrays(evidence)
    return MeanOverClasses(is_in_top(logits, labels, evidence.params.top_classes).astype(np.float64), labels)


def _mean_of(score: Callable[[Counts, Counts, Counts], Counts]) -> Callable[[Evidence], Statistic]:
    def of_set(evidence: Evidence) -> Statistic:
        logits, labels = _arrays(evidence)
        statistic = MeanOfClassScores(labels, predicted_labels(logits), logits.shape[1], score)
        return OfEqualClasses(statistic, labels)

    return of_set


def _roc_auc(evidence: Evidence) -> Statistic:
    logits, labels = _arrays(evidence)
    return OfEqualClasses(RocAuc(probabilities(logits), labels), labels)


def _calibration_error(evidence: Evidence) -> Statistic:
    logits, labels = _arrays(evidence)
    return CalibrationError(probabilities(logits).max(axis=1), predicted_labels(logits) == labels)


def _is_own(evidence: Evidence) -> Bool[Tensor, "image class"]:
    return functional.one_hot(evidence.labels, evidence.look.logits.shape[1]).bool()


_FAMILY = "classification"

METRICS = (
    Metric(
        key="accuracy",
        family=_FAMILY,
        title="Accuracy",
        unit="fraction",
        direction="higher",
        formula="images whose highest score is their class / images",
        of_image=_is_right,
    ),
    Metric(
        key="balanced_accuracy",
        family=_FAMILY,
        title="Balanced accuracy",
        unit="fraction",
        direction="higher",
        formula="mean over classes of the accuracy on their images (the paper's accuracy)",
        of_set=_balanced_accuracy,
    ),
    Metric(
        key="topk_accuracy",
        family=_FAMILY,
        title="Top-k accuracy",
        unit="fraction",
        direction="higher",
        formula="images whose class is among the k highest scores (k = evaluate.top_classes), mean over classes",
        of_set=_topk_accuracy,
    ),
    Metric(
        key="precision",
        family=_FAMILY,
        title="Precision",
        unit="fraction",
        direction="higher",
        formula="mean over classes of TP / (TP + FP), 0 for 0/0, images weighted so that all classes weigh the same",
        of_set=_mean_of(precision_of),
    ),
    Metric(
        key="recall",
        family=_FAMILY,
        title="Recall",
        unit="fraction",
        direction="higher",
        formula="mean of TP / (TP + FN), 0 for 0/0, over the classes that are labelled or predicted",
        of_set=_mean_of(recall_of),
    ),
    Metric(
        key="f1",
        family=_FAMILY,
        title="F1",
        unit="fraction",
        direction="higher",
        formula="mean over classes of 2PR / (P + R), 0 for 0/0, images weighted so that all classes weigh the same",
        of_set=_mean_of(f1_of),
    ),
    Metric(
        key="roc_auc",
        family=_FAMILY,
        title="ROC AUC",
        unit="fraction",
        direction="higher",
        formula="mean over classes of the area under the ROC curve of its probability against all other classes, "
        "images weighted so that all classes weigh the same",
        of_set=_roc_auc,
    ),
    Metric(
        key="calibration_error",
        family=_FAMILY,
        title="Calibration error",
        unit="fraction",
        direction="lower",
        formula=f"|accuracy - confidence| in {NUM_BINS} equal bins of the confidence, mean by share of images "
        "(Guo et al. 2017)",
        of_set=_calibration_error,
    ),
    Metric(
        key="target_score",
        family=_FAMILY,
        title="Score of the true class",
        unit="score",
        direction="neither",
        formula="mean over images of the logit of their class",
        low=-math.inf,
        high=math.inf,
        of_image=lambda evidence: mean_score(evidence.look.logits, _is_own(evidence)),
    ),
    Metric(
        key="other_score",
        family=_FAMILY,
        title="Score of the other classes",
        unit="score",
        direction="neither",
        formula="mean over images of the mean logit of the classes that are not theirs",
        low=-math.inf,
        high=math.inf,
        of_image=lambda evidence: mean_score(evidence.look.logits, ~_is_own(evidence)),
    ),
)
