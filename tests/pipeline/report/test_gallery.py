import json
import re

import pytest
from PIL import Image

from pipeline.artifacts import PROTOTYPES, write_table
from pipeline.data.catalogue import load_images
from pipeline.data.masks import MaskTableWriter
from pipeline.errors import PipelineError
from pipeline.report import test_pictures
from pipeline.report.gallery import (
    PrototypeUsage,
    Usage,
    add_prototypes_page,
    make_cards,
    page_data,
    read_prototypes,
)
from pipeline.report.image_pages import add_image_pages
from pipeline.report.site import Site
from pipeline.report.test_outputs import read_test_outputs
from pipeline.report.test_pictures import draw_test_images
from pipeline.runtime import Runtime
from tests.small_run import NUM_PROTOTYPES, TOP, WITH_PLACES, make_run

TWO_EACH = [0, 0, 1, 1]


def prototype(idx, label, source, weight):
    row = {"prototype_idx": idx, "label": label, "class_name": f"class {label}", "weight": weight}
    if source is None:
        return row
    image_key, view_idx, *place = source
    return row | {
        "image_key": image_key,
        "view_idx": view_idx,
        "place_idx": place[0] if place else None,
        "mask_idx": view_idx,
        "box": [0, 0, 4, 4],
        "distance_before": 0.25 + idx,
        "distance_after": 0.0,
    }


def write_prototypes(folder, sources, weights=(1.0, 1.0, 1.0, 1.0)):
    described = zip(TWO_EACH, sources, weights, strict=True)
    rows = [prototype(idx, label, source, weight) for idx, (label, source, weight) in enumerate(described)]
    write_table(folder / "prototypes.parquet", rows, PROTOTYPES)


def cards_of(tmp_path, sources, *weights):
    write_prototypes(tmp_path, sources, *weights)
    usage = PrototypeUsage(top=2, num_images=1, of_prototype={0: Usage(1, 0), 2: Usage(1, 1)})
    return make_cards(usage, read_prototypes(tmp_path, "protomask"))


def test_cards_know_their_weight_usage_and_who_shares_their_view(tmp_path):
    cards = cards_of(tmp_path, [("a", 0), ("a", 1), ("b", 0), ("b", 0)], [1.5, 0.75, -0.25, 0.5])
    assert [card.weight for card in cards] == [1.5, 0.75, -0.25, 0.5]
    assert [card.usage.num_images for card in cards] == [1, 0, 1, 0]
    assert [card.same_view_as for card in cards] == [(), (), (3,), (2,)]
    assert [card.source.distance for card in cards] == [0.25, 1.25, 2.25, 3.25]


def test_two_places_of_a_view_are_two_sources(tmp_path):
    cards = cards_of(tmp_path, [("a", 2, 0), ("a", 2, 7), ("b", 2, 7), ("a", 2, 7)])
    assert [card.same_view_as for card in cards] == [(), (3,), (), (1,)]
    assert [card.source.place_idx for card in cards] == [0, 7, 7, 7]


def test_a_prototype_without_a_source_shares_no_view(tmp_path):
    cards = cards_of(tmp_path, [("a", 0), ("a", 1), None, None])
    assert [card.source is None for card in cards] == [False, False, True, True]
    assert [card.same_view_as for card in cards] == [()] * 4


def test_only_a_black_box_has_no_prototypes(tmp_path):
    write_table(tmp_path / "prototypes.parquet", [], PROTOTYPES)
    assert read_prototypes(tmp_path, "blackbox") == []
    with pytest.raises(PipelineError, match="has no prototype"):
        read_prototypes(tmp_path, "pipnet")


# the page of a run with a real network


def data_of(page):
    ((content,),) = [re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)]
    return json.loads(content)


@pytest.fixture(scope="module", params=["protomask", *WITH_PLACES])
def run(request, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp(request.param), head=request.param)


