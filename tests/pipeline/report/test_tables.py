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
    RANDOMISED,
    ROW_TITLES,
    Detail,
    best_text,
    family_tables,
    family_title,
    latex,
    latex_text,
    legend,
    markdown,
    metric_title,
    notes_on,
    render_detail,
    render_value,
    titled,
    write_tables,
)

NAMES = ("table.csv", "table.md", "table.tex")
NUM_IMAGES = 40
FAMILIES = tuple(dict.fromkeys(declared.family for declared in METRICS))
ROWS = ("protomask", "protomask_view", "protomask_projected", "protomask_trained", "blackbox")


def detail(row, family, key, value, **changes):
    content = {
        "row": row,
        "family": family,
        "metric": key,
        "value": value,
        "low": None if value is None else value - 0.01,
        "high": None if value is None else value + 0.02,
        "num_images": 0 if value is None else NUM_IMAGES,
        "reason": None,
        "insensitive_to": None,
    }
    return content | changes


@pytest.fixture
def rows():
    """Numbers that all differ; black box and other saliency have one family each, and one number cannot be had."""
    found = []
    for place, row in enumerate(ROWS):
        for idx, declared in enumerate(METRICS):
            if declared.family != {"blackbox": "classification", "protomask_view": "contrastivity"}.get(
                row, declared.family
            ):
                continue
            name = declared.family, declared.key
            value = (
                None if (row, declared.key) == ("protomask", "negative_positive_ratio") else (1 + idx + 7 * place) / 97
            )
            found.append(detail(row, *name, value, reason="the data set has no ratio" if value is None else None))
    return found


def write(folder, rows, **changes):
    write_tables(folder, rows, **({"num_draws": 1000} | changes))
    return {name: (folder / name).read_text(encoding="utf-8") for name in NAMES}


def tables_of(markdown):
    """The cells of each family's table, by its heading."""
    tables = {}
    for part in markdown.split("### ")[1:]:
        heading, *lines = part.splitlines()
        cells = [line.strip("|").split("|") for line in lines if line.startswith("|")]
        tables[heading] = [[cell.strip() for cell in line] for line in cells]
    return tables


def test_the_csv_holds_every_number_as_it_is_and_all_that_stands_behind_it(tmp_path, rows):
    rows[0] |= {"insensitive_to": ["weights", "maps"], "num_images": 7}
    found = list(csv.DictReader(write(tmp_path, rows)["table.csv"].splitlines()))
    assert len(found) == len(rows) > len(METRICS)
    for line, row in zip(found, rows, strict=True):
        assert [line[key] for key in ("row", "family", "metric")] == [row[key] for key in ("row", "family", "metric")]
        for key in ("value", "low", "high"):
            assert (float(line[key]) if line[key] else None) == row[key]
        assert int(line["num_images"]) == row["num_images"]
        assert line["reason"] == (row["reason"] or "")
        assert line["insensitive_to"] == ";".join(row["insensitive_to"] or ())
    assert found[0]["insensitive_to"] == "weights;maps"


def test_each_family_has_a_table_with_the_networks_that_were_asked_for_it(tmp_path, rows):
    tables = tables_of(write(tmp_path, rows)["table.md"])
    assert list(tables) == [family_title(family) for family in FAMILIES]
    by_name = {(row["row"], row["family"], row["metric"]): Detail(**row) for row in rows}
    assert len(FAMILIES) >= 3
    for family in FAMILIES:
        head, rule, *body = tables[family_title(family)]
        shown = [row for row in ROW_TITLES if any(name[:2] == (row, family) for name in by_name)]
        assert ("blackbox" in shown) == (family == "classification")
        assert head == ["metric", *(ROW_TITLES[row] for row in shown)]
        assert all(re.fullmatch("-+:?", cell) for cell in rule)
        declarations = [declared for declared in METRICS if declared.family == family]
        assert [line[0] for line in body] == [metric_title(declared) for declared in declarations]
        for declared, line in zip(declarations, body, strict=True):
            expected = [render_detail(by_name.get((row, family, declared.key))) for row in shown]
            assert [cell.replace("**", "") for cell in line[1:]] == expected


def test_the_columns_stand_straight(tmp_path, rows):
    lines = [line for line in write(tmp_path, rows)["table.md"].split("\n\n")[1].splitlines() if line.startswith("|")]
    assert len(lines) > 3
    assert len({len(line) for line in lines}) == 1


