import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline.data.boxes import Box
from pipeline.data.masks import encode_mask
from pipeline.errors import PipelineError
from pipeline.report.thumbnails import (
    BOX_RGB,
    NUMBER_RGB,
    OUTLINE_RGB,
    NumberedImage,
    NumberedView,
    SourceImage,
    SourceView,
    around_place,
    draw_numbered,
    draw_source,
    shrunk,
    with_outline_and_box,
)

GREY = np.full((40, 60, 3), 128, dtype=np.uint8)


def where(picture, colour):
    return (picture == np.array(colour, dtype=np.uint8)).all(axis=2)


def test_the_outline_is_the_inner_rim_of_the_mask_and_the_box_the_rim_of_its_rows_and_columns():
    mask = np.zeros((40, 60), dtype=bool)
    mask[12:24, 20:36] = True
    drawn = with_outline_and_box(GREY, mask, Box(10, 5, 50, 30), scale=1.0)
    rim = np.zeros_like(mask)
    rim[12:24, 20:36] = True
    rim[14:22, 22:34] = False  # two pixels thick
    np.testing.assert_array_equal(where(drawn, OUTLINE_RGB), rim)
    frame = np.zeros_like(mask)
    frame[5:30, 10:50] = True
    frame[6:29, 11:49] = False
    np.testing.assert_array_equal(where(drawn, BOX_RGB), frame)


def test_the_box_of_a_smaller_picture_is_scaled():
    drawn = with_outline_and_box(GREY[:20, :30], None, Box(10, 10, 50, 30), scale=0.5)
    rows, columns = np.nonzero(where(drawn, BOX_RGB))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 14, 5, 24)


def test_without_a_mask_nothing_is_outlined():
    drawn = with_outline_and_box(GREY, None, Box(0, 0, 60, 40), scale=1.0)
    assert not where(drawn, OUTLINE_RGB).any()
    assert where(drawn, BOX_RGB).sum() == 2 * 60 + 2 * 38


def test_drawing_leaves_the_picture_as_it_was():
    picture = GREY.copy()
    with_outline_and_box(picture, np.ones((40, 60), dtype=bool), Box(0, 0, 60, 40), scale=1.0)
    np.testing.assert_array_equal(picture, GREY)


@pytest.mark.parametrize(("side_px", "shape"), [(30, (20, 30, 3)), (60, (40, 60, 3)), (200, (40, 60, 3))])
def test_pictures_shrink_to_their_longer_side_and_are_never_enlarged(side_px, shape):
    assert shrunk(GREY, side_px).shape == shape


def test_each_view_gives_its_photograph_and_itself(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, 20:40] = True
    view = SourceView(np.full((32, 32, 3), 7, dtype=np.uint8), Box(18, 8, 42, 32), encode_mask(mask))
    ((photograph, small_view),) = draw_source(SourceImage(tmp_path / "a.png", 60, 40, (view,)), side_px=30)
    assert (photograph.width, photograph.height) == (30, 20)
    assert simplejpeg.decode_jpeg(photograph.content).shape == (20, 30, 3)
    assert abs(simplejpeg.decode_jpeg(small_view.content).astype(int) - 7).max() <= 1


