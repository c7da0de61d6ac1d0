import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.data.catalogue import load_images
from pipeline.reasons import ClassScore, Explanation, Reason
from pipeline.report.gallery import Card, Usage
from pipeline.report.image_pages import add_image_pages, in_order
from pipeline.report.shown import (
    ShownElement,
    ShownPrototype,
    numbered_elements,
    ranked_lines,
    rendered,
    shown_scores,
)
from pipeline.report.site import Picture, Site, _environment
from pipeline.report.test_outputs import read_test_outputs
from pipeline.report.test_pictures import draw_test_images
from pipeline.runtime import Runtime
from tests.small_run import CLASSES, NUM_PROTOTYPES, TOP, WITH_PLACES, make_run

HEADS = ("protomask", "blackbox", *WITH_PLACES)
CPU = Runtime(workers=1, device="cpu")
VOID = Picture("pictures/0.jpg", 8, 8)


def thousandths(text):
    return int(text.replace("−", "-").replace(".", ""))


# a sum, whatever its numbers


def score_of(contributions, total, *, similarity=1.0):
    reasons = [Reason(idx, idx % 2, None, similarity, 0.5, c / similarity, c) for idx, c in enumerate(contributions)]
    return ClassScore(label=0, probability=0.75, total=total, reasons=tuple(reasons))


def shown_of(score, true=None, *, num_prototypes=9, is_true_known=True):
    explanation = Explanation(ranking=((0, 0.75),), predicted=score, true=true)
    elements = {
        element: ShownElement(number, VOID, f"mask {element[0]}", 0.5, 0.5)
        for element, number in numbered_elements(explanation).items()
    }
    prototypes = [ShownPrototype(idx, "wren", VOID, VOID, "a") for idx in range(num_prototypes)]
    return shown_scores(
        explanation,
        class_names=["gull", "wren"],
        elements=elements,
        prototypes=prototypes,
        is_true_known=is_true_known,
    )


