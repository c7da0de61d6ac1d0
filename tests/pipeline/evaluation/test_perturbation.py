import numpy as np
import pytest
import torch

from pipeline.data.boxes import Box
from pipeline.evaluation.perturbation import changed_views, noise_like, noised_views, outside_box
from pipeline.params import PerturbationParams

NOTHING = PerturbationParams(
    brightness=1, contrast=1, saturation=1, hue=0, noise_variance=0, blur_px=1, jpeg_quality=100
)


def smooth_views(num=2, side=32):
    ramp = torch.linspace(40, 200, side)
    view = torch.stack([ramp.expand(side, side), ramp.expand(side, side).T, torch.full((side, side), 90.0)])
    return torch.stack([view.roll(3 * idx, 2) for idx in range(num)]).round().to(torch.uint8)


def test_without_any_change_the_views_stay_but_for_compression():
    views = smooth_views()
    changed = changed_views(views, NOTHING, seed=0, image_key="a")
    assert (changed.int() - views.int()).abs().max() <= 3
    assert changed.dtype == torch.uint8


@pytest.mark.parametrize(
    "change",
    [
        {"brightness": 1.2},
        {"contrast": 1.4},
        {"saturation": 1.5},
        {"hue": 0.1},
        {"noise_variance": 60.0},
        {"jpeg_quality": 5},
    ],
)
def test_each_setting_changes_the_views(change):
    views = smooth_views()
    untouched = changed_views(views, NOTHING, seed=0, image_key="a").float()
    changed = changed_views(views, NOTHING.model_copy(update=change), seed=0, image_key="a").float()
    assert (changed - untouched).abs().mean() > 2


def test_a_blur_takes_away_what_alternates():
    stripes = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    stripes[..., ::2] = 200
    blurred = changed_views(stripes, NOTHING.model_copy(update={"blur_px": 5}), seed=0, image_key="a")
    assert blurred[..., 4:-4].float().std() < 0.3 * stripes.float().std()


def test_brightness_is_a_factor_and_noise_has_the_variance_asked_for():
    flat = torch.full((1, 3, 64, 64), 100, dtype=torch.uint8)
    bright = changed_views(flat, NOTHING.model_copy(update={"brightness": 1.5}), seed=0, image_key="a")
    assert bright.float().mean().item() == pytest.approx(150, abs=1)
    noisy = changed_views(flat, NOTHING.model_copy(update={"noise_variance": 100.0}), seed=0, image_key="a")
    assert noisy.float().std().item() == pytest.approx(10, rel=0.1)


def test_noise_is_the_same_for_an_image_whatever_is_asked_before():
    views = smooth_views()
    first = noise_like(views, seed=1, image_key="a")
    noise_like(views, seed=1, image_key="b")
    assert torch.equal(noise_like(views, seed=1, image_key="a"), first)
    assert not torch.equal(noise_like(views, seed=1, image_key="b"), first)
    assert not torch.equal(noise_like(views, seed=2, image_key="a"), first)
    assert first.std().item() == pytest.approx(1, abs=0.05)


def test_outside_of_a_box_is_found_in_views_that_show_other_boxes():
    boxes = [Box(0, 0, 8, 8), Box(4, 2, 8, 6), Box(0, 6, 4, 8)]
    kept = (4.0, 2.0, 8.0, 6.0)
    outside = outside_box(boxes, kept, 8)
    for view, box in enumerate(boxes):
        for row, column in np.ndindex(8, 8):
            x = box.x0 + (column + 0.5) / 8 * box.width_px
            y = box.y0 + (row + 0.5) / 8 * box.height_px
            is_inside = kept[0] <= x < kept[2] and kept[1] <= y < kept[3]
            assert bool(outside[view, row, column]) is not is_inside
    assert not outside[1].any()
    assert outside[2].all()


def test_noise_changes_only_what_is_outside_and_stays_in_range():
    views = smooth_views()
    outside = torch.zeros(2, 32, 32, dtype=torch.bool)
    outside[0, :, 16:] = True
    noised = noised_views(views, outside, noise_like(views, seed=0, image_key="a"), 0.5)
    plain = views.float() / 255
    assert torch.equal(noised[1], plain[1])
    assert torch.equal(noised[0, :, :, :16], plain[0, :, :, :16])
    assert ((noised[0, :, :, 16:] != plain[0, :, :, 16:]).float().mean()) > 0.9
    assert noised.min() >= 0
    assert noised.max() <= 1


def test_a_blur_needs_a_kernel_with_a_middle():
    with pytest.raises(ValueError, match="blur_px must be odd"):
        PerturbationParams(blur_px=4)
