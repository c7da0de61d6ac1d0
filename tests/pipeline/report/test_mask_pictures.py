import numpy as np
import pytest
from PIL import Image

from pipeline.data.boxes import Box, box_of_mask
from pipeline.data.catalogue import ImageRow, load_images
from pipeline.data.masks import MaskTableWriter, StoredMask, encode_mask
from pipeline.errors import PipelineError
from pipeline.report.mask_pictures import (
    COLOURS_RGB,
    NOT_COVERED,
    ChosenMask,
    MaskedImage,
    colours_of,
    draw_masks,
    masked_images,
    smallest_masks,
)
from tests.small_run import SIDE_PX, make_crops, make_images

GREY = np.full((40, 60, 3), 128, dtype=np.uint8)


def stored(mask):
    return StoredMask(encode_mask(mask), box_of_mask(mask), int(mask.sum()), 0.5)


def rectangle(x0, y0, x1, y1, *, shape=(40, 60)):
    mask = np.zeros(shape, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def row_of(path, *, width=60, height=40):
    Image.fromarray(GREY).save(path)
    return ImageRow("a", path, "0" * 64, width, height, 0, "gull", "test", None, (), None, None)


def test_each_pixel_shows_the_smallest_of_its_masks_and_of_equal_ones_the_first():
    generator = np.random.default_rng(0)
    masks = [generator.random((9, 11)) < share for share in (0.9, 0.2, 0.5, 0.2)] + [
        rectangle(0, 0, 3, 3, shape=(9, 11))
    ]
    masks.append(masks[-1])
    found = smallest_masks([stored(mask) for mask in masks], height=9, width=11)
    for y in range(9):
        for x in range(11):
            holding = [idx for idx, mask in enumerate(masks) if mask[y, x]]
            expected = min(holding, key=lambda idx: (masks[idx].sum(), idx)) if holding else NOT_COVERED
            assert found[y, x] == expected


def test_neighbours_have_different_colours_as_long_as_there_are_enough():
    labels = np.arange(48).reshape(6, 8).repeat(3, axis=0).repeat(3, axis=1)  # a chequered board of 48 masks
    labels[0, 0] = NOT_COVERED
    colours = colours_of(labels)
    assert set(colours) == set(range(48))
    assert set(colours.values()) == set(range(len(COLOURS_RGB)))
    for one, other in [(labels[:, 1:], labels[:, :-1]), (labels[1:], labels[:-1])]:
        for a, b in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True):
            assert a == b or NOT_COVERED in (a, b) or colours[a] != colours[b]


def test_a_mask_shows_its_colour_over_the_photograph_and_what_none_covers_is_dark(tmp_path):
    mask = rectangle(10, 10, 30, 30)
    drawn = draw_masks(MaskedImage(row_of(tmp_path / "a.png"), (stored(mask),), ()), side_px=60, view_px=8)
    inside = drawn.masks[20, 20].astype(int)
    np.testing.assert_allclose(inside, 0.55 * np.array(COLOURS_RGB[0]) + 0.45 * 128, atol=1)
    assert drawn.masks[5, 50].tolist() == [51, 51, 51]  # 0.4 x 128
    assert drawn.masks[20, 10].tolist() == [0, 0, 0]  # the line between the two
    assert drawn.covered_frac == mask.mean()
    np.testing.assert_array_equal(drawn.chosen, GREY)


def test_chosen_masks_are_outlined_and_numbered_and_the_whole_image_is_not(tmp_path):
    mask, pixels = rectangle(20, 10, 50, 35), np.full((16, 16, 3), 7, dtype=np.uint8)
    whole = ChosenMask(2, Box(0, 0, 60, 40), None, pixels)
    chosen = ChosenMask(1, Box(18, 8, 52, 37), encode_mask(mask), pixels)
    row = row_of(tmp_path / "a.png")
    drawn = draw_masks(MaskedImage(row, (stored(mask),), (chosen, whole)), side_px=60, view_px=8)
    assert drawn.chosen[30, 20].tolist() == list(COLOURS_RGB[0])  # left rim of the mask
    assert drawn.chosen[36, 40].tolist() == list(COLOURS_RGB[0])  # lowest row of the box
    assert drawn.chosen[39, 0].tolist() == [128, 128, 128]  # no frame around the whole image
    assert (drawn.chosen > 200).all(axis=2).any()  # the number
    assert [view.shape for view in drawn.views] == [(8, 8, 3), (8, 8, 3)]


def test_numbers_of_equal_boxes_do_not_lie_on_each_other(tmp_path):
    mask, pixels = rectangle(5, 5, 55, 35), np.zeros((8, 8, 3), dtype=np.uint8)
    rle, box = encode_mask(mask), box_of_mask(mask)
    row = row_of(tmp_path / "a.png")

    def white(num):
        chosen = tuple(ChosenMask(number, box, rle, pixels) for number in range(1, num + 1))
        return (draw_masks(MaskedImage(row, (stored(mask),), chosen), side_px=60, view_px=8).chosen > 200).all(axis=2)

    assert (white(2) & white(1)).sum() == white(1).sum() < white(2).sum()


def test_an_image_without_masks_and_views_is_dark(tmp_path):
    drawn = draw_masks(MaskedImage(row_of(tmp_path / "a.png"), (), ()), side_px=30, view_px=8)
    assert (drawn.covered_frac, drawn.views, drawn.masks.shape) == (0.0, (), (20, 30, 3))
    assert (drawn.masks == 51).all()


def test_masks_or_a_table_of_another_picture_are_refused(tmp_path):
    with pytest.raises(PipelineError, match=r"a\.png: is 60x40, its table says 60x41"):
        draw_masks(MaskedImage(row_of(tmp_path / "a.png", height=41), (), ()), side_px=30, view_px=8)
    other = stored(rectangle(0, 0, 5, 5, shape=(10, 10)))
    with pytest.raises(PipelineError, match=r"a\.png: the run lengths .* run `dvc repro masks`"):
        draw_masks(MaskedImage(row_of(tmp_path / "a.png"), (other,), ()), side_px=30, view_px=8)


def test_images_come_in_the_order_asked_for_with_their_masks_and_views(tmp_path):
    make_images(tmp_path)
    make_crops(tmp_path)
    rows = load_images(tmp_path / "data/dataset").rows[::-3]
    found = list(masked_images(rows, masks=tmp_path / "data/masks/masks.parquet", crops=tmp_path / "data/crops"))
    assert [image.row for image in found] == list(rows)
    for image in found:
        assert len(image.masks) == 2
        assert [(chosen.number, chosen.rle) for chosen in image.chosen] == [
            (1, image.masks[0].rle),
            (2, image.masks[1].rle),
            (3, None),
        ]
        assert image.chosen[2].box == Box(0, 0, SIDE_PX, SIDE_PX)


def test_views_of_masks_that_are_not_there_are_refused(tmp_path):
    make_images(tmp_path)
    make_crops(tmp_path)
    rows = load_images(tmp_path / "data/dataset").rows
    (tmp_path / "empty").mkdir()
    with MaskTableWriter(tmp_path / "empty/masks.parquet"):
        pass
    with pytest.raises(PipelineError, match="c0_0 has a view of mask 0, but 0 masks"):
        list(masked_images(rows, masks=tmp_path / "empty/masks.parquet", crops=tmp_path / "data/crops"))
