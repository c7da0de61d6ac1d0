"""The pages for everybody: audited by axe-core, narrow, by keyboard, on paper."""

import pytest

from pipeline.report.site import PAGES
from tests.browser.visit import NARROW, WIDE, visiting

pytestmark = pytest.mark.slow  # the runs that make the pages
# further pages, in the words of `path_of_page`
IMAGE_PAGES = ("image right", "image wrong", "image of the black box")
OTHERS = ("blackbox index.html", "blackbox prototypes.html", *IMAGE_PAGES, "explained", "compared")
ALL = (*PAGES, *OTHERS)
GRAVE = ("serious", "critical")

OPEN_DETAILS = "nodes => nodes.forEach((node) => { node.open = true; })"
# what can be reached with the Tab key, in this order
REACHABLE = """() => [...document.querySelectorAll(
        "a[href], button:not(:disabled), select, input, summary, [tabindex='0']")]
    .filter((node) => node.checkVisibility({visibilityProperty: true}))"""
# the place of the focus in that order, and whether one sees it
FOCUSED = f"""() => {{
    const node = document.activeElement, style = getComputedStyle(node), box = node.getBoundingClientRect();
    return {{
        place: ({REACHABLE})().indexOf(node),
        name: node.outerHTML.slice(0, 100),
        outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1,
        inSight: box.width > 0 && box.right > 0 && box.bottom > 0 && box.left < innerWidth && box.top < innerHeight,
    }};
}}"""
# what stands in the page but takes no place on it
HIDDEN = """() => [...document.querySelectorAll("main *, header *")]
    .map((node, place) => [place, node.checkVisibility({visibilityProperty: true, opacityProperty: true})])
    .filter(([, visible]) => !visible).map(([place]) => place)"""
CONTROLS = """() => [...document.querySelectorAll("main *, header *")].map((node, place) => [place, node])
    .filter(([, node]) => node.closest("nav, form, button")).map(([place]) => place)"""


def path_of_page(runs, name):
    """Find the file of a page of ALL."""
    if name in ("explained", "compared"):
        return getattr(runs, name)
    if name.startswith("blackbox "):
        return runs.blackbox.site / name.removeprefix("blackbox ")
    if name == "image of the black box":
        return min((runs.blackbox.site / "images").glob("*.html"))
    if name.startswith("image "):
        mark = f'<span class="outcome {name.removeprefix("image ")}">'
        return min(path for path in (runs.network.site / "images").glob("*.html") if mark in path.read_text())
    return runs.network.site / name


def fragment_of(name):
    """Leave out cards that are like the others."""
    return "class=0" if name == "prototypes.html" else ""


def violations(page):
    """What axe-core finds grave on the page, all of it unfolded: rule, and the elements."""
    from axe_playwright_python.sync_playwright import Axe

    page.locator("details").evaluate_all(OPEN_DETAILS)
    # style sheets on disk cannot be read again by a script, and no rule in use asks for that
    options = {"resultTypes": ["violations"], "preload": False}
    found = Axe().run(page, options=options).response
    assert len(found["passes"]) > 10
    return {
        (rule["id"], rule["impact"]): [node["html"] for node in rule["nodes"]]
        for rule in found["violations"]
        if rule["impact"] in GRAVE
    }


@pytest.mark.parametrize("name", ALL)
def test_an_audit_finds_nothing_grave_in_light_and_dark_narrow_and_wide(visit, runs, name):
    page = visit.open(path_of_page(runs, name), fragment_of(name))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for viewport in (NARROW, WIDE):
            page.set_viewport_size(viewport)
            assert (scheme, viewport["width"], violations(page)) == (scheme, viewport["width"], {})


def test_the_audit_would_find_a_picture_without_a_text_and_letters_too_pale_to_read(visit, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(
        '<!doctype html><html lang="en"><title>Bad</title><main><h1>Bad</h1>'
        '<p style="color: #ccc; background: #fff">pale</p><img src="data:," width="9" height="9"></main></html>'
    )
    page = visit.open(path)
    assert {rule for rule, _ in violations(page)} == {"color-contrast", "image-alt"}


@pytest.mark.parametrize("name", ALL)
def test_no_page_is_wider_than_a_narrow_screen(browser, runs, name):
    with visiting(browser, viewport=NARROW) as visit:
        page = visit.open(path_of_page(runs, name))
        page.locator("details").evaluate_all(OPEN_DETAILS)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= NARROW["width"]


@pytest.mark.parametrize("name", ALL)
def test_the_first_key_press_offers_to_skip_to_the_content(visit, runs, name):
    page = visit.open(path_of_page(runs, name))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    focused = page.evaluate(FOCUSED)
    assert (focused["outlined"], focused["inSight"]) == (True, True), focused
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main, footer, body').tagName") != "HEADER"
    assert page.evaluate("document.querySelector('header').contains(document.activeElement)") is False


@pytest.mark.parametrize("name", ALL)
def test_everything_that_can_be_used_is_reached_by_keyboard_in_order_and_seen(visit, runs, name):
    page = visit.open(path_of_page(runs, name), fragment_of(name))
    num_reachable = page.evaluate(f"({REACHABLE})().length")
    assert num_reachable > (0 if name in ("explained", "compared") else len(PAGES))
    places = []
    for _ in range(num_reachable):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        places.append(focused["place"])
        assert (focused["outlined"], focused["inSight"]) == (True, True), focused
    assert places == list(range(num_reachable))


@pytest.mark.parametrize("name", ALL)
def test_on_paper_nothing_is_missing_but_what_is_there_to_be_clicked(visit, runs, name):
    page = visit.open(path_of_page(runs, name))
    on_screen = set(page.evaluate(HIDDEN))
    controls = set(page.evaluate(CONTROLS))
    page.emulate_media(media="print")
    assert set(page.evaluate(HIDDEN)) - on_screen <= controls
