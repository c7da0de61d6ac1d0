import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support, top_k_accuracy_score

from pipeline.metrics.classification import METRICS, classification_metrics

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"

# What of the vectors our definitions share: accuracy is unweighted (balanced_accuracy is the weighted one), top-k is
# a mean over classes, precision and F1 are macro means of unweighted counts.
SAME = {
    ("accuracy", False): "accuracy",
    ("accuracy", True): "balanced_accuracy",
    ("topk_accuracy", True): "topk_accuracy",
    ("precision", False): "precision",
    ("recall", False): "recall",
    ("recall", True): "recall",
    ("f1_score", False): "f1",
}
SAME_OF_TECHNIQUE = {
    True: {"Accuracy": "balanced_accuracy", "top-3_Accuracy": "topk_accuracy", "Recall": "recall"},
    False: {"Accuracy": "accuracy", "Precision": "precision", "Recall": "recall", "F1_score": "f1"},
}


def cases_of(name, wanted):
    """The wanted cases of one file of vectors; a single None, which skips, where the vectors are absent."""
    if not (GOLDEN / "index.json").exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="needs ../shared/golden"))]
    files = {entry["file"]: entry for entry in json.loads((GOLDEN / "index.json").read_text())["files"]}
    return [pytest.param(case, id=case["id"]) for case in files[name]["cases"] if wanted(case)]


def our_name(case):
    return SAME.get((case["function"].split()[-1], case.get("params", {}).get("balanced", False)))


def is_ours(case):
    single_label = "single" in case["id"] or "ties" in case["id"] or "missing" in case["id"]
    # with a class that no image has, theirs averages over predicted classes, too; ours over classes with images
    other_classes = "missing" in case["id"] and case["function"].split()[-1] != "accuracy"
    return single_label and not other_classes and not case.get("advisory") and our_name(case) is not None


FUNCTIONS = cases_of("metrics_general.npz", is_ours)
TECHNIQUES = cases_of("technique_general.npz", lambda case: True)


def test_the_golden_vectors_have_classifications():
    if FUNCTIONS[0].values == (None,):
        pytest.skip("needs ../shared/golden")
    assert len(FUNCTIONS) == 9
    assert len(TECHNIQUES) == 3


@pytest.mark.parametrize("case", FUNCTIONS)
def test_a_metric_is_that_of_the_golden_vectors(case):
    with np.load(GOLDEN / "metrics_general.npz") as stored:
        logits, labels = (stored[f"{case['id']}.in.{name}"] for name in ("logits", "targets"))
        expected = stored[f"{case['id']}.out.out"]
    scores = classification_metrics(logits, labels, top_classes=case.get("params", {}).get("k", 3))
    np.testing.assert_allclose(scores[our_name(case)], expected, atol=case["atol"], rtol=case["rtol"])


@pytest.mark.parametrize("case", TECHNIQUES)
def test_a_run_over_batches_scores_as_in_the_golden_vectors(case):
    with np.load(GOLDEN / "technique_general.npz") as stored:
        batches = [
            (stored[f"{case['id']}.in.logits_{batch}"], stored[f"{case['id']}.in.labels_{batch}"]) for batch in range(3)
        ]
        wanted = SAME_OF_TECHNIQUE[case["params"]["balanced"]]
        expected = {name: float(stored[f"{case['id']}.out.{theirs}"]) for theirs, name in wanted.items()}
    logits, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    scores = classification_metrics(logits, labels, top_classes=3)
    for name, value in expected.items():  # theirs is in percent
        np.testing.assert_allclose(100 * scores[name], value, atol=case["atol"], rtol=case["rtol"], err_msg=name)


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