def test_an_image_of_another_size_than_its_table_says_is_refused(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    with pytest.raises(PipelineError, match=r"a\.png: is 60x40, its table says 60x41"):
        draw_source(SourceImage(tmp_path / "a.png", 60, 41, ()), side_px=30)


@pytest.mark.parametrize("shown", [Box(0, 0, 60, 40), Box(7, 3, 67, 43)])
@pytest.mark.parametrize("cell", [(0, 0), (1, 2), (3, 4), (2, 0)])
def test_around_a_place_lie_the_pixels_that_show_its_cell_or_a_neighbour(shown, cell):
    view = np.arange(29 * 31 * 3, dtype=np.uint32).reshape(29, 31, 3).astype(np.uint8)
    view[..., 0], view[..., 1] = np.arange(29)[:, None], np.arange(31)  # so that each pixel is another
    row, column = cell  # of 4 x 5 cells of 10 x 12 pixels
    place = Box(shown.x0 + 12 * column, shown.y0 + 10 * row, shown.x0 + 12 * column + 12, shown.y0 + 10 * row + 10)
    rows = [y for y in range(29) if row - 1 <= (y + 0.5) / 29 * 4 < row + 2]
    columns = [x for x in range(31) if column - 1 <= (x + 0.5) / 31 * 5 < column + 2]
    np.testing.assert_array_equal(around_place(view, place, shown), view[np.ix_(rows, columns)])


def test_a_place_smaller_than_a_pixel_of_the_view_shows_one():
    view = np.zeros((2, 2, 3), dtype=np.uint8)
    assert around_place(view, Box(999, 999, 1000, 1000), Box(0, 0, 1000, 1000)).shape == (1, 1, 3)
    assert around_place(view, Box(0, 0, 1, 1), Box(0, 0, 1000, 1000)).shape == (1, 1, 3)


# test images


def two_masks():
    left, right = np.zeros((2, 40, 60), dtype=bool)
    left[4:36, 4:28] = True
    right[4:36, 32:56] = True
    return left, right


def numbered(number, mask, box=(0, 0, 60, 40)):
    box = Box(*box)
    pixels = GREY[box.y0 : box.y1, box.x0 : box.x1]
    return NumberedView(number, pixels, box, None if mask is None else encode_mask(mask))


def near(picture, colour):
    """Where PICTURE is about as COLOUR; JPEG moves values a little."""
    return np.abs(picture.astype(int) - np.array(colour)).max(axis=2) < 60


def drawn(tmp_path, *views, side_px=60):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    return draw_numbered(NumberedImage(tmp_path / "a.png", 60, 40, views), side_px=side_px)


def test_numbered_views_are_outlined_each_in_its_colour_and_others_are_not(tmp_path):
    left, right = two_masks()
    picture = drawn(tmp_path, numbered(2, left), numbered(None, right))
    photograph = simplejpeg.decode_jpeg(picture.photograph.content)
    assert near(photograph, NUMBER_RGB[1])[:, :30].sum() > 100
    assert (np.abs(photograph[:, 30:].astype(int) - 128) < 20).all()
    assert len(picture.views) == 2
    assert len(picture.points) == 1


def test_after_the_last_colour_comes_the_first(tmp_path):
    left, _ = two_masks()
    first, again = (drawn(tmp_path, numbered(number, left)) for number in (1, 1 + len(NUMBER_RGB)))
    assert first.photograph == again.photograph


def test_a_number_stands_inside_its_view_and_away_from_other_numbers(tmp_path):
    left, right = two_masks()
    first, second, third = drawn(tmp_path, numbered(1, left), numbered(2, right), numbered(3, left | right)).points
    for (x, y), mask in ((first, left), (second, right), (third, left | right)):
        assert mask[int(40 * y), int(60 * x)]
    assert first[0] == pytest.approx(16 / 60, abs=0.02)  # in the middle of 24 columns
    for other in (first, second):
        assert abs(60 * (third[0] - other[0])) + abs(40 * (third[1] - other[1])) > 6


def test_a_view_shows_the_outline_of_its_mask_where_it_is_in_the_view(tmp_path):
    mask = np.zeros((40, 60), dtype=bool)
    mask[12:28, 32:48] = True
    (view,) = drawn(tmp_path, numbered(None, mask, box=(20, 0, 60, 40)), side_px=80).views
    assert (view.width, view.height) == (40, 40)
    rows, columns = np.nonzero(near(simplejpeg.decode_jpeg(view.content), OUTLINE_RGB))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 27, 12, 27)


def test_a_place_is_framed_on_the_photograph_and_bare_in_its_own_picture(tmp_path):
    picture = drawn(tmp_path, numbered(1, None, box=(20, 10, 40, 30)))
    rows, columns = np.nonzero(near(simplejpeg.decode_jpeg(picture.photograph.content), NUMBER_RGB[0]))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 29, 20, 39)
    assert (np.abs(simplejpeg.decode_jpeg(picture.views[0].content).astype(int) - 128) < 5).all()


def test_views_and_the_small_photograph_are_half_as_large(tmp_path):
    picture = drawn(tmp_path, numbered(1, None), side_px=30)
    sizes = [(one.width, one.height) for one in (picture.photograph, picture.small, *picture.views)]
    assert sizes == [(30, 20), (15, 10), (15, 10)]


def test_a_test_image_of_another_size_than_its_table_says_is_refused(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png")
    with pytest.raises(PipelineError, match=r"a\.png: is 60x40, its table says 60x41"):
        draw_numbered(NumberedImage(tmp_path / "a.png", 60, 41, ()), side_px=30)
