"""DVC stage ``evaluate``: the metrics table, on test images."""

from pathlib import Path

from pipeline.cli import command_line
from pipeline.evaluation.run import evaluate
from pipeline.params import load_params
from pipeline.runtime import load_runtime


def main(
    dataset: Path,
    masks: Path,
    crops: Path,
    trained: Path,
    projected: Path,
    final: Path,
    results: Path,
    params: Path = Path("params.yaml"),
    runtime: Path = Path("runtime.yaml"),
) -> None:
    """Evaluate the finished network, its explanations, its earlier states and the black box on the test images.

    Reads DATASET, MASKS, CROPS (data/...), TRAINED, PROJECTED and FINAL (models/...). Writes metrics.json (what DVC
    compares), metrics_detail.parquet (the same with 95 % intervals and reasons for what is missing), table.csv,
    table.md, table.tex, per_image.parquet and plots/ into the folder RESULTS. Sections `evaluate` and `seed` of
    params.yaml; `dataset` and `crops` to draw synthetic birds again without some of their parts.
    """
    evaluate(
        dataset,
        masks,
        crops,
        trained,
        projected,
        final,
        results,
        params=load_params(params),
        runtime=load_runtime(runtime),
    )


app = command_line(main)

if __name__ == "__main__":
    app()
