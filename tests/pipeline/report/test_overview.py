import itertools

import pytest

from pipeline.artifacts import VIEWS, write_table
from pipeline.errors import PipelineError
from pipeline.report.overview import ClassCounts, balance_chart, count_views, metrics_tables
from pipeline.report.tables import RANDOMISED, Detail


def detail(row, key, value, *, family="classification", **changes):
    content = {"row": row, "family": family, "metric": key, "value": value, "low": None, "high": None}
    return Detail(**(content | {"num_images": 9, "reason": None, "insensitive_to": None} | changes))


def details(key, family="classification", **values):
    return [detail(row, key, value, family=family) for row, value in values.items()]


def line_of(found, head="protomask"):
    ((line,),) = [table.lines for table in metrics_tables(found, head)]
    return line


@pytest.mark.parametrize(("head", "title"), [("protomask", "ProtoMask"), ("pipnet", "PIP-Net")])
def test_the_black_box_stands_beside_the_network_and_its_variants_follow(head, title):
    rows = (f"{head}_trained", head, "blackbox", f"{head}_projected", f"{head}_view")
    (table,) = metrics_tables(details("accuracy", **dict.fromkeys(rows, 0.5)), head)
    assert table.title == "Classification"
    assert [column.row for column in table.columns] == [
        head,
        "blackbox",
        f"{head}_view",
        f"{head}_projected",
        f"{head}_trained",
    ]
    assert [column.title for column in table.columns] == [
        title,
        "Black box",
        f"{title} explained by views",
        f"{title} before fine-tuning",
        f"{title} before projection",
    ]
    assert [column.is_baseline for column in table.columns] == [False, True, False, False, False]


def test_a_family_has_the_columns_of_the_networks_that_were_asked_for_it():
    found = details("accuracy", protomask=0.5, blackbox=0.6) + details("local_size", "compactness", protomask=3.0)
    tables = metrics_tables(found, "protomask")
    assert [(table.title, [column.row for column in table.columns]) for table in tables] == [
        ("Classification", ["protomask", "blackbox"]),
        ("Compactness", ["protomask"]),
    ]


def test_a_black_box_by_itself_is_one_column_without_a_price():
    (table,) = metrics_tables(details("accuracy", blackbox=0.8), "blackbox")
    (column,) = table.columns
    assert (column.row, column.is_baseline) == ("blackbox", False)


def test_rows_of_another_network_are_no_columns():
    (table,) = metrics_tables(details("accuracy", pipnet=0.8, protomask=0.7, pipnet_view=0.8), "protomask")
    assert [column.row for column in table.columns] == ["protomask"]


def test_the_best_value_is_the_highest_or_the_lowest_as_the_metric_says():
    accuracy = line_of(details("accuracy", protomask=0.8, blackbox=0.9))
    assert [(cell.text, cell.is_best) for cell in accuracy.cells] == [("80.00", False), ("90.00", True)]
    size = line_of(details("local_size", "compactness", protomask=4.0, blackbox=None, protomask_trained=6.0))
    assert [(cell.text, cell.is_best) for cell in size.cells] == [("4.0", True), ("–", False), ("6.0", False)]


def test_no_value_is_best_where_there_is_one_only_or_all_are_equal():
    for values in ({"protomask": 0.8}, {"protomask": 0.8, "blackbox": None}, {"protomask": 0.8, "blackbox": 0.800001}):
        assert not any(cell.is_best for cell in line_of(details("accuracy", **values)).cells)


def test_equal_best_values_are_all_marked():
    line = line_of(details("accuracy", protomask=0.8, blackbox=0.8, protomask_trained=0.7))
    assert [cell.is_best for cell in line.cells] == [True, True, False]


def test_the_price_is_protomask_less_black_box_in_points():
    def price(own, other):
        return line_of(details("accuracy", protomask=own, blackbox=other)).price

    assert [price(0.8, 0.9), price(0.9, 0.85), price(0.8, 0.8), price(0.8, None)] == ["−10.00", "+5.00", "0.00", "–"]
    assert line_of(details("accuracy", protomask=0.8)).price == "–"


def test_a_cell_says_the_interval_and_which_checks_failed():
    (cell,) = line_of([detail("protomask", "accuracy", 0.8, low=0.7, high=0.9, insensitive_to=["maps"])]).cells
    assert (cell.interval, cell.mark) == ("[70.0, 90.0]", "†")
    assert cell.note == f"no worse with {RANDOMISED['maps']}"
    (plain,) = line_of([detail("protomask", "accuracy", 0.8, insensitive_to=[])]).cells
    assert (plain.interval, plain.mark, plain.note) == (None, "", "")


def test_a_missing_value_says_why():
    found = [detail("protomask", "accuracy", None, reason="there is none"), detail("blackbox", "f1", 0.5)]
    (table,) = metrics_tables(found, "protomask")
    notes = [[(cell.text, cell.note) for cell in line.cells] for line in table.lines]
    assert notes == [[("–", "there is none"), ("–", "")], [("–", ""), ("50.00", "")]]


def counts(*of_classes):
    return [
        ClassCounts(f"class {idx}", dict(zip(("train", "val", "test"), numbers, strict=True)))
        for idx, numbers in enumerate(of_classes)
    ]


def test_the_balance_of_classes_is_a_bar_for_each_with_a_piece_for_each_split():
    chart = balance_chart(counts((3, 1, 2), (0, 0, 4)))
    assert [[piece.series_idx for piece in bar.pieces] for bar in chart.bars] == [[0, 1, 2], [2]]
    assert chart.bars[0].title == "class 0: 3 training, 1 validation, 2 test"
    assert chart.summary.startswith(
        "Images per class: 4 in the smallest class, 5 in the median, 6 in the largest, of 2."
    )
    assert len(chart.legend) == 3


@pytest.mark.parametrize("num_classes", [1, 20, 200])
def test_numbers_below_bars_have_room(num_classes):
    chart = balance_chart(counts(*[(1, 1, 1)] * num_classes))
    assert len(chart.bars) == num_classes
    places = [tick.at for tick in chart.x_ticks]
    assert all(right - left >= 20 for left, right in itertools.pairwise(places))
    assert chart.x_ticks[0].label == "0"


def write_views(path, lengths, outside=1):
    rows = []
    for bag_idx, length in enumerate(lengths):
        for view_idx in range(length + outside):
            row = {"image_key": f"i{bag_idx}", "view_idx": view_idx, "split": "train", "label": 0, "mask_idx": view_idx}
            row |= {"mask_box": [0, 0, 1, 1], "box": [0, 0, 1, 1], "area_px": 1, "shard": "a.tar"}
            rows.append(row | {"jpeg_offset": 0, "jpeg_size": 1, "in_bag": view_idx < length})
    write_table(path, rows, VIEWS, class_names=["a"], size_px=1, preparation=None)


def test_views_are_counted_in_bags_only(tmp_path):
    write_views(tmp_path / "views.parquet", [1, 4, 2, 4])
    views = count_views(tmp_path / "views.parquet")
    assert (views.median, views.least, views.most) == (3.0, 1, 4)
    assert [bar.title for bar in views.chart.bars] == [
        "1 view: 1 image",
        "2 views: 1 image",
        "3 views: 0 images",
        "4 views: 2 images",
    ]


def test_a_table_without_views_is_refused(tmp_path):
    write_views(tmp_path / "views.parquet", [0, 0])
    with pytest.raises(PipelineError, match=r"views\.parquet lists no view"):
        count_views(tmp_path / "views.parquet")
