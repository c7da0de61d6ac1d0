"""Two revisions of a small project under git and DVC, compared through the command and part by part."""

import base64
import json
import re
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.stats import binomtest
from typer.testing import CliRunner

from pipeline.artifacts import PER_IMAGE, write_table
from pipeline.compare.__main__ import app
from pipeline.compare.differences import Changed, compare
from pipeline.compare.image_differences import Flip
from pipeline.compare.markdown import escaped, render_markdown
from pipeline.compare.page import render_page
from pipeline.compare.pictures import draw_pictures
from pipeline.compare.prototype_differences import Move
from pipeline.compare.revisions import Missing, Source, read_revision
from pipeline.compare.wording import made_from_sentence, notes, signed
from pipeline.data.boxes import Box
from pipeline.errors import PipelineError
from pipeline.metrics.registry import METRICS, metric
from pipeline.metrics.uncertainty import Interval
from tests.branches import commit, dvc, new_project, sh
from tests.pipeline.compare.toy import AFTER, BEFORE, Toy, write_run

GRAPH = {
    "stages": {
        "evaluate": {
            "cmd": "python -c \"import shutil; shutil.copytree('made', '.', dirs_exist_ok=True)\"",
            "deps": ["made", "pipeline/code.py"],
            "params": ["seed", "crops"],
            "outs": [
                "data/dataset",
                "data/masks",
                "models/final",
                "results/metrics_detail.parquet",
                "results/per_image.parquet",
            ],
            "metrics": ["results/metrics.json"],
        }
    }
}
NUM_DRAWS = 200


def set_up(folder):
    """Start a project; its stage takes what it writes from the folder `made`."""
    (folder / "dvc.yaml").write_text(yaml.safe_dump(GRAPH, sort_keys=False), encoding="utf-8")
    (folder / ".gitignore").write_text("/data/\n/models/\n/results/\n/made/\n", encoding="utf-8")
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "code.py").write_text("one\n", encoding="utf-8")
    new_project(folder, "one")


