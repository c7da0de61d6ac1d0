"""DVC stage ``finetune``: tune the last layer on the projected prototypes."""

from pathlib import Path

from pipeline.cli import command_line
from pipeline.io import write_json
from pipeline.params import load_params
from pipeline.runtime import load_runtime
from pipeline.training.finetune import finetune


def main(
    crops: Path,
    projected: Path,
    final: Path,
    report: Path,
    params: Path = Path("params.yaml"),
    runtime: Path = Path("runtime.yaml"),
) -> None:
    """Tune the weights from prototypes to classes; embedding and prototypes rest.

    Reads CROPS (data/crops) and PROJECTED (models/projected). Writes the finished network and its prototypes.parquet
    to FINAL (models/final); the best epoch and its validation accuracy to REPORT. Section `finetune` of params.yaml.
    """
    summary = finetune(crops, projected, final, params=load_params(params), runtime=load_runtime(runtime))
    write_json(report, summary)


app = command_line(main)

if __name__ == "__main__":
    app()
