"""``python -m tests.browser.screenshots FOLDER OUT``: the pages of a folder as pictures, for people to look at.

Each page is shown at 400 and 1400 px, light and dark: ``OUT/PAGE-400-dark.png`` and so on.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tests.browser.chromium import open_browser, what_is_missing
from tests.browser.visit import NARROW, WIDE, visiting

SCHEMES = ("light", "dark")


def take_screenshots(browser, folder, out, height):
    """Show the pages that lie directly in FOLDER, at most HEIGHT px of each; give the pictures in OUT."""
    out.mkdir(parents=True, exist_ok=True)
    taken = []
    for viewport in (NARROW, WIDE):
        with visiting(browser, viewport=viewport) as visit:
            for path in sorted(folder.glob("*.html")):
                page = visit.open(path)
                visit.load_pictures()
                whole = page.evaluate("document.scrollingElement.scrollHeight")
                page.set_viewport_size({**viewport, "height": min(whole, height)})
                for scheme in SCHEMES:
                    page.emulate_media(color_scheme=scheme)
                    taken.append(out / f"{path.stem}-{viewport['width']}-{scheme}.png")
                    page.screenshot(path=taken[-1])
                page.set_viewport_size(viewport)
    return taken


def main(
    folder: Annotated[Path, typer.Argument(help="A report, or any folder with pages.")],
    out: Annotated[Path, typer.Argument(help="Where the pictures go.")],
    height: Annotated[int, typer.Option(min=1, help="How much of a page is shown at most, px.")] = 3000,
) -> None:
    """Take screenshots of every page that lies directly in FOLDER."""
    reason = what_is_missing()
    if reason:
        sys.exit(f"error: {reason}")
    with open_browser() as browser:
        taken = take_screenshots(browser, folder, out, height)
    if not taken:
        sys.exit(f"error: {folder} holds no page")
    print(*taken, sep="\n")


if __name__ == "__main__":
    typer.run(main)
