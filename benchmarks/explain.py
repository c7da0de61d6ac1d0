"""Explaining pictures one by one: seconds to load a model, to explain each picture, and to write its page and drawing.

    python -m benchmarks.explain models/final PICTURE...

The first pictures warm up what is loaded late (fonts, kernels), so they are told apart. Prints one JSON line.
"""

import json
import time
from pathlib import Path
from statistics import mean
from typing import Annotated

import typer

from benchmarks.device import device_name
from pipeline.explain import Explainer
from pipeline.explain.shown_picture import PHOTOGRAPH_PX, as_page, as_png, show
from pipeline.report.prototype_pictures import PrototypePictures

_ROUND = 3


def main(
    model: Path,
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE...")],
    dataset: Path = Path("data/dataset"),
    crops: Path = Path("data/crops"),
) -> None:
    """Measure MODEL on PICTURES and print the line."""
    start = time.perf_counter()
    explainer = Explainer(model)
    prototypes = PrototypePictures(model, explainer.network, dataset=dataset, crops=crops, side_px=PHOTOGRAPH_PX // 2)
    loading_s = time.perf_counter() - start
    explaining_s, writing_s = [], []
    for path in pictures:
        start = time.perf_counter()
        explained = explainer.explain(path)
        explaining_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        shown = show(explained, prototypes)
        as_page(shown, head=explainer.network.head)
        as_png(shown)
        writing_s.append(time.perf_counter() - start)
    both = [first + second for first, second in zip(explaining_s, writing_s, strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "explain",
                "device": device_name(),
                "head": explainer.network.head,
                "backbone": explainer.network.backbone.name,
                "num_pictures": len(pictures),
                "loading_s": round(loading_s, _ROUND),
                "explaining_s": [round(seconds, _ROUND) for seconds in explaining_s],
                "page_and_drawing_s": [round(seconds, _ROUND) for seconds in writing_s],
                "mean_s": round(mean(both), _ROUND),
                "slowest_s": round(max(both), _ROUND),
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
