"""The whole graph on one preset: seconds per stage, and the metrics of the last row that users see, over seeds.

    python -m benchmarks.pipeline cub200-superpixel --seeds 3 -S dataset.source=../shared/data/CUB_200_2011

Clones the committed project into a temporary folder, lays the preset, and runs each stage with ``dvc repro`` there,
seed after seed. Later seeds find the masks in the store, as a user's would; the first one starts from nothing.
Prints one JSON line.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from benchmarks.device import device_name

_ROOT = Path(__file__).resolve().parent.parent
_STAGES = ("dataset", "masks", "crops", "train", "project", "finetune", "evaluate", "report")


def main(
    preset: str,
    seeds: Annotated[int, typer.Option(help="How many seeds: 0, 1, ...")] = 1,
    override: Annotated[list[str] | None, typer.Option("-S", help="key=value, as for pipeline.preset")] = None,
) -> None:
    """Measure PRESET and print the line."""
    overrides = [_absolute(entry) for entry in override or []]
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        clone = Path(home) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(_ROOT), str(clone)], check=True)
        for seed in range(seeds):
            runs.append(_run(clone, preset, [*overrides, f"seed={seed}"]))
            print(f"seed {seed}: {runs[-1]['seconds']}", file=sys.stderr)
    line = {
        "benchmark": "pipeline",
        "preset": preset,
        "device": device_name(),
        "seeds": seeds,
        "seconds_first_seed": runs[0]["seconds"],
        "total_s_first_seed": round(sum(runs[0]["seconds"].values()), 1),
        "distinct_views": [run["distinct_views"] for run in runs],
        "num_prototypes": runs[0]["num_prototypes"],
        "balanced_accuracy": {
            row: _over_seeds([run["metrics"][row]["classification"]["balanced_accuracy"] for run in runs])
            for row, scores in runs[0]["metrics"].items()
            if "classification" in scores  # not in rows of further saliency
        },
    }
    print(json.dumps(line))


def _run(clone: Path, preset: str, overrides: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    settings = [part for entry in overrides for part in ("-S", entry)]

    def call(*command: str) -> None:
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")

    call(sys.executable, "-m", "pipeline.preset", preset, *settings)
    seconds: dict[str, float] = {}
    for stage in _STAGES:
        start = time.perf_counter()
        call("dvc", "repro", "--single-item", stage)
        seconds[stage] = round(time.perf_counter() - start, 1)
    projection = json.loads((clone / "results/project.json").read_text())
    return {
        "seconds": seconds,
        "metrics": json.loads((clone / "results/metrics.json").read_text()),
        "distinct_views": projection["num_distinct_views"],
        "num_prototypes": projection["num_prototypes"],
    }


def _absolute(entry: str) -> str:
    """Relative sources are relative to where the user stands, not to the clone."""
    key, _, value = entry.partition("=")
    return f"{key}={Path(value).resolve()}" if key == "dataset.source" else entry


def _over_seeds(values: list[float]) -> dict[str, Any]:
    return {
        "mean": round(mean(values), 4),
        "std": round(stdev(values), 4) if len(values) > 1 else None,
        "values": values,
    }


if __name__ == "__main__":
    typer.run(main)