def test_the_latex_tables_have_the_same_values_and_escape_what_latex_would_read(tmp_path, rows):
    rows[0] |= {"insensitive_to": ["maps"]}
    content = write(tmp_path, rows)
    text = content["table.tex"]
    assert text.count(r"\begin{table}") == text.count(r"\toprule") == len(FAMILIES)
    assert all(rf"\caption{{{family_title(family)}}}" in text for family in FAMILIES)
    body = [line for line in text.splitlines() if line.endswith(r"\\") and not line.startswith("metric")]
    cells = [line for table in tables_of(content["table.md"]).values() for line in table[2:]]
    assert len(body) == len(cells) == len(METRICS)
    for line, plain in zip(body, cells, strict=True):
        found = [cell.strip() for cell in line.removesuffix(r"\\").split(" & ")]
        assert found == [re.sub(r"^\*\*(.*)\*\*$", r"\\textbf{\1}", latex_text(cell)) for cell in plain]
    assert not re.search(r"(?<!\\)[%#_]", text)
    assert text.isascii()
    assert "$^{\\dagger}$" in text


def test_what_cannot_be_had_is_empty_in_the_csv_and_a_dash_with_its_reason_for_people(tmp_path, rows):
    content = write(tmp_path, rows)
    assert "protomask,compactness,negative_positive_ratio,,,,0,the data set has no ratio,\n" in content["table.csv"]
    line = next(line for line in content["table.md"].splitlines() if "Negative-positive ratio" in line)
    assert [cell.strip() for cell in line.strip("|").split("|")][1] == "–"
    reason = "– in Compactness (Negative-positive ratio), for ProtoMask: the data set has no ratio"
    assert f"- {reason}\n" in content["table.md"]
    assert latex_text(reason) in content["table.tex"]


def test_equal_numbers_give_equal_bytes(tmp_path, rows):
    assert write(tmp_path / "one", rows) == write(tmp_path / "other", rows)


@pytest.mark.parametrize(
    ("family", "key", "value", "expected"),
    [
        ("classification", "accuracy", 0.98765, "98.77"),
        ("classification", "accuracy", 1.0, "100.00"),
        ("compactness", "global_size", 60.0, "60.0"),
        ("compactness", "negative_positive_ratio", 0.12345, "0.123"),
        ("contrastivity", "intra_prototype_distance", 0.5, "0.500"),
        ("classification", "f1", None, "–"),
    ],
)
def test_values_are_rendered_by_unit_percent_only_here(family, key, value, expected):
    assert render_value(metric(family, key), value) == expected


@pytest.mark.parametrize(
    ("family", "key", "changes", "expected"),
    [
        ("classification", "accuracy", {"low": 0.8958, "high": 0.9722}, "93.75 [89.6, 97.2]"),
        ("classification", "accuracy", {"low": None, "high": None}, "93.75"),
        ("classification", "accuracy", {"low": None, "high": None, "insensitive_to": ["maps"]}, "93.75†"),
        ("classification", "accuracy", {"low": 0.9, "high": 0.95, "insensitive_to": ["maps"]}, "93.75 [90.0, 95.0]†"),
        ("classification", "accuracy", {"low": 0.9, "high": 0.95, "insensitive_to": []}, "93.75 [90.0, 95.0]"),
        ("compactness", "local_size", {"low": 0.84, "high": 1.06}, "0.9 [0.8, 1.1]"),
        ("compactness", "negative_positive_ratio", {"low": 0.9, "high": 1.0}, "0.938 [0.900, 1.000]"),
    ],
)
def test_a_number_is_shown_with_its_interval_and_the_mark_of_a_failed_check(family, key, changes, expected):
    assert render_detail(Detail(**detail("protomask", family, key, 0.9375, **changes))) == expected


def test_what_was_not_asked_for_or_has_no_value_is_a_dash():
    assert render_detail(None) == "–"
    assert render_detail(Detail(**detail("protomask", "compactness", "local_size", None))) == "–"


def neutral():
    return Metric(
        key="entropy",
        family="family",
        title="Entropy",
        unit="ratio",
        direction="neither",
        formula="none",
        of_image=lambda evidence: evidence.look.logits[:, 0],
    )


def test_a_title_says_the_unit_and_the_better_side():
    assert metric_title(neutral()) == "Entropy"
    assert metric_title(metric("classification", "accuracy")) == "Accuracy % ↑"
    assert metric_title(metric("compactness", "local_size")) == "Local size ↓"


