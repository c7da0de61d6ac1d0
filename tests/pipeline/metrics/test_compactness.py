import numpy as np

from pipeline.metrics.compactness import METRICS, local_size, weight_metrics


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
