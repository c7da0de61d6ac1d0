"""The browser that looks at the pages: a Chromium of the system, which playwright drives.

``python -m tests.browser.chromium`` (``make browser``) installs Debian's package where there is none.
"""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGES = ("chromium", "fonts-dejavu-core")  # letters as wide as people see them, not boxes
MODULES = ("playwright", "axe_playwright_python")  # the extra `browser`


def find_chromium():
    """Give the browser's path; None where there is none."""
    return next(filter(None, map(shutil.which, COMMANDS)), None)


def what_is_missing():
    """Say in one line why pages cannot be looked at here; None where they can."""
    missing = [] if find_chromium() else ["no Chromium is installed"]
    missing += [f"the Python package {name} is not installed" for name in MODULES if find_spec(name) is None]
    return f"{' and '.join(missing)}: run `make test-browser`" if missing else None


@contextmanager
def open_browser():
    """Start the browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # root may not use the sandbox, and there is nothing to guard: it opens our own files, offline; containers often
        # have little shared memory
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        yield browser
        browser.close()


def install():
    """Install Debian's package where no browser is found.

    Raises:
        SystemExit: that is not possible here. The message says what else to do.
    """
    if find_chromium():
        return
    other_way = f"install Chromium or Chrome so that one of {', '.join(COMMANDS)} is on the PATH"
    if not shutil.which("apt-get"):
        sys.exit(f"error: there is no Chromium, and no apt-get to install it with: {other_way}")
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    if as_root and not shutil.which("sudo"):
        command = f"apt-get install {' '.join(PACKAGES)}"
        sys.exit(f"error: installing Chromium takes the rights of root: run `{command}` as root, or {other_way}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run([*as_root, "apt-get", "--quiet", *command], env=environment, check=False)
        if done.returncode:
            sys.exit(f"error: `apt-get {' '.join(command)}` failed, see above: mend that, or {other_way}")
    if not find_chromium():  # elsewhere the package may be a stand-in for another way to install it
        sys.exit(f"error: the package {PACKAGES[0]} brought no command of that name: {other_way}")


def as_url(path, fragment=""):
    """Give the address of a file; FRAGMENT is what follows its #."""
    return Path(path).resolve().as_uri() + (f"#{fragment}" if fragment else "")


if __name__ == "__main__":
    install()
