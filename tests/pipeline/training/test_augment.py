import kornia.augmentation as kornia_augmentation
import numpy as np
import pytest
import torch
from torch import nn

from pipeline.training.augment import Augmentation, WrappingAffine, make_augmentation

STRENGTHS = ("none", "flip", "light", "medium")


def pictures(num=32, side_px=24):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, 3, side_px, side_px), dtype=np.uint8))


def augmented(strength, views, seed=0, lengths=None, **settings):
    """Augment views, all of one bag unless it is said otherwise."""
    torch.manual_seed(seed)
    return make_augmentation(strength, **settings)(views, torch.tensor(lengths or [len(views)]))


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


# draws


def kornias_own(strength):
    """The modules in a row, each of which draws for every picture by itself."""
    degrees, shear, hue = {"light": (10, 5, 0), "medium": (15, 15, 0.025), "none": (0, 0, 0), "flip": (0, 0, 0)}[
        strength
    ]
    steps = {
        "flip": kornia_augmentation.RandomHorizontalFlip(p=0.5),
        "perspective": kornia_augmentation.RandomPerspective(0.1, p=0.5),
        "affine": kornia_augmentation.RandomAffine(float(degrees), shear=(-shear, shear, -shear, shear), p=1.0),
        "jitter": kornia_augmentation.ColorJitter(0.15, 0.15, 0.15, hue, p=1.0),
    }
    of_strength = {
        "none": [],
        "flip": ["flip"],
        "light": ["flip", "affine", "jitter"],
        "medium": ["flip", "perspective", "affine", "jitter"],
    }
    return nn.Sequential(*(steps[name] for name in of_strength[strength]))


@pytest.mark.parametrize("lengths", [[32], [1] * 32, [5, 20, 7]])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_per_view_kornias_modules_draw_for_each_view_whatever_its_bag(strength, lengths):
    views = pictures()
    torch.manual_seed(3)
    expected = kornias_own(strength)(views.float() / 255).clamp(0, 1)
    assert torch.equal(augmented(strength, views, seed=3, lengths=lengths), expected)


@pytest.mark.parametrize("lengths", [[3, 1, 4, 2], [1, 5, 2], [2] * 20, [7]])
@pytest.mark.parametrize("strength", ["flip", "light", "medium"])
def test_per_image_a_bag_is_augmented_as_its_image_alone_would_be(strength, lengths):
    """All views of a bag like the one view of it in a batch of bags of one, drawn with the same seed."""
    one_each = pictures(num=len(lengths))
    views = one_each.repeat_interleave(torch.tensor(lengths), dim=0)
    expected = augmented(strength, one_each).repeat_interleave(torch.tensor(lengths), dim=0)
    result = augmented(strength, views, lengths=lengths, per="image")
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    if strength != "flip":
        assert len({tensor.numpy().tobytes() for tensor in result}) == len(lengths)


@pytest.mark.parametrize("wrapped_borders", [False, True])
def test_per_image_equal_views_stay_equal_within_a_bag_and_differ_between_bags(wrapped_borders):
    lengths = [4, 4, 1, 3, 4, 6]
    views = pictures(num=1).expand(sum(lengths), -1, -1, -1)
    settings = {"per": "image", "wrapped_borders": wrapped_borders}
    bags = torch.split(augmented("medium", views, lengths=lengths, **settings), lengths)
    for bag in bags:
        torch.testing.assert_close(bag, bag[:1].expand_as(bag), rtol=0, atol=1e-6)
    for i, bag in enumerate(bags):
        assert all((bag[0] - other[0]).abs().max() > 0.1 for other in bags[:i])


def test_per_image_about_half_of_the_bags_are_mirrored_and_each_as_a_whole():
    views, lengths = pictures(num=600, side_px=8), [3] * 200
    result, plain = augmented("flip", views, lengths=lengths, per="image"), views.float() / 255
    mirrored = (result == plain.flip(3)).flatten(1).all(dim=1).view(200, 3)
    assert (mirrored.all(dim=1) | ~mirrored.any(dim=1)).all()
    assert 70 < mirrored[:, 0].sum() < 130


