import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, top_k_accuracy_score

from pipeline.metrics.classification import (
    METRICS,
    NUM_BINS,
    CalibrationError,
    RocAuc,
    confusion,
    image_weights,
    is_in_top,
    label_scores,
    mean_score,
    predicted_labels,
    probabilities,
    reliability,
    roc_auc_of_images,
    roc_curves,
)
from pipeline.metrics.interface import Evidence, Look
from pipeline.metrics.statistics import MeanOverImages
from pipeline.params import EvaluateParams

NUM_CLASSES = 6


def images(seed=0, num=41, present=range(NUM_CLASSES), decimals=1):
    """Scores of images, of which some are equal, and labels; unequally many images per class."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.array(present), rng.choice(present, num - len(present))])
    logits = rng.normal(size=(num, NUM_CLASSES))
    logits[np.arange(num), labels] += 0.8
    return logits.round(decimals), labels


def evidence_of(logits, labels, top_classes=2):
    num = len(labels)
    look = Look(
        logits=torch.from_numpy(logits),
        similarity=torch.zeros(num, 1),
        elements=torch.zeros(num, 1, 1),
        centre=torch.zeros(num, 1, 2),
    )
    return Evidence(labels=torch.from_numpy(labels), look=look, params=EvaluateParams(top_classes=top_classes))


def statistics_of(logits, labels, top_classes=2):
    evidence = evidence_of(logits, labels, top_classes)
    return {
        metric.key: metric.of_set(evidence) if metric.of_set else MeanOverImages(metric.of_image(evidence).numpy())
        for metric in METRICS
    }


def values_of(logits, labels, top_classes=2):
    return {key: statistic.value(len(labels)) for key, statistic in statistics_of(logits, labels, top_classes).items()}


def plain_metrics(logits, labels, k):
    """Every metric by counting."""
    scores, labels = logits.tolist(), labels.tolist()
    num_images, num_classes = len(scores), len(scores[0])
    predicted = [max(range(num_classes), key=lambda idx: (row[idx], -idx)) for row in scores]
    share = [1 / labels.count(label) for label in labels]  # so that every class weighs 1
    probability = [[np.exp(one) / sum(np.exp(other) for other in row) for one in row] for row in scores]
    recall, precision, f1 = [], [], []
    for label in sorted({*labels, *predicted}):
        found = sum(share[i] for i in range(num_images) if labels[i] == predicted[i] == label)
        num_predicted = sum(share[i] for i in range(num_images) if predicted[i] == label)
        recall.append(found / 1 if label in labels else 0.0)
        precision.append(found / num_predicted if num_predicted else 0.0)
        total = recall[-1] + precision[-1]
        f1.append(2 * recall[-1] * precision[-1] / total if total else 0.0)
    hits, in_top, areas = [], [], []
    for label in sorted(set(labels)):
        own = [i for i in range(num_images) if labels[i] == label]
        others = [i for i in range(num_images) if labels[i] != label]
        hits.append(np.mean([predicted[i] == label for i in own]))
        ranks = [sorted(range(num_classes), key=lambda j, i=i: -scores[i][j])[:k] for i in own]
        in_top.append(np.mean([label in rank for rank in ranks]))
        won = sum(
            share[other] * (1.0 if a > b else 0.5 if a == b else 0.0)
            for i in own
            for other in others
            for a, b in [(probability[i][label], probability[other][label])]
        )
        areas.append(won / len(own) / sum(share[other] for other in others))
    calibration = 0.0
    for bin_idx in range(NUM_BINS):
        inside = [i for i, row in enumerate(probability) if bin_idx / NUM_BINS < max(row) <= (bin_idx + 1) / NUM_BINS]
        sure, right = sum(max(probability[i]) for i in inside), sum(predicted[i] == labels[i] for i in inside)
        calibration += abs(sure - right) / num_images
    rest = [
        np.mean([row[j] for j in range(num_classes) if j != label]) for row, label in zip(scores, labels, strict=True)
    ]
    return {
        "accuracy": np.mean([a == b for a, b in zip(predicted, labels, strict=True)]),
        "balanced_accuracy": np.mean(hits),
        "topk_accuracy": np.mean(in_top),
        "precision": np.mean(precision),
        "recall": np.mean(recall),
        "f1": np.mean(f1),
        "roc_auc": np.mean(areas),
        "calibration_error": calibration,
        "target_score": np.mean([row[label] for row, label in zip(scores, labels, strict=True)]),
        "other_score": np.mean(rest),
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("present", [(0, 1, 2, 3, 4, 5), (1, 2, 5)])
def test_every_metric_is_that_of_plain_counting(seed, present):
    logits, labels = images(seed, present=present)
    assert set(predicted_labels(logits)) == set(range(NUM_CLASSES))  # absent classes are predicted, too
    assert values_of(logits, labels) == pytest.approx(plain_metrics(logits, labels, 2))


@pytest.mark.parametrize("seed", range(4))
def test_every_metric_is_that_of_scikit_learn(seed):
    logits, labels = images(seed, decimals=9)
    predicted, weights, values = logits.argmax(axis=1), image_weights(labels), values_of(logits, labels)
    assert values["accuracy"] == pytest.approx(label_scores(predicted, labels)["accuracy"])
    assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    top = top_k_accuracy_score(labels, logits, k=2, sample_weight=weights)
    assert values["topk_accuracy"] == pytest.approx(top)
    balanced = label_scores(predicted, labels, weights)
    assert {key: values[key] for key in ("precision", "recall", "f1")} == pytest.approx(
        {key: balanced[key] for key in ("precision", "recall", "f1")}
    )
    area = roc_auc_score(labels, probabilities(logits), multi_class="ovr", average="macro", sample_weight=weights)
    assert values["roc_auc"] == pytest.approx(area)
    unweighted = roc_auc_score(labels, probabilities(logits), multi_class="ovr", average="macro")
    assert RocAuc(probabilities(logits), labels).value(len(labels)) == pytest.approx(unweighted)


@pytest.mark.parametrize("num", [12, 41])
def test_weights_count_as_repeated_images(num):
    logits, labels = images(num=num)
    counts = np.random.default_rng(0).multinomial(num, np.full(num, 1 / num), 8)
    assert any(len(set(np.repeat(labels, drawn))) < NUM_CLASSES for drawn in counts)  # a class is left out
    statistics = statistics_of(logits, labels)
    weighted = {key: statistic(counts.astype(float)) for key, statistic in statistics.items()}
    for draw, drawn in enumerate(counts):
        repeated = values_of(np.repeat(logits, drawn, axis=0), np.repeat(labels, drawn))
        assert {key: values[draw] for key, values in weighted.items()} == pytest.approx(repeated)


def test_a_draw_does_not_depend_on_the_others_nor_on_the_scale_of_its_weights():
    logits, labels = images()
    weights = np.random.default_rng(0).random((5, len(labels)))
    for statistic in statistics_of(logits, labels).values():
        alone = np.concatenate([statistic(weights[[draw]]) for draw in range(5)])
        np.testing.assert_allclose(statistic(weights), alone)
        np.testing.assert_allclose(statistic(7 * weights), alone)


def test_without_weights_there_is_no_value():
    logits, labels = images()
    for statistic in statistics_of(logits, labels).values():
        assert statistic.num_images == len(labels)
        assert np.isnan(statistic(np.zeros((1, len(labels))))).all()


def test_metrics_do_not_depend_on_the_order_of_images():
    logits, labels = images()
    order = np.random.default_rng(0).permutation(len(labels))
    assert values_of(logits[order], labels[order]) == pytest.approx(values_of(logits, labels))


def test_a_class_never_predicted_counts_with_zero_precision():
    values = values_of(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    assert values["precision"] == pytest.approx((0.5 + 0) / 2)
    assert values["f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_a_class_of_many_images_weighs_no_more_than_one_of_few():
    logits = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]] + [[1.0, 0.0]])  # of the second class, the fourth is right
    values = values_of(logits, np.array([0, 0, 0, 1, 1]))
    assert values["accuracy"] == pytest.approx(4 / 5)
    assert values["balanced_accuracy"] == values["recall"] == pytest.approx((1 + 1 / 2) / 2)
    assert values["precision"] == pytest.approx((1 / 1.5 + 1) / 2)


def test_top_k_beyond_the_number_of_classes_takes_all_of_them():
    logits, labels = images()
    assert values_of(logits, labels, top_classes=9)["topk_accuracy"] == 1


def test_of_equal_scores_the_lower_class_wins_in_every_metric():
    assert predicted_labels(np.zeros((1, 3))).tolist() == [0]
    assert is_in_top(np.zeros((2, 3)), np.array([1, 2]), 2).tolist() == [True, False]
    assert values_of(np.zeros((2, 3)), np.array([0, 1]), top_classes=1)["accuracy"] == 0.5
    assert values_of(np.zeros((2, 3)), np.array([0, 1]))["roc_auc"] == 0.5


def test_a_class_without_images_or_with_all_of_them_has_no_area():
    logits, _ = images(num=7)
    areas = RocAuc(logits, np.array([0, 0, 2, 2, 2, 0, 2])).of_classes(np.ones((1, 7)))
    assert np.isnan(areas).tolist() == [[False, True, False, True, True, True]]
    one_class = RocAuc(logits, np.zeros(7, dtype=np.int64))
    assert np.isnan(one_class.value(7))


def test_certain_predictions_still_have_an_order():
    logits = np.array([[20.0, 0.0], [19.0, 0.0], [18.0, 0.0]], dtype=np.float32)
    assert (np.diff(probabilities(logits)[:, 0]) < 0).all()  # all are 1 in single precision
    assert values_of(logits, np.array([0, 1, 1]))["roc_auc"] == 1


# --- several labels per image


def several_labels():
    rng = np.random.default_rng(0)
    targets = rng.random((20, 4)) < 0.4
    targets[0], targets[1] = False, True
    return rng.normal(size=(20, 4)) + targets, targets


def test_with_a_threshold_every_class_above_it_is_predicted():
    assert predicted_labels(np.array([[0.5, 0.6], [0.4, -1.0]]), 0.5).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("is_weighted", [False, True])
def test_scores_of_several_labels_are_means_over_images(is_weighted):
    logits, targets = several_labels()
    predicted = predicted_labels(logits, 0.5)
    weights = image_weights(targets) if is_weighted else None
    by_image = {"accuracy": [], "precision": [], "recall": [], "f1": []}
    for own, found in zip(targets, predicted, strict=True):
        num_right, num_found, num_own = (own & found).sum(), found.sum(), own.sum()
        by_image["accuracy"].append(own.tolist() == found.tolist())
        by_image["precision"].append(num_right / num_found if num_found else 0)
        by_image["recall"].append(num_right / num_own if num_own else 0)
        by_image["f1"].append(2 * num_right / (num_found + num_own) if num_found + num_own else 0)
    expected = {name: np.average(values, weights=weights) for name, values in by_image.items()}
    assert label_scores(predicted, targets, weights) == pytest.approx(expected)


def test_the_area_of_an_image_is_that_of_its_labels_over_its_other_classes():
    logits, targets = several_labels()
    areas = roc_auc_of_images(logits, targets)
    assert np.isnan(areas[:2]).all()
    some = targets.any(axis=1) & ~targets.all(axis=1)
    assert some.sum() > 10
    expected = [roc_auc_score(own, score) for own, score in zip(targets[some], logits[some], strict=True)]
    np.testing.assert_allclose(areas[some], expected)


def test_images_weigh_so_that_classes_weigh_the_same():
    labels = np.array([3, 0, 3, 3])
    assert image_weights(labels).tolist() == [4 / 3, 4, 4 / 3, 4 / 3]
    targets = np.array([[True, False, False], [True, True, False], [False, False, False]])
    assert image_weights(targets).tolist() == [1.5, 4.5, 0]


def test_scores_are_averaged_over_the_chosen_classes():
    logits = torch.tensor([[1.0, 2.0, 6.0], [1.0, 2.0, 6.0]])
    chosen = torch.tensor([[True, False, True], [False, False, False]])
    torch.testing.assert_close(mean_score(logits, chosen), torch.tensor([3.5, torch.nan]).double(), equal_nan=True)


# --- what is drawn


def test_confusion_counts_images_by_class_and_prediction():
    counts = confusion(np.array([0, 2, 2, 0]), np.array([0, 1, 2, 1]), 4)
    assert counts.tolist() == [[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_the_area_under_a_roc_curve_is_that_of_the_class():
    logits, labels = images()
    curves = roc_curves(logits, labels)
    areas = RocAuc(logits, labels).of_classes(np.ones((1, len(labels))))[0]
    under = [np.trapezoid(curve.true_positive_frac, curve.false_positive_frac) for curve in curves]
    np.testing.assert_allclose(under, areas)
    of_labels = roc_curves(logits, labels[:, None] == np.arange(NUM_CLASSES))
    for one, other in zip(curves, of_labels, strict=True):
        np.testing.assert_array_equal(one.true_positive_frac, other.true_positive_frac)


def test_a_class_without_images_has_no_roc_curve(recwarn):
    curve = roc_curves(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([0, 0]))[1]
    assert np.isnan(curve.true_positive_frac).all()
    assert not recwarn.list


def test_bins_of_confidence_hold_their_upper_bound():
    found = reliability(np.array([0.2, 0.201, 0.21, 1.0]), np.array([True, False, True, True]))
    assert found.share[[2, 3, 14]].tolist() == [0.25, 0.5, 0.25]
    assert found.accuracy[[2, 3, 14]].tolist() == [1, 0.5, 1]
    np.testing.assert_allclose(found.confidence[[2, 3, 14]], [0.2, 0.2055, 1])
    assert np.isnan(found.confidence).sum() == NUM_BINS - 3


def test_the_calibration_error_is_the_gap_of_the_bins_by_their_share():
    logits, labels = images(num=60)
    confidence, is_right = probabilities(logits).max(axis=1), logits.argmax(axis=1) == labels
    bins = reliability(confidence, is_right)
    gaps = np.nan_to_num(np.abs(bins.accuracy - bins.confidence))
    assert CalibrationError(confidence, is_right).value(60) == pytest.approx((gaps * bins.share).sum())
    assert CalibrationError(np.ones(4), np.array([True, True, True, False])).value(4) == 0.25
