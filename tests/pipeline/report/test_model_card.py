import json
import re
from dataclasses import replace

import pytest
import yaml
from markdown_it import MarkdownIt

from pipeline.data.catalogue import load_images
from pipeline.metrics.registry import METRICS, metric
from pipeline.metrics.uncertainty import Interval
from pipeline.params import Params
from pipeline.report import inputs
from pipeline.report.model_card import MAIN_METRICS, code, front_matter, markdown_text, write_model_card
from pipeline.report.price import Price
from pipeline.report.provenance import Provenance, Revision
from pipeline.report.tables import HEAD_TITLES, Detail, family_title
from pipeline.report.view_cover import read_view_cover
from tests.small_run import CLASSES, WITH_PLACES, make_run, params, remake

MARKDOWN = MarkdownIt("commonmark").enable("table")
PROVENANCE = Provenance(Revision("c" * 40, is_changed=False), None, {"Python": "3.11.7", "sam2": None})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("card") / "run")


@pytest.fixture(scope="module")
def other_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards") / "run"
    make_run(folder)
    inputs_of = {}
    for head in (*WITH_PLACES, "blackbox"):
        remake(folder, head)
        inputs_of[head] = content_of(folder)
    return inputs_of


def content_of(run):
    network = inputs.read_network(run / "models/final/model.json")
    return {
        "network": network,
        "images": load_images(run / "data/dataset"),
        "details": inputs.read_details(run / "results/metrics_detail.parquet", network.head),
        "params": Params.model_validate(params()),
        "masks_report": json.loads((run / "results/masks.json").read_text()),
        "crops_report": json.loads((run / "results/crops.json").read_text()),
        "cover": read_view_cover(run / "data/crops/views.parquet", load_images(run / "data/dataset").rows),
        "price": Price(0.75, 0.8, None),
        "projection": inputs.read_projection(run / "results/project.json"),
        "provenance": PROVENANCE,
    }


def card_of(path, content, **changes):
    write_model_card(path, **(content | changes))
    return path.read_text(encoding="utf-8")


def with_params(**sections):
    content = params()
    for section, changes in sections.items():
        content[section] |= changes
    return Params.model_validate(content)


def body_of(card):
    return card.split("---\n", 2)[2]


def front_of(card):
    return yaml.safe_load(card.split("---\n", 2)[1])


def cells_of(card, first):
    """The cells of the only line of a table that begins with FIRST."""
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def detail(key, value, family="classification", row="protomask", **changes):
    content = {"row": row, "family": family, "metric": key, "value": value, "low": None, "high": None}
    return Detail(**(content | {"num_images": 6, "reason": None, "insensitive_to": None} | changes))


def test_the_same_card_comes_out_twice_and_holds_no_path_of_this_machine(tmp_path, run):
    content = content_of(run)
    one, other = (card_of(tmp_path / name, content) for name in ("a.md", "b.md"))
    assert one == other
    assert str(tmp_path) not in one
    assert str(run) not in one


def test_the_counts_of_images_are_those_of_the_table_and_add_up(tmp_path, run):
    card = card_of(tmp_path / "a.md", content_of(run))
    rows = load_images(run / "data/dataset").rows
    counted = {
        title: sum(row.split == split for row in rows)
        for split, title in (("train", "training"), ("val", "validation"), ("test", "test"))
    }
    assert {title: int(cells_of(card, title)[0]) for title in counted} == counted
    assert int(cells_of(card, "all")[0]) == sum(counted.values()) == 13
    assert [cells_of(card, title)[1] for title in counted] == ["0 to 2", "1", "2"]


def test_every_classification_metric_stands_beside_the_black_box_with_its_interval(tmp_path, run):
    card = card_of(tmp_path / "a.md", content_of(run))
    details = {(one.row, one.family, one.metric): one for one in content_of(run)["details"]}
    declared = [one for one in METRICS if one.family == "classification" and one.unit == "fraction"]
    assert len(declared) > 5
    for one in declared:
        arrow = {"higher": " ↑", "lower": " ↓", "neither": ""}[one.direction]
        cells = cells_of(card, f"{one.title} %{arrow}")
        for row, cell in zip(("protomask", "blackbox"), cells, strict=True):
            found = details[row, "classification", one.key]
            mark = "†" if found.insensitive_to else ""
            assert cell == f"{100 * found.value:.2f} [{100 * found.low:.1f}, {100 * found.high:.1f}]{mark}"


