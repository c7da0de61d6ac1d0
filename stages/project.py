"""DVC stage ``project``: replace every prototype by its nearest training view, so that it is a picture."""

from pathlib import Path

from pipeline.cli import command_line
from pipeline.io import write_json
from pipeline.params import load_params
from pipeline.runtime import load_runtime
from pipeline.training.project import write_projection


def main(
    crops: Path,
    trained: Path,
    projected: Path,
    report: Path,
    params: Path = Path("params.yaml"),
    runtime: Path = Path("runtime.yaml"),
) -> None:
    """Project the prototypes of TRAINED onto the training views in CROPS; prune them if project.prune.enabled.

    Reads CROPS (data/crops) and TRAINED (models/trained). Writes the network with its new prototypes and
    prototypes.parquet, which names the source of each, to PROJECTED (models/projected); distances and the validation
    accuracy before and after to REPORT. Section `project` of params.yaml.
    """
    summary = write_projection(crops, trained, projected, params=load_params(params), runtime=load_runtime(runtime))
    write_json(report, summary)


app = command_line(main)

if __name__ == "__main__":
    app()