def run(folder, toy, *, seed, max_views):
    """Bring the results of TOY into the workspace."""
    shutil.rmtree(folder / "made", ignore_errors=True)
    write_run(folder / "made", toy)
    params = {"seed": seed, "crops": {"max_views": max_views}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    dvc(folder, "repro", "--quiet")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The branches `one` (also the tag `v1`) and `other`, an experiment `tried`; the workspace has other pictures."""
    folder = tmp_path_factory.mktemp("compared")
    set_up(folder)
    run(folder, BEFORE, seed=0, max_views=5)
    commit(folder, "one")
    sh(folder, "git", "tag", "v1")
    sh(folder, "git", "switch", "--quiet", "--create", "other")
    run(folder, AFTER, seed=1, max_views=3)
    commit(folder, "other")
    run(folder, replace(AFTER, keys=(*AFTER.keys[:5], "new_5", "new_6", "new_7")), seed=2, max_views=3)
    dvc(folder, "exp", "save", "--quiet", "--name", "tried")
    run(folder, replace(AFTER, shade=200), seed=3, max_views=3)
    return folder


def compared(project, before, after, *, rows=None, metrics=METRICS):
    sides = [read_revision(project, name) for name in (before, after)]
    return compare(*sides, rows=rows, metrics=metrics, num_draws=NUM_DRAWS, seed=0)


@pytest.fixture(scope="module")
def comparison(project):
    return compared(project, "one", "other")


def change(comparison, key):
    return next(one for one in comparison.rows[0].changes if one.declared.key == key)


def call(project, monkeypatch, *args):
    monkeypatch.chdir(project)
    return CliRunner().invoke(app, [*args], env={"COLUMNS": "100"})


def plain_interval(before, after, *, seed=0):
    """The bootstrap, image by image: each draw repeats images, and both sides get the same ones."""
    rng = np.random.default_rng(seed)
    num = len(before)
    differences = []
    for counts in rng.multinomial(num, np.full(num, 1 / num), size=NUM_DRAWS):
        drawn = np.repeat(np.arange(num), counts)
        differences.append(np.mean(np.array(after)[drawn]) - np.mean(np.array(before)[drawn]))
    return np.quantile(differences, [0.025, 0.975])


# --- how they were made


def test_params_and_contents_that_differ_are_those_that_were_run(comparison):
    made_from = comparison.made_from
    assert made_from.params == (Changed("crops.max_views", "5", "3"), Changed("seed", "0", "1"))
    assert [changed.key for changed in made_from.contents] == ["made"]
    assert made_from.commands == ()
    assert not made_from.is_code_only


def test_an_edited_params_file_that_was_not_run_counts_for_nothing(tmp_path):
    set_up(tmp_path)
    run(tmp_path, BEFORE, seed=0, max_views=5)
    commit(tmp_path, "one")
    (tmp_path / "params.yaml").write_text("seed: 7\ncrops: {max_views: 9}\n", encoding="utf-8")
    found = compared(tmp_path, "one", "workspace")
    assert found.made_from.params == ()
    assert made_from_sentence(found.made_from) == "Both were made in the same way: params, code and data are equal."
    (tmp_path / "params.yaml").write_text("seed: 0\ncrops: {max_views: 5}\n", encoding="utf-8")
    (tmp_path / "pipeline" / "code.py").write_text("two\n", encoding="utf-8")
    dvc(tmp_path, "repro", "--quiet")
    found = compared(tmp_path, "one", "workspace")
    assert found.made_from.is_code_only
    assert made_from_sentence(found.made_from) == "Only code differs: 1 path. All params are the same."


# --- metrics


def test_a_mean_over_images_has_the_paired_interval_of_a_plain_loop(comparison):
    accuracy = change(comparison, "accuracy")
    assert (accuracy.before, accuracy.after, accuracy.difference) == (5 / 8, 7 / 8 - 1 / 8, 1 / 8)
    own, other = (np.equal(toy.labels, toy.predicted).astype(float) for toy in (BEFORE, AFTER))
    assert [accuracy.interval.low, accuracy.interval.high] == pytest.approx(plain_interval(own, other))
    assert accuracy.verdict == "unclear"


def test_a_difference_that_nearly_all_images_share_is_clear_and_has_a_direction(comparison):
    size = change(comparison, "local_size")
    assert size.difference == pytest.approx(-7 / 8)
    assert [size.interval.low, size.interval.high] == pytest.approx(plain_interval(BEFORE.sizes, AFTER.sizes))
    assert metric("compactness", "local_size").direction == "lower"
    assert size.verdict == "better"
    assert change(compared_back(comparison), "local_size").verdict == "worse"


def compared_back(comparison):
    """The same comparison the other way round: every change with the opposite sign."""
    row = comparison.rows[0]
    flipped = tuple(
        replace(
            one,
            before=one.after,
            after=one.before,
            difference=None if one.difference is None else -one.difference,
            interval=one.interval and type(one.interval)(-one.interval.high, -one.interval.low),
        )
        for one in row.changes
    )
    return replace(comparison, rows=(replace(row, changes=flipped),))


def test_metrics_of_sets_are_rebuilt_from_predictions_where_that_gives_their_value(comparison):
    balanced, precision = change(comparison, "balanced_accuracy"), change(comparison, "precision")
    assert (balanced.before, balanced.after) == (5 / 8, 6 / 8)
    assert balanced.interval is not None
    assert (precision.before, precision.after) == (
        pytest.approx((3 / 5 + 2 / 3) / 2),
        pytest.approx((2 / 2 + 4 / 6) / 2),
    )
    assert precision.interval is not None


def test_what_cannot_be_rebuilt_has_a_difference_without_an_interval_and_says_why(comparison):
    assert change(comparison, "topk_accuracy").interval is None
    assert "not kept image by image" in change(comparison, "topk_accuracy").note
    assert change(comparison, "global_size").difference == 0
    assert change(comparison, "global_size").note == "not about images"


def test_a_stored_number_that_the_images_do_not_give_has_no_interval(project):
    before, after = (read_revision(project, name) for name in ("one", "other"))
    key = "protomask", "classification", "accuracy"
    after = replace(after, details={**after.details, key: replace(after.details[key], value=0.7501)})
    found = change(compare(before, after, rows=None, metrics=METRICS, num_draws=NUM_DRAWS, seed=0), "accuracy")
    assert (found.after, found.interval) == (0.7501, None)
    assert "do not give the stored number" in found.note


def test_networks_of_two_kinds_are_compared_row_by_own_row(project):
    before, after = (read_revision(project, name) for name in ("one", "other"))
    renamed = {("protopnet", *name[1:]): detail for name, detail in after.details.items()}
    after = replace(
        after,
        metrics={"protopnet": after.metrics["protomask"]},
        details=renamed,
        predictions={"protopnet": after.predictions["protomask"]},
    )
    found = compare(before, after, rows=None, metrics=METRICS, num_draws=NUM_DRAWS, seed=0)
    assert [row.title for row in found.rows] == ["ProtoMask → ProtoPNet"]
    assert change(found, "accuracy").difference == 1 / 8
    with pytest.raises(PipelineError, match="--rows protomask"):
        compare(before, after, rows="protomask", metrics=METRICS, num_draws=NUM_DRAWS, seed=0)


# --- test sets that differ


def test_only_shared_images_are_compared_where_test_sets_differ(project):
    found = compared(project, "one", "tried")  # images 0 to 4 are shared
    sets = found.rows[0].image_sets
    assert (sets.num_before, sets.num_after, sets.num_shared, sets.is_paired) == (8, 8, 5, True)
    accuracy = change(found, "accuracy")
    assert (accuracy.before, accuracy.after) == (4 / 5, 3 / 5)
    assert [flip.image_key for flip in found.flips.broken] == ["test_2"]
    assert found.flips.mended == ()
    assert "5 are shared" in render_markdown(found, most=10)


def test_pictures_of_equal_names_but_other_content_are_not_the_same_images(project):
    found = compared(project, "other", "workspace")
    sets = found.rows[0].image_sets
    assert (sets.num_shared, sets.num_replaced, sets.is_paired) == (0, 8, False)
    assert isinstance(found.flips, Missing)
    assert all(move.is_replaced for move in found.moves.moved)
    assert len(found.moves.moved) == 3


def test_without_shared_images_the_interval_comes_from_both_sets_and_is_wider(project, comparison):
    unpaired = change(compared(project, "one", "workspace"), "local_size")
    paired = change(comparison, "local_size")
    assert unpaired.difference == pytest.approx(paired.difference)
    rng = np.random.default_rng(0)
    differences = [
        np.average(AFTER.sizes, weights=counts[8:]) - np.average(BEFORE.sizes, weights=counts[:8])
        for counts in rng.multinomial(16, np.full(16, 1 / 16), size=NUM_DRAWS)
    ]
    expected = np.quantile(differences, [0.025, 0.975])
    assert [unpaired.interval.low, unpaired.interval.high] == pytest.approx(expected)
    assert unpaired.verdict == "unclear"
    assert paired.verdict == "better"


# --- what is kept of each image


def test_values_of_images_are_read_by_row_and_name_with_gaps_where_there_are_none(tmp_path):
    rng = np.random.default_rng(0)
    names = ["a.x", "b.y", "c.z"]
    entries = [
        {
            "row": row,
            "image_key": f"image_{rng.integers(1_000)}",
            "label": int(rng.integers(5)),
            "predicted": int(rng.integers(5)),
            "confidence": 0.25,
            "label_probability": 0.5,
            "values": [(name, float(rng.normal())) for name in names if rng.random() < (0.6 if row == "second" else 0)],
        }
        for row in ["second", "first", "second", "first", "second", "second"] * 4
    ]
    set_up(tmp_path)
    run(tmp_path, BEFORE, seed=0, max_views=5)
    write_table(tmp_path / "made" / "results" / "per_image.parquet", entries, PER_IMAGE)
    dvc(tmp_path, "repro", "--quiet")
    found = read_revision(tmp_path, "workspace").predictions
    assert list(found) == ["second", "first"]
    assert "third" not in found
    for row, predictions in found.items():
        own = [entry for entry in entries if entry["row"] == row]
        assert predictions.image_keys == tuple(entry["image_key"] for entry in own)
        assert predictions.labels.tolist() == [entry["label"] for entry in own]
        assert predictions.predicted.tolist() == [entry["predicted"] for entry in own]
        assert predictions.confidence.tolist() == [0.25] * len(own)
        assert sorted(predictions.values) == (names if row == "second" else [])
        for name, values in predictions.values.items():
            expected = [dict(entry["values"]).get(name, np.nan) for entry in own]
            np.testing.assert_array_equal(values, expected)


# --- classes, images, prototypes


def test_recall_of_classes_changes_by_the_share_of_their_images(comparison):
    first, second = comparison.classes
    assert (first.class_name, first.num_before, first.before, first.after) == ("<b>x</b>", 4, 0.5, 1.0)
    assert (second.class_name, second.num_before, second.before, second.after) == ("gull", 4, 0.75, 0.5)
    assert [first.interval.low, first.interval.high] == pytest.approx(plain_interval([1, 1, 0, 0], [1, 1, 1, 1]))
    assert comparison.flips.num_both_right == 4


def test_a_class_with_one_image_has_no_interval(tmp_path):
    single = Toy(keys=("a", "b", "c"), labels=(0, 0, 1), predicted=(0, 0, 1), sizes=(1.0, 2.0, 3.0))
    set_up(tmp_path)
    run(tmp_path, single, seed=0, max_views=5)
    commit(tmp_path, "one")
    run(tmp_path, replace(single, predicted=(0, 0, 0)), seed=0, max_views=5)
    lost, kept = compared(tmp_path, "one", "workspace").classes
    assert (lost.class_name, lost.difference, lost.interval) == ("<b>x</b>", -1.0, None)
    assert kept.interval is not None


def test_images_flip_in_both_directions_and_the_test_is_mcnemars(comparison):
    assert comparison.flips.broken == (Flip("test_2", "gull", "gull", "<b>x</b>", 0.75, 0.75),)
    assert [flip.image_key for flip in comparison.flips.mended] == ["test_6", "test_7"]
    assert (comparison.flips.num_both_right, comparison.flips.num_both_wrong) == (4, 1)
    assert comparison.flips.p_value == binomtest(1, 3, 0.5).pvalue


def test_nothing_flips_and_nothing_moves_between_a_branch_and_its_tag(project):
    found = compared(project, "one", "v1")
    assert (found.flips.broken, found.flips.mended, found.flips.p_value) == ((), (), 1.0)
    assert found.moves.moved == ()
    assert found.moves.num_unmoved == 3
    assert all(not one.difference for one in found.rows[0].changes)


def test_a_prototype_moved_where_its_slot_has_another_source(comparison):
    moves = comparison.moves
    box = Box(4, 4, 12, 12)
    expected = Move(1, "gull", Source("train_1", 0, None, box), Source("train_2", 1, None, box), False)
    assert moves.moved == (expected,)
    assert (moves.num_unmoved, moves.num_added, moves.num_removed) == (2, 0, 0)


def test_slots_of_one_side_are_counted_as_added_or_removed(project):
    before, after = (read_revision(project, name) for name in ("one", "other"))
    after = replace(after, prototypes=(*after.prototypes[:2], replace(after.prototypes[2], class_name="gull")))
    moves = compare(before, after, rows=None, metrics=(), num_draws=NUM_DRAWS, seed=0).moves
    assert (len(moves.moved), moves.num_unmoved, moves.num_added, moves.num_removed) == (1, 1, 1, 1)


# --- what is missing


def test_an_unknown_revision_names_near_ones(project, monkeypatch):
    result = call(project, monkeypatch, "othre")
    assert result.exit_code == 1
    assert "git knows no revision 'othre'; near: other" in result.stderr
    assert "dvc exp list" in result.stderr
    assert "near: tried" in call(project, monkeypatch, "tired").stderr


@pytest.fixture
def copy(project, tmp_path):
    """A copy of the project that may be damaged."""
    return shutil.copytree(project, tmp_path / "copy", symlinks=True)


def forget(folder, rev, path):
    """Take what PATH holds at REV out of DVC's cache."""
    lock = yaml.safe_load(sh(folder, "git", "show", f"{rev}:dvc.lock"))
    (digest,) = (out["md5"] for out in lock["stages"]["evaluate"]["outs"] if out["path"] == path)
    file = folder / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]
    file.chmod(0o644)
    file.unlink()