def test_each_family_of_explanations_has_its_main_number_or_a_reason(tmp_path, run):
    content = content_of(run)
    main = [one for one in content["details"] if MAIN_METRICS.get(one.family) == one.metric and one.row == "protomask"]
    changed = {
        "causal": {"value": None, "low": None, "high": None, "num_images": 0, "reason": "no <scenes> | none"},
        "deletion": None,
    }
    details = [one for one in content["details"] if one not in main]
    details += [replace(one, **changed.get(one.family, {})) for one in main if one.family != "deletion"]
    card = card_of(tmp_path / "a.md", content, details=details)
    families = list(dict.fromkeys(one.family for one in METRICS if one.family != "classification"))
    assert set(families) == set(MAIN_METRICS)
    for family in families:
        if family == "causal":
            assert r"– (no \<scenes\> \| none)" in card
        elif family == "deletion":
            assert cells_of(card, family_title(family))[1:] == ["not asked of this network", "–"]
        else:
            (found,) = [one for one in main if one.family == family]
            assert cells_of(card, family_title(family))[1].startswith(f"{scaled(found):.{digits_of(found)}f}")
            assert cells_of(card, family_title(family))[2] == str(found.num_images)


def scaled(found):
    return 100 * found.value if found.declared.unit == "fraction" else found.value


def digits_of(found):
    return {"fraction": 2, "count": 1}.get(found.declared.unit, 3)


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        (0.75, 0.8, "ProtoMask is 5.00 percentage points below the black box"),
        (0.8, 0.75, "ProtoMask is 5.00 percentage points above the black box"),
        (0.75, 0.75, "ProtoMask is level with the black box"),
    ],
)
def test_the_price_of_explainability_is_the_difference_to_the_black_box(tmp_path, run, own, other, expected):
    details = [detail("balanced_accuracy", own), detail("balanced_accuracy", other, row="blackbox")]
    card = card_of(tmp_path / "a.md", content_of(run), details=details, price=Price(own, other, None))
    numbers = f"{100 * own:.2f} % and {100 * other:.2f} %."
    assert f"**Price of explainability**: in balanced accuracy, {expected}, " in card
    assert f"which has the same backbone: {numbers}\n" in card
    assert "Price" not in card_of(tmp_path / "b.md", content_of(run), details=details, price=None)


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (Interval(-0.1, -0.02), "[−10.00, −2.00]."),
        (Interval(-0.1, 0.02), "[−10.00, +2.00]: no clear difference."),
    ],
)
def test_the_price_has_an_interval_of_its_own(tmp_path, run, interval, said):
    card = card_of(tmp_path / "a.md", content_of(run), price=Price(0.75, 0.8, interval))
    assert f"95 % interval of the difference {said}\n" in card


def test_a_mark_is_explained_where_a_shown_number_has_it(tmp_path, run):
    content = content_of(run)
    unmarked = [replace(one, insensitive_to=None) for one in content["details"]]
    assert "†" not in card_of(tmp_path / "a.md", content, details=unmarked)
    key = MAIN_METRICS["continuity"]
    marked = [replace(one, insensitive_to=["maps"]) if one.metric == key else one for one in unmarked]
    card = card_of(tmp_path / "b.md", content, details=marked)
    assert cells_of(card, "Continuity")[1].endswith("†")
    assert "\n†: not shown to get worse" in card
    assert metric("continuity", key).title in card


def test_names_are_shown_as_they_stand(tmp_path, run):
    content = content_of(run)
    names = ("<b>x</b>", "a|b", "`c` *d* _e_ [f](g) \\ & #h\n# i")
    content["images"] = replace(content["images"], class_names=names)
    html = MARKDOWN.render(body_of(card_of(tmp_path / "a.md", content)))
    shown = re.sub(r"<[^>]+>", "", html).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert "3 classes: <b>x</b>, a|b, `c` *d* _e_ [f](g) \\ & #h # i." in shown
    assert "<b>" not in html
    assert 'href="g"' not in html


