import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from pipeline.data.boxes import Box, box_of_mask
from pipeline.data.masks import StoredMask, encode_mask
from pipeline.data.views import EmptyBagError, box_of_view, choose_masks, cut_view
from pipeline.errors import PipelineError
from pipeline.params import CropsParams

HEIGHT, WIDTH = 20, 30

# nothing is passed over
ALL = {"max_views": 100, "min_area_frac": 0, "max_area_frac": 1, "min_extent_px": 1, "duplicate_iou": 1}
# the box of the view is the box of the mask
PLAIN = {"padding_frac": 0, "min_box_side_frac": 0, "square": False}


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def stored(mask, score=0.0):
    return StoredMask(encode_mask(mask), box_of_mask(mask), int(mask.sum()), score)


def choose(masks, **params):
    return choose_masks(masks, height=HEIGHT, width=WIDTH, params=CropsParams(**{**ALL, **params}))


# areas 4, 9, 16, 25, apart from each other
SMALL_TO_LARGE = [
    rectangle(0, 0, 2, 2),
    rectangle(5, 0, 8, 3),
    rectangle(10, 0, 14, 4),
    rectangle(20, 0, 25, 5),
]


def test_masks_are_preferred_by_score_or_by_area():
    masks = [stored(mask, score) for mask, score in zip(SMALL_TO_LARGE, (0.2, 0.9, 0.1, 0.5), strict=True)]
    assert choose(masks, order="score").mask_idxs == (1, 3, 0, 2)
    assert choose(masks, order="area").mask_idxs == (3, 2, 1, 0)
    assert choose(masks).passed_over == {}


def test_ties_go_to_the_lower_index():
    masks = [stored(rectangle(x, 0, x + 3, 3), score) for x, score in ((20, 0.5), (10, 0.7), (0, 0.5), (15, 0.7))]
    assert choose(masks, order="score").mask_idxs == (1, 3, 0, 2)
    assert choose(masks, order="area").mask_idxs == (0, 1, 2, 3)


def test_no_masks_give_no_views():
    choice = choose([])
    assert choice.mask_idxs == ()
    assert choice.passed_over == {}


def test_area_limits_are_shares_of_the_image_and_keep_masks_at_the_limit():
    masks = [stored(mask) for mask in SMALL_TO_LARGE]
    at = 9 / (HEIGHT * WIDTH)
    choice = choose(masks, order="area", min_area_frac=at)
    assert choice.mask_idxs == (3, 2, 1)
    assert choice.passed_over == {"too_small": 1}
    choice = choose(masks, order="area", max_area_frac=at)
    assert choice.mask_idxs == (1, 0)
    assert choice.passed_over == {"too_large": 2}


def test_a_mask_is_too_thin_when_its_box_is_narrower_or_lower_than_the_limit():
    diagonal = np.eye(HEIGHT, WIDTH, dtype=bool)  # few pixels, a large box
    masks = [stored(mask) for mask in (rectangle(0, 0, 2, 9), rectangle(5, 0, 25, 2), rectangle(5, 5, 8, 8), diagonal)]
    choice = choose(masks, min_extent_px=3)
    assert choice.mask_idxs == (2, 3)
    assert choice.passed_over == {"too_thin": 2}


def test_a_duplicate_is_compared_with_preferred_masks_that_were_chosen():
    # rows of ten pixels: each shifted by one has IoU 9/11 with the next, 8/12 with the one after it
    masks = [stored(rectangle(x, 5, x + 10, 6), score=-float(x)) for x in range(4)]
    choice = choose(masks, duplicate_iou=0.8)
    assert choice.mask_idxs == (0, 2)  # 1 is like 0; 2 is like 1, but 1 was not chosen; 3 is like 2
    assert choice.passed_over == {"duplicate": 2}
    assert choose(masks, duplicate_iou=0.82).mask_idxs == (0, 1, 2, 3)
    assert choose(masks[:2], duplicate_iou=9 / 11).mask_idxs == (0,)  # at the limit is a duplicate
    assert choose(masks, duplicate_iou=0.66).mask_idxs == (0, 3)