def test_metrics_that_are_not_in_the_cache_stop_with_the_commands_that_bring_them(copy, monkeypatch):
    forget(copy, "one", "results/metrics.json")
    result = call(copy, monkeypatch, "one", "other")
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert "one: no results/metrics.json" in line
    assert "`git checkout one && dvc pull results/metrics.json`" in line
    assert "`git checkout one && dvc repro`" in line


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("results/per_image.parquet", "flips"),
        ("results/per_image.parquet", "classes"),
        ("models/final", "moves"),
    ],
)
def test_a_missing_optional_file_drops_only_its_part(copy, path, part, comparison):
    forget(copy, "one", path)
    found = compared(copy, "one", "other")
    missing = getattr(found, part)
    assert isinstance(missing, Missing)
    assert f"one: no {path}" in missing.reason
    assert change(found, "accuracy").difference == 1 / 8
    others = {"flips", "classes", "moves"} - {part} - ({"flips", "classes"} if "per_image" in path else set())
    assert all(getattr(found, other) == getattr(comparison, other) for other in others)
    assert missing.reason.split(";")[0] in re.sub(
        r"&#(\d+);", lambda one: chr(int(one[1])), render_markdown(found, most=3)
    )


def test_an_experiment_is_brought_back_by_applying_it(copy):
    lock = yaml.safe_load(dvc_show(copy, "tried", "dvc.lock"))
    digest = next(
        out["md5"] for out in lock["stages"]["evaluate"]["outs"] if out["path"] == "results/per_image.parquet"
    )
    (copy / ".dvc" / "cache" / "files" / "md5" / digest[:2] / digest[2:]).unlink()
    assert "dvc exp apply tried && dvc repro" in read_revision(copy, "tried").predictions.reason


