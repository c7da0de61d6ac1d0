"""DVC stage ``report``: a site of pages, a model card and contact sheets."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import command_line
from pipeline.params import load_params
from pipeline.report.page import write_report
from pipeline.runtime import load_runtime


def main(
    dataset: Path,
    masks: Path,
    crops: Path,
    final: Path,
    results: Path,
    report: Path,
    card: Path,
    pictures: Path,
    params: Path = Path("params.yaml"),
    runtime: Path = Path("runtime.yaml"),
    lock: Annotated[Path, typer.Option(help="What DVC recorded of the stages; need not exist.")] = Path("dvc.lock"),
) -> None:
    """Write the pages that say how good the network is, what that costs, and what each of its decisions rests on.

    Reads DATASET (data/dataset), MASKS (data/masks), CROPS (data/crops), FINAL (models/final) and what all stages
    before this one wrote into RESULTS (results). Writes into the folder REPORT (results/report) index.html, the other
    pages and their pictures, which open from disk, offline, wherever the folder is copied; the model card CARD
    (results/MODEL_CARD.md); and into the folder PICTURES (results/pictures) contact sheets, which DVC compares between
    runs. The pages name the git revision and what LOCK (dvc.lock) records. Section `report` of params.yaml.
    """
    write_report(
        dataset,
        masks,
        crops,
        final,
        results,
        report,
        card,
        pictures,
        lock=lock,
        params=load_params(params),
        runtime=load_runtime(runtime),
    )


app = command_line(main)

if __name__ == "__main__":
    app()
