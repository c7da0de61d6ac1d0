import csv
import re
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from pipeline.metrics.interface import Metric
from pipeline.metrics.registry import METRICS, metric
from pipeline.params import ModelParams
from pipeline.report.tables import (
    FULL_TITLES,
    HEAD_TITLES,
    ROW_TITLES,
    latex,
    latex_text,
    markdown,
    metric_title,
    metrics_frame,
    render_value,
    write_tables,
)

NAMES = ("table.csv", "table.md", "table.tex")


@pytest.fixture
def metrics():
    """Metrics in which every value differs; the black box has one family, and one number cannot be had."""
    content = {}
    for place, row in enumerate(("protomask", "protomask_projected", "protomask_trained")):
        content[row] = {}
        for idx, declared in enumerate(METRICS):
            content[row].setdefault(declared.family, {})[declared.key] = (1 + idx + 20 * place) / 97
    content["protomask"]["compactness"]["negative_positive_ratio"] = None
    content["blackbox"] = {"classification": dict.fromkeys(content["protomask"]["classification"], 0.5)}
    return content


def write(folder, metrics):
    write_tables(folder, metrics)
    return {name: (folder / name).read_text(encoding="utf-8") for name in NAMES}


def test_the_csv_holds_every_number_as_it_is(tmp_path, metrics):
    rows = list(csv.DictReader(write(tmp_path, metrics)["table.csv"].splitlines()))
    found = {(row["row"], row["family"], row["metric"]): float(row["value"]) if row["value"] else None for row in rows}
    expected = {
        (row, family, key): value
        for row, families in metrics.items()
        for family, scores in families.items()
        for key, value in scores.items()
    }
    assert len(rows) == len(expected) == 3 * len(METRICS) + len(metrics["blackbox"]["classification"])
    assert found == expected


def cells(lines, separator):
    return [[cell.strip() for cell in re.split(separator, line)] for line in lines]


def test_the_markdown_table_has_a_line_per_metric_and_a_column_per_network(tmp_path, metrics):
    lines = write(tmp_path, metrics)["table.md"].splitlines()
    head, rule, *body = cells((line.strip("|") for line in lines), r"\|")
    assert head == ["family", "metric", *(ROW_TITLES[row] for row in metrics)]
    assert all(re.fullmatch("-+:?", cell) for cell in rule)
    assert len(body) == len(METRICS)
    for declared, line in zip(METRICS, body, strict=True):
        values = [families.get(declared.family, {}).get(declared.key) for families in metrics.values()]
        assert line == [declared.family, metric_title(declared), *(render_value(declared, value) for value in values)]
    assert len({len(line) for line in lines}) == 1  # the columns stand straight


def test_the_latex_table_has_the_same_values_and_escapes_what_latex_would_read(tmp_path, metrics):
    content = write(tmp_path, metrics)
    body = [line for line in content["table.tex"].splitlines() if line.endswith(r"\\") and "family" not in line]
    assert len(body) == len(METRICS)
    for declared, line in zip(METRICS, cells((line.removesuffix(r"\\") for line in body), "&"), strict=True):
        values = [families.get(declared.family, {}).get(declared.key) for families in metrics.values()]
        assert line[2:] == [render_value(declared, value).replace("–", "--") for value in values]
        assert line[1].startswith(declared.title)
        assert (r"\%" in line[1]) == (declared.unit == "fraction")
        assert (r"$\uparrow$" in line[1]) == (declared.direction == "higher")
        assert (r"$\downarrow$" in line[1]) == (declared.direction == "lower")
    assert not re.search(r"(?<!\\)[%#_]", content["table.tex"])
    assert content["table.tex"].isascii()


def test_what_cannot_be_had_is_empty_in_the_csv_and_a_dash_for_people(tmp_path, metrics):
    content = write(tmp_path, metrics)
    assert "protomask,compactness,negative_positive_ratio,\n" in content["table.csv"]
    line = next(line for line in content["table.md"].splitlines() if "Negative-positive ratio" in line)
    assert [cell.strip() for cell in line.strip("|").split("|")][2] == "–"