def dvc_show(folder, experiment, path):
    (ref,) = [line.split()[1] for line in sh(folder, "git", "show-ref").splitlines() if line.endswith(f"/{experiment}")]
    return sh(folder, "git", "show", f"{ref}:{path}")


def test_a_file_of_the_workspace_that_was_changed_by_hand_is_not_believed(copy):
    path = copy / "results" / "per_image.parquet"
    path.unlink()
    path.write_bytes(b"something else")
    assert "is not the one that dvc.lock records" in read_revision(copy, "workspace").predictions.reason


def test_without_details_values_come_from_the_metrics(copy, comparison):
    forget(copy, "one", "results/metrics_detail.parquet")
    found = compared(copy, "one", "other")
    assert change(found, "accuracy") == change(comparison, "accuracy")
    assert "metrics_detail.parquet" in found.details.reason


# --- renderings


def test_the_terminal_shows_every_part_in_100_columns_and_counts_what_it_leaves_out(project, monkeypatch):
    result = call(project, monkeypatch, "one", "other", "--most", "1")
    assert result.exit_code == 0
    text = result.stdout
    assert max(map(len, text.splitlines())) <= 100
    for part in ("crops.max_views", "Balanced accuracy", "<b>x</b>", "test_2", "test_6", "train_1, mask 0", "McNemar"):
        assert part in text
    assert "test_7" not in text
    assert "... and 1 more" in text