@pytest.mark.parametrize("text", ["a`b", "``", "<b>x</b>", "a  b"])
def test_code_is_shown_as_it_stands(text):
    html = MARKDOWN.render(code(text))
    expected = " ".join(text.split()).replace("<", "&lt;").replace(">", "&gt;")
    assert html == f"<p><code>{expected}</code></p>\n"


def test_escaped_text_stays_in_its_cell():
    (row,) = re.findall("<td>(.*)</td>", MARKDOWN.render(f"| a |\n| --- |\n| {markdown_text('<b>x</b> | **y**')} |\n"))
    assert row == "&lt;b&gt;x&lt;/b&gt; | **y**"


def test_the_body_is_tables_lists_and_headings_in_order(tmp_path, run):
    html = MARKDOWN.render(body_of(card_of(tmp_path / "a.md", content_of(run))))
    assert html.count("<table>") == 3
    assert re.findall("<h2>(.*)</h2>", html) == [
        "What it is for",
        "The network",
        "Data",
        "How views are made",
        "Training",
        "Results",
        "Limits",
        "Licences",
        "How to cite",
        "How to reproduce",
    ]
    assert "\n\n\n" not in body_of(card_of(tmp_path / "b.md", content_of(run)))


def test_links_go_to_what_the_report_writes_and_to_known_places(tmp_path, run):
    card = card_of(tmp_path / "a.md", content_of(run))
    assert set(re.findall(r"\]\(([^)]+)\)", card)) == {
        "report/index.html",
        "report/prototypes.html",
        "report/masks.html",
        "table.md",
        "https://arxiv.org/abs/2510.00683",
    }


def test_the_front_matter_has_the_metrics_that_have_a_value():
    network = inputs.NetworkDescription(head="protomask", backbone="tiny", settings=inputs.NetworkSettings())
    details = [detail("accuracy", 0.123456789), detail("f1", None, reason="none"), detail("calibration_error", 0.5)]
    content = yaml.safe_load(front_matter({(d.family, d.metric): d for d in details}, network, Params()))
    assert content["metrics"] == ["accuracy"]
    (model,) = content["model-index"]
    (result,) = model["results"]
    assert result["task"]["type"] == content["pipeline_tag"] == "image-classification"
    assert result["dataset"] == {"type": "synthetic", "name": "synthetic birds", "split": "test"}
    assert result["metrics"] == [{"type": "accuracy", "name": "Accuracy", "value": 0.123457}]
    assert "model-index" not in yaml.safe_load(front_matter({}, network, Params()))


@pytest.mark.parametrize("head", [*WITH_PLACES, "blackbox"])
def test_every_head_has_a_card(tmp_path, other_runs, head):
    card = card_of(tmp_path / "a.md", other_runs[head])
    assert f"# {HEAD_TITLES[head]} on synthetic birds" in card
    assert "This network looks at the whole image, as one view" in card
    assert "what no view shows" not in card
    assert front_of(card)["tags"][:2] == ["image-classification", head]
    has_prototypes = head != "blackbox"
    assert ("among their 2 most similar ones" in card) == has_prototypes
    assert ("report/prototypes.html" in card) == has_prototypes
    assert ("A black box has no prototypes" in card) != has_prototypes


@pytest.mark.parametrize(
    ("name", "said"),
    [("cub200", "overlaps with ImageNet"), ("dogs", "is a subset of ImageNet"), ("synthetic", None), ("folder", None)],
)
def test_the_overlap_with_imagenet_is_named_where_the_backbone_knows_it(tmp_path, run, name, said):
    content = content_of(run)
    card = card_of(tmp_path / "a.md", content, params=with_params(dataset={"name": name}))
    assert "The backbone was pretrained on ImageNet" in card
    overlaps = [line for line in card.splitlines() if "With a backbone that was pretrained" in line]
    assert [said in line for line in overlaps] == ([True] if said else [])
    random = with_params(dataset={"name": name}, model={"pretrained": False})
    limits = card_of(tmp_path / "b.md", content, params=random).split("## Limits")[1].split("##")[0]
    assert "ImageNet" not in limits


