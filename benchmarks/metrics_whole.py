"""The whole evaluation, from shards to tables and plots: 1,000 images of 20 classes, 10 views each, nothing cached.

    python -m benchmarks.metrics_whole

The data are synthetic birds, cut by the stages' own writers into equal rectangles (3 x 3 and the whole image make 10
views of 224 px) in a temporary folder. The network is ProtoMask, five prototypes for each class that lie on training
views as if it had been trained, in its three states, and a black box beside it; ``evaluate`` is as shipped, but for the
kinds of saliency. None of that is timed.

Prints one JSON line: seconds by part (on the clock, and of this process on all cores: where the machine has other work,
only these compare), the peak of this process's memory, and how many numbers came out.

- ``encoding``: all test views, and the whole images for the black box;
- ``metrics``: saliency and metrics, with all that runs the network again for the sampled images;
- ``sanity``: the sampled images once more, after each randomisation;
- ``intervals``; ``writing``: tables and plots; ``rest``.
"""

import contextlib
import functools
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import pipeline  # noqa: F401  (before torch: it says how OpenMP's threads wait)

# isort: split
import numpy as np
import torch
import typer
from jaxtyping import Float64

from benchmarks.device import device_name, timed
from pipeline.cli import command_line
from pipeline.data.bags import BagReader
from pipeline.data.collect import write_dataset
from pipeline.data.datasets.registry import open_dataset
from pipeline.data.segmentation import write_masks
from pipeline.data.shards import write_crops
from pipeline.evaluation import run
from pipeline.evaluation.run import evaluate
from pipeline.model.backbone import Backbone
from pipeline.model.blackbox import BlackBox
from pipeline.model.files import save_model
from pipeline.model.protomask import ProtoMask
from pipeline.params import CropsParams, DatasetParams, EvaluateParams, GridParams, MasksParams, Params, SyntheticParams
from pipeline.runtime import Runtime, keep_freed_memory
from pipeline.segmenters import grid
from pipeline.training.embedding import encoded_views
from pipeline.training.initialise import features_of_views, prototypes_from_features, whitening

Measured = dict[str, Any]
Times = Float64[np.ndarray, "2"]
"""Seconds on the clock, and of this process on all cores."""

_NUM_CLASSES, _PER_CLASS, _DIM = 20, 5, 128
_PARTS = {
    "encoded_views": "encoding",
    "measure": "metrics",
    "_insensitive": "sanity",
    "Bootstrap.interval": "intervals",
    "write_table": "writing",
    "write_tables": "writing",
    "write_plots": "writing",
}
"""Names in :mod:`pipeline.evaluation.run`, and the part of the time that they are."""


