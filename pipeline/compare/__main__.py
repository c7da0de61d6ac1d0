"""The command: read two revisions, compare them, show what changed."""

from pathlib import Path

from typer import Argument, Option

from pipeline.cli import command_line, writable
from pipeline.compare.differences import compare
from pipeline.compare.markdown import render_markdown
from pipeline.compare.page import render_page
from pipeline.compare.pictures import draw_pictures
from pipeline.compare.record import as_json
from pipeline.compare.revisions import read_revision
from pipeline.compare.terminal import print_comparison
from pipeline.io import new_file, write_json
from pipeline.params import EvaluateParams
from pipeline.recorded_runs import WORKSPACE
from pipeline.selection import chosen_metrics

_SEED = 0  # of the resamples: the same comparison gives the same intervals
_NUM_CARDS = 24  # pictures on the page: a file that is still light
_STDOUT = "-"


def main(
    before: str = Argument(metavar="REV_A", help="What to compare with: a branch, tag, commit or DVC experiment."),
    after: str = Argument(WORKSPACE, metavar="REV_B", help="What changed: the same, or `workspace`."),
    rows: str | None = Option(
        None,
        help="Rows of metrics.json, with commas, such as protomask,protomask_prp. Default: networks and black box.",
    ),
    metrics: str | None = Option(None, help="Metrics or families to compare, with commas. Default: all."),
    all_metrics: bool = Option(False, "--all", help="Print also the metrics without a clear change."),
    most: int = Option(10, min=1, help="Entries of each printed list; the rest is counted."),
    markdown: str | None = Option(
        None, metavar="FILE", help="Write Markdown for a pull request; `-` prints it instead of tables."
    ),
    html: Path | None = Option(None, metavar="FILE", help="Write one page, pictures included."),
    json_file: Path | None = Option(None, "--json", metavar="FILE", help="Write all numbers for programs."),
) -> None:
    """Show what changed from REV_A to REV_B: params, metrics, classes, test images, prototypes.

    A revision is a branch, a tag, a commit, the name of an experiment (`dvc exp list`) or `workspace`, which is also
    what REV_A is compared with where REV_B is left out. Nothing is checked out or run: all is read from git and from
    DVC's cache.

    Metrics have 95 % bootstrap intervals of their difference, over the test images that both share.

    For example:

    * `python -m pipeline.compare main`: what would come with this workspace

    * `python -m pipeline.compare v1.0 more-views --html changes.html`: a tag against a branch, as a page with pictures

    * `python -m pipeline.compare seed-1-0a1b2c workspace --metrics classification --markdown -`: an experiment, for a
      comment on a pull request
    """
    wanted = chosen_metrics(metrics)
    root = Path()
    sides = [read_revision(root, name) for name in (before, after)]
    num_draws = EvaluateParams().bootstrap_draws
    comparison = compare(*sides, rows=rows, metrics=wanted, num_draws=num_draws, seed=_SEED)
    as_markdown = render_markdown(comparison, most=most)
    if markdown == _STDOUT:
        print(as_markdown, end="")
    else:
        print_comparison(comparison, most=most, all_metrics=all_metrics or metrics is not None)
    if markdown is not None and markdown != _STDOUT:
        _write_text(Path(markdown), as_markdown)
    if html is not None:
        pictures = draw_pictures(comparison, *sides, most=_NUM_CARDS)
        _write_text(html, render_page(comparison, pictures, most=_NUM_CARDS))
    if json_file is not None:
        with writable(json_file):
            write_json(json_file, as_json(comparison))


def _write_text(path: Path, text: str) -> None:
    with writable(path), new_file(path) as work:
        work.write_text(text, encoding="utf-8")


app = command_line(main)

if __name__ == "__main__":
    app()
