import pytest

from pipeline.metrics.registry import METRICS, metric


def test_every_metric_is_found_under_its_family_and_key():
    assert len(METRICS) > 0
    for declared in METRICS:
        assert metric(declared.family, declared.key) is declared


def test_no_two_metrics_share_a_name():
    assert len({(declared.family, declared.key) for declared in METRICS}) == len(METRICS)


def test_a_metric_that_is_not_declared_is_a_key_error_that_names_it():
    with pytest.raises(KeyError, match=r"classification\.speed"):
        metric("classification", "speed")
