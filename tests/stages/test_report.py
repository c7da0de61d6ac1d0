import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipeline.artifacts import IMAGES, METRICS_DETAIL, PER_IMAGE, PROTOTYPES, WHOLE_IMAGE, write_table
from pipeline.data.bags import BagReader
from pipeline.data.boxes import Box, box_of_mask
from pipeline.data.masks import MaskTableWriter, StoredMask, encode_mask
from pipeline.data.shards import write_crops
from pipeline.io import write_json
from pipeline.metrics.registry import METRICS
from pipeline.params import Params
from pipeline.report.tables import BLACKBOX, HEAD_TITLES, family_title
from pipeline.runtime import Runtime
from stages.report import app

CLASSES = ("<b>gull</b> & co", "wren", "unseen")  # the last one has no training image
SIDE_PX = 48
SPLITS = ("train", "train", "val", "test", "test")
NUM_PROTOTYPES = 6
CELLS = 3  # rows and columns of the feature grid of networks that compare places
WITH_PLACES = ("protopnet", "pipnet", "protopool")
TERMS = {
    "protomask": ("cross_entropy", "cluster", "separation", "diversity"),
    "protopnet": ("cross_entropy", "cluster", "separation"),
    "pipnet": ("classification", "alignment", "presence"),
    "protopool": ("cross_entropy", "cluster", "separation", "orthogonality"),
    "blackbox": (),
}
SETTINGS = {"protomask": {"dim": 8, "similarity_epsilon": 1e-4}, "pipnet": {"num_prototypes": 6}, "blackbox": {}}
VOID = {"meta", "link", "img", "br", "input"}


def params():
    content = Params().model_dump(mode="json")
    content["crops"]["size_px"] = 32
    content["report"]["thumbnail_px"] = 64
    return content


