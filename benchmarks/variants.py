"""Variants of one preset beside each other: what a param is worth, over seeds.

    python -m benchmarks.variants cub200-superpixel --seeds 3 -S dataset.source=../shared/data/CUB_200_2011 \
        --variant "top two views: model.pooling=top_k_mean model.pooling_k=2" --variant "pipnet: model.head=pipnet"

The first variant is always the preset as it is, with its black box. Masks and encoded views are computed once and
shared; each variant is trained, projected, tuned and evaluated for every seed (``seed`` here moves the training only,
not the split). Choose by the validation accuracies; test accuracies are for the report. Prints one JSON line.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import typer

from benchmarks.device import device_name
from pipeline.data.collect import write_dataset
from pipeline.data.datasets.registry import open_dataset
from pipeline.data.segmentation import write_masks
from pipeline.data.shards import write_crops
from pipeline.evaluation.run import evaluate
from pipeline.io import sha256_of
from pipeline.params import Params
from pipeline.preset import compose
from pipeline.runtime import Runtime
from pipeline.training.finetune import finetune
from pipeline.training.project import write_projection
from pipeline.training.run import train

_ROOT = Path(__file__).resolve().parent.parent
_NO_EXPLANATIONS = ("evaluate.saliency=[mask, upsample]", "evaluate.sample_images=1", "evaluate.bootstrap_draws=20")
"""The least that every head can be asked about its explanations, of which nothing is told here."""


def main(
    preset: str,
    seeds: Annotated[int, typer.Option(help="How many seeds: 0, 1, ...")] = 3,
    override: Annotated[list[str] | None, typer.Option("-S", help="key=value for all variants")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="NAME: key=value key=value ...; can be repeated")] = None,
    work: Annotated[Path | None, typer.Option(help="Keep data and encoded views here, for further calls.")] = None,
    device: str = "auto",
) -> None:
    """Measure PRESET and its variants and print the line."""
    overrides = [_absolute(entry) for entry in override or []]
    named = {"as it is": []} | {
        name.strip(): keys.split() for name, _, keys in (entry.partition(":") for entry in variant or [])
    }
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        home = (work or Path(temporary)).resolve()
        runtime = Runtime(device=device, cache=home / "cache")
        for name, keys in named.items():
            is_first = name == "as it is"
            runs = []
            for seed in range(seeds):
                params = _params(
                    preset, [*_NO_EXPLANATIONS, *overrides, *keys, f"train.baseline={str(is_first).lower()}"]
                )
                data = _data(home, params, runtime)
                runs.append(_run(home / "run", data, params.model_copy(update={"seed": seed}), runtime))
            results[name] = _summary(keys, runs)
            print(name, json.dumps(results[name]), file=sys.stderr, flush=True)
    line = {
        "benchmark": "variants",
        "preset": preset,
        "device": device_name(),
        "seeds": seeds,
        "overrides": [entry for entry in overrides if not entry.startswith("dataset.source=")],
        "variants": results,
    }
    print(json.dumps(line))


def _params(preset: str, overrides: list[str]) -> Params:
    return compose(preset, overrides, presets=_ROOT / "presets")


def _data(home: Path, params: Params, runtime: Runtime) -> tuple[Path, Path, Path]:
    """Make data set, masks and shards, each once for the params that shape it."""
    compat = params.compat
    dataset = home / f"dataset-{_short(params.dataset.model_dump(), params.seed)}"
    masks = home / f"masks-{_short(dataset.name, params.masks.model_dump(), compat.bgr_masks)}"
    views = _short(masks.name, params.crops.model_dump(), compat.clipped_boxes, compat.aliased_resizing)
    crops = home / f"crops-{views}"
    if not dataset.exists():
        source = open_dataset(params.dataset, params.seed)
        write_dataset(source, dataset, params=params.dataset, seed=params.seed, runtime=runtime)
    if not masks.exists():
        write_masks(
            dataset, masks, store=home / "masks.sqlite", params=params.masks, runtime=runtime, bgr=compat.bgr_masks
        )
    if not crops.exists():
        write_crops(dataset, masks, crops, params=params.crops, compat=compat, runtime=runtime)
    return dataset, masks, crops


def _short(*parts: Any) -> str:
    return sha256_of(json.dumps(parts, sort_keys=True).encode())[:10]


def _run(folder: Path, data: tuple[Path, Path, Path], params: Params, runtime: Runtime) -> dict[str, Any]:
    dataset, masks, crops = data
    trained, projected, final = (folder / name for name in ("trained", "projected", "final"))
    start = time.perf_counter()
    summary = train(crops, trained, folder / "curves", params=params, runtime=runtime)
    projection = write_projection(crops, trained, projected, params=params, runtime=runtime)
    tuned = finetune(crops, projected, final, params=params, runtime=runtime)
    folders = (trained, projected, final, folder / "results")
    metrics = evaluate(dataset, masks, crops, *folders, params=params, runtime=runtime)
    phases = {role: list(phases.values())[-1]["val_accuracy"] for role, phases in summary.items()}
    around = projection["val_accuracy"] or {"after": None}
    return {
        "seconds": time.perf_counter() - start,
        "validation": {
            "trained": phases["network"],
            "projected": around["after"],
            "final": tuned.get("val_accuracy"),
            "blackbox": phases.get("blackbox"),
        },
        "test": {
            row: scores["classification"]["balanced_accuracy"]
            for row, scores in metrics.items()
            if "classification" in scores  # not in rows of further saliency
        },
        "distinct": projection["num_distinct_views"] / max(1, projection["num_prototypes"]),
    }


def _summary(keys: list[str], runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "params": keys,
        "validation": {
            name: _over_seeds([run["validation"][name] for run in runs])
            for name, value in runs[0]["validation"].items()
            if value is not None
        },
        "test_balanced_accuracy": {row: _over_seeds([run["test"][row] for run in runs]) for row in runs[0]["test"]},
        "distinct_frac": round(mean(run["distinct"] for run in runs), 4),
        "seconds": [round(run["seconds"], 1) for run in runs],
    }


def _over_seeds(values: list[float]) -> dict[str, Any]:
    return {"mean": round(mean(values), 4), "std": round(stdev(values), 4) if len(values) > 1 else None}


def _absolute(entry: str) -> str:
    """Relative sources are relative to where the user stands, not to the project."""
    key, _, value = entry.partition("=")
    return f"{key}={Path(value).resolve()}" if key == "dataset.source" else entry


if __name__ == "__main__":
    typer.run(main)