def test_a_limit_of_one_removes_equal_masks_only():
    masks = [stored(rectangle(3, 3, 9, 9)), stored(rectangle(3, 3, 9, 9)), stored(rectangle(3, 3, 9, 10))]
    choice = choose(masks, duplicate_iou=1)
    assert choice.mask_idxs == (0, 2)
    assert choice.passed_over == {"duplicate": 1}


def test_the_preferred_masks_fill_the_bag_and_the_rest_is_counted():
    masks = [stored(mask) for mask in SMALL_TO_LARGE]
    choice = choose(masks, order="area", max_views=3)
    assert choice.mask_idxs == (3, 2, 1)
    assert choice.passed_over == {"over_max_views": 1}


def test_what_is_passed_over_takes_no_place_in_the_bag():
    masks = [stored(mask, score) for mask, score in zip(SMALL_TO_LARGE, (4.0, 3.0, 2.0, 1.0), strict=True)]
    choice = choose([*masks, masks[1]], max_views=2, min_area_frac=5 / (HEIGHT * WIDTH))
    assert choice.mask_idxs == (1, 2)
    assert choice.passed_over == {"too_small": 1, "duplicate": 1, "over_max_views": 1}


def plain_choice(masks, params):
    """The rules, one after another, on decoded masks: [(mask, score)]."""
    order = sorted(range(len(masks)), key=lambda i: -(masks[i][1] if params.order == "score" else masks[i][0].sum()))
    chosen = []
    for i in order:
        mask = masks[i][0]
        rows, columns = np.nonzero(mask)
        fits = (
            params.min_area_frac <= mask.mean() <= params.max_area_frac
            and np.ptp(rows) + 1 >= params.min_extent_px
            and np.ptp(columns) + 1 >= params.min_extent_px
        )
        ious = [(mask & masks[j][0]).sum() / (mask | masks[j][0]).sum() for j in chosen]
        if fits and not any(iou >= params.duplicate_iou for iou in ious) and len(chosen) < params.max_views:
            chosen.append(i)
    return tuple(chosen)


def test_the_choice_is_that_of_a_plain_rewrite_and_every_mask_is_accounted_for():
    reasons = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        masks = []
        for _ in range(int(rng.integers(1, 25))):
            x0, y0 = rng.integers(0, WIDTH - 1), rng.integers(0, HEIGHT - 1)
            masks.append((rectangle(x0, y0, x0 + rng.integers(1, 12), y0 + rng.integers(1, 12)), rng.integers(5) / 4))
        masks += masks[:2]
        params = CropsParams(
            max_views=int(rng.integers(1, 12)),
            order=("score", "area")[seed % 2],
            min_area_frac=0.02,
            max_area_frac=0.15,
            min_extent_px=3,
            duplicate_iou=(0.3, 0.6, 1)[seed % 3],
        )
        choice = choose_masks(
            [stored(mask, float(score)) for mask, score in masks], height=HEIGHT, width=WIDTH, params=params
        )
        assert choice.mask_idxs == plain_choice(masks, params)
        assert len(choice.mask_idxs) + sum(choice.passed_over.values()) == len(masks)
        assert all(count > 0 for count in choice.passed_over.values())
        reasons |= set(choice.passed_over)
    assert reasons == {"too_small", "too_large", "too_thin", "duplicate", "over_max_views"}


def view_box(mask_box, height=100, width=200, clipped=False, **params):
    box = Box(*mask_box)
    return box_of_view(box, height=height, width=width, params=CropsParams(**{**PLAIN, **params}), clipped=clipped)


def test_without_growing_the_view_shows_the_box_of_the_mask():
    assert view_box((3, 5, 40, 9)) == Box(3, 5, 40, 9)
    assert view_box((0, 0, 200, 100), padding_frac=0.5, min_box_side_frac=1, square=True) == Box(0, 0, 200, 100)


