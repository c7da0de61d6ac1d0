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
    rows_across,
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


def run_of_head(head, seed, accuracy, *, blackbox=None, **recipe):
    """A run as the evaluation describes it: earlier states beside the network, perhaps a black box."""
    states = [head] if head == "blackbox" else [head, f"{head}_projected", f"{head}_trained"]
    metrics = {row: {"classification": {"accuracy": accuracy + idx / 100}} for idx, row in enumerate(states)}
    if blackbox is not None:
        metrics["blackbox"] = {"classification": {"accuracy": blackbox}}
    return Run(f"{head} {seed}", seed, {"command of train": "train", "model.head": head} | recipe, metrics)


def across(*runs, rows=None, metrics=METRICS):
    groups = group_runs(runs)
    chosen = chosen_rows(rows, groups)
    return Summary(groups, metrics, chosen, across=rows_across(rows, chosen))


def heads_of(markdown):
    """The column titles of every table."""
    lines = [line for line in markdown.splitlines() if line.startswith("| family")]
    return [[cell.strip() for cell in line.strip("|").split("|")][2:] for line in lines]


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
    neutral = Metric(
        key="accuracy",
        family="classification",
        title="Accuracy",
        unit="fraction",
        direction="neither",
        formula="none",
        of_image=lambda evidence: evidence.look.logits[:, 0],
    )
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


def test_a_group_is_shown_by_the_rows_it_has():
    runs = [run_of_head("pipnet", 0, 0.5), run_of_head("protomask", 0, 0.25, blackbox=0.75)]
    text = summary_of(*runs).markdown()
    assert heads_of(text) == [
        ["PIP-Net", "- before fine-tuning", "- before projection"],
        ["ProtoMask", "- before fine-tuning", "- before projection", "Black box"],
    ]
    assert text.startswith("model.head=pipnet. 1 run (seed 0)\n")
    groups = group_runs(runs)
    text = Summary(groups, METRICS, chosen_rows("blackbox", groups)).markdown()
    assert heads_of(text) == [["Black box"]]


# one table across groups


def test_across_groups_each_network_is_a_column_in_the_order_of_heads():
    runs = [
        run_of_head(head, seed, accuracy + seed / 10)
        for head, accuracy in (("pipnet", 0.5), ("protomask", 0.6), ("protopool", 0.3))
        for seed in (0, 1)
    ]
    text = across(*runs).markdown()
    assert heads_of(text) == [["ProtoMask", "PIP-Net", "ProtoPool"]]
    assert cells_of(text) == [
        ["classification", "Accuracy % ↑", "**65.00 ± 7.07**", "55.00 ± 7.07", "35.00 ± 7.07"],
    ]
    assert text.startswith("Mean ± sample standard deviation of 2 runs each (seeds 0, 1)\n")


def test_an_earlier_state_is_in_the_table_only_when_it_is_asked_for_and_is_not_the_best_unseen():
    runs = [run_of_head("protomask", 0, 0.5), run_of_head("protopnet", 0, 0.4)]
    assert cells_of(across(*runs).markdown())[0][2:] == ["**50.00**", "40.00"]
    text = across(*runs, rows="protomask,protomask_trained,protopnet").markdown()
    assert heads_of(text) == [["ProtoMask", "ProtoMask before projection", "ProtoPNet"]]
    assert cells_of(text)[0][2:] == ["50.00", "**52.00**", "40.00"]


def test_other_saliency_is_a_row_of_its_network_and_compared_only_when_it_is_asked_for():
    runs = [run_of_head("protomask", seed, 0.5) for seed in (0, 1)]
    for run in runs:
        run.metrics["protomask_view"] = {"contrastivity": {"intra_prototype_distance": 0.25}}
    text = summary_of(*runs).markdown()
    assert heads_of(text) == [
        ["ProtoMask", "- explained by views", "- before fine-tuning", "- before projection"],
    ]
    assert cells_of(text)[1][2:] == ["–", "0.250 ± 0.000", "–", "–"]
    assert heads_of(across(*runs).markdown()) == [["ProtoMask"]]
    chosen = across(*runs, rows="protomask,protomask_view").markdown()
    assert heads_of(chosen) == [["ProtoMask", "ProtoMask explained by views"]]


