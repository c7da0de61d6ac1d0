import numpy as np
import pytest
import torch

from pipeline.training.augment import make_augmentation

STRENGTHS = ("none", "flip", "light", "medium")


def pictures(num=32, side_px=24):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, 3, side_px, side_px), dtype=np.uint8))


def augmented(strength, views, seed=0):
    torch.manual_seed(seed)
    return make_augmentation(strength)(views)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_uint8_views_become_floats_between_0_and_1_of_the_same_shape(strength):
    views = pictures()
    result = augmented(strength, views)
    assert result.shape == views.shape
    assert result.dtype == torch.float32
    assert 0 <= result.min() <= result.max() <= 1


def test_no_augmentation_only_scales():
    views = pictures()
    assert torch.equal(augmented("none", views), views.float() / 255)


def test_flipping_mirrors_about_half_of_the_views_and_leaves_the_others():
    views = pictures(num=400, side_px=8)
    result, plain = augmented("flip", views), views.float() / 255
    mirrored = (result == plain.flip(3)).flatten(1).all(dim=1)
    kept = (result == plain).flatten(1).all(dim=1)
    assert (mirrored ^ kept).all()
    assert 140 < mirrored.sum() < 260


@pytest.mark.parametrize("strength", ["light", "medium"])
def test_equal_views_are_augmented_differently(strength):
    views = pictures(num=1).expand(8, -1, -1, -1)
    result = augmented(strength, views)
    assert len({tensor.numpy().tobytes() for tensor in result}) == 8


@pytest.mark.parametrize("strength", ["flip", "light", "medium"])
def test_augmentation_repeats_with_the_seed(strength):
    views = pictures()
    assert torch.equal(augmented(strength, views, seed=1), augmented(strength, views, seed=1))
    assert not torch.equal(augmented(strength, views, seed=1), augmented(strength, views, seed=2))


@pytest.mark.parametrize("strength", ["light", "medium"])
def test_what_comes_into_view_at_the_border_is_black(strength):
    result = augmented(strength, torch.full((32, 3, 64, 64), 255, dtype=torch.uint8))
    corners = result[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].amax(dim=1)  # [view, corner]
    assert (corners.amin(dim=1) < 0.2).float().mean() > 0.8  # the jitter, which comes last, may lift black a little
    assert (result[:, :, 32, 32] > 0.5).all()


@pytest.mark.parametrize("strength", ["light", "medium"])
def test_views_keep_their_brightness_within_the_stated_jitter(strength):
    grey = torch.full((64, 3, 24, 24), 128, dtype=torch.uint8)
    centre = augmented(strength, grey)[:, :, 12, 12].mean(dim=1) / (128 / 255)
    # brightness and contrast change by 15 % at most; grey has no saturation and no hue
    assert 1 / 1.35 < centre.min() < 0.95
    assert 1.05 < centre.max() < 1.35
