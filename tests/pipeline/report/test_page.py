import pytest

from pipeline.report.page import table_columns, table_lines


def line_of(metrics, key, head="protomask"):
    (line,) = [line for line in table_lines(metrics, head) if line.metric.key == key]
    return line


def metrics(key, family="classification", **values):
    return {row: {family: {key: value}} for row, value in values.items()}


@pytest.mark.parametrize(("head", "title"), [("protomask", "ProtoMask"), ("pipnet", "PIP-Net")])
def test_the_black_box_stands_beside_the_network_and_its_earlier_states_follow(head, title):
    rows = {row: {} for row in (f"{head}_trained", head, "blackbox", f"{head}_projected")}
    columns = table_columns(rows, head)
    assert [column.row for column in columns] == [head, "blackbox", f"{head}_projected", f"{head}_trained"]
    assert [column.title for column in columns] == [
        title,
        "Black box",
        f"{title} before fine-tuning",
        f"{title} before projection",
    ]
    assert [column.is_baseline for column in columns] == [False, True, False, False]


def test_a_black_box_by_itself_is_one_column_without_a_price():
    rows = metrics("accuracy", blackbox=0.8)
    (column,) = table_columns(rows, "blackbox")
    assert (column.row, column.is_baseline) == ("blackbox", False)


def test_the_best_value_is_the_highest_or_the_lowest_as_the_metric_says():
    accuracy = line_of(metrics("accuracy", protomask=0.8, blackbox=0.9), "accuracy")
    assert [(cell.text, cell.is_best) for cell in accuracy.cells] == [("80.00", False), ("90.00", True)]
    size = line_of(
        metrics("local_size", "compactness", protomask=4.0, blackbox=None, protomask_trained=6.0), "local_size"
    )
    assert [(cell.text, cell.is_best) for cell in size.cells] == [("4.0", True), ("–", False), ("6.0", False)]


def test_no_value_is_best_where_there_is_one_only_or_all_are_equal():
    for values in ({"protomask": 0.8}, {"protomask": 0.8, "blackbox": None}, {"protomask": 0.8, "blackbox": 0.800001}):
        assert not any(cell.is_best for cell in line_of(metrics("accuracy", **values), "accuracy").cells)


def test_equal_best_values_are_all_marked():
    line = line_of(metrics("accuracy", protomask=0.8, blackbox=0.8, protomask_trained=0.7), "accuracy")
    assert [cell.is_best for cell in line.cells] == [True, True, False]


def test_the_price_is_protomask_less_black_box_in_points():
    def price(own, other):
        return line_of(metrics("accuracy", protomask=own, blackbox=other), "accuracy").price

    assert [price(0.8, 0.9), price(0.9, 0.85), price(0.8, 0.8), price(0.8, None)] == ["−10.00", "+5.00", "0.00", "–"]
    assert line_of(metrics("accuracy", protomask=0.8), "accuracy").price == "–"
