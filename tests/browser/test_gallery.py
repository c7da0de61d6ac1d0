"""The lists of prototypes and of test images: what is chosen is shown, in the order that was asked for."""

import re
from itertools import pairwise

import pytest

from tests.browser.shapes_run import CLASSES, IMAGES, PROTOTYPES_PER_CLASS

pytestmark = pytest.mark.slow  # the runs that make the pages
NUM_PROTOTYPES = len(CLASSES) * PROTOTYPES_PER_CLASS
NUM_IMAGES = len(CLASSES) * IMAGES["test"]
PART = 48  # items shown at once
MISSING = float("inf")
SORTS = {  # of prototypes: what is read from the cards, and whether it grows or falls
    "class-last": ("label", -1),
    "usage": ("usage", -1),
    "usage-least": ("usage", 1),
    "weight": ("weight", -1),
    "weight-least": ("weight", 1),
    "distance": ("distance", 1),
    "distance-most": ("distance", -1),
}

READ_CARDS = """cards => cards.map((card) => ({
    id: Number(card.querySelector("h2 a").textContent.replace("Prototype ", "")),
    class: card.querySelector("h2 span").textContent,
    numbers: Object.fromEntries([...card.querySelectorAll("dl > div")]
        .map((line) => [line.querySelector("dt").textContent, line.querySelector("dd").textContent])),
    flags: [...card.querySelectorAll(".flag")].map((flag) => flag.textContent.trim()),
    twins: [...card.querySelectorAll(".flag a")].map((link) => Number(link.textContent)),
    marked: card.classList.contains("marked"),
}))"""
READ_TILES = """tiles => tiles.map((tile) => ({
    key: tile.querySelector("a").getAttribute("href").replace(/^images\\/(.*)\\.html$/, "$1"),
    outcome: tile.querySelector(".outcome").textContent,
    predicted: tile.querySelector("b").textContent,
    text: tile.textContent,
}))"""


def number(text):
    return float(text.replace("−", "-"))


def cards(page):
    """Read the cards that are shown."""
    found = page.locator(".prototype-card").evaluate_all(READ_CARDS)
    for card in found:
        numbers = {title.split(" ")[0]: number(text) for title, text in card["numbers"].items()}
        card |= {"label": CLASSES.index(card["class"]), "usage": numbers["In"], "own": numbers["of"]}
        card |= {"weight": numbers["Weight"], "distance": numbers.get("Distance", MISSING)}
    return found


def tiles(page):
    """Read the tiles of images that are shown."""
    found = page.locator(".tile").evaluate_all(READ_TILES)
    for tile in found:
        tile["percent"] = number(re.search(r"([\d.]+) % ·", tile["text"])[1])
    return found


def walk(page, read, step="Next"):
    """Read all parts of the list, from here on."""
    found = read(page)
    button = page.get_by_role("button", name=step).first
    num_clicks = 0
    while button.is_enabled():
        button.click()
        num_clicks += 1
        assert num_clicks < 3, "the list has no end"
        found += read(page)
    return found


def status(page):
    return page.locator("#shown").inner_text()


def options(page, name):
    """Give the choices of a list but its first one, which chooses nothing: text by value."""
    found = page.locator(f"select[name={name}] option").evaluate_all(
        "options => options.map((option) => [option.value, option.textContent])"
    )
    assert found[0][0] == ""
    return dict(found[1:])


@pytest.fixture
def prototypes(visit, site):
    yield visit.open(site / "prototypes.html")
    assert visit.complaints == []


@pytest.fixture
def images(visit, site):
    yield visit.open(site / "images.html")
    assert visit.complaints == []


def test_next_and_previous_walk_through_every_prototype_once(prototypes):
    assert status(prototypes) == f"1–{PART} of {NUM_PROTOTYPES} prototypes"
    forward = [card["id"] for card in walk(prototypes, cards)]
    assert status(prototypes) == f"{PART + 1}–{NUM_PROTOTYPES} of {NUM_PROTOTYPES} prototypes"
    assert sorted(forward) == list(range(NUM_PROTOTYPES))
    backward = [card["id"] for card in walk(prototypes, cards, "Previous")]
    assert backward == [*forward[PART:], *forward[:PART]]
    assert prototypes.get_by_role("button", name="Previous").first.is_disabled()


