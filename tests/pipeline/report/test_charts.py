import numpy as np
import pytest

from pipeline.report.charts import PLOT, Series, bar_chart, histogram, line_chart, nice_ticks


def positions(points):
    return [tuple(float(number) for number in point.split(",")) for point in points.split()]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 100.0, [0, 20, 40, 60, 80, 100]),
        (0.31, 0.33, [0.31, 0.315, 0.32, 0.325, 0.33]),
        (-3.0, 4.0, [-4, -2, 0, 2, 4]),
        (0.0, 3.0, [0, 1, 2, 3]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, ticks):
    assert nice_ticks(low, high) == ticks


@pytest.mark.parametrize("value", [0.0, 0.5, -2.0])
def test_ticks_around_a_constant_enclose_it(value):
    ticks = nice_ticks(value, value)
    assert ticks[0] < value < ticks[-1]


def test_a_line_chart_maps_the_ends_of_its_axes_to_the_edges_of_the_plot():
    chart = line_chart(
        "Gain",
        [Series("a", [(0.0, 2.0), (1.0, 6.0)], [1.0]), Series("b", [(0.5, 4.0)])],
        summary="",
        x_title="share",
        x_range=(0.0, 1.0),
        x_marks=[0.0, 0.5],
        y_marks=[2.0, 4.0, 6.0],
        guide=[(0.0, 6.0), (1.0, 2.0)],
    )
    first, second = chart.lines
    assert positions(first.points) == [(PLOT.left, PLOT.bottom), (PLOT.right, PLOT.top)]
    assert first.dots == ((PLOT.right, PLOT.top),)
    middle = ((PLOT.left + PLOT.right) / 2, (PLOT.top + PLOT.bottom) / 2)
    assert second.dots == (middle,)  # a single point would be no line
    assert positions(chart.guide) == [(PLOT.left, PLOT.top), (PLOT.right, PLOT.bottom)]
    assert [(tick.at, tick.label) for tick in chart.x_ticks] == [(PLOT.left, "0"), (middle[0], "0.5")]
    assert [tick.label for tick in chart.y_ticks] == ["2", "4", "6"]


def test_the_pieces_of_a_bar_stand_on_each_other_and_are_as_high_as_they_count():
    chart = bar_chart("n", [("a", [2, 0, 6]), ("b", [4, 4, 0])], summary="", x_title="", y_title="", labels=[(1, "b")])
    assert [tick.label for tick in chart.y_ticks] == ["0", "2", "4", "6", "8"]
    unit = (PLOT.bottom - PLOT.top) / 8
    first, second = chart.bars
    assert [(piece.series_idx, piece.height) for piece in first.pieces] == [
        (0, pytest.approx(2 * unit, abs=0.02)),
        (2, pytest.approx(6 * unit, abs=0.02)),
    ]
    assert first.pieces[1].y == PLOT.top
    assert first.pieces[0].y == pytest.approx(first.pieces[1].y + first.pieces[1].height, abs=0.02)
    assert second.pieces[0].y + second.pieces[0].height == pytest.approx(PLOT.bottom, abs=0.02)
    assert PLOT.left < first.x < first.x + first.width < second.x < second.x + second.width < PLOT.right
    assert chart.x_ticks[0].at == pytest.approx(second.x + second.width / 2, abs=0.02)


@pytest.mark.parametrize("num", [1, 20, 200, 2000])
def test_bars_stay_apart_and_within_the_plot_however_many_there_are(num):
    chart = bar_chart("n", [(str(idx), [idx]) for idx in range(num)], summary="", x_title="", y_title="", labels=[])
    assert len(chart.bars) == num
    edges = [edge for bar in chart.bars for edge in (bar.x, bar.x + bar.width)]
    assert edges == sorted(edges)
    assert PLOT.left <= edges[0] <= edges[-1] <= PLOT.right


def test_a_chart_of_nothing_has_an_axis():
    chart = bar_chart("n", [("a", [0])], summary="", x_title="", y_title="", labels=[])
    assert chart.bars[0].pieces == ()
    assert [tick.label for tick in chart.y_ticks] == ["0", "1"]


@pytest.mark.parametrize("most", [0, 5, 29, 30, 59, 1234])
def test_a_histogram_counts_everything_once_in_few_bars_of_round_widths(most):
    counts = [3, *np.random.default_rng(0).integers(3, 3 + most + 1, 500).tolist(), 3 + most]
    bars, labels = histogram(counts, what="image", of="view")
    assert len(bars) <= 30
    assert sum(height for _, (height,) in bars) == len(counts)
    width = most // 30 + 1
    if most < 30:
        assert [height for _, (height,) in bars] == [counts.count(3 + idx) for idx in range(most + 1)]
    else:
        assert len(bars) < most / width + 2
        low, high = map(int, bars[1][0].split(" view")[0].split(" to "))
        assert (low - 3) in (2, 5, 10, 20, 50)
        assert bars[1][1] == [sum(low <= count <= high for count in counts)]
    assert labels[0] == (0, "3")
    assert len(labels) <= 11


def test_bars_of_a_histogram_say_what_they_count():
    bars, _ = histogram([1, 1, 2, 4], what="image", of="view")
    assert [title for title, _ in bars] == [
        "1 view: 2 images",
        "2 views: 1 image",
        "3 views: 0 images",
        "4 views: 1 image",
    ]
