"""Run a folder of conformance vectors against this project: ``python -m tests.conformance DIR``."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import command_line
from tests.conformance.runner import Verdict, run_folder


def main(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Holds index.json and the .npz files it describes.")],
    only: Annotated[str | None, typer.Option(help="Cases with this text in their file, function or name.")] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="A line for each case that is no plain pass.")
    ] = False,
) -> None:
    """Compare this project's functions with recorded inputs and outputs of the authors' code.

    Prints a line per failing case, how many cases and outputs could not be compared and why, and the sum. Ends with 1
    if a case failed.
    """
    verdicts = []
    for verdict in run_folder(folder, only):
        verdicts.append(verdict)
        if verdict.outcome == "failed":
            typer.echo(f"FAILED {verdict.where}: {verdict.text}")
        elif verbose:
            for line in details(verdict):
                typer.echo(line)
    for line in summary(verdicts):
        typer.echo(line)
    if any(verdict.outcome == "failed" for verdict in verdicts):
        raise typer.Exit(1)


def details(verdict: Verdict) -> list[str]:
    """Say why a case was skipped, and which of its outputs were left out or translated."""
    if verdict.outcome == "skipped":
        return [f"skipped {verdict.where}: {verdict.text}"]
    return [
        *(f"left out {verdict.where} {name}: {reason}" for name, reason in verdict.left_out.items()),
        *(f"translated {verdict.where} {name}: {how}" for name, how in verdict.translated.items()),
    ]


def summary(verdicts: Iterable[Verdict]) -> list[str]:
    """Count cases by outcome; skips and single outputs by their reason, the most frequent first."""
    cases: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    translated: Counter[str] = Counter()
    for verdict in verdicts:
        cases[verdict.outcome] += verdict.num_cases
        if verdict.outcome == "skipped":
            skipped[verdict.text] += 1
        left_out.update(verdict.left_out.values())
        translated.update(verdict.translated.values())
    return [
        *(f"skipped, {_count(count, 'case')}: {reason}" for reason, count in skipped.most_common()),
        *(f"left out of passed cases, {_count(count, 'output')}: {reason}" for reason, count in left_out.most_common()),
        *(f"passed in translation, {_count(count, 'output')}: {how}" for how, count in translated.most_common()),
        f"{cases['passed']} passed, {cases['failed']} failed, {cases['skipped']} skipped",
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


app = command_line(main)

if __name__ == "__main__":
    app()