def test_only_prototypes_of_the_chosen_class_are_shown(prototypes):
    everything = walk(prototypes, cards)
    found = options(prototypes, "class")
    assert tuple(found.values()) == CLASSES
    for value, class_name in found.items():
        prototypes.select_option("select[name=class]", value)
        shown = cards(prototypes)
        assert shown == [card for card in everything if card["class"] == class_name]
        assert len(shown) == PROTOTYPES_PER_CLASS
        assert status(prototypes) == (f"1–{len(shown)} of {len(shown)} prototypes, chosen from {NUM_PROTOTYPES}")
        assert prototypes.get_by_role("button", name="Next").first.is_disabled()


@pytest.mark.parametrize("sort", SORTS)
def test_prototypes_come_in_the_chosen_order(prototypes, sort):
    assert set(options(prototypes, "sort")) == set(SORTS)
    prototypes.select_option("select[name=sort]", sort)
    field, sign = SORTS[sort]
    values = [card[field] for card in walk(prototypes, cards)]
    with_value = [value for value in values if value != MISSING]
    assert len(set(with_value)) > 1
    assert values[len(with_value) :] == [MISSING] * (NUM_PROTOTYPES - len(with_value))  # those without one are last
    assert all(sign * (after - before) >= 0 for before, after in pairwise(with_value))


def test_unused_prototypes_and_duplicates_can_be_picked_out(prototypes):
    everything = walk(prototypes, cards)
    unused = [card["id"] for card in everything if card["usage"] == 0]
    twins = {card["id"]: card["twins"] for card in everything if card["twins"]}
    assert unused
    assert twins
    assert all(idx in twins[other] for idx, others in twins.items() for other in others)
    for value, expected in {"unused": unused, "duplicates": list(twins)}.items():
        prototypes.select_option("select[name=only]", value)
        found = walk(prototypes, cards)
        assert [card["id"] for card in found] == expected
        word = {"unused": "unused", "duplicates": "same view as"}[value]
        assert all(any(flag.startswith(word) for flag in card["flags"]) for card in found)
        counted = prototypes.locator(".headline div", has_text=re.compile(value, re.IGNORECASE)).locator("b")
        assert counted.first.inner_text() == str(len(expected))


def test_an_address_shows_and_marks_its_prototype_wherever_it_is_in_the_list(visit, prototypes, site):
    for idx in (0, NUM_PROTOTYPES - 1):
        page = visit.open(site / "prototypes.html", f"prototype={idx}")
        marked = [card["id"] for card in cards(page) if card["marked"]]
        assert marked == [idx]
        card = page.locator(".prototype-card.marked")
        assert card.get_attribute("aria-current") == "true"
        assert card.evaluate("card => card === document.activeElement")
        top = card.bounding_box()["y"]
        assert -1 < top < page.viewport_size["height"]


def test_a_link_to_another_card_of_the_page_marks_that_one_even_if_it_is_not_among_the_chosen(visit, prototypes, site):
    duplicate = next(card for card in walk(prototypes, cards) if card["twins"])
    page = visit.open(site / "prototypes.html", f"prototype={duplicate['id']}")
    page.locator(".prototype-card.marked .flag a").first.click()
    page.wait_for_function(f"location.hash === '#prototype={duplicate['twins'][0]}'")
    assert [card["id"] for card in cards(page) if card["marked"]] == [duplicate["twins"][0]]
    page = visit.open(site / "prototypes.html", f"class=0&prototype={NUM_PROTOTYPES - 1}")
    assert [card["id"] for card in cards(page) if card["marked"]] == [NUM_PROTOTYPES - 1]


@pytest.mark.parametrize("fragment", ["prototype=99999", "class=99", "sort=colour", "part=99", "part=x", "nonsense"])
def test_an_address_that_means_nothing_here_shows_the_list(visit, prototypes, site, fragment):
    page = visit.open(site / "prototypes.html", fragment)
    assert status(page).endswith(f" of {NUM_PROTOTYPES} prototypes")
    assert cards(page)
    assert not any(card["marked"] for card in cards(page))


def test_choices_stand_in_the_address_and_outlive_a_reload(prototypes):
    prototypes.select_option("select[name=sort]", "weight")
    prototypes.get_by_role("button", name="Next").first.click()
    before, address = cards(prototypes), prototypes.url
    assert len(before) == NUM_PROTOTYPES - PART
    prototypes.reload()
    assert (cards(prototypes), prototypes.url) == (before, address)


def test_every_test_image_is_listed_once_mistakes_first_and_the_most_confident_of_these_first(images):
    assert status(images) == f"1–{PART} of {NUM_IMAGES} images"
    found = walk(images, tiles)
    assert len({tile["key"] for tile in found}) == NUM_IMAGES
    outcomes = [tile["outcome"] for tile in found]
    assert set(outcomes) == {"right", "wrong"}
    assert outcomes == sorted(outcomes, reverse=True)
    of_mistakes = [tile["percent"] for tile in found if tile["outcome"] == "wrong"]
    assert of_mistakes == sorted(of_mistakes, reverse=True)


