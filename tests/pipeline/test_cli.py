"""Commands: one line for what a user can mend, a traceback for a bug."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import command_line
from pipeline.errors import PipelineError

ROOT = Path(__file__).parents[2]


def _run(tmp_path: Path, body: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose ``main(path: Path)`` has BODY, as a user would: in a process of its own."""
    script = tmp_path / "command.py"
    script.write_text(
        "import logging\nfrom pathlib import Path\nfrom pipeline.cli import command_line\n"
        "from pipeline.errors import PipelineError\n\n"
        'def main(path: Path, times: int = 1) -> None:\n    """Read PATH."""\n'
        + textwrap.indent(textwrap.dedent(body), "    ")
        + "\n\ncommand_line(main)()\n",
        encoding="utf-8",
    )
    return subprocess.run(
        [sys.executable, str(script), *args],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_error_the_user_can_mend_is_one_line_on_stderr_and_exit_1(tmp_path):
    done = _run(tmp_path, 'raise PipelineError(f"{path} does not exist: run `dvc repro`")', "data/x.json")
    assert done.returncode == 1
    assert done.stderr == "error: data/x.json does not exist: run `dvc repro`\n"
    assert done.stdout == ""


def test_a_subclass_of_that_error_is_treated_alike(tmp_path):
    done = _run(tmp_path, 'class Bad(PipelineError): ...\nraise Bad("no picture")', "x")
    assert (done.returncode, done.stderr) == (1, "error: no picture\n")


def test_a_bug_keeps_its_traceback(tmp_path):
    done = _run(tmp_path, 'raise ZeroDivisionError("a bug")', "x")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.rstrip().endswith("ZeroDivisionError: a bug")
    assert "command.py" in done.stderr


def test_success_exits_0_and_the_log_goes_to_stderr(tmp_path):
    body = 'logging.getLogger("mine").info("wrote %s %d", path, times)\nlogging.getLogger("mine").debug("detail")'
    done = _run(tmp_path, body, "x", "--times", "3")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.rstrip().endswith("mine: wrote x 3")
    assert "detail" not in done.stderr
    assert "detail" in _run(tmp_path, body, "x", PROTOMASK_LOG="debug").stderr


def test_a_log_level_that_is_none_is_an_error_the_user_can_mend(tmp_path):
    done = _run(tmp_path, "pass", "x", PROTOMASK_LOG="loud")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "PROTOMASK_LOG" in done.stderr


def test_the_docstring_is_the_help_and_arguments_keep_their_types():
    seen = []

    def main(source: Path, times: int = 2) -> None:
        """Read SOURCE some TIMES."""
        seen.append((source, times))

    app = command_line(main)
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert "Read SOURCE some TIMES." in shown.output
    assert CliRunner().invoke(app, ["a/b", "--times", "4"]).exit_code == 0
    assert seen == [(Path("a/b"), 4)]


@pytest.mark.parametrize("args", [[], ["a", "--times", "many"], ["a", "--tims", "4"]])
def test_wrong_usage_exits_2_and_runs_nothing(args):
    def main(source: Path, times: int = 2) -> None:
        """Read SOURCE."""
        raise PipelineError("must not run")

    assert CliRunner().invoke(command_line(main), args).exit_code == 2
