import re

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import PipelineError
from pipeline.report.charts import PLOT
from pipeline.report.figures import (
    MOST_PAIRS,
    confusion,
    deletion_chart,
    plane,
    reliability_chart,
    roc_chart,
    usage_chart,
)
from pipeline.report.tables import Detail

NAMES = ("gull", "NA", "<i>auk</i>")


def write(path, **columns):
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def detail(row, metric, value):
    return Detail(row, "classification", metric, value, None, None, 9, None, None)


def write_confusion(path, pairs):
    actual, predicted = zip(*pairs, strict=True)
    return write(path, actual=actual, predicted=predicted)


def test_the_confusion_matrix_has_a_cell_for_each_pair_that_occurs_and_counts_every_image(tmp_path):
    pairs = [("gull", "gull")] * 3 + [("gull", "NA"), ("NA", "<i>auk</i>"), ("NA", "<i>auk</i>"), ("NA", "NA")]
    found = confusion(write_confusion(tmp_path / "c.csv", pairs), NAMES)
    assert [(cell.y, cell.x, cell.is_right, cell.title) for cell in found.cells] == [
        (0, 0, True, "gull: 3 of 4 named rightly"),
        (0, 1, False, "gull: 1 of 4 taken for NA"),
        (1, 1, True, "NA: 1 of 3 named rightly"),
        (1, 2, False, "NA: 2 of 3 taken for <i>auk</i>"),
    ]
    assert [cell.opacity for cell in found.cells] == [
        0.84,
        0.51,
        0.57,
        0.78,
    ]  # 0.35 and 0.65 times the share of the row
    assert [(pair.actual, pair.predicted, pair.num_images, pair.num_actual) for pair in found.pairs] == [
        ("NA", "<i>auk</i>", 2, 3),
        ("gull", "NA", 1, 4),
    ]
    assert "4 of 7 test images lie on the diagonal" in found.summary


def test_many_classes_have_no_names_and_as_many_pairs_as_are_listed(tmp_path):
    names = [f"class {idx}" for idx in range(200)]
    rng = np.random.default_rng(0)
    pairs = [(names[actual], names[predicted]) for actual, predicted in rng.integers(0, 200, (3000, 2))]
    found = confusion(write_confusion(tmp_path / "c.csv", pairs), names)
    assert not found.are_named
    assert len(found.cells) == len(set(pairs))
    wrong = {pair: pairs.count(pair) for pair in set(pairs) if pair[0] != pair[1]}
    assert len(found.pairs) == MOST_PAIRS
    assert [pair.num_images for pair in found.pairs] == sorted(wrong.values(), reverse=True)[:MOST_PAIRS]
    assert all(wrong[pair.actual, pair.predicted] == pair.num_images for pair in found.pairs)


def test_classes_of_another_data_set_are_refused(tmp_path):
    path = write_confusion(tmp_path / "confusion.csv", [("gull", "owl")])
    with pytest.raises(PipelineError, match=r"confusion\.csv names a class `owl`"):
        confusion(path, NAMES)
    path = write(tmp_path / "projection.csv", x=[0.0], y=[0.0], class_name=["owl"], kind=["view"])
    with pytest.raises(PipelineError, match=r"projection\.csv names a class `owl`"):
        plane(path, "Plane", NAMES)


def test_the_legend_of_the_reliability_has_the_calibration_errors_and_every_bin_a_dot(tmp_path):
    path = write(
        tmp_path / "reliability.csv",
        confidence=[0.2, 0.9, 0.5],
        accuracy=[0.5, 1.0, 0.5],
        share=[0.5, 0.5, 1.0],
        series=["ProtoMask", "ProtoMask", "Black box"],
    )
    chart = reliability_chart(path, [detail("protomask", "calibration_error", 0.2), detail("blackbox", "f1", 0.5)])
    assert [line.title for line in chart.lines] == ["ProtoMask (calibration error 20.00 %)", "Black box"]
    assert [len(line.dots) for line in chart.lines] == [2, 1]
    assert "right in 50 % where its mean confidence is 20 %" in chart.summary
    assert chart.guide is not None


def test_a_roc_curve_without_a_value_is_no_line(tmp_path):
    path = write(
        tmp_path / "roc.csv",
        false_positive_rate=[0.0, 0.1, 1.0, 0.0, 1.0],
        true_positive_rate=[0.0, 0.9, 1.0, np.nan, np.nan],
        series=["ProtoMask"] * 3 + ["Black box"] * 2,
    )
    chart = roc_chart(path, [detail("protomask", "roc_auc", 0.9)])
    (line,) = chart.lines
    assert line.title == "ProtoMask (area 90.00 %)"
    assert "ProtoMask (area 90.00 %): 45 % found at 5 % false alarms." in chart.summary


