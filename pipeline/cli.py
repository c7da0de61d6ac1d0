"""What every command-line entry shares: a log on stderr, one line for an error, a non-zero exit."""

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from pipeline.errors import PipelineError


def start_logging() -> None:
    """Send the log to stderr: time, module, message. Levels follow ``PROTOMASK_LOG`` (default INFO).

    Raises:
        PipelineError: ``PROTOMASK_LOG`` names no level.
    """
    level = os.environ.get("PROTOMASK_LOG", "INFO").upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        raise PipelineError(f"PROTOMASK_LOG is {level!r}: use DEBUG, INFO, WARNING, ERROR or CRITICAL")
    logging.basicConfig(
        level=level,
        format="%(asctime)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    for noisy in ("PIL", "matplotlib", "fsspec", "urllib3", "lightning", "lightning.pytorch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Name PATH, which a user asked a command for, where the block cannot write it.

    Raises:
        PipelineError: the system refuses to write.
    """
    try:
        yield
    except OSError as error:
        raise PipelineError(f"{path} cannot be written ({error.strerror}): name another place") from None


def command_line(main: Callable[..., None]) -> typer.Typer:
    """Make MAIN a command: its docstring is the help, its path arguments are the files it reads and writes."""

    @functools.wraps(main)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            start_logging()
            main(*args, **kwargs)
        except PipelineError as error:
            typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
            raise typer.Exit(1) from None

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    app.command()(guarded)
    return app
