"""DVC stage ``report``: the table, the curves and the prototypes as a page."""

from pathlib import Path

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
    params: Path = Path("params.yaml"),
    runtime: Path = Path("runtime.yaml"),
) -> None:
    """Write the page that says how good the network is, what that costs, and what its prototypes are.

    Reads DATASET (data/dataset), MASKS (data/masks), CROPS (data/crops), FINAL (models/final) and what the stages from
    train to evaluate wrote into RESULTS (results). Writes index.html and its pictures into the folder REPORT
    (results/report); it opens from disk, offline, wherever the folder is copied. Section `report` of params.yaml.
    """
    write_report(
        dataset, masks, crops, final, results, report, params=load_params(params), runtime=load_runtime(runtime)
    )


app = command_line(main)

if __name__ == "__main__":
    app()
