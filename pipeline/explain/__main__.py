"""The command: explain picture files as a table, as drawings and as pages."""

import itertools
import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.cli import command_line, writable
from pipeline.errors import PipelineError
from pipeline.explain import Explainer
from pipeline.explain.shown_picture import PHOTOGRAPH_PX, ShownPicture, as_page, as_png, show
from pipeline.io import new_file, progress
from pipeline.report.prototype_pictures import PrototypePictures
from pipeline.runtime import load_runtime

_MANY = 5  # pictures; fewer need no progress bar

_log = logging.getLogger(__name__)


def main(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files of any format.")],
    model: Annotated[Path, typer.Option(help="Folder of a network with prototypes.")] = Path("models/final"),
    top: Annotated[int, typer.Option(min=1, help="How many prototypes are named as reasons.")] = 5,
    out: Annotated[Path, typer.Option(help="Folder for a page and a drawing per picture.")] = Path("explained"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of tables: a list, an entry per picture.")
    ] = False,
    weights: Annotated[
        str | None, typer.Option(help="The segmenter's checkpoint, if it is not where the model was trained with it.")
    ] = None,
    dataset: Annotated[Path, typer.Option(help="Where the prototypes' training images are.")] = Path("data/dataset"),
    crops: Annotated[Path, typer.Option(help="Where the prototypes' views are.")] = Path("data/crops"),
    runtime: Annotated[Path, typer.Option(help="Device.")] = Path("runtime.yaml"),
) -> None:
    """Explain pictures that need not be in any data set: which of their views look like which prototypes.

    Each IMAGE is segmented, cropped and classified as the images were that MODEL was trained on; the model knows how.
    Prints a table of reasons per picture: similarity of a view to a prototype × weight of the prototype = what it adds
    to the score of the predicted class. Writes OUT/NAME.html, a page that needs no other file, and OUT/NAME.png.
    Where DATASET or CROPS are not there, prototypes are named, but not shown.

    `python -m pipeline.explain bird.jpg`

    `python -m pipeline.explain photos/*.jpg --top 3 --json > reasons.json`

    In Python: `from pipeline.explain import explain`.
    """
    explainer = Explainer(model, weights=weights, runtime=load_runtime(runtime))
    prototypes = PrototypePictures(model, explainer.network, dataset=dataset, crops=crops, side_px=PHOTOGRAPH_PX // 2)
    if prototypes.missing:
        _log.warning("%s", prototypes.missing)
    entries, failed = [], []
    for path, name in _named(images):
        before = time.perf_counter()
        try:
            explained = explainer.explain(path, top=top)
            shown = show(explained, prototypes)
        except PipelineError as error:  # the other pictures may be sound
            _log.error("%s", error)
            failed.append(path)
            continue
        _write(out / f"{name}.html", as_page(shown, head=explainer.network.head).encode())
        _write(out / f"{name}.png", as_png(shown))
        _log.info("%s: explained in %.1f s, see %s", path, time.perf_counter() - before, out / f"{name}.html")
        if as_json:
            entries.append(explained.as_json())
        else:
            _print_table(shown)
    if as_json:
        typer.echo(json.dumps(entries, indent=2, ensure_ascii=False))
    if failed:
        raise PipelineError(
            f"{len(failed)} of {len(images)} pictures could not be explained: {', '.join(map(str, failed))}"
        )


def _named(images: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Name each picture's files after it; where a name is taken, the next free number is added."""
    taken: set[str] = set()
    named = []
    for path in images:
        names = itertools.chain([path.stem], (f"{path.stem}-{number}" for number in itertools.count(2)))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        named.append((path, name))
    if len(named) < _MANY:
        yield from named
    else:
        yield from progress(named, what="pictures", total=len(named))


def _write(path: Path, content: bytes) -> None:
    with writable(path), new_file(path) as work:
        work.write_bytes(content)


def _print_table(shown: ShownPicture) -> None:
    explained, score = shown.explained, shown.score
    title = f"{explained.path.name}: {score.class_name}, {100 * score.probability:.1f} %"
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for heading in ("view", "prototype", "of"):
        table.add_column(heading)
    for heading in ("similarity", "× weight", "= adds"):
        table.add_column(heading, justify="right")
    for line in score.lines:
        table.add_row(
            line.element.name,
            str(line.prototype.prototype_idx),
            escape(line.prototype.class_name),
            line.similarity,
            line.weight,
            line.contribution,
        )
    if score.num_others:
        table.add_row(f"{score.num_others} others", "", "", "", "", score.rest)
    table.add_section()
    table.add_row("total", "", "", "", "", score.total, style="bold")
    runners_up = ", ".join(f"{escape(line.class_name)} {100 * line.probability:.1f} %" for line in shown.ranking[1:])
    console = Console()
    console.print(table)
    console.print(f"next: {runners_up}\n", highlight=False)


app = command_line(main)

if __name__ == "__main__":
    app()
