import csv
import io
import re
import statistics

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.errors import PipelineError
from pipeline.metrics.interface import Metric
from pipeline.metrics.registry import METRICS, metric
from pipeline.recorded_runs import Run
from pipeline.table import (
    Statistic,
    Summary,
    app,
    chosen_metrics,
    chosen_rows,
    group_runs,
    parse_seeds,
    render_statistic,
    statistic,
    titles_of,
)

ACCURACY = metric("classification", "accuracy")
RATIO = metric("compactness", "negative_positive_ratio")


def run_of(seed, accuracy=0.5, *, blackbox=None, ratio=None, **recipe):
    metrics = {
        "protomask": {"classification": {"accuracy": accuracy}, "compactness": {"negative_positive_ratio": ratio}}
    }
    if blackbox is not None:
        metrics["blackbox"] = {"classification": {"accuracy": blackbox}}
    return Run(f"run {seed}", seed, {"command of train": "train"} | recipe, metrics)


def summary_of(*runs, metrics=METRICS):
    groups = group_runs(runs)
    return Summary(groups, metrics, chosen_rows(None, groups))


def cells_of(markdown):
    """The lines of all tables, cell by cell, without heads and rules."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [line for line in table if line[0] != "family" and not set(line[0]) <= set("-")]


# statistics


@pytest.mark.parametrize("num", [2, 3, 10])
def test_mean_and_standard_deviation_are_those_of_a_sample(num):
    values = np.random.default_rng(0).uniform(size=num).tolist()
    found = statistic(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
    assert found.std == pytest.approx(statistics.stdev(values), abs=1e-12)
    assert found.n == num


def test_a_value_that_cannot_be_had_is_no_zero():
    assert statistic([0.25, None, 0.75]) == statistic([0.25, 0.75])
    assert statistic([0.25, None]) == Statistic(0.25, None, 1)
    assert statistic([None, None]) is None


# groups


def test_runs_that_differ_only_in_their_seed_are_one_group_without_a_title():
    (group,) = group_runs([run_of(7), run_of(0), run_of(3)])
    assert group.seeds == [0, 3, 7]
    assert group.title == ""


def test_other_params_code_or_commands_make_groups_titled_by_what_differs():
    runs = [
        run_of(0, **{"model.dim": "64", "train.lr": "0.1"}),
        run_of(1, **{"model.dim": "64", "train.lr": "0.1"}),
        run_of(0, **{"model.dim": "32", "train.lr": "0.1"}),
        run_of(0, **{"model.dim": "64", "train.lr": "0.1", "content of pipeline/model": "abcdefghij"}),
    ]
    groups = group_runs(runs)
    assert [group.seeds for group in groups] == [[0, 1], [0], [0]]
    assert [group.title for group in groups] == [
        "model.dim=64, content of pipeline/model=(absent)",
        "model.dim=32, content of pipeline/model=(absent)",
        "model.dim=64, content of pipeline/model=abcdef",
    ]


def test_a_title_names_a_few_params_and_counts_the_rest():
    recipes = [{f"key{idx}": value for idx in range(9)} | {"content of a": value} for value in ("1", "2")]
    first, second = titles_of(recipes)
    assert first == "key0=1, key1=1, key2=1, key3=1, key4=1, key5=1, and 4 more"
    assert second == first.replace("=1", "=2")


# rendering


@pytest.mark.parametrize(
    ("declared", "found", "expected"),
    [
        (ACCURACY, Statistic(0.9444, 0.00523, 4), "94.44 ± 0.52"),
        (ACCURACY, Statistic(0.9444, 0.00523, 3), "94.44 ± 0.52 (n=3)"),
        (ACCURACY, Statistic(0.9444, None, 1), "94.44 (n=1)"),
        (RATIO, Statistic(5.5, 0.25, 4), "5.500 ± 0.250"),
        (ACCURACY, None, "–"),
    ],
)
def test_percent_only_where_people_read_and_n_where_it_is_not_that_of_the_table(declared, found, expected):
    assert render_statistic(declared, found, 4) == expected


def test_one_run_has_no_spread():
    text = summary_of(run_of(5, 0.25)).markdown()
    assert "±" not in text
    assert text.startswith("1 run (seed 5)\n")
    assert cells_of(text)[0] == ["classification", "Accuracy % ↑", "25.00"]


def test_the_caption_names_runs_and_seeds_and_says_when_n_differs():
    runs = [run_of(seed, 0.5 + seed / 10, ratio=1.0 if seed else None) for seed in range(3)]
    text = summary_of(*runs).markdown()
    caption = text.splitlines()[0]
    assert caption.startswith("Mean ± sample standard deviation of 3 runs (seeds 0, 1, 2); where fewer runs")
    assert cells_of(text) == [
        ["classification", "Accuracy % ↑", "60.00 ± 10.00"],
        ["compactness", "Negative-positive ratio ↓", "1.000 ± 0.000 (n=2)"],
    ]
    assert "fewer" not in summary_of(*runs, metrics=(ACCURACY,)).markdown()


def test_metrics_that_no_run_has_are_left_out_and_those_that_are_null_stay():
    assert [line[1:] for line in cells_of(summary_of(run_of(0), run_of(1)).markdown())] == [
        ["Accuracy % ↑", "50.00 ± 0.00"],
        ["Negative-positive ratio ↓", "–"],
    ]


def test_the_best_mean_of_a_metric_is_bold_across_rows_and_groups():
    runs = [run_of(0, 0.5, blackbox=0.75, ratio=2.0), run_of(0, 0.25, blackbox=0.5, ratio=1.0, other="code")]
    assert cells_of(summary_of(*runs).markdown()) == [
        ["classification", "Accuracy % ↑", "50.00", "**75.00**"],
        ["compactness", "Negative-positive ratio ↓", "2.000", "–"],
        ["classification", "Accuracy % ↑", "25.00", "50.00"],
        ["compactness", "Negative-positive ratio ↓", "**1.000**", "–"],
    ]
    assert summary_of(*runs).latex().count(r"\textbf{") == 2


def test_nothing_is_bold_among_equals_or_without_a_better_side():
    assert "**" not in summary_of(run_of(0, 0.5, blackbox=0.50000001)).markdown()
    neutral = Metric("accuracy", "classification", "Accuracy", "fraction", "neither", "none")
    assert "**" not in summary_of(run_of(0, 0.5, blackbox=0.75), metrics=(neutral,)).markdown()
    assert "**" in summary_of(run_of(0, 0.5, blackbox=0.75)).markdown()


def test_the_csv_holds_fractions_and_every_digit():
    values = np.random.default_rng(0).uniform(size=4).tolist()
    text = summary_of(*(run_of(seed, value) for seed, value in enumerate(values))).csv()
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == 2
    assert {key: lines[0][key] for key in ("row", "family", "metric", "unit", "direction", "n", "seeds")} == {
        "row": "protomask",
        "family": "classification",
        "metric": "accuracy",
        "unit": "fraction",
        "direction": "higher",
        "n": "4",
        "seeds": "0 1 2 3",
    }
    assert float(lines[0]["mean"]) == pytest.approx(statistics.fmean(values), abs=1e-12)
    assert float(lines[0]["std"]) == pytest.approx(statistics.stdev(values), abs=1e-12)
    assert (lines[1]["mean"], lines[1]["std"], lines[1]["n"]) == ("", "", "0")


def test_the_latex_tables_are_captioned_booktabs_tables_without_loose_specials():
    runs = [run_of(0, 0.5, key_a="50%"), run_of(1, 0.6, key_a="50%"), run_of(0, key_a="x & y")]
    text = summary_of(*runs).latex()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == text.count(r"\toprule") == 2
    assert r"\caption{key\_a=50\%. Mean $\pm$ sample standard deviation of 2 runs (seeds 0, 1)}" in text
    assert r"\caption{key\_a=x \& y. 1 run (seed 0)}" in text
    assert r"\textbf{55.00 $\pm$ 7.07}" in text
    assert not re.search(r"(?<!\\)[%#_]", text)
    assert text.isascii()


# what is asked for


def test_rows_and_metrics_can_be_chosen_by_name_or_family():
    groups = group_runs([run_of(0, blackbox=0.5)])
    assert chosen_rows("blackbox, protomask", groups) == ["protomask", "blackbox"]
    assert chosen_rows("blackbox", groups) == ["blackbox"]
    assert chosen_metrics("f1,classification.accuracy") == (ACCURACY, metric("classification", "f1"))
    assert {declared.family for declared in chosen_metrics("compactness")} == {"compactness"}
    assert chosen_metrics(None) == METRICS


@pytest.mark.parametrize(
    "call",
    [
        lambda: chosen_metrics("acuracy"),
        lambda: chosen_metrics(","),
        lambda: chosen_rows("black", group_runs([run_of(0, blackbox=0.5)])),
    ],
)
def test_an_unknown_name_is_refused_in_one_line(call):
    with pytest.raises(PipelineError, match=r"^--(metrics|rows).*(near: .*(accuracy|blackbox)|names no)"):
        call()


@pytest.mark.parametrize(
    ("text", "seeds"), [("4", [0, 1, 2, 3]), ("4871,7579,9307,1653", [4871, 7579, 9307, 1653]), ("7,", [7])]
)
def test_a_number_is_so_many_seeds_from_0_and_a_list_is_itself(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "-1", "1,1", "1.5", "a", "1,b", ","])
def test_what_names_no_seeds_is_refused(text):
    with pytest.raises(PipelineError, match=r"^--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "is no DVC project"),
        (["--seeds", "2"], "is no DVC project"),
        (["--rev", "main"], "is no DVC project"),
        (["--seeds", "2", "--rev", "main"], "give one of them"),
        (["-S", "model.dim=3"], "give --seeds, too"),
        (["--metrics", "nonsense"], "--metrics nonsense"),
    ],
)
def test_a_call_that_cannot_be_answered_is_one_line(tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("error: ")
    assert message in line
