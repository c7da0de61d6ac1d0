"""The frame that all pages share: one style, one head with links, pictures that are stored once.

A *site* is a folder of pages that needs nothing else: it opens from disk, offline, and wherever it is copied. A page of
its own (:func:`render_alone`) holds its style and pictures itself.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.io import sha256_of
from pipeline.report.thumbnails import Thumbnail

PICTURES = "pictures"
ASSETS = "assets"
PAGES = {
    "index.html": "Overview",
    "metrics.html": "Metrics",
    "prototypes.html": "Prototypes",
    "images.html": "Images",
    "masks.html": "Masks",
    "training.html": "Training",
}
"""The pages that every other one links to, in this order."""

_NAME_DIGITS = 16  # of a picture's hash; 64 bits do not collide in a report


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture on a page.

    Attributes:
        src: what ``<img src>`` takes, from the folder of the site; or a ``data:`` URI.
        width: pixels.
        height: pixels.
    """

    src: str
    width: int
    height: int


class Site:
    """The folder of a report while it is written."""

    def __init__(self, folder: Path, *, title: str, dataset_name: str) -> None:
        """Put the style into FOLDER.

        Args:
            folder: exists and is empty.
            title: what the network is called.
            dataset_name: as in ``dataset.name``.
        """
        self.folder = folder
        self._content = {"title": title, "dataset_name": dataset_name, "pages": PAGES, "style": None}
        self._environment = _environment()
        self.add_asset("style.css")

    def add_asset(self, name: str) -> None:
        """Copy a script or a style sheet from the templates; pages name it ``assets/NAME``."""
        self._write(f"{ASSETS}/{name}", _source(self._environment, name))

    def add_page(self, path: str, template: str, **content: Any) -> None:
        """Write the page PATH, which may lie in a folder, from a TEMPLATE that extends ``page.html.j2``."""
        root = "../" * path.count("/")
        rendered = self._environment.get_template(template).render(**self._content, path=path, root=root, **content)
        self._write(path, rendered)

    def add_picture(self, thumbnail: Thumbnail) -> Picture:
        """Store a picture; equal ones are stored once."""
        name = f"{PICTURES}/{sha256_of(thumbnail.content)[:_NAME_DIGITS]}.jpg"
        path = self.folder / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(thumbnail.content)
        return Picture(name, thumbnail.width, thumbnail.height)

    def _write(self, path: str, text: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def embedded(thumbnail: Thumbnail) -> Picture:
    """Make a picture of a page of its own: its bytes stand in the page."""
    content = base64.b64encode(thumbnail.content).decode("ascii")
    return Picture(f"data:image/jpeg;base64,{content}", thumbnail.width, thumbnail.height)


def render_alone(template: str, *, styles: Sequence[str] = ("style.css",), **content: Any) -> str:
    """Render a page that needs no other file, from a TEMPLATE that extends ``page.html.j2``, with all of STYLES."""
    environment = _environment()
    style = "\n".join(_source(environment, name) for name in styles)
    return environment.get_template(template).render(style=style, pages={}, path="", root="", **content)


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, name)
    return source


def _environment() -> Environment:
    # everything is escaped, whatever the template's name: class names are other people's text
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = lambda fraction: f"{100 * fraction:.2f} %"
    return environment