def test_per_image_lengths_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 3\] views have 5 in all, but 6 came"):
        augmented("flip", pictures(num=6), lengths=[2, 3], per="image")


class DrawsForTheChosenAlone(nn.Module):
    """Stands in for a module of kornia before 0.9, whose parameters have rows for some of the samples only."""

    def forward_parameters(self, shape):
        chosen = torch.tensor([0.0, 1.0, 0.0, 1.0])
        assert shape == (4, 3, 8, 8)
        return {"angle": torch.tensor([10.0, 30.0]), "batch_prob": chosen, "order": torch.arange(4)}

    def forward(self, pictures, params):
        self.params = params
        return pictures


def test_per_image_parameters_of_chosen_bags_alone_reach_their_views():
    step = DrawsForTheChosenAlone()
    Augmentation([step], [], "image")(pictures(num=9, side_px=8), torch.tensor([2, 3, 1, 3]))
    assert step.params["batch_prob"].tolist() == [0, 0, 1, 1, 1, 0, 1, 1, 1]
    assert step.params["angle"].tolist() == [10, 10, 10, 30, 30, 30]
    assert step.params["order"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("per", ["view", "image"])
def test_reduced_precision_around_it_moves_nothing(per):
    views = pictures()
    with torch.autocast("cpu", torch.bfloat16):
        result = augmented("medium", views, lengths=[16, 16], per=per)
    assert result.dtype == torch.float32
    assert torch.equal(result, augmented("medium", views, lengths=[16, 16], per=per))


# two versions


def two_versions(strength, views, lengths, seed=0, **settings):
    torch.manual_seed(seed)
    return make_augmentation(strength, **settings).two_versions(views, torch.tensor(lengths))


@pytest.mark.parametrize("per", ["view", "image"])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_of_two_versions_the_first_is_what_one_would_be(strength, per):
    views = pictures()
    first, second = two_versions(strength, views, [10, 22], per=per)
    assert torch.equal(first, augmented(strength, views, lengths=[10, 22], per=per))
    assert torch.equal(first, second) == (strength in ("none", "flip"))
    assert 0 <= second.min() <= second.max() <= 1


@pytest.mark.parametrize("strength", ["light", "medium"])
def test_two_versions_are_moved_alike_and_differ_in_colour(strength):
    # a white square on black: jitter turns black and white into other greys, which a threshold parts again
    views = torch.zeros(16, 3, 48, 48, dtype=torch.uint8)
    views[:, :, 12:30, 8:24] = 255
    first, second = two_versions(strength, views, [16])
    assert (first - second).abs().amax(dim=(1, 2, 3)).min() > 0.001
    areas = (first > 0.5).any(dim=1).flatten(1).sum(dim=1)
    assert areas.min() > 100
    apart = ((first > 0.5) != (second > 0.5)).any(dim=1).flatten(1).sum(dim=1)
    assert (apart / areas).max() < 0.15  # pixels of the outline
    # whereas two draws of everything part the squares
    other = augmented(strength, views, seed=1)
    assert ((first > 0.5) != (other > 0.5)).any(dim=1).sum() > 5 * apart.sum()


def test_per_image_both_versions_of_equal_views_are_equal_within_a_bag():
    views = pictures(num=1).expand(7, -1, -1, -1)
    num_checked = 0
    for version in two_versions("medium", views, [4, 3], per="image"):
        for bag in torch.split(version, [4, 3]):
            torch.testing.assert_close(bag, bag[:1].expand_as(bag), rtol=0, atol=1e-6)
            num_checked += 1
    assert num_checked == 4


# borders


def plain_wrapping(picture, transform):
    """Ask for every pixel of the result where it comes from, and mix the four pixels around that place."""
    _, height, width = picture.shape
    back = np.linalg.inv(transform.double().numpy())
    result = np.zeros(picture.shape)
    for row in range(height):
        for column in range(width):
            x, y, _ = back @ (column, row, 1)
            left, top = int(np.floor(x)), int(np.floor(y))
            for i, weight_y in ((top, 1 - (y - top)), (top + 1, y - top)):
                for j, weight_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                    result[:, row, column] += weight_y * weight_x * picture[:, i % height, j % width].numpy()
    return result


@pytest.mark.parametrize(("height", "width"), [(12, 12), (9, 17)])
def test_wrapping_is_that_of_a_plain_rewrite(height, width):
    torch.manual_seed(0)
    step = WrappingAffine(degrees=180.0, shear=(-30.0, 30.0, -30.0, 30.0), translate=(0.9, 0.9), p=1.0)
    views = torch.rand(6, 3, height, width)
    result = step(views)
    assert result.shape == views.shape
    for view, transform, warped in zip(views, step.transform_matrix, result, strict=True):
        np.testing.assert_allclose(warped.numpy(), plain_wrapping(view, transform), atol=2e-4)


def test_wrapping_a_shift_by_whole_pixels_rolls_the_picture():
    step, views = WrappingAffine(degrees=0.0, p=1.0), torch.rand(1, 3, 10, 14)
    params = step.forward_parameters(views.shape)
    rolled = step(views, params={**params, "translations": torch.tensor([[5.0, -3.0]])})
    torch.testing.assert_close(rolled, views.roll((-3, 5), dims=(2, 3)), rtol=0, atol=1e-5)


def test_a_pure_rotation_that_wraps_brings_no_black_into_a_white_picture():
    white = torch.ones(8, 3, 33, 33)
    torch.manual_seed(0)
    torch.testing.assert_close(WrappingAffine(degrees=(20.0, 40.0), p=1.0)(white), white, rtol=0, atol=1e-5)
    assert kornia_augmentation.RandomAffine(degrees=(20.0, 40.0), p=1.0)(white).min() == 0


@pytest.mark.parametrize("strength", ["light", "medium"])
def test_wrapped_borders_differ_from_black_ones_where_the_picture_ends_and_nowhere_else(strength):
    torch.manual_seed(1)
    smooth = nn.functional.interpolate(torch.rand(24, 3, 4, 4), (40, 40), mode="bilinear")
    views = (155 + 100 * smooth).round().to(torch.uint8)
    black = augmented(strength, views)
    wrapped = augmented(strength, views, wrapped_borders=True)
    torch.testing.assert_close(wrapped[..., 14:26, 14:26], black[..., 14:26, 14:26], rtol=0, atol=0.02)
    dark = [
        (result[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].amax(dim=1) < 0.2).float().mean() for result in (black, wrapped)
    ]
    assert dark[0] > 0.4
    # the perspective, which comes before, leaves corners black
    assert dark[1] < (0.01 if strength == "light" else 0.6 * dark[0])


def test_the_perspective_keeps_black_borders_when_rotation_and_shear_wrap():
    white = torch.full((64, 3, 32, 32), 255, dtype=torch.uint8)
    has_black = augmented("medium", white, wrapped_borders=True).amin(dim=(1, 2, 3)) < 0.5
    assert 16 < has_black.sum() < 48  # the perspective is drawn for half of the views
    assert augmented("light", white, wrapped_borders=True).min() > 0.6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("settings", [{}, {"per": "image"}, {"per": "image", "wrapped_borders": True}])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_on_cuda_augmentation_repeats_with_the_seed(strength, settings):
    views, lengths = pictures().cuda(), torch.tensor([10, 2, 20], device="cuda")
    augmentation = make_augmentation(strength, **settings).cuda()
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append((augmentation(views, lengths), *augmentation.two_versions(views, lengths)))
    assert len(results[0]) == 3
    for first, again in zip(*results, strict=True):
        assert first.device.type == "cuda"
        assert first.dtype == torch.float32
        assert torch.equal(first, again)
