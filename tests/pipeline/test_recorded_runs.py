import copy

import pytest

from pipeline.dvc_lock import stages_of_lock
from pipeline.preset import leaves
from pipeline.recorded_runs import METRICS_FILE, NoRunError, recipe_of, text_of


@pytest.fixture
def lock():
    """A dvc.lock: raw -> draw -> data -> evaluate -> metrics -> report."""

    def files(**hashes):
        return [{"path": path.replace("__", "/"), "hash": "md5", "md5": digest} for path, digest in hashes.items()]

    return {
        "schema": "2.0",
        "stages": {
            "draw": {
                "cmd": "python draw.py",
                "deps": files(code__draw="c1", raw="r1"),
                "params": {"params.yaml": {"seed": 3, "draw": {"width": 64, "rate": 3e-05}}},
                "outs": files(data="d1"),
            },
            "evaluate": {
                "cmd": "python evaluate.py",
                "deps": files(data__part="p1", code__evaluate="c2"),
                "params": {"params.yaml": {"seed": 3, "draw.width": 64}},
                "outs": [{"path": METRICS_FILE, "hash": "md5", "md5": "m1"}],
            },
            "report": {
                "cmd": "python report.py",
                "deps": [{"path": METRICS_FILE, "hash": "md5", "md5": "m1"}, *files(code__report="c3")],
                "params": {"params.yaml": {"report": {"size": 1}}},
                "outs": files(page="h1"),
            },
        },
    }


def recipe(lock):
    return recipe_of(stages_of_lock(lock), "here")


def test_a_recipe_holds_params_inputs_and_commands_up_to_the_metrics_but_not_the_seed(lock):
    params, made_from = recipe(lock)
    assert params == {"seed": 3, "draw.width": 64, "draw.rate": 3e-05}
    assert made_from == {
        "draw.width": "64",
        "draw.rate": "3e-05",
        "content of code/draw": "c1",
        "content of raw": "r1",
        "content of code/evaluate": "c2",
        "command of draw": "python draw.py",
        "command of evaluate": "python evaluate.py",
    }


def test_runs_of_two_seeds_have_one_recipe_although_all_that_was_written_differs(lock):
    other = copy.deepcopy(lock)
    for stage in other["stages"].values():
        stage["params"]["params.yaml"] |= {"seed": 4} if "seed" in stage["params"]["params.yaml"] else {}
        for entry in stage["outs"]:
            entry["md5"] += "x"
    other["stages"]["evaluate"]["deps"][0]["md5"] = "p2"
    other["stages"]["report"]["deps"][0]["md5"] = "m1x"
    assert recipe(other)[1] == recipe(lock)[1]
    assert recipe(other)[0]["seed"] == 4


@pytest.mark.parametrize(
    ("stage", "kind", "matters"), [("draw", "deps", True), ("evaluate", "deps", True), ("report", "deps", False)]
)
def test_code_counts_where_the_metrics_hang_on_it(lock, stage, kind, matters):
    other = copy.deepcopy(lock)
    changed = next(entry for entry in other["stages"][stage][kind] if entry["path"].startswith("code"))
    changed["md5"] = "new"
    assert (recipe(other)[1] != recipe(lock)[1]) == matters


def test_a_graph_of_which_only_a_part_ran_again_is_no_run(lock):
    lock["stages"]["evaluate"]["deps"].append({"path": "data", "hash": "md5", "md5": "d1"})
    recipe(lock)
    lock["stages"]["draw"]["outs"][0]["md5"] = "d2"
    with pytest.raises(NoRunError, match=r"stage evaluate has not seen the last data.*dvc repro"):
        recipe(lock)


def test_stages_that_ran_with_different_seeds_are_no_run(lock):
    lock["stages"]["draw"]["params"]["params.yaml"]["seed"] = 5
    with pytest.raises(NoRunError, match="stages disagree about seed"):
        recipe(lock)


@pytest.mark.parametrize(
    ("value", "text"),
    [(64, "64"), (64.0, "64"), (0.5, "0.5"), (True, "true"), (False, "false"), (None, "null"), ([1.0, "a"], "[1, a]")],
)
def test_equal_params_have_equal_texts_however_they_are_written(value, text):
    assert text_of(value) == text


def test_leaves_give_nested_and_dotted_keys_the_same_name():
    assert dict(leaves({"a": {"b": {"c": 1}}, "a.d": 2})) == {"a.b.c": 1, "a.d": 2}
