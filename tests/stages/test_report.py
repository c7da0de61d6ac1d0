import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.artifacts import METRICS_DETAIL, PER_IMAGE, read_table, write_table
from pipeline.data.masks import MaskTableWriter, iterate_masks
from pipeline.io import read_json, write_json
from pipeline.metrics.registry import METRICS
from pipeline.report.site import PAGES
from pipeline.report.tables import HEAD_TITLES, family_title
from stages.report import app
from tests.small_run import (
    CLASSES,
    LOCK,
    NUM_PROTOTYPES,
    SETTINGS,
    SIDE_PX,
    TERMS,
    WITH_PLACES,
    make_crops,
    make_network,
    make_results,
    make_run,
    prototype,
    remake,
    write_params,
    write_prototypes,
)

VOID = {"meta", "link", "img", "br", "input"}
TEST_KEYS = [f"c{label}_{number}" for label in range(3) for number in (3, 4)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run_folder(finished, tmp_path):
    """A copy of the finished run that a test may damage."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def run(folder, report="results/report", card="results/MODEL_CARD.md", pictures="results/pictures"):
    paths = ["data/dataset", "data/masks", "data/crops", "models/final", "results", report, card, pictures]
    options = [f"--{name}={folder / file}" for name, file in CONTEXT.items()]
    return CliRunner().invoke(app, [*(str(folder / path) for path in paths), *options])


CONTEXT = {"params": "params.yaml", "runtime": "runtime.yaml", "lock": "dvc.lock"}


class Page(HTMLParser):
    """The elements of a page, with the text of each; refuses tags that do not fit."""

    def __init__(self, report, path="index.html"):
        super().__init__()
        self.report, self.path = report, path
        self.source = (report / path).read_text(encoding="utf-8")
        self.elements = []  # (tag, attributes)
        self.texts = []  # (tags around, text)
        self._open = []
        self.feed(self.source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((tuple(self._open), data.strip()))

    def all(self, tag, css_class=None):
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and (css_class is None or css_class in (attributes.get("class") or "").split())
        ]

    def texts_in(self, tag):
        return [text for tags, text in self.texts if tags[-1] == tag]

    def in_words(self):
        return " ".join(" ".join(text for tags, text in self.texts if tags[-1] not in ("script", "style")).split())

    def ids(self):
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]

    def charts(self):
        """What the charts say to those who cannot see them."""
        return [svg["aria-label"] for svg in self.all("svg") if svg.get("role") == "img"]

    def references(self):
        """The files that the page names, from the folder of the report; and the places in them, or none."""
        named = [
            attributes[name] for _, attributes in self.elements for name in ("src", "href") if attributes.get(name)
        ]
        found = []
        for reference in named:
            if not reference.startswith("data:"):
                path, _, place = reference.partition("#")
                target = (self.report / self.path).parent / unquote(path) if path else self.report / self.path
                found.append((target.resolve(), place))
        return found


def report_of(folder):
    """Make the report and parse its pages, by path."""
    result = run(folder)
    assert result.exit_code == 0, result.output
    report = folder / "results/report"
    paths = sorted(path.relative_to(report).as_posix() for path in report.rglob("*.html"))
    return {path: Page(report, path) for path in paths}


def report_of_head(finished, folder, head):
    """Make the report of a run with another head."""
    shutil.copytree(finished, folder)
    remake(folder, head)
    return report_of(folder)


@pytest.fixture(scope="module")
def pages(finished):
    return report_of(finished)


@pytest.fixture(scope="module")
def places(finished, tmp_path_factory):
    """The pages of a PIP-Net: spatial prototypes, shared by all classes."""
    return report_of_head(finished, tmp_path_factory.mktemp("pipnet") / "run", "pipnet")


@pytest.fixture(scope="module")
def blackbox(finished, tmp_path_factory):
    return report_of_head(finished, tmp_path_factory.mktemp("blackbox") / "run", "blackbox")


@pytest.fixture(params=["pages", "places", "blackbox"])
def any_pages(request):
    return request.getfixturevalue(request.param)


def files_below(*folders):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


# the site


def test_two_runs_give_the_same_bytes(run_folder):
    contents = []
    for name in ("one", "two"):
        result = run(run_folder, f"{name}/report", f"{name}/MODEL_CARD.md", f"{name}/pictures")
        assert result.exit_code == 0, result.output
        contents.append(files_below(run_folder / name))
    assert contents[0] == contents[1]
    assert {"report/index.html", "report/images/c0_3.html", "MODEL_CARD.md", "pictures/masks.jpg"} <= contents[0].keys()


def test_there_is_a_page_for_each_entry_of_the_head_and_for_each_test_image(any_pages):
    assert sorted(any_pages) == sorted([*PAGES, *(f"images/{key}.html" for key in TEST_KEYS)])
    for path, page in any_pages.items():
        current = [link for link in page.all("a") if link.get("aria-current") == "page"]
        assert [link["href"] for link in current] == ([path] if path in PAGES else [])


def test_the_folder_needs_nothing_beyond_itself(any_pages):
    report = any_pages["index.html"].report.resolve()
    pages_and_pictures = set()
    for page in any_pages.values():
        for target, _ in page.references():
            assert target.is_file(), target
            assert report in target.parents
            pages_and_pictures.add(target)
        assert "@import" not in page.source
        assert "url(" not in page.source
        data = re.findall(r'"([0-9a-f]{16}\.jpg)"', page.source)
        pages_and_pictures |= {report / "pictures" / name for name in data}
    assert {path for path in report.rglob("*") if path.is_file()} == pages_and_pictures
    for path, content in files_below(report).items():
        if not path.endswith(".jpg"):
            assert b"://" not in content, path


def test_links_lead_to_places_that_exist(any_pages):
    report = any_pages["index.html"].report.resolve()
    num_places = 0
    for page in any_pages.values():
        ids = page.ids()
        assert len(ids) == len(set(ids))
        labelled = [attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes]
        assert set(labelled) <= set(ids)
        for target, place in page.references():
            if place and "=" not in place:  # what follows an equals sign is for the script
                name = target.relative_to(report).as_posix()
                drawn = name == "prototypes.html" and re.fullmatch(r"prototype-\d", place)
                assert drawn or place in any_pages[name].ids(), (page.path, place)
                num_places += 1
    assert num_places > len(any_pages)


def test_pictures_are_lazy_sized_and_described(any_pages):
    num_pictures = 0
    for page in any_pages.values():
        for picture in page.all("img"):
            if "src" not in picture:  # in a template, which a script fills
                continue
            with Image.open((page.report / page.path).parent / picture["src"]) as opened:
                assert opened.size == (int(picture["width"]), int(picture["height"]))
            assert picture["loading"] == "lazy"
            assert picture["alt"]
            num_pictures += 1
    assert num_pictures >= len(TEST_KEYS)


def test_class_names_are_shown_as_text(any_pages):
    num_shown = 0
    for page in any_pages.values():
        assert CLASSES[0] not in page.source
        num_shown += sum(CLASSES[0] in text for text in (text for _, text in page.texts))
    assert num_shown >= 3


def test_headings_descend_one_level_at_a_time(any_pages):
    for page in any_pages.values():
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(below <= above + 1 for above, below in itertools.pairwise(levels))


def test_nothing_says_where_it_was_made(any_pages):
    folder = any_pages["index.html"].report.parents[1]
    contents = files_below(folder / "results/report") | {
        "MODEL_CARD.md": (folder / "results/MODEL_CARD.md").read_bytes()
    }
    assert len(contents) > 10
    for path, content in contents.items():
        assert str(folder).encode() not in content, path


def test_the_stage_says_last_where_the_first_page_is(run_folder):
    lines = run(run_folder).output.splitlines()
    assert lines[-1].endswith(str(run_folder / "results/report/index.html"))


# the overview


def test_the_table_has_every_metric_with_its_formula_and_the_price(pages):
    page = pages["index.html"]
    texts = [text for _, text in page.texts]
    definitions = page.texts_in("dd")
    assert METRICS
    for declared in METRICS:
        assert any(text.startswith(declared.title) for text in texts)
        assert declared.formula in definitions
    titles = [attributes["title"] for attributes in page.all("th") if "title" in attributes]
    assert titles == [declared.formula for declared in METRICS]
    assert "Price of explainability" in texts


def test_every_place_says_how_the_use_of_prototypes_is_counted(pages):
    words = pages["index.html"].in_words()
    assert re.search(r"of which \d are among the 2 most similar ones of at least one of 6 test images", words)
    assert re.search(
        r"among the 2 most similar prototypes of \d of 6 test images, and a reason for the predicted class", words
    )
    for path, page in pages.items():
        assert "helps to explain" not in page.in_words(), path
        assert "help to explain" not in page.in_words(), path


def write_predictions(folder, num_wrong):
    """Let both networks be right about all test images but the first ones, and say so in metrics and predictions."""
    labels = [0, 0, 1, 1, 2, 2]
    rows, accuracy = [], {}
    for row, wrong in num_wrong.items():
        predicted = [2 - label if idx < wrong else label for idx, label in enumerate(labels)]
        accuracy[row] = sum(one == label for one, label in zip(predicted, labels, strict=True)) / len(labels)
        for image_key, label, of_image in zip(TEST_KEYS, labels, predicted, strict=True):
            content = {"row": row, "image_key": image_key, "label": label, "predicted": of_image, "values": []}
            rows.append(content | {"confidence": 0.5, "label_probability": 0.5})
    write_table(folder / "results/per_image.parquet", rows, PER_IMAGE)
    table = folder / "results/metrics_detail.parquet"
    details = read_table(table, METRICS_DETAIL).to_pylist()
    for detail in details:
        if detail["metric"] == "balanced_accuracy" and detail["row"] in accuracy:
            detail["value"] = accuracy[detail["row"]]
    write_table(table, details, METRICS_DETAIL)


def test_the_price_has_an_interval_where_predictions_give_the_same_numbers(run_folder, pages):
    assert "interval of the difference" not in pages["index.html"].source  # its numbers are made up
    write_predictions(run_folder, {"protomask": 1, "blackbox": 0})
    words = report_of(run_folder)["index.html"].in_words()
    card = (run_folder / "results/MODEL_CARD.md").read_text()
    found = re.search(r"95 % interval of the difference \[−\d+\.\d\d, 0\.00\]", words)
    assert found
    assert f"{found[0]}: no clear difference." in card


def test_test_images_without_a_view_are_not_among_those_that_were_measured(run_folder, pages):
    assert "Measured on 6 test images" in pages["index.html"].in_words()
    assert "have no view" not in pages["index.html"].in_words()
    masks = dict(iterate_masks(run_folder / "data/masks/masks.parquet"))
    with MaskTableWriter(run_folder / "data/masks/masks.parquet") as writer:
        for image_key in sorted(masks.keys() - {"c0_4"}):
            writer.add(image_key, masks[image_key])
    make_crops(run_folder, whole_image=False, empty_bag="drop")
    make_network(run_folder, "protomask")
    make_results(run_folder)
    words = report_of(run_folder)["index.html"].in_words()
    assert "Measured on 5 test images" in words
    assert "The other 1 have no view" in words
    assert "4 training, 3 validation, 6 test images" in words


def test_only_the_first_family_is_open(pages):
    page = pages["index.html"]
    tables = [tags for tags, text in page.texts if tags[-1] == "th" and text == "Metric"]
    families = {declared.family for declared in METRICS}
    assert ["details" in tags for tags in tables] == [False] + [True] * (len(families) - 1)
    summaries = page.texts_in("summary")
    for family in families - {"classification"}:
        num = sum(declared.family == family for declared in METRICS)
        assert f"{family_title(family)}: {num} metrics" in summaries


def test_the_table_says_intervals_failed_checks_fewer_images_and_why_values_are_missing(pages):
    page = pages["index.html"]
    texts = [text for _, text in page.texts]
    intervals = [text for tags, text in page.texts if tags[-1] == "span" and text.startswith("[")]
    num_classification = sum(declared.family == "classification" for declared in METRICS)
    assert len(intervals) == 3 * len(METRICS) + num_classification - 1
    first, second, last = METRICS[0], METRICS[1], METRICS[-1]
    entries = [text for tags, text in page.texts if tags[-1] == "li" and "details" in tags]
    for entry in (
        f"† with prototypes that have changed places: Classification ({first.title}), for ProtoMask",
        f"4 of 6 test images: Classification ({second.title}), for ProtoMask",
        f"– in {family_title(last.family)} ({last.title}), for ProtoMask: the data set has no <parts>",
    ):
        assert entry in entries
    assert any(text.endswith("†") for text in texts)
    notes = [cell["title"] for cell in page.all("td") if "title" in cell]
    assert notes == ["no worse with prototypes that have changed places", "the data set has no <parts>"]
    assert any("1,000 resamples" in text for text in texts)


def test_the_data_are_counted_by_class_and_split(pages):
    page = pages["index.html"]
    start = page.source.index('aria-label="Images of every class"')
    table = page.source[start : page.source.index("</table>", start)]
    assert re.findall(r"<td>(\d+)</td>", table) == ["2", "1", "2", "2", "1", "2", "0", "1", "2"]
    balance, views = page.charts()
    assert balance.startswith("Images per class: 3 in the smallest class, 5 in the median, 5 in the largest, of 3.")
    assert views == "Views per image: 3 to 3, 3 in the median, of 13 images."
    assert f"{CLASSES[0]}: 2 training, 1 validation, 2 test" in page.texts_in("title")


def test_all_params_and_the_seed_are_shown(pages):
    texts = [text for _, text in pages["index.html"].texts]
    for key in ("superpixel.num_superpixels", "loss.separation", "joint.trainable_layers", "thumbnail_px"):
        assert key in texts
    assert any("seed 0" in text for text in texts)


def test_params_that_hold_markup_are_shown_as_text(run_folder):
    classes = ["<script>alert(1)</script>"]
    write_params(run_folder, dataset={"classes": classes})
    page = report_of(run_folder)["index.html"]
    assert not page.all("script")
    assert json.dumps(classes) in [text for _, text in page.texts]


def test_the_outs_of_the_earlier_stages_are_named_in_their_order(pages):
    page = pages["index.html"]
    codes = page.texts_in("code")
    outs = [(entry["path"], entry["md5"]) for name in ("dataset", "evaluate") for entry in LOCK["stages"][name]["outs"]]
    start = codes.index("data/dataset")
    assert codes[start : start + 4] == [text for out in outs for text in out]
    assert "a" * 32 + ".dir" not in codes  # the out of this stage, as it was before
    assert "not in a git repository" in page.in_words()
    assert "torch 2." in page.in_words()


def test_a_run_without_dvc_says_so(run_folder):
    (run_folder / "dvc.lock").unlink()
    words = report_of(run_folder)["index.html"].in_words()
    assert "The stages were not run by DVC" in words
    assert "d" * 32 not in words


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_revision_is_that_of_the_sources_and_stays_when_the_lock_is_committed(run_folder):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(run_folder, "init", "--quiet")
    git(run_folder, "add", "params.yaml")
    git(run_folder, "commit", "--quiet", "-m", "params")
    commit = git(run_folder, "rev-parse", "HEAD")
    clean = report_of(run_folder)["index.html"]
    assert commit in clean.texts_in("code")
    assert "with uncommitted changes" not in clean.source
    git(run_folder, "add", "dvc.lock")
    git(run_folder, "commit", "--quiet", "-m", "lock")
    assert git(run_folder, "rev-parse", "HEAD") != commit
    assert report_of(run_folder)["index.html"].source == clean.source
    with (run_folder / "params.yaml").open("a") as file:
        file.write("# changed\n")
    changed = report_of(run_folder)["index.html"]
    assert commit in changed.texts_in("code")
    assert "with uncommitted changes" in changed.texts_in("span")


def test_a_shallow_clone_does_not_know_its_revision(run_folder, tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(run_folder, "init", "--quiet")
    for name in ("params.yaml", "dvc.lock"):
        git(run_folder, "add", name)
        git(run_folder, "commit", "--quiet", "-m", name)
    git(tmp_path, "clone", "--quiet", "--depth=1", run_folder.as_uri(), str(tmp_path / "clone"))
    shutil.move(tmp_path / "clone/.git", tmp_path / "git")
    shutil.rmtree(run_folder / ".git")
    shutil.move(tmp_path / "git", run_folder / ".git")
    assert "Revision not known: a shallow clone" in report_of(run_folder)["index.html"].in_words()


# metrics and training


def test_the_page_of_metrics_describes_its_charts_in_words(pages):
    charts = pages["metrics.html"].charts()
    starts = (
        "Confusion matrix of 3",
        "Share of right",
        "Share of a class's",
        "Unused (never in the top 2",
        "Prototypes, and",
        "Test images",
    )
    assert len(charts) == len(starts)
    assert all(chart.startswith(start) for chart, start in zip(charts, starts, strict=True))


def test_curves_are_described_in_words(pages):
    page = pages["training.html"]
    charts = page.charts()
    assert len(charts) == 7
    assert charts[0].startswith("Validation accuracy, %, epochs 1 to 4. ProtoMask: 50 at the first")
    assert len(page.all("polyline")) == 2 + 2 + 2 + 4
    assert len(page.all("line", "phase")) == 7


def test_pages_say_which_images_chose_the_epochs(run_folder, pages):
    for name in ("index.html", "training.html"):
        assert "Test images took no part in training or in choosing anything." in pages[name].in_words()
    assert "that was best on validation images." in pages["training.html"].in_words()
    write_params(run_folder, compat={"validate_on_test": True})
    changed = report_of(run_folder)
    for name in ("index.html", "training.html"):
        assert "they chose the epoch that each phase hands on (compat.validate_on_test)" in changed[name].in_words()
    words = changed["training.html"].in_words()
    assert "that was best on test images (compat.validate_on_test)." in words
    assert "validation on this page is measured on test images" in words
    write_params(run_folder, compat={"last_epoch": True})
    assert (
        "Each phase hands on its last epoch (compat.last_epoch)." in report_of(run_folder)["training.html"].in_words()
    )


def test_a_run_of_one_phase_without_a_black_box_has_its_pages(run_folder):
    make_results(run_folder, baseline=False, phases=("joint",))
    write_json(run_folder / "results/finetune.json", {"epochs": 0, "best_epoch": 0})
    pages = report_of(run_folder)
    training = pages["training.html"]
    assert len(training.charts()) == 6
    assert not training.all("line", "phase")
    assert "skipped" in training.source
    for name in ("index.html", "metrics.html", "training.html"):
        assert "Price of explainability" not in pages[name].source
        assert "lack box" not in pages[name].source


# other heads


def test_the_heads_tried_here_are_all_there_are():
    assert set(TERMS) == set(HEAD_TITLES) == set(SETTINGS)


@pytest.mark.parametrize("head", WITH_PLACES)
def test_pages_name_their_own_network_and_no_other(finished, tmp_path, head):
    pages = report_of_head(finished, tmp_path / "run", head)
    title = HEAD_TITLES[head]
    page = pages["index.html"]
    assert page.texts_in("title")[0] == f"{title} on synthetic"
    assert page.texts_in("dt")[:3] == [title, "Black box", "Price of explainability"]
    earlier = [f"{title} before fine-tuning", f"{title} before projection"]
    assert page.texts_in("th")[:6] == ["Metric", title, "Black box", "Price of explainability", *earlier]
    for other in set(HEAD_TITLES.values()) - {title, "Black box"}:
        for each in pages.values():
            assert other not in each.source
    charts = pages["training.html"].charts()
    assert len(charts) == 1 + 2 + len(TERMS[head])
    assert charts[0].startswith(f"Validation accuracy, %, epochs 1 to 4. {title}: 50 at the first")


def test_a_network_without_a_space_of_features_has_no_length_and_sees_whole_images(places, pages):
    of_places, of_views = (found["index.html"].in_words() for found in (places, pages))
    assert "backbone test_efficientnet; seed 0" in of_places
    assert "the whole image is the only view" in of_places
    assert "backbone test_efficientnet, prototypes of length 8; seed 0" in of_views
    assert "the whole image is the only view" not in of_views
    assert len(places["index.html"].charts()) == 1


def test_the_pages_of_a_black_box_say_that_it_has_no_prototypes(blackbox):
    page = blackbox["index.html"]
    assert "Price of explainability" not in page.source
    assert page.texts_in("title")[0] == "Black box on synthetic"
    assert page.texts_in("dt")[0] == "Black box"
    assert page.texts_in("dt").count("Black box") == 1
    assert [text for text in page.texts_in("th") if text == "Black box"] == ["Black box"]
    assert page.texts_in("h3") == ["Classification", "Notes on the numbers"]
    titles = [chart.split(",")[0] for chart in blackbox["training.html"].charts()]
    assert titles == ["Validation accuracy", "Loss of the black box"]
    assert len(blackbox["metrics.html"].charts()) == 3
    assert "no prototypes" in blackbox["prototypes.html"].in_words()


# what does not fit


def drop(path):
    path.unlink()


def garble(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_text("{}")


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (garble, "data/dataset/images.parquet"),
        (drop, "data/dataset/images/c0_0.png"),
        (garble, "data/dataset/images/c0_3.png"),
        (garble, "data/masks/masks.parquet"),
        (drop, "data/crops/train-00000.tar"),
        (drop, "data/crops/test-00000.tar"),
        (garble, "data/crops/views.parquet"),
        (drop, "models/final/prototypes.parquet"),
        (garble, "models/final/prototypes.parquet"),
        (empty, "models/final/model.json"),
        (garble, "models/final/model.safetensors"),
        (drop, "results/metrics_detail.parquet"),
        (garble, "results/metrics_detail.parquet"),
        (empty, "results/masks.json"),
        (empty, "results/crops.json"),
        (empty, "results/train/summary.json"),
        (drop, "results/train/network/plots/metrics/val/accuracy.tsv"),
        (empty, "results/project.json"),
        (empty, "results/finetune.json"),
        (garble, "results/per_image.parquet"),
        (drop, "results/plots/confusion.csv"),
        (empty, "results/plots/roc.csv"),
        (drop, "results/plots/usage.csv"),
        (empty, "dvc.lock"),
    ],
)
def test_damaged_input_is_one_line_and_leaves_the_older_report(run_folder, damage, name):
    older = [run_folder / path for path in ("results/report/index.html", "results/pictures/masks.jpg")]
    older.append(run_folder / "results/MODEL_CARD.md")
    for path in older:
        path.parent.mkdir(exist_ok=True)
        path.write_text("older")
    damage(run_folder / name)
    result = run(run_folder)
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 1
    assert len(errors) == 1
    assert name.rsplit("/", 1)[-1] in errors[0]
    assert "Traceback" not in result.output
    assert [path.read_text() for path in older] == ["older"] * 3
    assert [path.name for path in (run_folder / "results").iterdir() if path.name.startswith(".")] == []


def test_numbers_of_another_network_or_pipeline_are_refused(run_folder):
    table = run_folder / "results/metrics_detail.parquet"
    number = {"row": "protomask", "family": "classification", "metric": "unheard_of", "value": 0.5, "num_images": 6}
    for change, words in (({}, "unheard_of"), ({"row": "pipnet", "metric": "accuracy"}, "no row `protomask`")):
        write_table(table, [number | change], METRICS_DETAIL)
        result = run(run_folder)
        assert result.exit_code == 1
        assert words in result.output


def test_a_network_of_an_unknown_kind_is_refused(run_folder):
    model = run_folder / "models/final/model.json"
    write_json(model, read_json(model) | {"head": "other"})
    result = run(run_folder)
    assert result.exit_code == 1
    assert "a network `other`" in result.output


def test_plots_of_another_data_set_are_refused(run_folder):
    (run_folder / "results/plots/confusion.csv").write_text("actual,predicted\nwren,owl\n")
    result = run(run_folder)
    assert result.exit_code == 1
    assert "confusion.csv names a class `owl`" in result.output


def test_prototypes_of_another_run_are_refused(run_folder):
    stale = [prototype(idx) for idx in range(NUM_PROTOTYPES)]
    stale[0] |= {"image_key": "gone", "view_idx": 0, "mask_idx": 0, "box": [0, 0, 4, 4], "distance_before": 1.0}
    write_prototypes(run_folder, stale)
    result = run(run_folder)
    assert result.exit_code == 1
    assert "gone" in result.output
    stale[0] |= {"image_key": "c0_0", "mask_idx": 1}
    write_prototypes(run_folder, stale)
    result = run(run_folder)
    assert result.exit_code == 1
    assert "has no view 0 of mask 1" in result.output


def test_a_network_with_prototypes_has_some(run_folder):
    write_prototypes(run_folder, [])
    result = run(run_folder)
    assert result.exit_code == 1
    assert "prototypes.parquet has no prototype" in result.output


def test_a_place_outside_its_view_is_refused(run_folder):
    remake(run_folder, "protopnet")
    rows = [prototype(idx) for idx in range(NUM_PROTOTYPES)]
    rows[0] |= {"image_key": "c0_0", "view_idx": 2, "place_idx": 9, "mask_idx": -1, "distance_before": 1.0}
    rows[0] |= {"box": [0, SIDE_PX, 16, SIDE_PX + 16]}
    write_prototypes(run_folder, rows)
    result = run(run_folder)
    assert result.exit_code == 1
    assert "has no place 9" in result.output


@pytest.mark.parametrize("trains_on_val", [False, True])
def test_a_prototype_may_be_a_validation_image_only_where_those_are_trained_on(run_folder, trains_on_val):
    rows = [prototype(idx) for idx in range(NUM_PROTOTYPES)]
    rows[0] |= {"image_key": "c0_2", "view_idx": 0, "mask_idx": 0, "box": [4, 2, 24, 22], "distance_before": 1.0}
    write_prototypes(run_folder, rows)
    write_params(run_folder, compat={"validate_on_test": trains_on_val})
    result = run(run_folder)
    assert result.exit_code == (0 if trains_on_val else 1)
    assert ("c0_2 is no training image" in result.output) is not trains_on_val