def test_a_family_is_titled_by_its_name():
    assert family_title("mask_consistency") == "Mask consistency"
    assert family_title("completeness") == "Output completeness"


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        (("classification", "accuracy"), [0.8, None, 0.9], "90.00"),
        (("compactness", "local_size"), [4.0, 6.0, None], "4.0"),
        (("classification", "accuracy"), [0.8], None),
        (("classification", "accuracy"), [0.8, None], None),
        (("classification", "accuracy"), [0.8, 0.800001], None),
        (("classification", "accuracy"), [], None),
    ],
)
def test_the_best_value_is_the_one_on_the_better_side_if_any_stands_out(name, values, expected):
    assert best_text(metric(*name), values) == expected
    assert best_text(neutral(), values) is None


def test_a_number_about_far_fewer_images_is_not_called_the_best(tmp_path):
    few, half = (
        [
            detail("protomask", "complexity", "object_iou", 0.4, num_images=100),
            detail("protomask_prp", "complexity", "object_iou", 0.9, num_images=num_images),
        ]
        for num_images in (49, 50)
    )
    write_tables(tmp_path, few, num_draws=100)
    assert "**" not in (tmp_path / "table.md").read_text(encoding="utf-8").partition("- In brackets")[0]
    write_tables(tmp_path, half, num_draws=100)
    assert "**90.00 [89.0, 92.0]**" in (tmp_path / "table.md").read_text(encoding="utf-8")


def test_equal_best_values_are_all_bold(tmp_path):
    values = {"protomask": 0.8, "protomask_projected": 0.7, "protomask_trained": 0.80000001}
    rows = [detail(row, "classification", "accuracy", value) for row, value in values.items()]
    (line,) = family_tables([Detail(**row) for row in rows], values)[0].lines
    assert line.is_best == (True, False, True)
    assert write(tmp_path, rows)["table.md"].count("**80.00 [79.0, 82.0]**") == 2


def test_a_table_has_the_rows_and_metrics_there_are():
    details = [Detail(**detail("pipnet", "compactness", "local_size", 3.0))]
    (table,) = family_tables(details, ["protomask", "pipnet", "blackbox"])
    assert (table.family, table.rows) == ("compactness", ("pipnet",))
    assert [line.declared.key for line in table.lines] == ["local_size"]
    assert family_tables(details, ["blackbox"]) == []


# notes


def notes(*rows):
    return notes_on([Detail(**row) for row in rows])


def test_a_reason_is_said_once_for_whole_families_and_all_networks_that_share_it():
    reason = "the data set has no object masks"
    rows = [
        detail(row, "contrastivity", key, None, reason=reason)
        for row in ("protomask", "protomask_view")
        for key in ("intra_prototype_distance", "inter_prototype_distance")
    ]
    rows += [
        detail("protomask", "compactness", "local_size", None, reason=reason),
        detail("protomask_view", "compactness", "local_size", None, reason=reason),
        detail("protomask", "compactness", "sparsity", 0.5),
        detail("protomask_view", "compactness", "sparsity", 0.5),
    ]
    assert notes(*rows).absent == (
        "– in Contrastivity; Compactness (Local size), for ProtoMask, ProtoMask explained by views: " + reason,
    )


def test_different_reasons_and_places_are_lines_of_their_own():
    rows = [
        detail("protomask", "compactness", "local_size", None, reason="first"),
        detail("protomask", "compactness", "sparsity", None, reason="second"),
        detail("pipnet", "compactness", "local_size", None, reason="first"),
    ]
    assert notes(*rows).absent == (
        "– in Compactness (Local size), for ProtoMask: first",
        "– in Compactness, for PIP-Net: first",
        "– in Compactness (Sparsity), for ProtoMask: second",
    )


def test_numbers_about_fewer_images_are_named_and_those_about_none_are_not():
    rows = [
        detail("protomask", "classification", "accuracy", 0.5),
        detail("protomask", "compactness", "local_size", 0.5, num_images=24),
        detail("protomask", "compactness", "sparsity", 0.5, num_images=0),
    ]
    assert notes(*rows).fewer == ("24 of 40 test images: Compactness (Local size), for ProtoMask",)


