import pytest

from pipeline.errors import PipelineError
from pipeline.report.charts import PLOT, Series
from pipeline.report.curves import epoch_chart, training_charts
from pipeline.report.inputs import PhaseReport, read_curve

LOSS_TERMS = ("loss", "cross_entropy", "cluster", "separation", "diversity")
ONE_PHASE = {"network": {"joint": PhaseReport(epochs=2, best_epoch=2, val_accuracy=0.6)}}


def write_curve(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{step}\t{value}\n" for step, value in enumerate(values))
    path.write_text(f"step\t{path.stem}\n{rows}")


def write_network(folder, terms, values):
    curves = folder / "plots/metrics"
    for name in ("val/accuracy", "val/loss", *(f"train/{term}" for term in terms)):
        write_curve(curves / f"{name}.tsv", values)


def positions(line):
    return [tuple(float(number) for number in point.split(",")) for point in line.points.split()]


def test_a_line_spans_the_plot_from_its_epochs_and_values():
    chart = epoch_chart("Loss", [Series("train", [(1.0, 0.0), (2.0, 5.0), (4.0, 10.0)])], [("warm-up", 4)])
    (line,) = chart.lines
    width, height = PLOT.right - PLOT.left, PLOT.bottom - PLOT.top
    assert positions(line) == [
        (PLOT.left + width / 4, PLOT.bottom),
        (PLOT.left + width / 2, PLOT.bottom - height / 2),
        (PLOT.right, PLOT.top),
    ]
    assert [tick.label for tick in chart.x_ticks] == ["0", "1", "2", "3", "4"]


def test_a_phase_starts_where_the_epochs_of_the_one_before_end():
    chart = epoch_chart(
        "Loss", [Series("train", [(float(epoch), float(epoch)) for epoch in range(1, 9)])], [("a", 6), ("b", 2)]
    )
    first, second = chart.spans
    assert first.start is None
    assert second.start == pytest.approx(PLOT.left + (PLOT.right - PLOT.left) * 6 / 8)


def test_a_single_epoch_is_shown_as_a_dot():
    chart = epoch_chart("Loss", [Series("train", [(1.0, 2.0)])], [("joint", 1)])
    assert chart.lines[0].dots == tuple(positions(chart.lines[0]))


def test_the_summary_says_in_words_what_the_lines_show():
    chart = epoch_chart("Loss", [Series("training images", [(1.0, 2.0), (2.0, 0.5), (3.0, 1.0)])], [("joint", 3)])
    assert chart.summary == (
        "Loss, epochs 1 to 3. training images: 2 at the first epoch, 1 at the last, lowest 0.5, highest 2."
    )


def test_values_that_are_no_number_are_left_out(tmp_path):
    write_curve(tmp_path / "loss.tsv", [1.0, "nan", 3.0])
    assert read_curve(tmp_path / "loss.tsv") == [(1, 1.0), (3, 3.0)]
    assert epoch_chart("Loss", [Series("train", [])], [("joint", 3)]) is None


@pytest.mark.parametrize("content", ["", "step\tother\n0\t1\n", "step\tloss\n0\tx\n", "step\tloss\n0\n"])
def test_a_damaged_curve_is_refused_by_name(tmp_path, content):
    (tmp_path / "loss.tsv").write_text(content)
    if content == "":
        assert read_curve(tmp_path / "loss.tsv") == []  # a run that wrote no epoch
    else:
        with pytest.raises(PipelineError, match=r"loss\.tsv is damaged"):
            read_curve(tmp_path / "loss.tsv")


def test_kept_epochs_are_counted_over_the_phases(tmp_path):
    write_network(tmp_path / "network", LOSS_TERMS, [0.5, 0.6, 0.7, 0.8, 0.7])
    write_network(tmp_path / "blackbox", ["loss"], [0.5, 0.6, 0.7, 0.8, 0.9])
    phases = {
        "joint": PhaseReport(epochs=2, best_epoch=1, val_accuracy=0.8),
        "warmup": PhaseReport(epochs=3, best_epoch=0, val_accuracy=0.4),
    }
    charts = training_charts(tmp_path, {"network": phases, "blackbox": phases}, "protomask")
    network, blackbox = charts[0].lines
    assert network.dots == (positions(network)[3],)  # the warm-up kept its start
    assert network.title == "ProtoMask"
    assert blackbox.title == "Black box"
    assert [label.title for label in charts[0].spans] == ["warm-up", "joint"]
    assert len(charts) == 7  # accuracy, two losses, four terms


def test_a_run_of_one_phase_without_a_black_box_has_its_charts(tmp_path):
    write_network(tmp_path / "network", LOSS_TERMS, [0.5, 0.6])
    charts = training_charts(tmp_path, ONE_PHASE, "protomask")
    assert [line.title for line in charts[0].lines] == ["ProtoMask"]
    assert len(charts) == 6
    assert all(len(chart.spans) == 1 and chart.spans[0].start is None for chart in charts)


def test_every_term_of_the_loss_has_a_chart_also_one_without_a_title(tmp_path):
    write_network(tmp_path / "network", ["loss", "presence", "novel", "classification", "another"], [0.5, 0.6])
    charts = training_charts(tmp_path, ONE_PHASE, "pipnet")
    titles = [chart.title for chart in charts]
    assert titles[:2] == ["Validation accuracy, %", "Loss of PIP-Net"]
    assert [title.split(" ")[0] for title in titles[2:]] == ["Classification", "Presence", "another", "novel"]


def test_a_black_box_as_the_network_of_a_run_has_its_loss(tmp_path):
    write_network(tmp_path / "network", ["loss"], [0.5, 0.6])
    charts = training_charts(tmp_path, ONE_PHASE, "blackbox")
    assert [chart.title for chart in charts] == ["Validation accuracy, %", "Loss of the black box"]
    assert [line.title for line in charts[0].lines] == ["Black box"]


@pytest.mark.parametrize("name", ["val/accuracy", "val/loss", "train/loss"])
def test_a_curve_that_every_network_has_is_missed(tmp_path, name):
    write_network(tmp_path / "network", LOSS_TERMS, [0.5, 0.6])
    (tmp_path / "network/plots/metrics" / f"{name}.tsv").unlink()
    with pytest.raises(PipelineError, match=rf"{name}\.tsv does not exist"):
        training_charts(tmp_path, ONE_PHASE, "protomask")