@pytest.mark.parametrize("seed", range(20))
def test_what_is_shown_adds_up_to_the_digit(seed):
    values = 3 * torch.randn(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    contributions = sorted(values.tolist(), reverse=True)
    (shown,) = shown_of(score_of(contributions[:5], sum(contributions)))
    parts = [thousandths(line.contribution) for line in shown.lines]
    assert sum(parts) + thousandths(shown.rest) == thousandths(shown.total)
    assert thousandths(shown.total) == pytest.approx(1000 * sum(contributions), abs=0.5)
    assert thousandths(shown.rest) == pytest.approx(1000 * sum(contributions[5:]), abs=3.1)
    for line, contribution in zip(shown.lines, contributions, strict=False):
        assert thousandths(line.contribution) == pytest.approx(1000 * contribution, abs=0.5)
    assert shown.num_others == 4


def test_bars_are_as_long_as_numbers_are_large():
    (shown,) = shown_of(score_of([0.4, 0.1, -0.2], -0.5))
    assert [line.bar for line in shown.lines] == [0.5, 0.125, 0.25]
    assert [line.is_negative for line in shown.lines] == [False, False, True]
    assert (shown.rest, shown.rest_bar, shown.rest_is_negative) == ("−0.800", 1.0, True)


def test_a_sum_of_nothing_has_no_bars():
    (shown,) = shown_of(score_of([0.0, 0.0], 0.0))
    assert [line.bar for line in shown.lines] == [0.0, 0.0]
    assert (shown.rest, shown.total) == ("0.000", "0.000")


def test_classes_are_called_what_they_are():
    score = score_of([1.0], 1.0)
    assert [shown.role for shown in shown_of(score)] == ["predicted and true"]
    assert [shown.role for shown in shown_of(score, is_true_known=False)] == ["predicted"]
    both = shown_of(score, replace(score, label=1))
    assert [(shown.role, shown.class_name) for shown in both] == [("predicted", "gull"), ("true", "wren")]


def test_views_are_numbered_in_the_order_in_which_they_are_shown():
    true = ClassScore(1, 0.1, 1.0, (Reason(3, 7, None, 1.0, 0.0, 1.0, 1.0), Reason(2, 1, None, 1.0, 0.0, 1.0, 1.0)))
    explanation = Explanation(((0, 0.75),), score_of([3.0, 2.0, 1.0], 6.0), true)
    assert numbered_elements(explanation) == {(0, -1): 1, (1, -1): 2, (7, -1): 3}


@pytest.mark.parametrize(
    ("value", "text"), [(0.0004, "0.000"), (-0.0004, "0.000"), (-1.5, "−1.500"), (12.3456, "12.346")]
)
def test_numbers_have_three_digits(value, text):
    assert rendered(value) == text


@pytest.mark.parametrize(
    ("label", "roles"), [(0, ["", "predicted and true"]), (1, ["true", "predicted"]), (None, ["", "predicted"])]
)
def test_rankings_name_what_was_predicted_and_what_is_true(label, roles):
    lines = ranked_lines([(1, 0.75), (0, 0.25)], ["gull", "wren"], 0, label)
    assert [line.role for line in lines] == roles


# the pages of a run with a real network


@pytest.fixture(scope="module", params=HEADS)
def written(request, tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp(request.param), head=request.param)
    folder = tmp_path_factory.mktemp("site")
    site = Site(folder, title="network", dataset_name="pictures")
    test = read_test_outputs(run / "models/final", run / "data/crops", runtime=CPU)
    pictures = draw_test_images(
        site,
        test,
        images=load_images(run / "data/dataset"),
        masks=run / "data/masks/masks.parquet",
        top=TOP,
        thumbnail_px=64,
        runtime=CPU,
    )
    num = 0 if request.param == "blackbox" else NUM_PROTOTYPES
    cards = [Card(idx, idx // 2, CLASSES[idx // 2], 1.0, Usage(), (), None) for idx in range(num)]
    add_image_pages(site, cards, test=test, pictures=pictures)
    return folder, test, pictures


def page_of(written, image_key):
    return (written[0] / f"images/{image_key}.html").read_text()


def items_of(written):
    page = (written[0] / "images.html").read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_every_test_image_has_a_page_and_a_place_in_the_list(written):
    folder, test, _ = written
    pages = {path.stem for path in (folder / "images").iterdir()}
    assert pages == {item["id"] for item in items_of(written)} == set(test.reader.image_keys)
    assert len(pages) == 6


def test_the_list_says_what_was_predicted_and_puts_confident_mistakes_first(written):
    _, test, _ = written
    items = {item["id"]: item for item in items_of(written)}
    probability = test.logits.softmax(dim=1)
    for bag_idx, (key, label) in enumerate(zip(test.reader.image_keys, test.reader.labels, strict=True)):
        predicted = int(probability[bag_idx].argmax())
        assert (items[key]["label"], items[key]["predicted"]) == (label, predicted)
        assert items[key]["outcome"] == ("right" if label == predicted else "wrong")
        assert items[key]["confidence"] == pytest.approx(float(probability[bag_idx].max()), abs=1e-6)
    order = [(item["outcome"] == "right", -item["confidence"]) for item in items_of(written)]
    assert order == sorted(order)
    assert {item["outcome"] for item in items.values()} == {"right", "wrong"}


def test_counts_of_the_list_are_those_of_its_items(written):
    num_wrong = sum(item["outcome"] == "wrong" for item in items_of(written))
    page = (written[0] / "images.html").read_text()
    assert re.findall(r"<dd><b>(\d+)</b>", page) == [str(6 - num_wrong), str(num_wrong)]


def test_neighbours_are_of_the_same_outcome_and_lead_through_all_of_them(written):
    for outcome in ("right", "wrong"):
        keys = [item["id"] for item in items_of(written) if item["outcome"] == outcome]
        for position, key in enumerate(keys):
            links = dict(re.findall(r'<a href="(\w+)\.html" rel="(prev|next)">', page_of(written, key)))
            expected = {
                keys[position + step]: rel
                for step, rel in ((-1, "prev"), (1, "next"))
                if 0 <= position + step < len(keys)
            }
            assert links == expected


def sums_of(page):
    """Read the numbers of each list of reasons: its lines, what all others add, and the total."""
    for section in re.findall(r'<ol class="reasons">(.*?)</ol>', page, re.DOTALL):
        lines = re.findall(
            r"similarity </span>([^<]+)</span>.*?weight </span>([^<]+)</span>.*?<b>([^<]+)</b>", section, re.DOTALL
        )
        prototypes = re.findall(r"prototypes\.html#prototype=(\d+)", section)
        *_, rest, total = re.findall(r"<b>([−\d.]+)</b>", section)
        yield prototypes, lines, rest, total


def test_every_number_on_a_page_adds_up(written):
    _, test, pictures = written
    if test.output is None:
        assert not any(list(sums_of(page_of(written, shown.image_key))) for shown in pictures)
        return
    weights = test.class_weights.double()
    num_sums = 0
    for bag_idx, shown in enumerate(pictures):
        sums = list(sums_of(page_of(written, shown.image_key)))
        predicted, label = int(test.logits[bag_idx].argmax()), test.reader.labels[bag_idx]
        assert len(sums) == len({predicted, label})
        for of_class, (prototypes, lines, rest, total) in zip(dict.fromkeys([predicted, label]), sums, strict=True):
            similarity = test.output.similarity[bag_idx].double()
            contribution = [float(similarity[idx] * weights[of_class, idx]) for idx in range(NUM_PROTOTYPES)]
            top = sorted(range(NUM_PROTOTYPES), key=lambda idx: -contribution[idx])[:TOP]
            assert sorted(contribution[int(idx)] for idx in prototypes) == pytest.approx(
                sorted(contribution[idx] for idx in top), abs=1e-6
            )
            assert len(lines) == TOP
            for idx, (of_similarity, weight, product) in zip(map(int, prototypes), lines, strict=True):
                assert thousandths(of_similarity) == pytest.approx(1000 * float(similarity[idx]), abs=0.51)
                assert thousandths(weight) == pytest.approx(1000 * float(weights[of_class, idx]), abs=0.51)
                assert thousandths(product) == pytest.approx(1000 * contribution[idx], abs=0.51)
            assert thousandths(total) == pytest.approx(1000 * sum(contribution), abs=0.51)
            assert sum(thousandths(product) for *_, product in lines) + thousandths(rest) == thousandths(total)
            num_sums += 1
    assert num_sums > len(pictures)


def test_a_page_says_what_makes_the_score_of_its_total(written):
    folder, test, _ = written
    notes = ["ln(total² + 1)" in path.read_text() for path in (folder / "images").iterdir()]
    assert notes == [test.network.head == "pipnet"] * 6


def test_a_black_box_gives_no_reasons(written):
    folder, test, _ = written
    silent = ["it gives no reasons" in path.read_text() for path in (folder / "images").iterdir()]
    assert silent == [test.network.head == "blackbox"] * 6


def test_text_of_others_is_text_on_every_page(written):
    pages = [written[0] / "images.html", *(written[0] / "images").iterdir()]
    named = [path for path in pages if "&lt;b&gt;gull&lt;/b&gt;" in path.read_text()]
    assert named
    assert not [path for path in pages if "<b>gull" in path.read_text()]


def test_every_link_and_picture_of_a_page_exists(written):
    folder, _, _ = written
    (folder / "prototypes.html").touch()
    others = {"index.html", "metrics.html", "masks.html", "training.html"}
    num = 0
    for page in [folder / "images.html", *(folder / "images").iterdir()]:
        for link in re.findall(r'(?<![\w-])(?:href|src)="([^"]+)"', page.read_text()):
            path = link.partition("#")[0]
            if path and path != "data:," and Path(path).name not in others:
                assert (page.parent / path).is_file(), link
                num += 1
    assert num > 6 * 3


def test_mistakes_come_first_and_equally_confident_images_by_key(written):
    _, test, _ = written
    rankings = [[(label, 0.5)] for label in test.reader.labels]
    rankings[4] = [(2 - test.reader.labels[4], 0.25)]
    rankings[2] = [(test.reader.labels[2], 0.75)]
    assert [outcome.bag_idx for outcome in in_order(test, rankings)] == [4, 2, 0, 1, 3, 5]


def test_reasons_stand_on_a_page_of_their_own_without_links():
    (shown,) = shown_of(score_of([0.5], 0.5))
    shown = replace(shown, lines=(replace(shown.lines[0], prototype=ShownPrototype(3, "<wren>", None, None, "a")),))
    template = "{% from 'reasons.html.j2' import reasons with context %}{{ reasons(score, 'view', '') }}"
    environment = _environment()
    text = environment.from_string(template).render(score=shown, root="")
    assert "Prototype 3 of <bdi>&lt;wren&gt;</bdi>" in " ".join(text.split())
    assert "no picture at hand" in text
    assert "<a " not in text