def test_padding_is_a_share_of_the_box_on_every_side_within_the_image():
    assert view_box((50, 30, 90, 50), padding_frac=0.1) == Box(46, 28, 94, 52)
    assert view_box((50, 30, 90, 50), padding_frac=1) == Box(10, 10, 130, 70)
    assert view_box((2, 30, 42, 98), padding_frac=0.25) == Box(0, 13, 52, 100)


def test_a_short_side_grows_to_the_least_side_evenly_and_a_long_one_stays():
    assert view_box((100, 50, 110, 60), min_box_side_frac=0.2) == Box(85, 45, 125, 65)  # 40 x 20
    assert view_box((100, 50, 110, 90), min_box_side_frac=0.2) == Box(85, 50, 125, 90)
    assert view_box((100, 50, 160, 90), min_box_side_frac=0.2) == Box(100, 50, 160, 90)


def test_where_the_image_ends_the_rest_is_added_on_the_other_side():
    assert view_box((2, 0, 12, 10), min_box_side_frac=0.2) == Box(0, 0, 40, 20)
    assert view_box((190, 88, 198, 98), min_box_side_frac=0.2) == Box(160, 80, 200, 100)


def test_square_grows_the_shorter_side_to_the_longer_one_as_far_as_the_image_goes():
    assert view_box((50, 40, 90, 50), square=True) == Box(50, 25, 90, 65)
    assert view_box((50, 40, 60, 80), square=True) == Box(35, 40, 75, 80)
    assert view_box((20, 40, 180, 50), square=True) == Box(20, 0, 180, 100)  # the image is 100 high
    assert view_box((50, 2, 90, 12), square=True) == Box(50, 0, 90, 40)


def test_padding_and_the_least_side_come_before_squaring():
    assert view_box((50, 40, 90, 50), padding_frac=0.25, square=True) == Box(40, 15, 100, 75)
    assert view_box((50, 40, 54, 48), min_box_side_frac=0.1, square=True) == Box(42, 34, 62, 54)


def test_the_view_holds_the_mask_and_keeps_within_the_image_and_is_as_large_as_asked():
    num_checked = num_square = 0
    for seed in range(3000):
        rng = np.random.default_rng(seed)
        width, height = (int(side) for side in rng.integers(1, 60, 2))
        x0, y0 = int(rng.integers(width)), int(rng.integers(height))
        mask_box = Box(x0, y0, int(rng.integers(x0, width)) + 1, int(rng.integers(y0, height)) + 1)
        params = CropsParams(
            padding_frac=float(rng.choice([0, 0.1, 0.5, 3])),
            min_box_side_frac=float(rng.choice([0, 0.1, 0.33, 1])),
            square=bool(rng.integers(2)),
        )
        box = box_of_view(mask_box, height=height, width=width, params=params)
        assert box == box.clipped(width, height)
        assert box.x0 <= mask_box.x0 < mask_box.x1 <= box.x1
        assert box.y0 <= mask_box.y0 < mask_box.y1 <= box.y1
        assert box.width_px >= round(params.min_box_side_frac * width)
        assert box.height_px >= round(params.min_box_side_frac * height)
        if params.square:
            longer = max(box.width_px, box.height_px)
            assert box.width_px == min(longer, width)
            assert box.height_px == min(longer, height)
            num_square += box.width_px == box.height_px
        num_checked += 1
    assert num_checked == 3000
    assert num_square > 500


def test_a_clipped_box_lacks_the_last_row_and_column_of_the_masks_but_keeps_a_pixel():
    assert view_box((3, 5, 40, 9), clipped=True) == Box(3, 5, 39, 8)
    assert view_box((0, 0, 200, 100), clipped=True) == Box(0, 0, 199, 99)
    assert view_box((3, 5, 4, 9), clipped=True) == Box(3, 5, 4, 8)
    assert view_box((199, 99, 200, 100), clipped=True) == Box(199, 99, 200, 100)


def test_clipping_comes_before_growing():
    assert view_box((50, 30, 91, 51), padding_frac=0.1, clipped=True) == Box(46, 28, 94, 52)
    assert view_box((50, 40, 91, 51), square=True, clipped=True) == view_box((50, 40, 90, 50), square=True)
    assert view_box((100, 50, 111, 61), min_box_side_frac=0.2, clipped=True) == Box(85, 45, 125, 65)


