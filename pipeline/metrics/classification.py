"""Classification: how often the right class is found."""

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import precision_recall_fscore_support

from pipeline.metrics.interface import Metric

_FAMILY = "classification"

METRICS = (
    Metric("accuracy", _FAMILY, "Accuracy", "fraction", "higher", "images whose highest score is their class / images"),
    Metric(
        "balanced_accuracy",
        _FAMILY,
        "Balanced accuracy",
        "fraction",
        "higher",
        "mean over classes of the accuracy on their images (the paper's accuracy)",
    ),
    Metric(
        "topk_accuracy",
        _FAMILY,
        "Top-k accuracy",
        "fraction",
        "higher",
        "images whose class is among the k highest scores (k = evaluate.top_classes), mean over classes",
    ),
    Metric("precision", _FAMILY, "Precision", "fraction", "higher", "mean over classes of TP / (TP + FP), 0 for 0/0"),
    Metric("recall", _FAMILY, "Recall", "fraction", "higher", "mean over classes of TP / (TP + FN)"),
    Metric("f1", _FAMILY, "F1", "fraction", "higher", "mean over classes of 2PR / (P + R), 0 for 0/0"),
)


def classification_metrics(
    logits: Float[np.ndarray, "image class"], labels: Int[np.ndarray, " image"], *, top_classes: int
) -> dict[str, float]:
    """Compute all metrics of the family; classes without an image do not enter a mean over classes.

    Args:
        logits: class scores, any increasing function of probability.
        labels: true classes.
        top_classes: k of the top-k accuracy; where there are fewer classes, all of them.
    """
    order = np.argsort(-logits, axis=1, kind="stable")  # [image, rank]
    predicted = order[:, 0]
    hit = predicted == labels
    in_top = (order[:, :top_classes] == labels[:, None]).any(axis=1)
    present = np.unique(labels)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=present, average="macro", zero_division=0
    )
    return {
        "accuracy": float(hit.mean()),
        "balanced_accuracy": float(np.mean([hit[labels == label].mean() for label in present])),
        "topk_accuracy": float(np.mean([in_top[labels == label].mean() for label in present])),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
    }
