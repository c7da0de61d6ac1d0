"""Every page loads from disk, offline, wherever it lies, and needs nothing but its folder."""

import shutil

import pytest

from pipeline.report.site import PAGES
from tests.browser.chromium import as_url
from tests.browser.shapes_run import CLASSES, MARKUP
from tests.browser.visit import path_of, visiting

pytestmark = pytest.mark.slow  # the runs that make the pages
MOST_IMAGE_PAGES = 20
WITH_CLASS_NAMES = [name for name in PAGES if name != "training.html"]

# every address that a page names, as the browser resolves it
ADDRESSES = """() => [...document.querySelectorAll("a[href], link[href], img[src], script[src]")]
    .map((node) => node.href || node.src)"""
# what a link to the page may name behind its #: ids of elements; of lists, choices with their values, and their items
TARGETS = """() => {
    const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
    const gallery = document.getElementById("gallery");
    const choices = Object.fromEntries([...document.querySelectorAll("#choices select")]
        .map((select) => [select.name, [...select.options].map((option) => option.value)]));
    if (gallery) choices[gallery.dataset.anchor] = JSON.parse(document.getElementById("data").textContent)
        .map((item) => String(item.id));
    return {ids, choices};
}"""


def some_pages(site):
    """All pages of a site; of those of single images at most MOST_IMAGE_PAGES, evenly."""
    found = sorted(site.rglob("*.html"))
    of_images = [path for path in found if path.parent != site]
    others = [path for path in found if path.parent == site]
    step = max(1, -(-len(of_images) // MOST_IMAGE_PAGES))
    return [*others, *of_images[::step]]


@pytest.mark.parametrize("run", ["network", "blackbox"])
def test_every_page_loads_without_a_complaint_and_without_a_request_beyond_its_folder(visit, runs, run):
    site = getattr(runs, run).site
    pages = some_pages(site)
    assert {path.name for path in pages if path.parent == site} == set(PAGES)
    assert len(pages) > len(PAGES) + 10
    for path in pages:
        visit.open(path)
        assert (path.name, visit.load_pictures()) == (path.name, [])
    assert visit.complaints == []
    assert visit.requests_outside(site) == []
    assert len(visit.requests) > 2 * len(pages)


def test_what_is_wrong_with_a_page_is_heard(visit, tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    (tmp_path / "beside.js").write_text("")
    (folder / "page.html").write_text(
        '<!doctype html><link rel="icon" href="data:,"><img src="gone.jpg"><img src="https://example.org/a.jpg">'
        '<script src="../beside.js"></script><script>console.warn("careful"); nothing.here;</script>'
    )
    visit.open(folder / "page.html")
    gone, elsewhere = as_url(folder / "gone.jpg"), "https://example.org/a.jpg"
    assert visit.load_pictures() == [gone, elsewhere]
    assert set(visit.requests_outside(folder)) == {as_url(tmp_path / "beside.js"), elsewhere}
    assert {complaint for complaint in visit.complaints if "Failed to load" not in complaint} == {
        "warning: careful",
        "exception: nothing is not defined",
        f"net::ERR_FILE_NOT_FOUND: {gone}",
        f"net::ERR_INTERNET_DISCONNECTED: {elsewhere}",
    }


@pytest.mark.parametrize(
    ("link", "is_good"),
    [
        ("file:///site/a.html", True),
        ("file:///site/a.html#top", True),
        ("file:///site/a.html#class=1", True),
        ("file:///site/a.html#class=1&item=7", True),
        ("file:///site/a.html#bottom", False),
        ("file:///site/a.html#class=2", False),
        ("file:///site/b.html", False),
        ("https://example.org/site/a.html", False),
    ],
)
def test_a_link_is_judged_by_what_it_leads_to(link, is_good):
    targets = {"/site/a.html": {"ids": ["top"], "choices": {"class": ["", "1"], "item": ["7"]}}}
    assert (fault_of_link(link, targets) is None) == is_good


@pytest.mark.parametrize("page", ["explained", "compared"])
def test_a_page_of_its_own_asks_for_nothing_but_itself(visit, runs, page):
    path = getattr(runs, page)
    visit.open(path)
    assert visit.load_pictures() == []
    assert visit.page.locator("img").count() > 3
    assert visit.complaints == []
    assert {path_of(url)[0] for url in visit.requests if not url.startswith("data:")} == {str(path)}


def fault_of_link(url, targets):
    """Say what is wrong with a link; TARGETS are those of the pages, by their paths."""
    path, fragment = path_of(url)
    if not url.startswith("file://"):
        return "leads to another place than a file"
    if path not in targets:
        return "leads to no file of the folder"
    found = targets[path]
    if not fragment or found is None or fragment in found["ids"]:
        return None
    for choice in fragment.split("&"):
        name, _, value = choice.partition("=")
        if value not in found["choices"].get(name, []):
            return "leads to no element and no choice of the page"
    return None


@pytest.mark.parametrize("run", ["network", "blackbox"])
def test_every_link_leads_to_a_file_and_every_fragment_to_something_in_it(visit, runs, run):
    site = getattr(runs, run).site
    links, targets = {}, {str(path): None for path in site.rglob("*") if path.is_file()}
    for path in some_pages(site):
        page = visit.open(path)
        links[path.relative_to(site)] = [url for url in page.evaluate(ADDRESSES) if not url.startswith("data:")]
        targets[str(path)] = page.evaluate(TARGETS)
    faults = [
        (str(page), url, fault)
        for page, urls in links.items()
        for url in urls
        if (fault := fault_of_link(url, targets)) is not None
    ]
    assert faults == []
    assert min(len(urls) for urls in links.values()) > len(PAGES)
    assert any(path_of(url)[1] for urls in links.values() for url in urls)


def test_a_folder_that_was_zipped_and_unpacked_elsewhere_still_loads(visit, site, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "report"), "zip", site)
    moved = tmp_path / "Änother place #1, 100 % & co"
    shutil.unpack_archive(archive, moved)
    pages = [moved / name for name in PAGES] + sorted(moved.glob("images/*.html"))[:1]
    for path in pages:
        page = visit.open(path)
        assert page.locator("h1").is_visible()
        assert visit.load_pictures() == []
    assert visit.complaints == []
    assert visit.requests_outside(moved) == []
    visit.open(moved / "index.html")
    visit.page.locator("nav.pages a", has_text=PAGES["prototypes.html"]).click()
    visit.page.locator(".prototype-card").first.wait_for()


@pytest.mark.parametrize("name", [*WITH_CLASS_NAMES, "explained", "compared"])
def test_names_of_classes_are_text_and_never_markup(visit, runs, name):
    visit.open(getattr(runs, name) if name in ("explained", "compared") else runs.network.site / name)
    # of text that was taken for markup, an element would begin with the x that stands between its brackets
    made = 'nodes => nodes.filter((node) => node.firstChild && node.firstChild.nodeValue?.startsWith("x")).length'
    assert visit.page.locator("b").evaluate_all(made) == 0
    text = visit.page.evaluate("document.documentElement.textContent")
    assert MARKUP in text
    if name not in ("explained", "compared"):
        for class_name in CLASSES:
            assert class_name in text


def test_without_scripts_the_lists_say_so_and_the_rest_is_there(browser, site):
    with visiting(browser, java_script_enabled=False) as visit:
        for name in PAGES:
            page = visit.open(site / name)
            assert page.locator("h1").is_visible()
            assert page.locator("noscript p", has_text="allow JavaScript").is_visible() == (
                name in ("prototypes.html", "images.html")
            )
            assert not page.locator("form:visible").count()
        assert visit.complaints == []