SIZE = 32


def cut(image, mask, box, aliased=False, **params):
    return cut_view(image, mask, Box(*box), CropsParams(size_px=SIZE, **params), aliased=aliased)


def picture(height=48, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_original_background_is_the_crop_of_the_image_with_its_last_row_and_column():
    image = picture()
    mask = np.zeros((48, 64), dtype=bool)
    mask[20, 30] = True
    view, inside = cut(image, mask, (5, 7, 5 + SIZE, 7 + SIZE), background="original")
    np.testing.assert_array_equal(view, image[7:39, 5:37])
    np.testing.assert_array_equal(inside, mask[7:39, 5:37])
    assert inside.sum() == 1


def test_the_zero_background_is_black_outside_the_mask():
    image = picture()
    mask = np.zeros((48, 64), dtype=bool)
    mask[10:20, 10:15] = True
    view, inside = cut(image, mask, (5, 7, 37, 39), background="zero")
    np.testing.assert_array_equal(view[3:13, 5:10], image[10:20, 10:15])
    assert view.astype(int).sum() == image[10:20, 10:15].astype(int).sum()
    assert inside.sum() == 50


def test_the_mean_background_is_the_mean_colour_of_the_mask_black_pixels_included():
    image = np.full((48, 64, 3), 77, dtype=np.uint8)
    image[10, 10], image[10, 11], image[10, 12] = (90, 0, 10), (0, 0, 0), (91, 4, 10)
    mask = np.zeros((48, 64), dtype=bool)
    mask[10, 10:13] = True
    view, _ = cut(image, mask, (5, 7, 37, 39), background="mean")
    expected = np.full((SIZE, SIZE, 3), (60, 1, 6), dtype=np.uint8)  # (181, 4, 20) / 3, cut off
    expected[3, 5:8] = image[10, 10:13]
    np.testing.assert_array_equal(view, expected)


@pytest.mark.parametrize("background", ["original", "zero", "mean"])
def test_a_mask_of_everything_leaves_the_image_as_it_is(background):
    image = picture()
    view, inside = cut(image, np.ones((48, 64), dtype=bool), (0, 0, 64, 48), background=background)
    expected = Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(view, np.asarray(expected))
    assert inside.all()


def test_the_image_and_the_mask_are_not_changed():
    image, mask = picture(), picture()[..., 0] > 128
    before = image.copy(), mask.copy()
    for background in ("original", "zero", "mean"):
        cut(image, mask, (3, 3, 60, 40), background=background)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


@pytest.mark.parametrize("size_px", [32, 50, 224])
@pytest.mark.parametrize("box", [(0, 0, 64, 48), (10, 10, 11, 40), (63, 47, 64, 48), (5, 7, 9, 11)])
def test_views_are_squares_of_the_size_asked_for(box, size_px):
    view, inside = cut_view(picture(), np.ones((48, 64), dtype=bool), Box(*box), CropsParams(size_px=size_px))
    assert view.shape == (size_px, size_px, 3)
    assert view.dtype == np.uint8
    assert inside.shape == (size_px, size_px)
    assert inside.dtype == bool


def test_the_mask_inside_lies_where_the_colour_lies_after_resizing():
    mask = np.zeros((48, 64), dtype=bool)
    mask[16:32, 24:56] = True
    image = np.where(mask[..., None], np.uint8([255, 0, 0]), np.uint8([0, 0, 255]))
    view, inside = cut(image, mask, (16, 8, 64, 40), background="original")
    # 48 x 32 pixels become 32 x 32: columns shrink by 1.5, rows stay
    expected = np.zeros((SIZE, SIZE), dtype=bool)
    expected[8:24, 6:26] = True  # columns (24 - 16) / 1.5 = 5.3 to (56 - 16) / 1.5 = 26.7, by the nearest centre
    disagree = inside != expected
    assert disagree[:, 7:26].sum() == 0  # the outermost columns are matter of rounding
    assert inside[:8].sum() == inside[24:].sum() == 0
    certain = (view[..., 0] > 192) | (view[..., 2] > 192)
    assert certain.sum() > 900
    np.testing.assert_array_equal(inside[certain], view[..., 0][certain] > 128)


def test_shrinking_averages_and_does_not_pick():
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)
    image = np.repeat(checkers.astype(np.uint8)[..., None], 3, axis=2)
    view, _ = cut(image, np.ones((64, 64), dtype=bool), (0, 0, 64, 64))
    assert abs(view.astype(int) - 128).max() < 32


