import numpy as np
import pytest

from pipeline.metrics.contrastivity import inter_distance, intra_distance


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