def test_the_other_side_is_the_workspace_unless_one_is_named(project, monkeypatch):
    assert "→ workspace" in call(project, monkeypatch, "v1").stdout.splitlines()[1]


def test_markdown_goes_to_stdout_alone_where_asked(project, monkeypatch, comparison):
    printed = call(project, monkeypatch, "one", "other", "--markdown", "-").stdout
    assert printed.startswith("## one (")
    assert printed.count("<details>") == printed.count("</details>") == 6
    assert "<b>" not in printed
    assert "&lt;b&gt;x&lt;/b&gt;" in printed


@pytest.mark.parametrize(
    "text", ["<b>x</b>", "a | b", "*x*", "[a](http://b)", "`c`", "@somebody", "#12", "_x_", "a\nb", "$x$", "$$x$$"]
)
def test_text_of_users_is_no_markup(text):
    written = escaped(text)
    for mark in "@#$":  # alone in its element, it is none in the text that is shown, either
        written = written.replace(f"<span>&#{ord(mark)};</span>", "")
        assert f"&#{ord(mark)};" not in written
    assert not re.search(r"[<>|*`@~$\n]|\]\(|(^|\W)_|_($|\W)|(?<!&)#", written)
    assert escaped("bird_00_test [1, 2]") == "bird_00_test [1, 2]"


