import numpy as np
import torch

from pipeline.training.initialise import prototypes_from_features, whitening

CENTRES = np.array(
    [[[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]], [[0.9, 0.9], [0.5, 0.5], [0.3, 0.7]]]
)  # [class, cluster, dim]


def clustered(num_each=8):
    rng = np.random.default_rng(0)
    features = CENTRES[:, :, None] + rng.normal(0, 0.01, (2, 3, num_each, 2))
    labels = np.repeat([0, 1], 3 * num_each)
    order = rng.permutation(len(labels))
    return torch.from_numpy(features.reshape(-1, 2)[order]).float(), torch.from_numpy(labels[order])


def test_the_prototypes_of_a_class_start_on_views_of_its_own_clusters():
    features, labels = clustered()
    prototype_labels = torch.tensor([1, 0, 1, 0, 0, 1])
    prototypes = prototypes_from_features(features, labels, prototype_labels, seed=0)
    for label in (0, 1):
        own = prototypes[prototype_labels == label]
        for vector in own:
            assert (features[labels == label] == vector).all(dim=1).any()
        nearest = ((own[:, None].numpy() - CENTRES[label]) ** 2).sum(axis=2).argmin(axis=1)
        assert sorted(nearest) == [0, 1, 2]


def test_a_class_with_fewer_views_than_prototypes_uses_all_its_views_and_some_twice():
    features = torch.tensor([[0.1, 0.1], [0.9, 0.9], [0.9, 0.9]])
    prototypes = prototypes_from_features(
        features, torch.zeros(3, dtype=torch.long), torch.zeros(5, dtype=torch.long), seed=0
    )
    values = {tuple(vector) for vector in prototypes.tolist()}
    assert values == {tuple(vector) for vector in features.tolist()}


def test_the_start_depends_on_the_seed_only():
    rng = np.random.default_rng(0)
    features, labels = torch.from_numpy(rng.random((60, 8))).float(), torch.arange(60) % 2
    prototype_labels = torch.tensor([0, 0, 0, 1, 1, 1])
    first = prototypes_from_features(features, labels, prototype_labels, seed=3)
    torch.manual_seed(9)
    assert torch.equal(prototypes_from_features(features, labels, prototype_labels, seed=3), first)


def correlated(num_views: int, num_channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(num_channels, num_channels, generator=generator)
    return torch.randn(num_views, num_channels, generator=generator) @ mixing + 3


def test_whitened_training_views_have_mean_zero_and_unit_uncorrelated_components():
    pooled = correlated(500, 12)
    weight, bias = whitening(pooled, 5)
    outputs = pooled @ weight.T + bias
    assert torch.allclose(outputs.mean(dim=0), torch.zeros(5), atol=1e-4)
    assert torch.allclose(outputs.T @ outputs / len(outputs), torch.eye(5), atol=1e-3)


def test_whitening_keeps_the_directions_of_largest_variance_as_numpy_finds_them():
    pooled = correlated(200, 8)
    weight, _ = whitening(pooled, 3)
    centred = (pooled - pooled.mean(dim=0)).double().numpy()
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    expected = directions[:3] / (singular[:3, None] / np.sqrt(len(centred)))
    cosine = (weight.double().numpy() * expected).sum(axis=1) / (np.linalg.norm(expected, axis=1) ** 2)
    np.testing.assert_allclose(np.abs(cosine), 1, atol=1e-4)
    assert (weight.gather(1, weight.abs().argmax(dim=1, keepdim=True)) > 0).all()  # the sign is fixed


def test_whitening_gives_no_more_components_than_channels_and_stays_finite_without_spread():
    weight, bias = whitening(torch.ones(10, 4), 9)
    assert weight.shape == (4, 4)
    assert bias.shape == (4,)
    assert torch.isfinite(weight).all()
    few = torch.zeros(3, 4)
    few[0, 0] = 1.0
    weight, bias = whitening(few, 4)  # one direction of spread, three without
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()