def make_params(*, num_images: int, rows: int, columns: int, size_px: int, evaluation: EvaluateParams) -> Params:
    """Put params together; an equal number of images for each class, rounded down."""
    birds = SyntheticParams(
        num_species=_NUM_CLASSES, train_per_species=4, test_per_species=max(1, num_images // _NUM_CLASSES)
    )
    return Params(
        dataset=DatasetParams(synthetic=birds),
        masks=MasksParams(segmenter="grid", weights=str(grid.__file__), grid=GridParams(rows=rows, columns=columns)),
        crops=CropsParams(max_views=rows * columns, size_px=size_px),
        evaluate=evaluation,
    )


def prepare(home: Path, params: Params, *, backbone: str, pretrained: bool, runtime: Runtime) -> None:
    """Run the stages dataset, masks and crops in HOME, and put networks there."""
    dataset, masks, crops = home / "dataset", home / "masks", home / "crops"
    source = open_dataset(params.dataset, params.seed)
    write_dataset(source, dataset, params=params.dataset, seed=params.seed, runtime=runtime)
    write_masks(dataset, masks, store=home / "masks.sqlite", params=params.masks, runtime=runtime)
    write_crops(dataset, masks, crops, params=params.crops, runtime=runtime)

    torch.manual_seed(params.seed)
    reader = BagReader(crops, "train")
    network = ProtoMask(
        Backbone(backbone, pretrained=pretrained),
        dim=_DIM,
        prototype_labels=torch.arange(_NUM_CLASSES).repeat_interleave(_PER_CLASS),
        num_classes=_NUM_CLASSES,
        epsilon=params.model.similarity_epsilon,
    )
    [encoded] = encoded_views(network, reader, runtime=runtime, what="features of train")
    weight, bias = whitening(encoded, _DIM)
    with torch.no_grad():
        network.add_on.weight[: len(weight)], network.add_on.bias[: len(bias)] = weight, bias
        features = features_of_views(network, encoded, reader.lengths, list(reader.labels))
        prototypes = prototypes_from_features(*features, network.prototype_labels, seed=params.seed)
        saved: Measured = {"class_names": list(reader.class_names), "size_px": params.crops.size_px}
        network.prototypes.copy_(prototypes + 0.01 * torch.randn_like(prototypes))
        save_model(home / "trained", network, **saved)
        network.prototypes.copy_(prototypes)
        save_model(home / "projected", network, **saved)
        network.last_layer.weight.add_(0.01 * torch.randn_like(network.last_layer.weight))
        save_model(home / "final", network, **saved)
        blackbox = BlackBox(network.backbone, num_classes=_NUM_CLASSES)
        torch.nn.init.normal_(blackbox.classifier.weight, std=0.1)
        save_model(home / "trained" / BlackBox.head, blackbox, **saved)


@contextlib.contextmanager
def parts_timed() -> Iterator[dict[str, Times]]:
    """Sum up the seconds of each part of an evaluation; where one part needs another, they are the outer one's."""
    seconds: dict[str, Times] = defaultdict(lambda: np.zeros(2))
    is_timing = False

    def with_clock(work: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(work)
        def clocked(*args: Any, **kwargs: Any) -> Any:
            nonlocal is_timing
            if is_timing:
                return work(*args, **kwargs)
            is_timing, start = True, _now()
            try:
                return work(*args, **kwargs)
            finally:
                is_timing = False
                seconds[part] += _now() - start

        return clocked

    with contextlib.ExitStack() as stack:
        for name, part in _PARTS.items():
            *owner, attribute = name.split(".")
            holder = functools.reduce(getattr, owner, run)
            stack.enter_context(patch.object(holder, attribute, with_clock(getattr(holder, attribute), part)))
        yield seconds


def measure(home: Path, params: Params, *, backbone: str, pretrained: bool, device: str) -> Measured:
    """Measure one evaluation.

    Args:
        home: empty folder, for everything.
        params: data and evaluation.
        backbone: of timm.
        pretrained: whether the backbone is.
        device: where it runs.
    """
    runtime = Runtime(device=device)
    prepare(home, params, backbone=backbone, pretrained=pretrained, runtime=runtime)
    reader = BagReader(home / "crops", "test")
    folders = [home / name for name in ("dataset", "masks", "crops", "trained", "projected", "final", "results")]
    with parts_timed() as seconds:
        start = _now()
        metrics, _, peak_mib = timed("cpu", lambda: evaluate(*folders, params=params, runtime=runtime))
        total = _now() - start
    of_parts = {part: seconds[part] for part in dict.fromkeys(_PARTS.values())}
    of_parts |= {"rest": total - sum(of_parts.values()), "total": total}
    values = [value for families in metrics.values() for scores in families.values() for value in scores.values()]
    return {
        "benchmark": "metrics_whole",
        "device": device_name() if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "backbone": backbone,
        "size_px": params.crops.size_px,
        "classes": len(reader.class_names),
        "images": len(reader),
        "views": sum(reader.lengths),
        "top_prototypes": params.evaluate.top_prototypes,
        "saliency": list(params.evaluate.saliency),
        "sample_images": params.evaluate.sample_images,
        "bootstrap_draws": params.evaluate.bootstrap_draws,
        "rows": list(metrics),
        "numbers": sum(value is not None for value in values),
        "without_a_number": sum(value is None for value in values),
        "seconds": {part: _rounded(float(spent[0])) for part, spent in of_parts.items()},
        "cpu_seconds": {part: _rounded(float(spent[1])) for part, spent in of_parts.items()},
        "peak_mib": peak_mib,
    }


def _now() -> Times:
    return np.array([time.perf_counter(), time.process_time()])


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def main(
    images: Annotated[int, typer.Option(min=20, help="Test images, of 20 classes.")] = 1000,
    rows: Annotated[int, typer.Option(min=1, help="Of the grid; a view is a cell, or the whole image.")] = 3,
    columns: Annotated[int, typer.Option(min=1, help="Of the grid.")] = 3,
    saliency: Annotated[list[str] | None, typer.Option(help="mask, view, prp; mask if left out.")] = None,
    sample_images: Annotated[int | None, typer.Option(min=1, help="As evaluate.sample_images.")] = None,
    backbone: Annotated[str, typer.Option(help="A convolutional network of timm.")] = "tf_efficientnet_lite0",
    pretrained: bool = True,
    size: Annotated[int, typer.Option(min=32, help="Side of the views, pixels.")] = 224,
    device: str = "cpu",
) -> None:
    """Time one evaluation."""
    keep_freed_memory()  # as the stages do
    settings = {"saliency": saliency or ["mask"]} | ({} if sample_images is None else {"sample_images": sample_images})
    params = make_params(
        num_images=images, rows=rows, columns=columns, size_px=size, evaluation=EvaluateParams(**settings)
    )
    with tempfile.TemporaryDirectory() as home:
        line = measure(Path(home), params, backbone=backbone, pretrained=pretrained, device=device)
    print(json.dumps(line))


app = command_line(main)

if __name__ == "__main__":
    app()
