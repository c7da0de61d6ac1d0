from dataclasses import replace

import numpy as np
import pytest

from pipeline.artifacts import PER_IMAGE, write_table
from pipeline.metrics.uncertainty import Interval
from pipeline.report.price import PRICED, Price, find_price, signed
from pipeline.report.tables import Detail

NUM_IMAGES, NUM_CLASSES, NUM_DRAWS = 60, 3, 400


def balanced(labels, predicted, weights=None):
    """Average over classes how often the images of each are right, in a loop."""
    weights = np.ones(len(labels)) if weights is None else weights
    shares = []
    for label in range(NUM_CLASSES):
        of_class = [idx for idx in range(len(labels)) if labels[idx] == label and weights[idx]]
        right = sum(weights[idx] for idx in of_class if predicted[idx] == label)
        shares.append(right / sum(weights[idx] for idx in of_class))
    return sum(shares) / len(shares)


def made_predictions(seed=0, own_right=0.9, other_right=0.7):
    rng = np.random.default_rng(seed)
    labels = np.arange(NUM_IMAGES) % NUM_CLASSES
    predicted = [
        np.where(rng.random(NUM_IMAGES) < right, labels, (labels + 1) % NUM_CLASSES)
        for right in (own_right, other_right)
    ]
    return labels, *predicted


def write(path, labels, own, other, *, keys=None):
    keys = keys or [f"i{idx:03}" for idx in range(len(labels))]
    rows = []
    for row, predicted, names in (("protomask", own, keys), ("blackbox", other, sorted(keys))):
        for image_key, label, of_image in zip(names, labels.tolist(), predicted.tolist(), strict=True):
            content = {"row": row, "image_key": image_key, "label": label, "predicted": of_image, "values": []}
            rows.append(content | {"confidence": 0.5, "label_probability": 0.5})
    write_table(path, rows, PER_IMAGE)
    return path


def details(own, other):
    return [
        Detail(row, "classification", key, value, None, None, NUM_IMAGES, None, None)
        for row, value in (("protomask", own), ("blackbox", other), ("protomask_trained", 0.1))
        for key in ("balanced_accuracy", "accuracy")
    ]


def price_of(path, own, other, head="protomask"):
    return find_price(details(own, other), path, head, num_draws=NUM_DRAWS, seed=3)


def test_the_interval_is_the_paired_bootstrap_of_both_networks_on_the_same_images(tmp_path):
    labels, own, other = made_predictions()
    path = write(tmp_path / "per_image.parquet", labels, own, other)
    price = price_of(path, balanced(labels, own), balanced(labels, other))
    rng = np.random.default_rng(3)
    draws = rng.multinomial(NUM_IMAGES, np.full(NUM_IMAGES, 1 / NUM_IMAGES), size=NUM_DRAWS)
    drawn = [balanced(labels, own, weights) - balanced(labels, other, weights) for weights in draws]
    expected = np.quantile(drawn, [0.025, 0.975])
    assert (price.interval.low, price.interval.high) == pytest.approx(tuple(expected), abs=1e-9)
    assert price.interval.low < price.own - price.blackbox < price.interval.high
    apart = np.quantile([balanced(labels, own, weights) for weights in draws], [0.025, 0.975])
    assert abs(price.interval.low - (apart[0] - price.blackbox)) > 0.01


@pytest.mark.parametrize(("error", "is_known"), [(0.0, True), (9e-7, True), (2e-6, False), (0.01, False)])
@pytest.mark.parametrize("of_own", [True, False])
def test_there_is_no_interval_where_single_images_give_other_numbers(tmp_path, error, is_known, of_own):
    labels, own, other = made_predictions()
    path = write(tmp_path / "per_image.parquet", labels, own, other)
    values = balanced(labels, own) + error * of_own, balanced(labels, other) + error * (not of_own)
    price = price_of(path, *values)
    assert (price.own, price.blackbox) == values
    assert (price.interval is not None) == is_known


def test_there_is_no_interval_where_the_rows_are_not_on_the_same_images(tmp_path):
    labels, own, other = made_predictions()
    keys = [f"i{idx:03}" for idx in range(NUM_IMAGES)]
    path = write(tmp_path / "per_image.parquet", labels, own, other, keys=[*keys[:-2], keys[-1], keys[-2]])
    price = price_of(path, balanced(labels, own), balanced(labels, other))
    assert price.interval is None
    assert price.bounds is None


def test_only_a_network_with_a_black_box_beside_it_has_a_price(tmp_path):
    path = write(tmp_path / "per_image.parquet", *made_predictions())
    assert price_of(path, 0.5, 0.6, head="blackbox") is None
    assert price_of(path, 0.5, None) is None
    assert price_of(path, None, 0.5) is None


@pytest.mark.parametrize(
    ("low", "high", "is_clear"),
    [(-0.2, -0.1, True), (0.1, 0.2, True), (-0.1, 0.2, False), (0.0, 0.2, False), (-0.2, 0.0, False)],
)
def test_a_difference_is_clear_where_its_interval_leaves_out_0(low, high, is_clear):
    price = Price(0.5, 0.5, Interval(low, high))
    assert price.is_clear == is_clear
    assert price.in_words.endswith("]: no clear difference") != is_clear
    assert not replace(price, interval=None).is_clear


def test_points_have_a_sign_where_they_are_not_0():
    assert [signed(PRICED, value) for value in (0.1, -0.1, 0.0, -0.00001)] == ["+10.00", "−10.00", "0.00", "0.00"]
    price = Price(0.9, 0.75, Interval(-0.05, 0.351))
    assert (price.difference, price.rendered_blackbox, price.bounds) == ("+15.00", "75.00", "[−5.00, +35.10]")