def test_each_failed_check_says_of_which_numbers():
    rows = [
        detail("protomask", "compactness", "local_size", 0.5, insensitive_to=["weights", "maps"]),
        detail("protomask", "compactness", "sparsity", 0.5, insensitive_to=["maps"]),
        detail("protomask", "classification", "accuracy", 0.5, insensitive_to=[]),
    ]
    assert notes(*rows).insensitive == (
        f"† with {RANDOMISED['weights']}: Compactness (Local size), for ProtoMask",
        f"† with {RANDOMISED['maps']}: Compactness, for ProtoMask",
    )


def test_notes_that_nobody_needs_are_not_there(tmp_path):
    rows = [detail("protomask", "classification", "accuracy", 0.5)]
    assert titled(notes(*rows)) == []
    content = write(tmp_path, rows)["table.md"]
    assert content.endswith("".join(f"- {sentence}\n" for sentence in legend(1000)))


def test_the_legend_says_how_many_resamples_there_are(tmp_path, rows):
    content = write(tmp_path, rows, num_draws=2500)
    assert "95 % bootstrap interval, from 2,500 resamples" in content["table.md"]
    assert r"95 \% bootstrap interval, from 2,500 resamples" in content["table.tex"]


# layout shared with other tables


def test_bold_cells_stand_out_and_the_columns_stay_straight():
    frame = pd.DataFrame([["a", "b", "1.0", "22.0"]], columns=["family", "metric", "one", "other"])
    bold = np.array([[False, False, False, True]])
    lines = markdown(frame, bold, num_text_columns=2).splitlines()
    assert lines[-1] == "| a      | b      | 1.0 | **22.0** |"
    assert lines[1] == "|--------|--------|----:|---------:|"
    assert len({len(line) for line in lines}) == 1
    text = latex(frame, bold, num_text_columns=2, caption="key_a=5%")
    assert r"a & b & 1.0 & \textbf{22.0} \\" in text
    assert r"\begin{tabular}{llrr}" in text
    assert r"\caption{key\_a=5\%}" in text
    assert "**" not in markdown(frame, np.zeros_like(bold), num_text_columns=2)


def test_latex_prints_names_as_they_stand():
    assert latex_text(r"a_b & 5% of {#1} $x^2 \~ ±2") == (
        r"a\_b \& 5\% of \{\#1\} \$x\textasciicircum{}2 \textbackslash{}\textasciitilde{} $\pm$2"
    )
    frame = pd.DataFrame([["f_1", "m", "1"]], columns=["family", "metric", "row_1"])
    text = latex(frame, np.zeros((1, 3), dtype=bool), num_text_columns=2, caption="")
    assert r"family & metric & row\_1 \\" in text
    assert r"f\_1 & m & 1 \\" in text


def test_columns_of_one_name_are_told_apart_by_their_place():
    frame = pd.DataFrame([["a", "b", "1", "2"]], columns=["family", "metric", "one", "one"])
    bold = np.array([[False, False, False, True]])
    assert markdown(frame, bold, num_text_columns=2).splitlines()[-1].count("**") == 2


def test_every_head_and_its_variants_have_titles_in_order():
    assert set(HEAD_TITLES) == set(get_args(ModelParams.model_fields["head"].annotation))
    variants = ("", "_view", "_prp", "_mask", "_upsample", "_projected", "_trained")
    expected = [*(f"{head}{variant}" for head in HEAD_TITLES if head != "blackbox" for variant in variants), "blackbox"]
    assert list(ROW_TITLES) == list(FULL_TITLES) == expected
    assert [ROW_TITLES[row] for row in ("pipnet", "pipnet_upsample", "pipnet_projected", "pipnet_trained")] == [
        "PIP-Net",
        "- explained by up-sampling",
        "- before fine-tuning",
        "- before projection",
    ]
    assert FULL_TITLES["pipnet_trained"] == "PIP-Net before projection"
    assert FULL_TITLES["protomask_prp"] == "ProtoMask explained by relevance (PRP)"
    assert len(set(FULL_TITLES.values())) == len(FULL_TITLES)


def test_the_tables_of_another_head_have_its_columns(tmp_path, rows):
    renamed = [row | {"row": row["row"].replace("protomask", "protopool")} for row in reversed(rows)]
    tables = tables_of(write(tmp_path, renamed)["table.md"])
    assert tables["Classification"][0][1:] == ["ProtoPool", "- before fine-tuning", "- before projection", "Black box"]
