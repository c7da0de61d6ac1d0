import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support, top_k_accuracy_score

from pipeline.metrics.classification import METRICS, classification_metrics


def plain_metrics(logits, labels, k):
    """Every metric by counting."""
    predicted = [max(range(len(row)), key=lambda idx: (row[idx], -idx)) for row in logits.tolist()]
    present = sorted(set(labels.tolist()))
    recall, precision, f1, topk = [], [], [], []
    for label in present:
        own = [idx for idx, of in enumerate(labels) if of == label]
        true_positive = sum(predicted[idx] == label for idx in own)
        num_predicted = predicted.count(label)
        recall.append(true_positive / len(own))
        precision.append(true_positive / num_predicted if num_predicted else 0.0)
        total = recall[-1] + precision[-1]
        f1.append(2 * recall[-1] * precision[-1] / total if total else 0.0)
        ranks = [sorted(range(len(logits[idx])), key=lambda j, idx=idx: -logits[idx][j])[:k] for idx in own]
        topk.append(sum(label in rank for rank in ranks) / len(own))
    return {
        "accuracy": np.mean([a == b for a, b in zip(predicted, labels.tolist(), strict=True)]),
        "balanced_accuracy": np.mean(recall),
        "topk_accuracy": np.mean(topk),
        "precision": np.mean(precision),
        "recall": np.mean(recall),
        "f1": np.mean(f1),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("present", [(0, 1, 2, 3, 4, 5), (1, 2, 5)])
def test_every_metric_is_that_of_plain_counting_absent_classes_left_out(seed, present):
    rng = np.random.default_rng(seed)
    labels = rng.choice(present, 31)
    logits = rng.normal(size=(31, 6))
    logits[np.arange(31), labels] += 0.8
    scores = classification_metrics(logits, labels, top_classes=2)
    assert scores == pytest.approx(plain_metrics(logits, labels, 2))


def test_every_metric_is_that_of_scikit_learn_where_all_classes_have_images():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 4
    logits = rng.normal(size=(60, 4))
    logits[np.arange(60), labels] += 0.8
    scores = classification_metrics(logits, labels, top_classes=2)
    predicted = logits.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert scores["topk_accuracy"] == pytest.approx(top_k_accuracy_score(labels, logits, k=2))  # classes are even
    assert (scores["precision"], scores["recall"], scores["f1"]) == pytest.approx((precision, recall, f1))


def test_a_class_never_predicted_counts_with_zero_precision():
    logits = np.array([[1.0, 0.0], [1.0, 0.0]])
    scores = classification_metrics(logits, np.array([0, 1]), top_classes=1)
    assert scores["precision"] == pytest.approx((0.5 + 0) / 2)
    assert scores["f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_top_k_beyond_the_number_of_classes_takes_all_of_them():
    logits = np.random.default_rng(0).normal(size=(8, 3))
    assert classification_metrics(logits, np.arange(8) % 3, top_classes=9)["topk_accuracy"] == 1.0


def test_of_equal_scores_the_lower_class_wins_in_every_metric():
    scores = classification_metrics(np.zeros((2, 3)), np.array([0, 1]), top_classes=1)
    assert scores["accuracy"] == scores["topk_accuracy"] == 0.5


def test_metrics_do_not_depend_on_the_order_of_images():
    rng = np.random.default_rng(0)
    logits, labels, order = rng.normal(size=(25, 4)), rng.integers(0, 4, 25), rng.permutation(25)
    scores = classification_metrics(logits, labels, top_classes=2)
    assert classification_metrics(logits[order], labels[order], top_classes=2) == pytest.approx(scores)


def test_every_metric_is_declared():
    scores = classification_metrics(np.eye(3), np.arange(3), top_classes=1)
    assert [metric.key for metric in METRICS] == list(scores)
    assert set(scores.values()) == {1.0}