def test_the_sentence_about_chance_counts_intervals_that_leave_out_0(comparison):
    interval = Interval(0.1, 0.3)
    clear = replace(change(comparison, "accuracy"), difference=0.2, interval=interval)
    row = replace(comparison.rows[0], changes=(clear, *(replace(clear, interval=Interval(-0.1, 0.3)),) * 59))
    found = replace(comparison, rows=(row,), classes=Missing("none"))
    expected = "0 lies outside 1 of 60 intervals of metrics; by chance alone it would lie outside about 3.0 of them."
    assert expected in notes(found)


def large(comparison, *, num_classes, num_flips, num_moves):
    """The comparison with as many entries of each kind as a large data set has."""
    name = "{:03d}.Black_footed_Albatross"
    image = "Black_Footed_Albatross_{:04d}_796063"
    flip, (move,) = comparison.flips.broken[0], comparison.moves.moved
    classes = [replace(comparison.classes[0], class_name=name.format(idx)) for idx in range(num_classes)]
    flips = [
        replace(flip, image_key=image.format(idx), class_name=name.format(idx), predicted_after=name.format(idx + 1))
        for idx in range(num_flips)
    ]
    moves = [
        replace(
            move,
            prototype_idx=idx,
            class_name=name.format(idx),
            before=replace(move.before, image_key=image.format(idx)),
            after=replace(move.after, image_key=image.format(idx + 1)),
        )
        for idx in range(num_moves)
    ]
    return replace(
        comparison,
        classes=tuple(classes),
        flips=replace(comparison.flips, broken=tuple(flips[::2]), mended=tuple(flips[1::2])),
        moves=replace(comparison.moves, moved=tuple(moves)),
    )


@pytest.mark.parametrize(("name", "num_lines"), [("made", 50), ("made" * 200, 20), ("made" * 1000, 0)])
def test_markdown_of_a_large_comparison_fits_into_a_comment_and_says_where_the_rest_is(comparison, name, num_lines):
    found = large(comparison, num_classes=200, num_flips=500, num_moves=1_900)
    contents = tuple(Changed(f"{name}/{idx}", "0" * 32, "1" * 32) for idx in range(60 if len(name) > 4 else 1))
    text = render_markdown(replace(found, made_from=replace(found.made_from, contents=contents)), most=10)
    assert len(text) < 65_000
    assert text.count("Tables are cut to fit into a comment: the page (`--html`;") == 1
    lists = re.findall(r"<summary>[^<]* \((\d+)\)</summary>\n\n(.*?)\n\nand (\d+) more\n\n</details>", text, re.DOTALL)
    nums = [(int(num), len(table.splitlines()) - 2, int(more)) for num, table, more in lists]
    assert nums == [(num, num_lines, num - num_lines) for num in (200, 250, 250, 1_900) if num_lines]
    assert text.count("<details>") == text.count("</details>")
    assert "1900 of 1902 prototypes moved" in text


def test_markdown_that_fits_is_not_cut(comparison):
    text = render_markdown(large(comparison, num_classes=10, num_flips=10, num_moves=200), most=10)
    assert "| 199 " in text
    assert "Tables are cut" not in text
    text = render_markdown(large(comparison, num_classes=10, num_flips=10, num_moves=201), most=10)
    assert "\n\nand 1 more\n" in text
    assert "Tables are cut" in text


@pytest.mark.parametrize("option", ["--json", "--html", "--markdown"])
def test_a_file_that_cannot_be_written_is_named_in_one_line(project, monkeypatch, tmp_path, option):
    result = call(project, monkeypatch, "one", "other", option, str(tmp_path))
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.endswith(f"{tmp_path} cannot be written (Is a directory): name another place")


