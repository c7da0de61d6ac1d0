"""Where there is no browser, one is told what to do."""

import shutil
import subprocess
from types import SimpleNamespace

import pytest

from tests.browser import chromium


@pytest.fixture
def system(monkeypatch):
    """A computer without commands but those in `commands`, on which installing does what `install` says."""
    made = SimpleNamespace(commands=set(), called=[], is_root=True, install=lambda: 0)

    def run(command, **_):
        made.called.append(command)
        return SimpleNamespace(returncode=made.install() if "install" in command else 0)

    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in made.commands else None)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(chromium.os, "geteuid", lambda: 0 if made.is_root else 1000)
    return made


def test_the_reason_to_skip_names_the_command_that_brings_what_is_missing(system, monkeypatch):
    monkeypatch.setattr(chromium, "MODULES", ("pytest",))
    assert chromium.what_is_missing() == "no Chromium is installed: run `make test-browser`"
    system.commands.add("google-chrome")
    assert chromium.what_is_missing() is None
    monkeypatch.setattr(chromium, "MODULES", ("pytest", "no_such_driver"))
    assert chromium.what_is_missing() == ("the Python package no_such_driver is not installed: run `make test-browser`")


def test_a_browser_that_is_there_is_not_installed_again(system):
    system.commands |= {"chromium-browser", "apt-get"}
    chromium.install()
    assert system.called == []
    assert chromium.find_chromium() == "/bin/chromium-browser"


@pytest.mark.parametrize("is_root", [True, False])
def test_the_package_is_installed_with_the_rights_of_root(system, is_root):
    system.commands |= {"apt-get", "sudo"}
    system.is_root = is_root
    system.install = lambda: system.commands.add("chromium") or 0
    chromium.install()
    assert [command[: -len(chromium.PACKAGES)] for command in system.called[1:]] == [
        [*([] if is_root else ["sudo"]), "apt-get", "--quiet", "install", "--yes", "--no-install-recommends"]
    ]
    assert system.called[1][-len(chromium.PACKAGES) :] == list(chromium.PACKAGES)


@pytest.mark.parametrize(
    ("commands", "is_root", "status", "message"),
    [
        (set(), True, 0, "no apt-get to install it with"),
        ({"apt-get"}, False, 0, "run `apt-get install chromium"),
        ({"apt-get"}, True, 100, "`apt-get install --yes --no-install-recommends chromium"),
        ({"apt-get"}, True, 0, "brought no command of that name"),
    ],
)
def test_where_it_cannot_be_installed_one_line_names_another_way(system, commands, is_root, status, message):
    system.commands, system.is_root, system.install = commands, is_root, lambda: status
    with pytest.raises(SystemExit) as stopped:
        chromium.install()
    assert message in stopped.value.code
    assert "install Chromium or Chrome so that one of chromium, " in stopped.value.code
    assert "\n" not in stopped.value.code
