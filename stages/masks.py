"""DVC stage ``masks``: split every image into masks, once; nothing finished is ever computed again."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import command_line
from pipeline.data.mask_progress import describe_progress
from pipeline.data.segmentation import write_masks, writing
from pipeline.io import write_json
from pipeline.mask_report import mask_quality
from pipeline.params import load_params
from pipeline.runtime import load_runtime


def main(
    dataset: Path,
    masks: Path,
    report: Path,
    store: Path = Path(".cache/masks.sqlite"),
    params: Path = Path("params.yaml"),
    runtime: Path = Path("runtime.yaml"),
    status: Annotated[
        bool, typer.Option("--status", help="Only say how much of DATASET is done and how long the rest takes.")
    ] = False,
) -> None:
    """Segment the images of DATASET.

    Reads DATASET (data/dataset). Writes MASKS (data/masks): masks.parquet, a row per mask, all of them; and to
    REPORT the counts and how good the masks are. Section `masks` of params.yaml names the segmenter. Each finished
    image is kept in STORE at once, so a stopped run goes on where it was, and images added later are the only ones
    segmented. One process at a time works on STORE; another one waits. compat.bgr_masks gives SAM and SAM 2 the
    pictures as the authors' code does.

    With --status nothing is computed or written: it says how far a run is, also one that is still at work.
    """
    loaded = load_params(params)
    settings, bgr = loaded.masks, loaded.compat.bgr_masks
    if status:
        typer.echo(describe_progress(dataset, store=store, params=settings, bgr=bgr))
        return
    run = load_runtime(runtime)
    summary = write_masks(dataset, masks, store=store, params=settings, runtime=run, bgr=bgr)
    summary["quality"] = mask_quality(dataset, masks, run)
    with writing(report):
        write_json(report, summary)


app = command_line(main)

if __name__ == "__main__":
    app()