def write_pages(run, folder, *, workers=1):
    """Write both galleries and give what they were made of."""
    folder.mkdir()
    runtime = Runtime(workers=workers, device="cpu")
    final, crops, masks = run / "models/final", run / "data/crops", run / "data/masks/masks.parquet"
    common = {"images": load_images(run / "data/dataset"), "top": TOP, "thumbnail_px": 64}
    site = Site(folder, title="<i>network</i>", dataset_name="pictures")
    test = read_test_outputs(final, crops, runtime=runtime)
    pictures = draw_test_images(site, test, masks=masks, runtime=runtime, **common)
    cards = add_prototypes_page(
        site, final, test=test, pictures=pictures, crops=crops, splits=("train",), runtime=runtime, **common
    )
    add_image_pages(site, cards, test=test, pictures=pictures)
    return test, pictures, cards


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "report"
    return (folder, *write_pages(run, folder))


def similarities_of(test):
    """Compare every test image with every prototype, one by one."""
    output = test.output
    return [[float(output.similarity[bag, idx]) for idx in range(NUM_PROTOTYPES)] for bag in range(len(test.reader))]


def test_usage_counts_the_images_that_have_a_prototype_among_their_most_similar_ones(written):
    _, test, _, cards = written
    labels = test.reader.labels
    for card in cards:
        idx = card.prototype_idx
        users = [
            bag
            for bag, values in enumerate(similarities_of(test))
            if idx in sorted(range(NUM_PROTOTYPES), key=lambda other: (-values[other], other))[:TOP]
        ]
        own = [bag for bag in users if labels[bag] == card.label]
        assert card.usage == Usage(len(users), len(own))
    assert sum(card.usage.num_images for card in cards) == TOP * len(labels) > 0


def test_a_card_counts_the_pages_that_name_its_prototype_as_a_reason_for_the_predicted_class(written):
    folder, test, _, cards = written
    counts = dict.fromkeys(range(NUM_PROTOTYPES), 0)
    for page in (folder / "images").iterdir():
        reasons, *_ = re.findall(r'<ol class="reasons">(.*?)</ol>', page.read_text(), re.DOTALL)
        for idx in re.findall(r"prototypes\.html#prototype=(\d+)", reasons):
            counts[int(idx)] += 1
    assert {card.prototype_idx: card.num_reasons for card in cards} == counts
    assert sum(counts.values()) == TOP * len(test.reader) > 0
    items = data_of((folder / "prototypes.html").read_text())
    assert {item["id"]: item["reasons"] for item in items} == counts


def test_the_page_says_what_is_counted_where_it_says_unused(written):
    page = (written[0] / "prototypes.html").read_text()
    texts = re.findall(r">\s*([^<>]*\bunused\b[^<>]*?)\s*<", page)
    assert texts == [f"unused: never in the top {TOP}"] * 2


def test_the_nearest_views_are_those_at_the_least_distances_each_of_another_image(written):
    _, test, pictures, cards = written
    assert len(cards) == NUM_PROTOTYPES
    for card in cards:
        distance = [float(test.output.distance[bag, card.prototype_idx]) for bag in range(len(test.reader))]
        nearest = sorted(range(len(distance)), key=lambda bag: (distance[bag], bag))[:5]
        assert [near.image_key for near in card.nearest] == [test.reader.image_keys[bag] for bag in nearest]
        assert [near.distance for near in card.nearest] == [distance[bag] for bag in nearest]
        assert [near.is_own_class for near in card.nearest] == [test.reader.labels[b] == card.label for b in nearest]
        for near, bag in zip(card.nearest, nearest, strict=True):
            element = int(test.output.element[bag, card.prototype_idx])
            view, place = divmod(element, test.num_places)
            assert near.picture == pictures[bag].views[view, place if test.num_places > 1 else -1]