def plain_bilinear(image, size_px):
    """Ask for every pixel of the result which place of the image it shows, and mix the four pixels around that."""
    height, width, _ = image.shape
    result = np.zeros((size_px, size_px, 3))
    for row in range(size_px):
        for column in range(size_px):
            y = min(max((row + 0.5) * height / size_px - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / size_px - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            for i, weight_y in ((top, 1 - (y - top)), (min(top + 1, height - 1), y - top)):
                for j, weight_x in ((left, 1 - (x - left)), (min(left + 1, width - 1), x - left)):
                    result[row, column] += weight_y * weight_x * image[i, j]
    return result


BOXES = [(0, 0, 64, 48), (10, 10, 11, 40), (63, 47, 64, 48), (5, 7, 9, 11), (0, 0, 64, 1), (3, 2, 60, 45)]


@pytest.mark.parametrize("box", BOXES)
def test_aliased_resizing_is_bilinear_interpolation_between_four_pixels(box):
    view, _ = cut(picture(), np.ones((48, 64), dtype=bool), box, aliased=True)
    x0, y0, x1, y1 = box
    # rounded to the nearest; what lies halfway may go either way
    assert abs(view - plain_bilinear(picture()[y0:y1, x0:x1], SIZE)).max() <= 0.501
    assert view.dtype == np.uint8


@pytest.mark.parametrize("box", BOXES)
def test_aliased_resizing_is_that_of_pytorch_and_of_opencv_up_to_rounding(box):
    cv2 = pytest.importorskip("cv2")
    view, _ = cut(picture(), np.ones((48, 64), dtype=bool), box, aliased=True)
    x0, y0, x1, y1 = box
    crop = picture()[y0:y1, x0:x1]
    opencv = cv2.resize(crop, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    assert abs(view.astype(int) - opencv).max() <= 1
    floats = torch.from_numpy(crop).permute(2, 0, 1)[None].float()
    pytorch = functional.interpolate(floats, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=False)
    assert abs(view - pytorch[0].permute(1, 2, 0).numpy()).max() <= 0.501


def test_aliased_shrinking_picks_where_antialiased_shrinking_averages():
    # every fourth column is white: a quarter of them, on average; the places asked for lie between two black ones
    image = np.zeros((4 * SIZE, 4 * SIZE, 3), dtype=np.uint8)
    image[:, ::4] = 255
    everything, box = np.ones(image.shape[:2], dtype=bool), (0, 0, 4 * SIZE, 4 * SIZE)
    assert cut(image, everything, box, aliased=True)[0].max() == 0
    assert abs(cut(image, everything, box)[0][:, 2:-2].mean() - 255 / 4) < 3


@pytest.mark.parametrize("background", ["original", "zero", "mean"])
def test_aliased_or_not_a_view_that_keeps_its_size_keeps_its_pixels_and_its_mask(background):
    image, mask = picture(), picture(seed=1)[..., 0] > 128
    views = [cut(image, mask, (5, 7, 5 + SIZE, 7 + SIZE), aliased, background=background) for aliased in (True, False)]
    for aliased, plain in zip(*views, strict=True):
        np.testing.assert_array_equal(aliased, plain)


def test_an_empty_bag_names_the_image_and_the_way_out():
    error = EmptyBagError("images/a.png")
    assert isinstance(error, PipelineError)
    assert "images/a.png" in str(error)
    assert "crops.empty_bag" in str(error)
    assert "\n" not in str(error)