def test_black_boxes_that_are_equal_in_all_groups_are_one_column():
    runs = [
        run_of_head(head, seed, 0.5, blackbox=0.7 + seed / 10) for head in ("protomask", "protopnet") for seed in (0, 1)
    ]
    runs += [run_of_head("blackbox", seed, 0.7 + seed / 10) for seed in (0, 1)]
    text = across(*runs).markdown()
    assert heads_of(text) == [["ProtoMask", "ProtoPNet", "Black box"]]
    assert cells_of(text)[0][2:] == ["50.00 ± 0.00", "50.00 ± 0.00", "**75.00 ± 7.07**"]


def test_black_boxes_that_differ_are_a_column_each_and_say_of_which_group():
    runs = [run_of_head("protomask", 0, 0.5, blackbox=0.7), run_of_head("protopnet", 0, 0.5, blackbox=0.8)]
    runs += [run_of_head("pipnet", 0, 0.5)]
    text = across(*runs).markdown()
    assert heads_of(text) == [
        ["ProtoMask", "ProtoPNet", "PIP-Net", "Black box (model.head=protomask)", "Black box (model.head=protopnet)"]
    ]
    assert cells_of(text)[0][2:] == ["50.00", "50.00", "50.00", "70.00", "**80.00**"]


def test_columns_of_one_network_say_what_sets_them_apart_from_each_other_only():
    runs = [run_of_head("protomask", 0, 0.5, **{"model.dim": dim}) for dim in ("64", "128")]
    runs += [run_of_head("pipnet", 0, 0.5, **{"model.dim": "64"})]
    assert heads_of(across(*runs).markdown()) == [["ProtoMask (model.dim=64)", "ProtoMask (model.dim=128)", "PIP-Net"]]


def test_the_caption_across_names_the_seeds_of_each_column_where_they_differ():
    runs = [run_of_head("protomask", seed, 0.5) for seed in (0, 1)] + [run_of_head("pipnet", 4, 0.5)]
    caption = across(*runs).markdown().splitlines()[0]
    assert caption == "Mean ± sample standard deviation over runs. ProtoMask: seeds 0, 1; PIP-Net: seed 4"
    assert across(runs[0]).markdown().splitlines()[0] == "1 run (seed 0)"


def test_a_column_counts_the_runs_of_its_own_group():
    runs = [run_of_head("protomask", seed, 0.5) for seed in (0, 1, 2)] + [run_of_head("pipnet", 0, 0.5)]
    runs[0].metrics["protomask"]["classification"]["accuracy"] = None
    text = across(*runs).markdown()
    assert cells_of(text)[0][2:] == ["50.00 ± 0.00 (n=2)", "50.00"]
    assert "where fewer runs have a metric" in text


def test_a_row_without_values_of_the_chosen_metrics_is_no_column():
    runs = [run_of(0, 0.5, blackbox=0.75, ratio=2.0), run_of(0, 0.5, blackbox=0.75, key="other")]
    assert heads_of(across(*runs, metrics=(RATIO,)).markdown()) == [["ProtoMask"]]
    with pytest.raises(PipelineError, match="--across"):
        across(runs[1], metrics=(RATIO,))


def test_the_csv_is_the_same_across_groups_and_the_latex_is_one_table():
    runs = [run_of_head("protomask", 0, 0.5, blackbox=0.7), run_of_head("pipnet", 0, 0.6, blackbox=0.7)]
    assert across(*runs).csv() == summary_of(*runs).csv()
    text = across(*runs).latex()
    assert text.count(r"\begin{table}") == 1
    assert r"family & metric & ProtoMask & PIP-Net & Black box \\" in text
    assert r"\textbf{70.00}" in text


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
        (["--across"], "is no DVC project"),
    ],
)
def test_a_call_that_cannot_be_answered_is_one_line(tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_help_says_how_to_compare_networks():
    words = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split())
    assert "--seeds 3 -S model.head=pipnet" in words
    assert "python -m pipeline.table --across" in words


def test_the_option_across_makes_one_table_and_leaves_the_csv_as_it_is(tmp_path, monkeypatch):
    runs = [run_of_head("protomask", 0, 0.5), run_of_head("pipnet", 0, 0.6)]
    monkeypatch.setattr("pipeline.table.runs_here", lambda root: runs)
    for name, options in (("groups", []), ("across", ["--across"])):
        result = CliRunner().invoke(app, ["--out", str(tmp_path / name), *options])
        assert result.exit_code == 0, result.output
    groups, one = ((tmp_path / name / "table.md").read_text() for name in ("groups", "across"))
    assert len(heads_of(groups)) == 2
    assert heads_of(one) == [["ProtoMask", "PIP-Net"]]
    assert (tmp_path / "groups/table.csv").read_bytes() == (tmp_path / "across/table.csv").read_bytes()
