import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.metrics.contrastivity import inter_distance, intra_distance

GOLDEN = Path(__file__).parents[4] / "shared" / "golden"


def cases_of(name, wanted):
    """The wanted cases of one file of vectors; a single None, which skips, where the vectors are absent."""
    if not (GOLDEN / "index.json").exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="needs ../shared/golden"))]
    files = {entry["file"]: entry for entry in json.loads((GOLDEN / "index.json").read_text())["files"]}
    return [pytest.param(case, id=case["id"]) for case in files[name]["cases"] if wanted(case)]


# ivd_zero_vec is left out: prototypes are features, sigmoids in (0, 1), so none has length 0
INTRA = cases_of("metrics_contrastivity.npz", lambda case: case["id"] in ("ivd", "ivd_single"))
INTER = cases_of("metrics_contrastivity.npz", lambda case: case["id"].startswith("icd"))
TECHNIQUES = cases_of("technique_contrastivity.npz", lambda case: "Intra_PD" in case.get("intended", {}))


def test_the_golden_vectors_have_contrastivity():
    if INTRA[0].values == (None,):
        pytest.skip("needs ../shared/golden")
    assert (len(INTRA), len(INTER), len(TECHNIQUES)) == (2, 3, 5)


@pytest.mark.parametrize("case", INTRA)
def test_intra_distance_is_that_of_the_golden_vectors(case):
    with np.load(GOLDEN / "metrics_contrastivity.npz") as stored:
        vectors, expected = (stored[f"{case['id']}.{name}"] for name in ("in.vectors", "out.out"))
    np.testing.assert_allclose(intra_distance(vectors), expected, atol=case["atol"], rtol=case["rtol"])


@pytest.mark.parametrize("case", INTER)
def test_inter_distance_is_the_intended_one_of_the_golden_vectors(case):
    """Over all pairs of vectors, and for present classes only (DEVIATIONS.md B9)."""
    name = case["id"]
    with np.load(GOLDEN / "metrics_contrastivity.npz") as stored:
        vectors, identity = stored[f"{name}.in.vectors"], stored[f"{name}.in.class_identity"]
        if "intended" in case:
            expected = stored[f"{name}.fix.all_pairs"]
        else:  # one rank only, or one class only: theirs and ours differ in absent classes alone
            expected = stored[f"{name}.out.out"].copy()
            absent = identity.sum(axis=0) == 0
            alone = identity.sum(axis=0) == len(identity)
            assert not expected[absent | alone].any()
            expected[absent | alone] = np.nan
    result = np.full(identity.shape[1], np.nan)
    for label, distance in inter_distance(vectors, identity.argmax(axis=1)).items():
        result[label] = distance
    np.testing.assert_allclose(result, expected, atol=case["atol"], rtol=case["rtol"])


@pytest.mark.parametrize("case", TECHNIQUES)
def test_a_run_over_batches_is_the_intended_one_of_the_golden_vectors(case):
    name = case["id"]
    with np.load(GOLDEN / "technique_contrastivity.npz") as stored:
        maps = [stored[key] for key in sorted(stored.files) if key.startswith(f"{name}.in.sim_")]
        prototypes, expected = stored[f"{name}.in.protos"], float(stored[f"{name}.fix.Intra_PD"])
    score = np.concatenate([batch.max(axis=(2, 3)) for batch in maps])
    top = np.argsort(-score, axis=1, kind="stable")[:, : case["params"]["k"]]
    # a mean over images, not over batches
    assert intra_distance(prototypes[top]).mean() == pytest.approx(expected, abs=1e-5, rel=case["rtol"])


def cosine_distance(one, other):
    return 1 - one @ other / (np.linalg.norm(one) * np.linalg.norm(other))


def test_intra_distance_is_that_of_a_plain_loop_over_pairs():
    vectors = np.random.default_rng(0).normal(size=(6, 4, 5))
    expected = [
        np.mean([cosine_distance(own[i], own[j]) for i in range(4) for j in range(4) if i != j]) for own in vectors
    ]
    np.testing.assert_allclose(intra_distance(vectors), expected)


def test_equal_vectors_are_at_distance_0_right_angles_at_1_opposites_at_2():
    vectors = np.array([[[1.0, 0.0], [3.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [-2.0, 0.0]]])
    np.testing.assert_allclose(intra_distance(vectors), [0, 1, 2], atol=1e-12)


def test_a_single_vector_has_no_intra_distance():
    assert np.isnan(intra_distance(np.ones((2, 1, 3)))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inter_distance_is_that_of_a_plain_loop_over_pairs(dtype):
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(7, 3, 5)).astype(dtype), np.array([4, 0, 0, 4, 2, 2, 2])
    result = inter_distance(vectors, labels)
    assert list(result) == [0, 2, 4]
    for label, distance in result.items():
        pairs = [
            cosine_distance(one, other)
            for image in range(7)
            for rest in range(7)
            if labels[image] == label and labels[rest] != label
            for one in vectors[image]
            for other in vectors[rest]
        ]
        assert distance == pytest.approx(np.mean(pairs), abs=1e-6)


def test_inter_distance_does_not_depend_on_ranks():
    vectors = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    swapped = vectors[:, ::-1].copy()
    labels = np.array([0, 1])
    assert inter_distance(vectors, labels) == pytest.approx({0: 0.5, 1: 0.5})
    assert inter_distance(swapped, labels) == pytest.approx({0: 0.5, 1: 0.5})


def test_one_class_alone_has_no_inter_distance():
    assert inter_distance(np.ones((3, 2, 4)), np.array([1, 1, 1])) == {}
