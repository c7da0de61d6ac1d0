import json
import re
import shutil
from html import unescape
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.explain import Explainer
from pipeline.explain.__main__ import app
from pipeline.params import CropsParams, MasksParams
from tests.explained_run import CLASSES, GRID, RUNTIME, Run
from tests.small_networks import HEADS_WITH_PROTOTYPES


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, "protomask", MasksParams.model_validate(GRID), CropsParams(size_px=32))


def invoke(run, *args):
    folders = ("--model", run.final, "--dataset", run.folder / "dataset", "--crops", run.folder / "crops")
    options = (*folders, "--out", run.folder / "out", "--runtime", run.folder / "runtime.yaml")
    return CliRunner().invoke(app, [str(arg) for arg in (*args, *options)])


def numbers_on(text):
    """All numbers with three digits after the point."""
    return [float(number.replace("−", "-")) for number in re.findall(r"[-−]?\d+\.\d{3}", text)]


def test_a_table_a_page_and_a_drawing_are_made_of_each_picture(run):
    result = invoke(run, run.picture("one"), run.picture("two"), "--top", "3")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (run.folder / "out").iterdir()) == [
        "one.html",
        "one.png",
        "two.html",
        "two.png",
    ]
    explained = Explainer(run.final, runtime=RUNTIME).explain(run.picture("one"), top=3)
    first = result.stdout[: result.stdout.index("next:")]
    assert explained.predicted in first
    *products, rest, total = numbers_on(first)
    assert len(products) == 9  # similarity, weight and contribution of three prototypes
    assert round(sum(products[2::3]) + rest, 3) == total  # to the digit
    assert total == pytest.approx(explained.explanation.predicted.total, abs=0.001)
    picture = Image.open(BytesIO((run.folder / "out/one.png").read_bytes()))
    assert picture.width == 1200
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize("head", HEADS_WITH_PROTOTYPES)
def test_a_page_needs_no_other_file_and_its_sums_are_right(head, tmp_path):
    run = Run(tmp_path, head, MasksParams.model_validate(GRID), CropsParams(size_px=32))
    assert invoke(run, run.picture("one"), "--top", "6").exit_code == 0
    page = (run.folder / "out/one.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"#]*)', page)
    assert len([source for source in sources if source.startswith("data:image/jpeg;base64,")]) > 2
    assert all(source.startswith("data:") for source in sources if source)
    assert "http" not in re.sub(r"data:[^\"]*", "", page)
    *contributions, total = [float(value.replace("−", "-")) for value in re.findall(r"<b>([−\d.]+)</b>", page)]
    assert len(contributions) == 6  # all prototypes have a line, so there is no rest
    assert round(sum(contributions), 3) == total
    assert ("ln(total² + 1)" in page) == (head == "pipnet")


def test_json_is_all_that_is_printed_when_asked_for(run):
    result = invoke(run, run.picture("one"), run.picture("two"), "--json")
    entries = json.loads(result.stdout)
    assert [entry["image"] for entry in entries] == [run.picture(key).as_posix() for key in ("one", "two")]
    assert all(entry["predicted"] in CLASSES for entry in entries)


def test_the_same_picture_gives_the_same_files(run):
    assert invoke(run, run.picture("one")).exit_code == 0
    first = {path.name: path.read_bytes() for path in (run.folder / "out").iterdir()}
    assert invoke(run, run.picture("one")).exit_code == 0
    assert {path.name: path.read_bytes() for path in (run.folder / "out").iterdir()} == first


def test_pictures_of_one_name_do_not_overwrite_each_other(run):
    names = ("one.png", "one-2.png", "other/one.png", "more/one.png")
    for name, key in zip(names[1:], ("two", "three", "two"), strict=True):
        (run.folder / "dataset" / name).parent.mkdir(exist_ok=True)
        shutil.copy(run.picture(key), run.folder / "dataset" / name)
    pictures = [run.folder / "dataset" / name for name in (names[0], *names[2:], names[1])]
    assert invoke(run, *pictures).exit_code == 0
    assert sorted(path.stem for path in (run.folder / "out").glob("*.html")) == ["one", "one-2", "one-2-2", "one-3"]


def test_a_place_that_cannot_be_written_to_is_named(run):
    (run.folder / "out").write_text("a file")
    result = invoke(run, run.picture("one"))
    assert result.exit_code == 1
    assert "error: " in result.output
    assert "cannot be written (File exists): name another place" in result.output


def test_a_bad_picture_does_not_keep_the_others_from_being_explained(run):
    bad = run.folder / "bad.jpg"
    bad.write_text("no picture")
    result = invoke(run, bad, run.picture("one"), run.folder / "gone.png", run.folder / "dataset")
    assert result.exit_code == 1
    assert "error: 3 of 4 pictures could not be explained" in result.output
    assert "bad.jpg: cannot be decoded" in result.output
    assert "gone.png: this image does not exist" in result.output
    assert "dataset: cannot be read (Is a directory)" in result.output
    assert (run.folder / "out/one.html").exists()
    assert not (run.folder / "out/bad.html").exists()


def test_prototypes_are_named_where_their_pictures_are_not_at_hand(run):
    shutil.rmtree(run.folder / "crops")
    result = invoke(run, run.picture("one"), "--top", "6")
    assert result.exit_code == 0, result.output
    assert "prototypes are named, but not shown" in result.output
    page = (run.folder / "out/one.html").read_text(encoding="utf-8")
    assert "no picture at hand" in page
    assert "no source" in page  # the last prototype has none anywhere
    assert "Prototype 5" in page


def test_names_are_shown_as_text(tmp_path):
    run = Run(
        tmp_path,
        "protomask",
        MasksParams.model_validate(GRID),
        CropsParams(size_px=32),
        class_names=["<b>x</b>", "[red]y", "z"],
    )
    picture = run.folder / "<i>bird<i>.png"
    shutil.copy(run.picture("one"), picture)
    result = invoke(run, picture, "--top", "6")
    assert result.exit_code == 0, result.output
    assert "[red]y" in result.stdout
    page = (run.folder / "out/<i>bird<i>.html").read_text(encoding="utf-8")
    assert "<b>x" not in page
    assert "<i>" not in page
    assert "<b>x</b>" in unescape(page)


def test_help_says_what_is_read_and_written():
    text = CliRunner().invoke(app, ["--help"]).output
    for said in ("IMAGE", "--model", "--top", "--json", "OUT/NAME.html", "from pipeline.explain import explain"):
        assert said in text
