"""One browser, and one set of pages that real runs have made, for all tests of this folder."""

from types import SimpleNamespace

import pytest

from pipeline.runtime import one_thread
from tests.browser.chromium import open_browser, what_is_missing
from tests.browser.shapes_run import BLACKBOX, OTHER_VIEWS, ShapesRun, compare_runs
from tests.browser.visit import visiting


@pytest.fixture(scope="session")
def browser():
    """Chromium; without it the test is skipped, before anything is made for it."""
    reason = what_is_missing()
    if reason:
        pytest.skip(reason)
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def runs(browser, tmp_path_factory):
    """Two runs of ProtoMask, one of a black box alone, a page that explains a picture, and one that compares."""
    folder = tmp_path_factory.mktemp("shapes")
    with one_thread():  # networks this small only wait for each other's threads; other tests have theirs
        network = ShapesRun(folder / "network").prepare().learn_and_report()
        other = ShapesRun(folder / "other", **OTHER_VIEWS).prepare().learn_and_report()
        return SimpleNamespace(
            network=network,
            blackbox=ShapesRun(folder / "blackbox", **BLACKBOX).prepare_like(network).learn_and_report(),
            explained=network.explain('<b>odd<b> & "new"'),
            compared=compare_runs(network, other, folder / "compared"),
        )


@pytest.fixture(scope="session")
def site(runs):
    """The folder of the report on the network with prototypes."""
    return runs.network.site


@pytest.fixture
def visit(browser):
    """A tab 1400 px wide."""
    with visiting(browser) as visit:
        yield visit