def test_the_histogram_of_usage_has_a_bar_for_unused_prototypes(tmp_path):
    path = write(tmp_path / "usage.csv", rank=[1, 2, 3, 4], images=[5, 2, 2, 0], prototype_idx=[3, 0, 1, 2])
    chart = usage_chart(path, top=1)
    assert [bar.title for bar in chart.bars] == [
        "0 test images: 1 prototype",
        "1 test image: 0 prototypes",
        "2 test images: 2 prototypes",
        "3 test images: 0 prototypes",
        "4 test images: 0 prototypes",
        "5 test images: 1 prototype",
    ]
    assert chart.title == "Test images with a prototype in their top 1"
    assert chart.summary == (
        "Unused (never in the top 1 of a test image): 1 of 4 prototypes. The most used one is in the top 1 of 5 of 9 "
        "test images; half of all these places go to the 1 most used."
    )


def test_the_top_of_an_image_holds_no_more_prototypes_than_there_are(tmp_path):
    chart = usage_chart(write(tmp_path / "usage.csv", rank=[1, 2], images=[7, 7], prototype_idx=[0, 1]), top=5)
    assert "is in the top 2 of 7 of 7 test images" in chart.summary


def test_deletion_curves_keep_their_order_and_means(tmp_path):
    names = ["removed, most important first", "removed at random"]
    path = write(
        tmp_path / "deletion.csv",
        share_of_views=[0.0, 1.0, 0.0, 1.0],
        probability=[0.5, 0.1, 0.5, 0.3],
        series=np.repeat(names, 2),
    )
    chart = deletion_chart(path)
    assert [line.title for line in chart.lines] == names
    assert "removed, most important first: 0.300 in the mean. removed at random: 0.400" in chart.summary


def places_of(path):
    return [tuple(map(float, point)) for point in re.findall(r"M([\d.]+) ([\d.]+)h0", path)]


def test_every_point_of_a_plane_lies_within_it_once_and_prototypes_are_drawn_last(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60))
    kinds = ["prototype"] * 6 + ["view"] * 54
    found = plane(
        write(tmp_path / "p.csv", x=x, y=y, class_name=[NAMES[idx % 3] for idx in range(60)], kind=kinds), "t", NAMES
    )
    assert [(group.kind, group.class_name) for group in found.groups] == [
        (kind, name) for kind in ("view", "prototype") for name in NAMES
    ]
    places = {group.kind + group.class_name: places_of(group.path) for group in found.groups}
    assert sum(map(len, places.values())) == 60
    assert all(PLOT.left <= x <= 390 and 12 <= y <= 348 for of_group in places.values() for x, y in of_group)
    first, second = places["prototypegull"]  # points 0 and 3
    assert (first[0] < second[0]) == (x[0] < x[3])
    assert (first[1] > second[1]) == (y[0] < y[3])  # upwards
    assert len({group.hue for group in found.groups}) == 3


def test_the_words_of_a_plane_say_how_well_classes_lie_apart(tmp_path):
    x = [0.0, 0.1, 5.0, 5.1, 0.15]
    path = write(tmp_path / "p.csv", x=x, y=[0.0] * 5, class_name=["gull", "gull", "NA", "NA", "NA"], kind=["view"] * 5)
    # nearest to each: a gull, a gull (or the NA at 0.15, which is nearer), an NA, an NA, a gull
    assert "60 % of the points" in plane(path, "t", NAMES).summary
    one = write(tmp_path / "one.csv", x=[1.0], y=[1.0], class_name=["gull"], kind=["view"])
    assert places_of(plane(one, "t", NAMES).groups[0].path) == [(222.0, 180.0)]


@pytest.mark.parametrize("content", ["", "x\n1\n", "actual,predicted\n", '"a'])
def test_a_damaged_plot_is_refused_by_name(tmp_path, content):
    path = tmp_path / "confusion.csv"
    path.write_text(content)
    with pytest.raises(PipelineError, match=r"confusion\.csv"):
        confusion(path, NAMES)
    path.unlink()
    with pytest.raises(PipelineError, match=r"confusion\.csv does not exist: run `dvc repro evaluate`"):
        confusion(path, NAMES)


def test_a_number_that_is_none_is_refused(tmp_path):
    path = write(tmp_path / "usage.csv", images=["3", "many"])
    with pytest.raises(PipelineError, match=r"usage\.csv is damaged"):
        usage_chart(path, top=2)
