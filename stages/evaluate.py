"""DVC stage ``evaluate``: the metrics table, on test images."""

from pathlib import Path

from pipeline.cli import command_line
from pipeline.evaluation import evaluate
from pipeline.params import load_params
from pipeline.runtime import load_runtime


def main(
    crops: Path,
    trained: Path,
    projected: Path,
    final: Path,
    results: Path,
    params: Path = Path("params.yaml"),
    runtime: Path = Path("runtime.yaml"),
) -> None:
    """Evaluate the finished network, its earlier states and the black box.

    Reads CROPS (data/crops), TRAINED, PROJECTED and FINAL (models/...). Writes metrics.json, table.csv, table.md,
    table.tex and per_image.parquet into the folder RESULTS. Section `evaluate` of params.yaml.
    """
    evaluate(crops, trained, projected, final, results, params=load_params(params), runtime=load_runtime(runtime))


app = command_line(main)

if __name__ == "__main__":
    app()
