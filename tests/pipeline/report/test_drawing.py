import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.report.drawing import PAPER_RGB, TEXT_RGB, fitted, letters, shortened, write_line

FONT = letters(17)


@pytest.mark.parametrize("width_px", [20, 60, 100, 150])
def test_long_names_are_cut_to_the_width_with_an_ellipsis(width_px):
    name = "Black-capped  Longtail\nof the north"
    cut = shortened(name, width_px, FONT)
    assert FONT.getlength(cut) <= width_px
    kept = cut.removesuffix("…")
    assert cut.endswith("…")
    assert "Black-capped Longtail of the north".startswith(kept)
    longer = "Black-capped Longtail of the north"[: len(kept) + 2].rstrip()
    assert FONT.getlength(f"{longer}…") > width_px


def test_names_that_fit_stay_whole():
    assert shortened("wren", 200, FONT) == "wren"
    assert shortened("wren", 1, FONT) == "…"


def test_letters_know_the_signs_of_sums_and_most_alphabets():
    unknown = bytes(FONT.getmask("\uffff"))
    for letter in "×−…éñøŁžЖщΔω":
        assert bytes(FONT.getmask(letter)) != unknown, letter


def test_a_line_stays_within_its_width_and_below_its_corner():
    canvas = Image.new("RGB", (200, 60), PAPER_RGB)
    write_line(ImageDraw.Draw(canvas), "W" * 99, (20, 10), width_px=90, letters_px=17, colour=TEXT_RGB)
    rows, columns = np.nonzero((np.asarray(canvas) < 128).any(axis=2))
    assert len(rows) > 50
    assert 20 <= columns.min() < columns.max() < 20 + 90
    assert 10 <= rows.min() < rows.max() < 10 + 24


@pytest.mark.parametrize(("height", "width", "size"), [(10, 20, (60, 30)), (400, 100, (15, 60)), (1, 999, (60, 1))])
def test_the_longer_side_is_brought_to_its_length(height, width, size):
    assert fitted(np.zeros((height, width, 3), dtype=np.uint8), 60).size == size


def test_a_long_text_is_cut_at_once():
    asked = []

    class Counting:
        def getlength(self, text):
            asked.append(text)
            return 10.0 * len(text)

    assert shortened.__wrapped__("x" * 5000, 95, Counting()) == "x" * 8 + "…"
    assert len(asked) < 20
