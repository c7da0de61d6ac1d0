import pytest

from pipeline.report.page import metrics_tables
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