def test_equal_metrics_give_equal_bytes(tmp_path, metrics):
    assert write(tmp_path / "one", metrics) == write(tmp_path / "other", metrics)


@pytest.mark.parametrize(
    ("family", "key", "value", "expected"),
    [
        ("classification", "accuracy", 0.98765, "98.77"),
        ("classification", "accuracy", 1.0, "100.00"),
        ("compactness", "global_size", 60.0, "60.0"),
        ("compactness", "negative_positive_ratio", 0.12345, "0.123"),
        ("contrastivity", "inter_prototype_distance", 0.5, "0.500"),
        ("classification", "f1", None, "–"),
    ],
)
def test_values_are_rendered_by_unit_percent_only_here(family, key, value, expected):
    assert render_value(metric(family, key), value) == expected


def test_a_title_says_the_unit_and_the_better_side():
    neither = Metric("key", "family", "Entropy", "ratio", "neither", "no formula")
    assert metric_title(neither) == "Entropy"
    assert metric_title(metric("classification", "accuracy")) == "Accuracy % ↑"
    assert metric_title(metric("compactness", "local_size")) == "Local size ↓"


def test_the_table_takes_the_rows_there_are(metrics):
    del metrics["blackbox"], metrics["protomask_trained"]
    assert list(metrics_frame(metrics).columns) == ["family", "metric", "ProtoMask", "- before fine-tuning"]


def test_bold_cells_stand_out_and_the_columns_stay_straight():
    frame = pd.DataFrame([["a", "b", "1.0", "22.0"]], columns=["family", "metric", "one", "other"])
    bold = np.array([[False, False, False, True]])
    lines = markdown(frame, bold).splitlines()
    assert lines[-1] == "| a      | b      | 1.0 | **22.0** |"
    assert len({len(line) for line in lines}) == 1
    assert r"a & b & 1.0 & \textbf{22.0} \\" in latex(frame, bold)
    assert "**" not in markdown(frame)


def test_latex_prints_names_and_captions_as_they_stand():
    assert latex_text(r"a_b & 5% of {#1} $x^2 \~ ±2") == (
        r"a\_b \& 5\% of \{\#1\} \$x\textasciicircum{}2 \textbackslash{}\textasciitilde{} $\pm$2"
    )
    frame = pd.DataFrame([["f_1", "m", "1"]], columns=["family", "metric", "row_1"])
    text = latex(frame, caption="key_a=5%")
    assert r"\caption{key\_a=5\%}" in text
    assert r"family & metric & row\_1 \\" in text
    assert r"f\_1 & m & 1 \\" in text
    assert r"\begin{table}" not in latex(frame)


def test_every_head_and_its_earlier_states_have_titles_in_order():
    assert set(HEAD_TITLES) == set(get_args(ModelParams.model_fields["head"].annotation))
    expected = [
        *(f"{head}{state}" for head in HEAD_TITLES if head != "blackbox" for state in ("", "_projected", "_trained")),
        "blackbox",
    ]
    assert list(ROW_TITLES) == list(FULL_TITLES) == expected
    assert [ROW_TITLES[row] for row in ("pipnet", "pipnet_projected", "pipnet_trained")] == [
        "PIP-Net",
        "- before fine-tuning",
        "- before projection",
    ]
    assert FULL_TITLES["pipnet_trained"] == "PIP-Net before projection"
    assert len(set(FULL_TITLES.values())) == len(FULL_TITLES)


def test_the_table_of_another_head_has_its_columns(metrics):
    renamed = {row.replace("protomask", "protopool"): families for row, families in metrics.items()}
    columns = list(metrics_frame(dict(reversed(renamed.items()))).columns)
    assert columns[2:] == ["ProtoPool", "- before fine-tuning", "- before projection", "Black box"]


def test_columns_of_one_name_are_told_apart_by_their_place():
    frame = pd.DataFrame([["a", "b", "1", "2"]], columns=["family", "metric", "one", "one"])
    assert markdown(frame, np.array([[False, False, False, True]])).splitlines()[-1].count("**") == 2