def test_no_bars_appear_for_what_takes_no_time(project, monkeypatch, tmp_path):
    result = call(project, monkeypatch, "one", "other", "--html", str(tmp_path / "page.html"))
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_bar_appears_where_intervals_take_seconds(project, monkeypatch, capsys):
    monkeypatch.setattr("pipeline.compare.differences._CELLS_OF_SECONDS", 0)
    compared(project, "one", "other")
    assert "metrics, intervals" in capsys.readouterr().err


def test_all_numbers_are_written_for_programs(project, monkeypatch, tmp_path):
    target = tmp_path / "numbers.json"
    assert call(project, monkeypatch, "one", "other", "--json", str(target)).exit_code == 0
    content = json.loads(target.read_text())
    accuracy = next(one for one in content["rows"][0]["changes"] if one["key"] == "accuracy")
    assert (accuracy["before"], accuracy["after"], accuracy["verdict"]) == (0.625, 0.75, "unclear")
    assert content["flips"]["p_value"] == 1.0
    assert content["moves"]["moved"][0]["after"] == {
        "image_key": "train_2",
        "mask_idx": 1,
        "place_idx": None,
        "box": [4, 4, 12, 12],
    }


def test_the_page_is_one_file_with_pictures_and_shows_text_of_users_as_text(project, monkeypatch, tmp_path):
    target = tmp_path / "page.html"
    assert call(project, monkeypatch, "one", "other", "--html", str(target)).exit_code == 0
    page = target.read_text()
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert len(re.findall(r'<img src="data:image/jpeg;base64,[^"]+" width="16"', page)) == 5  # 3 flips, 2 sources
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert page.count("alt=") == page.count("<img ")
    again = tmp_path / "again.html"
    call(project, monkeypatch, "one", "other", "--html", str(again))
    assert again.read_bytes() == target.read_bytes()


def test_pictures_that_are_not_in_the_cache_are_left_out_with_a_reason(copy):
    forget(copy, "one", "data/masks")
    shutil.rmtree(copy / "data" / "masks")
    before, after = (read_revision(copy, name) for name in ("one", "other"))
    found = compare(before, after, rows=None, metrics=METRICS, num_draws=NUM_DRAWS, seed=0)
    pictures = draw_pictures(found, before, after, most=5)
    assert len(pictures.before) == 1
    assert any("Without outlines: one: no data/masks/masks.parquet" in reason for reason in pictures.reasons)
    before = replace(before, images=Missing("one: no data/dataset"))
    pictures = draw_pictures(found, before, after, most=5)
    assert (pictures.before, len(pictures.after), len(pictures.images)) == ({}, 1, 3)
    assert "one: no data/dataset" in render_page(found, pictures, most=5)


def test_on_test_images_nothing_is_drawn_but_on_sources_box_and_outline_are(project, comparison):
    sides = [read_revision(project, name) for name in ("one", "other")]
    pictures = draw_pictures(comparison, *sides, most=5)
    assert len(pictures.images) == 3
    for picture in pictures.images.values():
        assert np.ptp(pixels_of(picture).astype(int), axis=(0, 1)).max() <= 2  # one colour, as JPEG keeps it
    (source,) = pictures.before.values()
    assert np.ptp(pixels_of(source).astype(int), axis=(0, 1)).max() > 100


def pixels_of(picture):
    return np.asarray(Image.open(BytesIO(base64.b64decode(str(picture.src).partition("base64,")[2]))))


@pytest.mark.parametrize(("value", "text"), [(0.01234, "+1.23"), (-0.5, "−50.00"), (0.000001, "0.00"), (0.0, "0.00")])
def test_differences_have_a_sign_unless_nothing_is_left_of_them(value, text):
    assert signed(metric("classification", "accuracy"), value) == text


def test_an_unknown_metric_and_row_are_named(project, monkeypatch):
    assert (
        "--metrics acuracy: there is no such name" in call(project, monkeypatch, "one", "--metrics", "acuracy").stderr
    )
    assert "--rows blackbox: there is no such name" in call(project, monkeypatch, "one", "--rows", "blackbox").stderr


def test_outside_a_project_the_command_says_so(tmp_path, monkeypatch):
    assert "is no DVC project" in call(Path(tmp_path), monkeypatch, "main").stderr
