import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline.data.boxes import Box
from pipeline.data.masks import encode_mask
from pipeline.errors import PipelineError
from pipeline.report.thumbnails import (
    BOX_RGB,
    OUTLINE_RGB,
    SourceImage,
    SourceView,
    around_place,
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
