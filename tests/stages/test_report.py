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
from safetensors.numpy import save_file
from typer.testing import CliRunner

from pipeline.artifacts import IMAGES, PER_IMAGE, PROTOTYPES, WHOLE_IMAGE, write_table
from pipeline.data.bags import BagReader
from pipeline.data.boxes import box_of_mask
from pipeline.data.masks import MaskTableWriter, StoredMask, encode_mask
from pipeline.data.shards import write_crops
from pipeline.io import write_json
from pipeline.metrics.registry import METRICS
from pipeline.params import Params
from pipeline.runtime import Runtime
from stages.report import app

CLASSES = ("<b>gull</b> & co", "wren", "unseen")  # the last one has no training image
SIDE_PX = 48
SPLITS = ("train", "train", "val", "test", "test")
NUM_PROTOTYPES = 6
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


def make_prototypes(folder):
    """Two prototypes a class: 0 is a mask, 1 the whole image, 2 and 3 the same view, 4 and 5 without a source."""
    training = BagReader(folder / "data/crops", "train")
    rows = []
    for idx in range(NUM_PROTOTYPES):
        label = idx // 2
        row = {"prototype_idx": idx, "label": label, "class_name": CLASSES[label]}
        if label < 2:
            bag_idx = training.image_keys.index(f"c{label}_0")
            view = training.rows(bag_idx)[2 if idx == 1 else 0]
            row |= {"image_key": view.image_key, "view_idx": view.view_idx, "mask_idx": view.mask_idx}
            row |= {"box": list(view.box), "distance_before": 0.5 + idx, "distance_after": 0.0}
        rows.append(row)
    assert [row.get("mask_idx") for row in rows] == [0, WHOLE_IMAGE, 0, 0, None, None]
    final = folder / "models/final"
    write_table(final / "prototypes.parquet", rows, PROTOTYPES)
    weights = np.arange(18, dtype=np.float32).reshape(3, NUM_PROTOTYPES)
    save_file({"last_layer.weight": weights}, final / "model.safetensors")
    write_json(final / "model.json", {"backbone": "tiny", "class_names": list(CLASSES), "dim": 8})


def make_results(folder, *, networks=("protomask", "blackbox"), phases=("warmup", "joint")):
    results = folder / "results"
    shutil.rmtree(results, ignore_errors=True)
    metrics = {}
    for row in ("protomask", "protomask_projected", "protomask_trained", "blackbox"):
        if row in networks or row.startswith("protomask"):
            declared = [metric for metric in METRICS if row != "blackbox" or metric.family == "classification"]
            families = {metric.family: {} for metric in declared}
            for number, metric in enumerate(declared):
                families[metric.family][metric.key] = (number + len(row)) / 40
            metrics[row] = families
    write_json(results / "metrics.json", metrics)
    write_json(
        results / "train/summary.json",
        {net: {phase: {"epochs": 2, "best_epoch": 1, "val_accuracy": 0.5} for phase in phases} for net in networks},
    )
    num_epochs = 2 * len(phases)
    for net in networks:
        terms = ("cross_entropy", "cluster", "separation", "diversity") if net == "protomask" else ()
        for name in ("val/accuracy", "val/loss", "train/loss", *(f"train/{term}" for term in terms)):
            path = results / f"train/{net}/plots/metrics/{name}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = "".join(f"{step}\t{0.5 + 0.1 * step}\n" for step in range(num_epochs))
            path.write_text(f"step\t{path.stem}\n{values}")
    write_json(
        results / "project.json",
        {
            "num_prototypes": 6,
            "num_projected": 4,
            "num_distinct_views": 3,
            "distance_before": {"mean": 2.0, "max": 3.5},
            "val_accuracy": {"before": 0.75, "after": 0.5},
        },
    )
    write_json(results / "finetune.json", {"epochs": 10, "best_epoch": 7, "val_accuracy": 0.625})
    rows = []
    for label in range(3):
        for number in (3, 4):
            row = {"row": "protomask", "image_key": f"c{label}_{number}", "label": label, "predicted": label}
            row |= {"confidence": 0.9, "label_probability": 0.9, "top_views": [0, 0]}
            rows.append(row | {"top_prototypes": [2 * label, 0] if label else [0, 4], "top_similarities": [2.0, 1.0]})
    write_table(results / "per_image.parquet", rows, PER_IMAGE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_images(folder)
    crops = Params.model_validate(params()).crops
    write_crops(
        folder / "data/dataset", folder / "data/masks", folder / "data/crops", params=crops, runtime=Runtime(workers=1)
    )
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
    make_results(run_folder, networks=("protomask",), phases=("joint",))
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
        (garble, "models/final/model.safetensors"),
        (empty, "models/final/model.json"),
        (garble, "results/metrics.json"),
        (empty, "results/metrics.json"),
        (empty, "results/train/summary.json"),
        (drop, "results/train/protomask/plots/metrics/val/accuracy.tsv"),
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
    stale = [{"prototype_idx": idx, "label": 0, "class_name": CLASSES[0]} for idx in range(NUM_PROTOTYPES)]
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