def test_images_can_be_chosen_by_outcome_and_by_class(images):
    everything = walk(images, tiles)
    for outcome in ("right", "wrong"):
        images.select_option("select[name=outcome]", outcome)
        found = walk(images, tiles)
        assert [tile["key"] for tile in found] == [tile["key"] for tile in everything if tile["outcome"] == outcome]
        counted = images.locator(".headline div", has=images.locator("dt", has_text=outcome.capitalize()))
        assert counted.locator("b").inner_text() == str(len(found))
    images.select_option("select[name=outcome]", "")
    for value, class_name in options(images, "predicted").items():
        images.select_option("select[name=predicted]", value)
        keys = [tile["key"] for tile in walk(images, tiles)]
        assert keys == [tile["key"] for tile in everything if tile["predicted"] == class_name] != []
    images.select_option("select[name=predicted]", "")
    assert tuple(options(images, "class").values()) == CLASSES
    num_per_class = []
    for value in options(images, "class"):
        images.select_option("select[name=class]", value)
        num_per_class.append(len(walk(images, tiles)))
    assert num_per_class == [IMAGES["test"]] * len(CLASSES)


@pytest.mark.parametrize(
    ("sort", "field", "falls"),
    [
        ("confidence", "percent", True),
        ("confidence-least", "percent", False),
        ("key", "key", False),
        ("key-last", "key", True),
    ],
)
def test_images_come_in_the_chosen_order(images, sort, field, falls):
    images.select_option("select[name=sort]", sort)
    values = [tile[field] for tile in walk(images, tiles)]
    assert len(values) == NUM_IMAGES
    assert values == sorted(values, reverse=falls)


def test_choices_that_no_image_fits_are_answered_and_can_be_taken_back(images):
    found = walk(images, tiles)
    right = {tile["predicted"] for tile in found if tile["outcome"] == "right"}
    labels = {name: value for value, name in options(images, "class").items()}
    name = right.pop()
    images.select_option("select[name=outcome]", "wrong")
    images.select_option("select[name=class]", labels[name])
    images.select_option("select[name=predicted]", labels[name])
    assert (status(images), tiles(images)) == (f"none of {NUM_IMAGES} images is like this", [])
    images.select_option("select[name=outcome]", "right")
    assert tiles(images)


def test_a_tile_leads_to_the_page_of_its_image_and_that_back_to_the_list(images):
    for outcome in ("wrong", "right"):
        images.select_option("select[name=outcome]", outcome)
        tile = tiles(images)[0]
        images.locator(".tile a").first.click()
        images.wait_for_url("**/images/*.html")
        assert tile["key"] in images.locator("main").inner_text()
        assert images.locator(".verdict .outcome").inner_text() == outcome
        assert tile["predicted"] in images.locator("h1").inner_text()
        images.locator(f"nav.neighbours a[href*='outcome={outcome}']").click()
        images.locator(".tile").first.wait_for()
        assert {tile["outcome"] for tile in tiles(images)} == {outcome}
        assert images.locator("select[name=outcome]").input_value() == outcome


@pytest.mark.parametrize("outcome", ["wrong", "right"])
def test_pages_of_images_of_one_outcome_are_chained_in_the_order_of_the_list(visit, site, images, outcome):
    images.select_option("select[name=outcome]", outcome)
    expected = [tile["key"] for tile in walk(images, tiles)]
    found, page = [expected[0]], visit.open(site / f"images/{expected[0]}.html")
    assert not page.locator("a[rel=prev]").count()
    while page.locator("a[rel=next]").count() and len(found) <= len(expected):
        page.goto(page.locator("a[rel=next]").evaluate("link => link.href"), wait_until="domcontentloaded")
        found.append(page.url.rpartition("/")[2].removesuffix(".html"))
    assert found == expected


def test_a_reason_on_the_page_of_an_image_leads_to_the_card_of_its_prototype(visit, site, images):
    page = visit.open(site / f"images/{tiles(images)[0]['key']}.html")
    link = page.locator(".reason a[href*='#prototype=']").first
    idx = int(link.get_attribute("href").rpartition("=")[2])
    link.click()
    page.locator(".prototype-card.marked").wait_for()
    assert [card["id"] for card in cards(page) if card["marked"]] == [idx]