def test_departures_that_flatter_are_named(tmp_path, run):
    content = content_of(run)
    assert "flatter" not in card_of(tmp_path / "a.md", content)
    card = card_of(
        tmp_path / "b.md", content, params=with_params(compat={"validate_on_test": True, "last_epoch": True})
    )
    assert "`compat.validate_on_test`, `compat.last_epoch`" in card
    assert "Each phase hands on its last epoch (compat.last_epoch)." in card
    card = card_of(tmp_path / "c.md", content, params=with_params(compat={"validate_on_test": True}))
    assert "that was best on test images (compat.validate_on_test)." in card
    assert "**Test images took no part in training, but they chose the epoch that each phase hands on (compat" in card


def test_the_limits_set_what_views_show_apart_from_what_masks_cover(tmp_path, run):
    content = content_of(run)
    card = card_of(tmp_path / "a.md", content)
    in_boxes = 100 * (20 * 20 + 47 * 12) / 48**2  # of the masks, with padding
    in_masks = 100 * (16 * 16 + 10 * 40) / 48**2
    assert "what no view shows cannot be a reason; the whole image is a view, too, and shows everything." in card
    assert (
        f"In the mean, {100 - in_boxes:.1f} % of an image's pixels lie in the box of no view, the whole image left "
        f"aside; {100 - in_masks:.1f} % lie in none of all masks"
    ) in card
    assert f"all masks of an image cover {in_masks:.1f} % of it in the median" in card
    cover = replace(content["cover"], num_whole=0)
    card = card_of(tmp_path / "b.md", content, cover=cover, params=with_params(crops={"background": "zero"}))
    assert "cannot be a reason. Of its box, a view shows only the mask. In the mean, " in card
    assert "of an image's pixels lie in the box of no view; " in card


def test_fewer_images_may_be_a_sample_or_those_that_have_a_value(tmp_path, run):
    details = [detail("accuracy", 0.5), detail("local_size", 3.0, family="compactness", num_images=4)]
    card = card_of(tmp_path / "a.md", content_of(run), details=details)
    assert "come from 4 of 6 test images (`evaluate.sample_images`, or images for which a metric has a value)" in card


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (
            {"segmenter": "sam", "weights": "weights/sam_vit_b_01ec64.pth"},
            "Masks (`sam_vit_b_01ec64.pth`): Apache-2.0.",
        ),
        ({"segmenter": "sam", "weights": "/home/me/mine.pth"}, "Masks (`mine.pth`): not known here."),
        (
            {"segmenter": "slit", "weights": "weights/DirectSAM-1800px-0424"},
            "Masks (`DirectSAM-1800px-0424`): none stated.",
        ),
    ],
)
def test_the_licence_of_the_masks_is_that_of_the_checkpoint(tmp_path, run, masks, said):
    card = card_of(tmp_path / "a.md", content_of(run), params=with_params(masks=masks))
    assert f"- {said}" in card
    assert "/home/me" not in card
    assert "Masks (" not in card_of(tmp_path / "b.md", content_of(run))


def test_how_to_reproduce_says_what_is_known_of_the_revision(tmp_path, run):
    content = content_of(run)
    card = card_of(tmp_path / "a.md", content)
    assert f"git checkout {'c' * 40}\ndvc repro\n" in card
    assert "The report was made with Python 3.11.7." in card
    changed = replace(PROVENANCE, revision=Revision("c" * 40, is_changed=True))
    assert "changes that are in no commit" in card_of(tmp_path / "b.md", content, provenance=changed)
    unknown = replace(PROVENANCE, revision=None)
    card = card_of(tmp_path / "c.md", content, provenance=unknown)
    assert "git checkout REVISION" in card
    assert "outside a git repository" in card
    shallow = replace(PROVENANCE, revision=Revision(None, is_changed=False))
    card = card_of(tmp_path / "d.md", content, provenance=shallow)
    assert "git checkout REVISION" in card
    assert "not known: the report was made in a shallow clone" in card


def test_many_classes_are_not_listed(tmp_path, run):
    content = content_of(run)
    names = tuple(f"class {idx}" for idx in range(200))
    card = card_of(tmp_path / "a.md", content, images=replace(content["images"], class_names=names))
    assert "200 classes: class 0, " in card
    assert "class 59, and 140 more, listed in `model.json`." in card
    assert "There are only" not in card
    assert f"There are only {len(CLASSES)} classes" in card_of(tmp_path / "b.md", content)
