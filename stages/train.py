"""DVC stage ``train``: learn the embedding and the prototypes, and a black box to compare with."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import command_line
from pipeline.params import load_params
from pipeline.runtime import load_runtime
from pipeline.training import run, seeding


def main(
    crops: Path,
    trained: Path,
    curves: Path,
    params: Path = Path("params.yaml"),
    runtime: Path = Path("runtime.yaml"),
    check: Annotated[bool, typer.Option("--check", help="Run one batch through every phase, write nothing.")] = False,
) -> None:
    """Train on the shards in CROPS.

    Reads CROPS (data/crops). Writes the network, and the black box beside it, to TRAINED (models/trained); the curves
    of every epoch and a summary to CURVES (results/train). Sections `seed`, `model` and `train` of params.yaml.
    Epochs are chosen on validation images; test images are never opened. A run that was stopped goes on after its last
    whole epoch, with the same result; delete the folder .cache/training to start anew.
    """
    loaded, loaded_runtime = load_params(params), load_runtime(runtime)
    if check:
        seeding.prepare(loaded.seed)
        run.rehearse(crops, params=loaded, runtime=loaded_runtime)
    else:
        run.train(crops, trained, curves, params=loaded, runtime=loaded_runtime)


app = command_line(main)

if __name__ == "__main__":
    app()