def test_the_page_holds_what_the_cards_say_and_links_to_pages_and_pictures_that_exist(written):
    folder, _, _, cards = written
    items = data_of((folder / "prototypes.html").read_text())
    assert [item["id"] for item in items] == list(range(NUM_PROTOTYPES))
    for item, card in zip(items, cards, strict=True):
        assert (item["class"], item["usage"]) == (card.class_name, card.usage.num_images)
        assert item["weight"] == pytest.approx(card.weight, abs=1e-6)
        assert item["unused"] == (card.usage.num_images == 0)
        assert [one["id"] for one in item["duplicates"]] == list(card.same_view_as)
        assert len(item["nearest"]) == 5
        shown = [near["view"] for near in item["nearest"]]
        if card.source is None:
            assert item["view"] is item["photograph"] is item["distance"] is item["key"] is None
        else:
            shown += [item["view"], item["photograph"]]
        for name, width, height in shown:
            with Image.open(folder / "pictures" / name) as picture:
                assert picture.size == (width, height)
        for near in item["nearest"]:
            assert (folder / f"images/{near['key']}.html").is_file()
    assert items[2]["duplicates"] == [{"id": 3}]
    assert items[5]["key"] is None


def test_pictures_of_test_views_are_half_as_large_as_photographs(written):
    _, _, pictures, cards = written
    assert {max(near.picture.width, near.picture.height) for card in cards for near in card.nearest} <= {32}
    assert {shown.photograph.width for shown in pictures} == {48}  # that of the image; nothing is enlarged
    assert {shown.small.width for shown in pictures} == {32}


def test_the_same_run_gives_the_same_bytes_however_many_workers_draw(run, written, tmp_path, monkeypatch):
    monkeypatch.setattr(test_pictures, "MANY_IMAGES", 1)  # so that workers start
    write_pages(run, tmp_path / "report", workers=2)
    first = {path.relative_to(written[0]): path.read_bytes() for path in written[0].rglob("*") if path.is_file()}
    again = tmp_path / "report"
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()} == first
    assert len(first) > 20


def test_text_of_others_is_text_on_the_page(written):
    page = (written[0] / "prototypes.html").read_text()
    assert "<b>gull" not in page
    assert "<i>network" not in page
    assert "&lt;b&gt;gull&lt;/b&gt; &amp; co" in page
    assert data_of(page)[0]["class"] == "<b>gull</b> & co"


def test_no_text_can_end_the_data_of_a_page():
    items = [{"class": "</script><script>alert(1)</script>", "key": "<!--"}]
    text = str(page_data(items))
    assert "<" not in text
    assert json.loads(text) == items


def test_a_black_box_has_a_page_that_says_so(tmp_path):
    run = make_run(tmp_path / "run", head="blackbox")
    _, pictures, cards = write_pages(run, tmp_path / "report")
    assert cards == []
    assert all(shown.explanation is None and not shown.views for shown in pictures)
    page = (tmp_path / "report/prototypes.html").read_text()
    assert "has no prototypes" in page
    assert "<script" not in page


def test_prototypes_of_another_network_are_refused(tmp_path):
    run = make_run(tmp_path / "run")
    write_table(run / "models/final/prototypes.parquet", [prototype(0, 0, None, 1.0)], PROTOTYPES)
    with pytest.raises(PipelineError, match=r"prototypes\.parquet has 1 prototypes, the network beside it 6"):
        write_pages(run, tmp_path / "report")


def damaged_photograph(run):
    (run / "data/dataset/images/c0_3.png").write_bytes(b"no picture")


def missing_photograph(run):
    (run / "data/dataset/images/c0_0.png").unlink()


def no_masks(run):
    with MaskTableWriter(run / "data/masks/masks.parquet"):
        pass


@pytest.mark.parametrize(
    ("damage", "message"),
    [(damaged_photograph, "c0_3"), (missing_photograph, "c0_0"), (no_masks, "has no mask 0")],
)
def test_inputs_that_do_not_fit_are_refused_by_name(tmp_path, damage, message):
    run = make_run(tmp_path / "run")
    damage(run)
    with pytest.raises(PipelineError, match=message):
        write_pages(run, tmp_path / "report")
