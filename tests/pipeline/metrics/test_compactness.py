import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.metrics.compactness import METRICS, local_size, weight_metrics

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"


def cases_of(name, wanted=lambda case: True):
    """The wanted cases of one file of vectors; a single None, which skips, where the vectors are absent."""
    if not (GOLDEN / "index.json").exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="needs ../shared/golden"))]
    files = {entry["file"]: entry for entry in json.loads((GOLDEN / "index.json").read_text())["files"]}
    return [pytest.param(case, id=case["id"]) for case in files[name]["cases"] if wanted(case)]


LOCAL = cases_of("metrics_compactness.npz")
WEIGHTS = cases_of("model_protomask.npz", lambda case: case["id"].startswith("stats_"))
TECHNIQUES = cases_of("technique_compactness.npz")


def test_the_golden_vectors_have_compactness():
    if LOCAL[0].values == (None,):
        pytest.skip("needs ../shared/golden")
    assert (len(LOCAL), len(WEIGHTS), len(TECHNIQUES)) == (4, 5, 2)


@pytest.mark.parametrize("case", LOCAL)
def test_local_size_is_that_of_the_golden_vectors(case):
    with np.load(GOLDEN / "metrics_compactness.npz") as stored:
        similarity = stored[f"{case['id']}.in.similarity_scores"]
        expected = stored[f"{case['id']}.out.out"]
    compared = np.ones(len(similarity), dtype=bool)
    if case["id"] == "edge":
        # row 2 holds a value at exactly the threshold, where rounding decides; row 3 is negative, which a
        # similarity, the logarithm of a number of at least 1, never is
        compared[2:] = False
    assert compared.any()
    result = local_size(similarity, threshold=case["params"]["threshold"])
    assert result[compared].tolist() == expected[compared].tolist()


@pytest.mark.parametrize("case", WEIGHTS)
def test_weight_metrics_are_those_of_the_golden_vectors(case):
    with np.load(GOLDEN / "model_protomask.npz") as stored:
        last_layer = stored[f"{case['id']}.in.last_layer"]
        expected = {name: float(stored[f"{case['id']}.out.{name}"]) for name in ("global_size", "sparsity", "npr")}
    result = weight_metrics(last_layer, epsilon=case["params"]["epsilon"])
    expected["negative_positive_ratio"] = expected.pop("npr")
    if not np.isfinite(expected["negative_positive_ratio"]):
        assert result["negative_positive_ratio"] is None  # nothing to divide by
        del result["negative_positive_ratio"], expected["negative_positive_ratio"]
    assert result == pytest.approx(expected, abs=case["atol"], rel=case["rtol"])


@pytest.mark.parametrize("case", TECHNIQUES)
def test_a_run_over_batches_is_the_intended_one_of_the_golden_vectors(case):
    name = case["id"]
    with np.load(GOLDEN / "technique_compactness.npz") as stored:
        maps = [stored[f"{name}.in.sim_{batch}"] for batch in range(3)]
        expected = {key: float(stored[f"{name}.out.{key}"]) for key in ("Global_Size", "Sparsity", "NPR")}
        expected_local = float(stored[f"{name}.fix.Local_Size"])
        weights = weight_metrics(stored[f"{name}.in.last_layer"], epsilon=case["params"]["epsilon"])
    similarity = np.concatenate([batch.max(axis=(2, 3)) for batch in maps])
    tolerance = {"abs": case["atol"], "rel": case["rtol"]}
    local = local_size(similarity, threshold=case["params"]["local_size_threshold"]).mean()
    assert local == pytest.approx(expected_local, **tolerance)  # a mean over images, not over batches
    assert weights["global_size"] == pytest.approx(expected["Global_Size"], **tolerance)
    assert 100 * weights["sparsity"] == pytest.approx(expected["Sparsity"], **tolerance)  # theirs is in percent
    assert weights["negative_positive_ratio"] == pytest.approx(expected["NPR"], **tolerance)


def test_weight_metrics_count_what_exceeds_epsilon():
    last_layer = np.array([[1.0, -0.5, 0.001, 0.0], [0.002, -0.002, -0.001, 0.0005]])
    assert weight_metrics(last_layer, epsilon=0.001) == {
        "global_size": 1.0,  # prototype 0; prototype 1 only speaks against classes
        "sparsity": 4 / 8,
        "negative_positive_ratio": 2 / 2,
    }


def test_without_a_positive_weight_there_is_no_ratio():
    result = weight_metrics(np.array([[-1.0, 0.0]]), epsilon=0.001)
    assert result == {"global_size": 0.0, "sparsity": 0.5, "negative_positive_ratio": None}


def test_local_size_counts_similarities_above_a_share_of_the_images_largest():
    similarity = np.array([[8.0, 2.0, 1.9, 0.0], [4.0, 4.0, 4.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    assert local_size(similarity, threshold=0.25).tolist() == [1, 4, 0]
    assert local_size(similarity, threshold=0.2).tolist() == [3, 4, 0]


def test_every_metric_is_declared():
    keys = [*weight_metrics(np.eye(2), epsilon=0.1), "local_size"]
    assert [metric.key for metric in METRICS] == keys