def make_images(folder):
    """Write the data set and its masks: in every image a square and a bar."""
    rows, masks = [], {}
    for label, class_name in enumerate(CLASSES):
        for number, split in enumerate(SPLITS):
            if class_name == "unseen" and split == "train":
                continue
            key = f"c{label}_{number}"
            pixels = np.random.default_rng((label, number)).integers(0, 255, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
            buffer = BytesIO()
            Image.fromarray(pixels).save(buffer, format="PNG")
            path = folder / f"data/dataset/images/{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
            rows.append(
                {
                    "image_key": key,
                    "path": f"images/{key}.png",
                    "sha256": "0" * 64,
                    "width": SIDE_PX,
                    "height": SIDE_PX,
                    "label": label,
                    "class_name": class_name,
                    "split": split,
                    "parts": [],
                }
            )
            square, bar = np.zeros((2, SIDE_PX, SIDE_PX), dtype=bool)
            square[4:20, 6:22] = True
            bar[30:40, 5:45] = True
            masks[key] = [
                StoredMask(encode_mask(mask), box_of_mask(mask), int(mask.sum()), score)
                for score, mask in ((0.9, square), (0.8, bar))
            ]
    write_table(folder / "data/dataset/images.parquet", rows, IMAGES, class_names=list(CLASSES), part_names=[])
    (folder / "data/masks").mkdir()
    with MaskTableWriter(folder / "data/masks/masks.parquet") as writer:
        for key in sorted(masks):
            writer.add(key, masks[key])


def make_crops(folder, **changes):
    content = params()
    content["crops"] |= changes
    write_crops(
        folder / "data/dataset",
        folder / "data/masks",
        folder / "data/crops",
        params=Params.model_validate(content).crops,
        runtime=Runtime(workers=1),
    )


def write_network(folder, head, rows):
    final = folder / "models/final"
    write_table(final / "prototypes.parquet", rows, PROTOTYPES)
    description = {"head": head, "backbone": "tiny", "class_names": list(CLASSES), "size_px": 32}
    write_json(final / "model.json", description | {"settings": SETTINGS.get(head, {"dim": 8})})


def prototype(idx):
    label = idx // 2
    return {"prototype_idx": idx, "label": label, "class_name": CLASSES[label], "weight": 6 * label + idx}


def make_prototypes(folder):
    """Two prototypes a class: 0 is a mask, 1 the whole image, 2 and 3 the same view, 4 and 5 without a source."""
    training = BagReader(folder / "data/crops", "train")
    rows = []
    for idx in range(NUM_PROTOTYPES):
        row = prototype(idx)
        if row["label"] < 2:
            bag_idx = training.image_keys.index(f"c{row['label']}_0")
            view = training.rows(bag_idx)[2 if idx == 1 else 0]
            row |= {"image_key": view.image_key, "view_idx": view.view_idx, "mask_idx": view.mask_idx}
            row |= {"box": list(view.box), "distance_before": 0.5 + idx, "distance_after": 0.0}
        rows.append(row)
    assert [row.get("mask_idx") for row in rows] == [0, WHOLE_IMAGE, 0, 0, None, None]
    write_network(folder, "protomask", rows)


def box_of_cell(place_idx):
    side_px = SIDE_PX // CELLS
    row, column = divmod(place_idx, CELLS)
    return Box(column * side_px, row * side_px, (column + 1) * side_px, (row + 1) * side_px)


def make_places(folder, head):
    """Places as prototypes: 0 in the middle, 1 at a corner, 2 and 3 the same, 4 shown by another class's, 5 by none."""
    training = BagReader(folder / "data/crops", "train", views="whole")
    rows = []
    for idx, place_idx in enumerate((4, 0, 5, 5, 8)):
        (view,) = training.rows(training.image_keys.index(f"c{(0, 0, 1, 1, 0)[idx]}_0"))
        source = {"image_key": view.image_key, "view_idx": view.view_idx, "mask_idx": view.mask_idx}
        source |= {"place_idx": place_idx, "box": list(box_of_cell(place_idx))}
        rows.append(prototype(idx) | source | {"distance_before": 0.5 + idx, "distance_after": 0.5 + idx})
    assert {row["mask_idx"] for row in rows} == {WHOLE_IMAGE}
    write_network(folder, head, [*rows, prototype(5)])


def make_results(folder, *, head="protomask", baseline=True, phases=("warmup", "joint")):
    results = folder / "results"
    shutil.rmtree(results, ignore_errors=True)
    rows = [head] if head == BLACKBOX else [head, f"{head}_projected", f"{head}_trained", *[BLACKBOX] * baseline]
    details = []
    for row in rows:
        declared = [metric for metric in METRICS if row != "blackbox" or metric.family == "classification"]
        for number, metric in enumerate(declared):
            value = (number + len(row)) / 40
            numbers = {"value": value, "low": value - 0.01, "high": value + 0.01, "num_images": 6}
            details.append({"row": row, "family": metric.family, "metric": metric.key} | numbers)
    if head != BLACKBOX:
        details[0]["insensitive_to"] = ["prototypes"]
        details[1]["num_images"] = 4
        nothing = {"value": None, "low": None, "high": None, "num_images": 0}
        details[len(METRICS) - 1] |= nothing | {"reason": "the data set has no <parts>"}
    write_table(results / "metrics_detail.parquet", details, METRICS_DETAIL)
    roles = ["network", *[BLACKBOX] * (baseline and head != BLACKBOX)]
    write_json(
        results / "train/summary.json",
        {role: {phase: {"epochs": 2, "best_epoch": 1, "val_accuracy": 0.5} for phase in phases} for role in roles},
    )
    num_epochs = 2 * len(phases)
    for role in roles:
        terms = TERMS[head] if role == "network" else ()
        for name in ("val/accuracy", "val/loss", "train/loss", *(f"train/{term}" for term in terms)):
            path = results / f"train/{role}/plots/metrics/{name}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = "".join(f"{step}\t{0.5 + 0.1 * step}\n" for step in range(num_epochs))
            path.write_text(f"step\t{path.stem}\n{values}")
    has_prototypes = head != BLACKBOX
    write_json(
        results / "project.json",
        {
            "num_prototypes": 6 * has_prototypes,
            "num_projected": 4 * has_prototypes,
            "num_distinct_views": 3 * has_prototypes,
            "distance_before": {"mean": 2.0, "max": 3.5} if has_prototypes else None,
            "val_accuracy": {"before": 0.75, "after": 0.5} if has_prototypes else None,
            "prune": None,
        },
    )
    tuned = {"epochs": 10, "best_epoch": 7, "val_accuracy": 0.625}
    write_json(results / "finetune.json", tuned if has_prototypes else {"epochs": 0, "best_epoch": 0})
    rows = []
    for label in range(3):
        for number in (3, 4):
            row = {"row": head, "image_key": f"c{label}_{number}", "label": label, "predicted": label}
            row |= {"confidence": 0.9, "label_probability": 0.9, "values": []}
            if has_prototypes:
                row |= {"top_prototypes": [2 * label, 0] if label else [0, 4], "top_similarities": [2.0, 1.0]}
                row |= {"top_views": [0, 0]}
            rows.append(row)
    write_table(results / "per_image.parquet", rows, PER_IMAGE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_images(folder)
    make_crops(folder)
    make_prototypes(folder)
    make_results(folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(params()))
    (folder / "runtime.yaml").write_text("workers: 1\n")
    return folder


@pytest.fixture
def run_folder(finished, tmp_path):
    """A copy of the finished run that a test may damage."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def run(folder, out="results/report"):
    paths = ["data/dataset", "data/masks", "data/crops", "models/final", "results", out]
    options = ["--params", str(folder / "params.yaml"), "--runtime", str(folder / "runtime.yaml")]
    return CliRunner().invoke(app, [*(str(folder / path) for path in paths), *options])


class Page(HTMLParser):
    """The elements of a page, with the text of each; refuses tags that do not fit."""

    def __init__(self, report):
        super().__init__()
        self.report = report
        self.source = (report / "index.html").read_text(encoding="utf-8")
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

    def card(self, prototype_idx):
        """The source of one card."""
        start = self.source.index(f'id="prototype-{prototype_idx}"')
        return self.source[start : self.source.index("</li>", start)]


def report_of(folder):
    result = run(folder)
    assert result.exit_code == 0, result.output
    return Page(folder / "results/report")


@pytest.fixture(scope="module")
def page(finished):
    return report_of(finished)


def test_two_runs_give_the_same_bytes(run_folder):
    contents = []
    for out in ("one", "two"):
        result = run(run_folder, out)
        assert result.exit_code == 0, result.output
        files = [path for path in (run_folder / out).rglob("*") if path.is_file()]
        contents.append({str(path.relative_to(run_folder / out)): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 1 + 6  # the page; a photograph and a view of three distinct sources


def test_the_folder_needs_nothing_beyond_itself(page):
    references = [
        attributes[name] for _, attributes in page.elements for name in ("src", "href", "srcset") if name in attributes
    ]
    files = [reference for reference in references if not reference.startswith(("#", "data:"))]
    assert len(files) == 2 * 4
    assert {(page.report / name).resolve() for name in files} == set((page.report / "images").resolve().iterdir())
    assert "://" not in page.source
    assert "@import" not in page.source
    assert "url(" not in page.source


def test_links_within_the_page_lead_somewhere(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [link["href"][1:] for link in page.all("a")]
    labelled = [attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes]
    assert links
    assert labelled
    assert set(links + labelled) <= set(ids)


def test_pictures_are_lazy_sized_and_described(page):
    pictures = page.all("img")
    assert len(pictures) == 8
    for picture in pictures:
        with Image.open(page.report / picture["src"]) as opened:
            assert opened.size == (int(picture["width"]), int(picture["height"]))
        assert picture["loading"] == "lazy"
        assert picture["alt"]
        assert re.fullmatch(r"images/[0-9a-f]{16}\.jpg", picture["src"])


def test_class_names_are_shown_as_text(page):
    assert CLASSES[0] in [text for tags, text in page.texts if tags[-1] == "h3"]
    assert CLASSES[0] not in page.source


def test_every_prototype_has_a_card_below_its_class(page):
    cards = page.all("li", "card")
    assert [card["id"] for card in cards] == [f"prototype-{idx}" for idx in range(NUM_PROTOTYPES)]
    assert [card["data-label"] for card in cards] == ["0", "0", "1", "1", "2", "2"]
    assert [text for tags, text in page.texts if tags[-1] == "h3"] == list(CLASSES)
    options = [text for tags, text in page.texts if tags[-1] == "option"]
    assert options[:4] == ["all classes", *CLASSES]


def test_cards_say_weight_distance_and_usage(page):
    cards = page.all("li", "card")
    assert [float(card["data-weight"]) for card in cards] == [0, 1, 8, 9, 16, 17]
    assert [card["data-distance"] for card in cards] == ["0.5", "1.5", "2.5", "3.5", "", ""]
    assert [int(card["data-usage"]) for card in cards] == [6, 0, 2, 0, 4, 0]
    assert "6 test images, 2 of its class" in page.card(0)


def test_flags_name_unused_and_shared_prototypes(page):
    flags = {idx: re.findall(r'class="flag">([^<]*)<', page.card(idx)) for idx in range(NUM_PROTOTYPES)}
    assert {idx: [flag.split()[0] for flag in found] for idx, found in flags.items()} == {
        0: [],
        1: ["unused"],
        2: ["same"],
        3: ["unused", "same"],
        4: [],
        5: ["unused"],
    }
    assert 'href="#prototype-3"' in page.card(2)


def test_a_prototype_without_a_source_says_so_and_has_no_picture(page):
    assert "No source" in page.card(4)
    assert "<img" not in page.card(4)


def test_only_views_of_a_mask_have_an_outline(page):
    def has_yellow(idx):
        photograph = re.search(r'src="([^"]+)"', page.card(idx)).group(1)
        pixels = np.asarray(Image.open(page.report / photograph)).astype(int)
        return (abs(pixels - (255, 214, 0)).max(axis=2) < 30).sum() > 40

    assert [has_yellow(idx) for idx in range(4)] == [True, False, True, True]
    assert "whole image" in page.card(1)


def test_the_table_has_every_metric_and_explains_it_without_a_mouse(page):
    texts = [text for _, text in page.texts]
    definitions = [text for tags, text in page.texts if tags[-1] == "dd"]
    assert METRICS
    for declared in METRICS:
        assert any(text.startswith(declared.title) for text in texts)
        assert declared.formula in definitions
    titles = [attributes["title"] for attributes in page.all("th") if "title" in attributes]
    assert titles == [declared.formula for declared in METRICS]


def test_the_table_says_intervals_failed_checks_fewer_images_and_why_values_are_missing(page):
    texts = [text for _, text in page.texts]
    intervals = [text for tags, text in page.texts if tags[-1] == "span" and text.startswith("[")]
    num_classification = sum(declared.family == "classification" for declared in METRICS)
    assert len(intervals) == 3 * len(METRICS) + num_classification - 1
    first, second, last = METRICS[0], METRICS[1], METRICS[-1]
    entries = [text for tags, text in page.texts if tags[-1] == "li" and "details" in tags]
    assert entries[:3] == [
        f"† with prototypes that have changed places: Classification ({first.title}), for ProtoMask",
        f"4 of 6 test images: Classification ({second.title}), for ProtoMask",
        f"– in {family_title(last.family)} ({last.title}), for ProtoMask: the data set has no <parts>",
    ]
    assert any(text.endswith("†") for text in texts)
    notes = [cell["title"] for cell in page.all("td") if "title" in cell]
    assert notes == ["no worse with prototypes that have changed places", "the data set has no <parts>"]
    assert any("1,000 resamples" in text for text in texts)


def test_numbers_of_another_network_or_pipeline_are_refused(run_folder):
    table = run_folder / "results/metrics_detail.parquet"
    number = {"row": "protomask", "family": "classification", "metric": "unheard_of", "value": 0.5, "num_images": 6}
    for change, words in (({}, "unheard_of"), ({"row": "pipnet", "metric": "accuracy"}, "no row `protomask`")):
        write_table(table, [number | change], METRICS_DETAIL)
        result = run(run_folder)
        assert result.exit_code == 1
        assert words in result.output


def test_headings_descend_one_level_at_a_time(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels))


def test_curves_are_described_in_words(page):
    charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(charts) == 7
    assert charts[0]["aria-label"].startswith("Validation accuracy, %, epochs 1 to 4. ProtoMask: 50 at the first")
    assert len(page.all("polyline")) == 2 + 2 + 2 + 4
    assert len(page.all("line", "phase")) == 7


def test_all_params_and_the_seed_are_shown(page):
    texts = [text for _, text in page.texts]
    for key in ("superpixel.num_superpixels", "loss.separation", "joint.trainable_layers", "thumbnail_px"):
        assert key in texts
    assert any("seed 0" in text for text in texts)


def test_a_run_of_one_phase_without_a_black_box_has_a_page(run_folder):
    make_results(run_folder, baseline=False, phases=("joint",))
    write_json(run_folder / "results/finetune.json", {"epochs": 0, "best_epoch": 0})
    page = report_of(run_folder)
    assert len([svg for svg in page.all("svg") if svg.get("role") == "img"]) == 6
    assert not page.all("line", "phase")
    assert "Price of explainability" not in page.source
    assert "skipped" in page.source


def test_nothing_is_sortable_without_a_script_and_everything_is_there(page):
    by_id = {attributes.get("id"): attributes for _, attributes in page.elements}
    assert "hidden" in by_id["controls"]
    assert "hidden" in by_id["in-order"]
    assert "hidden" not in by_id["by-class"]


def test_the_stage_says_last_where_the_page_is(run_folder):
    lines = run(run_folder).output.splitlines()
    assert lines[-1].endswith(str(run_folder / "results/report/index.html"))


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
        (garble, "data/dataset/images/c0_0.png"),
        (garble, "data/masks/masks.parquet"),
        (drop, "data/crops/train-00000.tar"),
        (garble, "data/crops/views.parquet"),
        (drop, "models/final/prototypes.parquet"),
        (garble, "models/final/prototypes.parquet"),
        (empty, "models/final/model.json"),
        (drop, "results/metrics_detail.parquet"),
        (garble, "results/metrics_detail.parquet"),
        (empty, "results/train/summary.json"),
        (drop, "results/train/network/plots/metrics/val/accuracy.tsv"),
        (empty, "results/project.json"),
        (empty, "results/finetune.json"),
        (garble, "results/per_image.parquet"),
    ],
)
def test_damaged_input_is_one_line_and_leaves_the_older_report(run_folder, damage, name):
    report = run_folder / "results/report"
    report.mkdir(exist_ok=True)
    (report / "index.html").write_text("older")
    damage(run_folder / name)
    result = run(run_folder)
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 1
    assert len(errors) == 1
    assert name.rsplit("/", 1)[-1] in errors[0]
    assert "Traceback" not in result.output
    assert (report / "index.html").read_text() == "older"
    assert [path.name for path in (run_folder / "results").iterdir() if path.name.startswith(".")] == []


def test_a_network_of_another_run_is_refused(run_folder):
    table = run_folder / "models/final/prototypes.parquet"
    make_prototypes(run_folder)
    stale = [prototype(idx) for idx in range(NUM_PROTOTYPES)]
    stale[0] |= {"image_key": "gone", "view_idx": 0, "mask_idx": 0, "box": [0, 0, 4, 4], "distance_before": 1.0}
    write_table(table, stale, PROTOTYPES)
    result = run(run_folder)
    assert result.exit_code == 1
    assert "gone" in result.output
    stale[0] |= {"image_key": "c0_0", "mask_idx": 1}
    write_table(table, stale, PROTOTYPES)
    result = run(run_folder)
    assert result.exit_code == 1
    assert "has no view 0 of mask 1" in result.output


def test_params_that_hold_markup_are_shown_as_text(run_folder):
    content = params()
    content["dataset"]["classes"] = ["<script>alert(1)</script>"]
    (run_folder / "params.yaml").write_text(yaml.safe_dump(content))
    page = report_of(run_folder)
    assert len(page.all("script")) == 1
    assert json.dumps(content["dataset"]["classes"]) in [text for _, text in page.texts]


# other heads


def report_of_head(finished, folder, head):
    """Make the page of a run with another head; the whole image is no view of its bags, but lies beside them."""
    shutil.copytree(finished, folder)
    make_crops(folder, whole_image=False)
    if head == BLACKBOX:
        write_network(folder, head, [])
    elif head in WITH_PLACES:
        make_places(folder, head)
    else:
        make_prototypes(folder)
    make_results(folder, head=head)
    return report_of(folder)


@pytest.fixture(scope="module")
def places(finished, tmp_path_factory):
    """The page of a PIP-Net: spatial prototypes, shared by all classes."""
    return report_of_head(finished, tmp_path_factory.mktemp("pipnet") / "run", "pipnet")


@pytest.fixture(scope="module")
def blackbox(finished, tmp_path_factory):
    return report_of_head(finished, tmp_path_factory.mktemp("blackbox") / "run", "blackbox")


def texts_in(page, tag):
    return [text for tags, text in page.texts if tags[-1] == tag]


def test_the_heads_tried_here_are_all_there_are():
    assert set(TERMS) == set(HEAD_TITLES)


@pytest.mark.parametrize("head", WITH_PLACES)
def test_a_page_names_its_own_network_and_no_other(finished, tmp_path, head):
    page = report_of_head(finished, tmp_path / "run", head)
    title = HEAD_TITLES[head]
    assert texts_in(page, "title") == [f"{title} on synthetic"]
    assert texts_in(page, "dt")[:3] == [title, "Black box", "Price of explainability"]
    earlier = [f"{title} before fine-tuning", f"{title} before projection"]
    assert texts_in(page, "th")[:6] == ["Metric", title, "Black box", "Price of explainability", *earlier]
    for other in set(HEAD_TITLES.values()) - {title, "Black box"}:
        assert other not in page.source
    charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(charts) == 1 + 2 + len(TERMS[head])
    assert charts[0]["aria-label"].startswith(f"Validation accuracy, %, epochs 1 to 4. {title}: 50 at the first")


def test_a_place_is_shown_by_its_box_in_the_photograph_and_its_surroundings_in_the_view(places):
    def pictures(idx):
        names = re.findall(r'src="([^"]+)"', places.card(idx))
        return [np.asarray(Image.open(places.report / name)).astype(int) for name in names]

    photograph, view = pictures(1)  # the cell at the upper left: 16 of 48 pixels
    rim = np.zeros((SIDE_PX, SIDE_PX), dtype=bool)
    rim[:16, :16] = True
    rim[1:15, 1:15] = False
    assert (photograph[rim].min(axis=1) > 200).mean() > 0.95
    assert (photograph[~rim].min(axis=1) > 200).mean() < 0.1
    assert view.shape == (21, 21, 3)  # that cell and one beside and below it, of 32 pixels for 3 cells
    assert pictures(0)[1].shape == (32, 32, 3)  # all cells around the middle one
    assert pictures(2)[1].shape == (32, 21, 3)
    assert "place 5" in places.card(2)
    assert "mask" not in places.card(2)


def test_the_view_of_a_place_is_cut_from_the_whole_image_beside_the_bag(places):
    name = re.findall(r'src="([^"]+)"', places.card(1))[1]
    drawn = np.asarray(Image.open(places.report / name)).astype(int)
    crops = places.report.parents[1] / "data/crops"
    assert all(view.mask_idx != WHOLE_IMAGE for view in BagReader(crops, "train").rows(0))
    whole = BagReader(crops, "train", views="whole")
    seen = whole.views(whole.image_keys.index("c0_0"))[0].astype(int)
    error = {(x, y): abs(drawn - seen[y : y + 21, x : x + 21]).mean() for x in range(0, 12) for y in range(0, 12)}
    assert min(error, key=error.get) == (0, 0)


def test_prototypes_share_a_place_and_not_only_an_image(places):
    flags = {idx: re.findall(r'class="flag">([^<]*)<', places.card(idx)) for idx in range(NUM_PROTOTYPES)}
    assert [[flag.strip() for flag in flags[idx] if "same" in flag] for idx in range(NUM_PROTOTYPES)] == [
        [],
        [],
        ["same place as"],
        ["same place as"],
        [],
        [],
    ]
    assert len(list((places.report / "images").iterdir())) == 2 * 4


def test_a_shared_prototype_is_listed_under_its_class_and_shown_by_any_image(places):
    cards = places.all("li", "card")
    assert [card["data-label"] for card in cards] == ["0", "0", "1", "1", "2", "2"]
    assert "c0_0, place 8" in places.card(4)  # listed under the class without training images
    assert "No source" in places.card(5)
    assert "6 prototypes for all classes, listed under 3 classes" in " ".join(places.source.split())


def test_a_network_without_a_space_of_features_has_no_length_and_sees_whole_images(places, page):
    def facts(of):
        return " ".join(of.source.split())

    assert "backbone tiny; seed 0" in facts(places)
    assert "the whole image is the only view" in facts(places)
    assert "backbone tiny, prototypes of length 8; seed 0" in facts(page)
    assert "the whole image is the only view" not in facts(page)


def test_the_page_of_a_black_box_has_no_gallery_and_says_so(blackbox):
    assert [path.name for path in blackbox.report.iterdir()] == ["index.html"]
    assert not blackbox.all("img")
    assert not blackbox.all("script")
    assert not blackbox.all("li", "card")
    assert "A black box has no prototypes: there is nothing to look at." in texts_in(blackbox, "p")
    assert texts_in(blackbox, "h2") == ["Metrics", "Training", "Projection and fine-tuning", "Prototypes", "Params"]


def test_a_black_box_by_itself_has_no_price(blackbox):
    assert "Price of explainability" not in blackbox.source
    assert texts_in(blackbox, "title") == ["Black box on synthetic"]
    assert texts_in(blackbox, "dt")[0] == "Black box"
    assert texts_in(blackbox, "dt").count("Black box") == 1
    assert [text for text in texts_in(blackbox, "th") if text == "Black box"] == ["Black box"]
    assert texts_in(blackbox, "caption") == ["Classification"]
    titles = [svg["aria-label"].split(",")[0] for svg in blackbox.all("svg") if svg.get("role") == "img"]
    assert titles == ["Validation accuracy", "Loss of the black box"]


def test_results_of_another_head_are_refused(run_folder):
    make_results(run_folder, head="pipnet")
    result = run(run_folder)
    assert result.exit_code == 1
    assert "metrics_detail.parquet has no row `protomask`" in result.output
    write_json(run_folder / "models/final/model.json", {"head": "other", "backbone": "tiny", "settings": {}})
    result = run(run_folder)
    assert result.exit_code == 1
    assert "a network `other`" in result.output


def test_a_network_with_prototypes_has_some(run_folder):
    write_network(run_folder, "protomask", [])
    result = run(run_folder)
    assert result.exit_code == 1
    assert "prototypes.parquet has no prototype" in result.output


def test_a_place_outside_its_view_is_refused(run_folder):
    make_places(run_folder, "protopnet")
    make_results(run_folder, head="protopnet")
    rows = [prototype(idx) for idx in range(NUM_PROTOTYPES)]
    rows[0] |= {"image_key": "c0_0", "view_idx": 2, "mask_idx": WHOLE_IMAGE, "place_idx": 9, "distance_before": 1.0}
    rows[0] |= {"box": [0, SIDE_PX, 16, SIDE_PX + 16]}
    write_network(run_folder, "protopnet", rows)
    result = run(run_folder)
    assert result.exit_code == 1
    assert "has no place 9" in result.output


@pytest.mark.parametrize("trains_on_val", [False, True])
def test_a_prototype_may_be_a_validation_image_only_where_those_are_trained_on(run_folder, trains_on_val):
    rows = [prototype(idx) for idx in range(NUM_PROTOTYPES)]
    rows[0] |= {"image_key": "c0_2", "view_idx": 0, "mask_idx": 0, "box": [4, 2, 24, 22], "distance_before": 1.0}
    write_network(run_folder, "protomask", rows)
    content = params()
    content["compat"]["validate_on_test"] = trains_on_val
    (run_folder / "params.yaml").write_text(yaml.safe_dump(content))
    result = run(run_folder)
    assert result.exit_code == (0 if trains_on_val else 1)
    assert ("c0_2 is no training image" in result.output) is not trains_on_val
