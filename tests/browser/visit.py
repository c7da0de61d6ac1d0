"""A page as the browser sees it, and what goes on behind it."""

from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

from tests.browser.chromium import as_url

WIDE = {"width": 1400, "height": 900}
NARROW = {"width": 400, "height": 800}


class Visit:
    """A tab of its own: offline, without a cache, and with a record of everything that it asks for or complains of.

    Attributes:
        page: playwright's page.
        complaints: errors and warnings of the console, exceptions of scripts, requests that failed.
        requests: the addresses of all requests.
    """

    def __init__(self, context):
        self.page = context.new_page()
        self.complaints = []
        self.requests = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"exception: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _heard(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def _failed(self, request):
        if request.failure != "net::ERR_ABORTED":  # the page was left before all of it was there
            self.complaints.append(f"{request.failure}: {request.url}")

    def open(self, path, fragment=""):
        """Load a file, also where only the fragment differs from what is shown."""
        self.page.goto("about:blank")
        self.page.goto(as_url(path, fragment))
        return self.page

    def load_pictures(self):
        """Load also the pictures that are out of sight; give the addresses of those that cannot be shown."""
        return self.page.evaluate(
            """async () => {
                const pictures = [...document.images];
                for (const picture of pictures) picture.loading = "eager";
                await Promise.allSettled(pictures.map((picture) => picture.decode()));
                return pictures.filter((picture) => !picture.naturalWidth).map((picture) => picture.src);
            }"""
        )

    def requests_outside(self, folder):
        """Give the requests for anything but files below FOLDER and data in the page itself."""
        inside = as_url(folder) + "/"
        return [url for url in self.requests if not url.startswith((inside, "data:"))]


@contextmanager
def visiting(browser, viewport=WIDE, **settings):
    """Open a tab and close it; SETTINGS are those of a playwright context."""
    context = browser.new_context(offline=True, viewport=viewport, **settings)
    context.set_default_timeout(10_000)
    try:
        yield Visit(context)
    finally:
        context.close()


def path_of(url):
    """Give the file that an address means, without its fragment, and the fragment."""
    parts = urlsplit(url)
    return unquote(parts.path), unquote(parts.fragment)
