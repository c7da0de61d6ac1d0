"""Projection of 2,000 prototypes (200 classes x 10) on 2,000 images x 8 views, features of length 256 given.

    python -m benchmarks.project

Every contender finds the nearest own-class view of each prototype; views may be shared. Contenders:

- ``project``: what the stage ``project`` runs, one matrix of distances per class.
- ``loop``: for every prototype, over all images; those of its class have the distances of their views computed, one
  image at a time, and the least one so far is kept.
- ``loop_all_views``: for every prototype, the distances of all views at once; the least of those of its class.
- ``masked_product``: all prototypes and all views as one matrix product, other classes' masked.

``project_distinct_views`` is the stage's other setting, which remembers ten views per prototype. Prints one JSON line:
seconds (the best of several runs), ratios to ``project``, and whether all contenders chose the same views.
"""

import argparse
import json
import time
from collections.abc import Callable

import pipeline  # noqa: F401  (before torch: it says how OpenMP's threads wait)

# isort: split
import torch

from benchmarks.device import device_name
from pipeline.runtime import keep_freed_memory
from pipeline.training.nearest import EmbeddedBag
from pipeline.training.projection import project

Chosen = list[tuple[int, int]]  # image and view of each prototype


class Problem:
    """Random features and prototypes, uniform in (0, 1) as sigmoids are; every class has equally many images."""

    def __init__(self, *, classes: int, per_class: int, images: int, views: int, dim: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.prototypes = torch.rand(classes * per_class, dim, generator=generator)
        self.prototype_labels = torch.arange(classes).repeat_interleave(per_class)
        self.labels = torch.arange(images)[torch.randperm(images, generator=generator)] % classes
        self.features = torch.rand(images, views, dim, generator=generator)

    def run_project(self, *, distinct_views: bool) -> Chosen:
        """Ours, from one tensor per image."""
        labels = self.labels.tolist()
        bags = (EmbeddedBag(f"{image:06d}", labels[image], views) for image, views in enumerate(self.features))
        sources = project(self.prototypes, self.prototype_labels, bags, distinct_views=distinct_views).sources
        return [(int(source.image_key), source.view_idx) for source in sources if source is not None]

    def run_loop(self) -> Chosen:
        """Image by image, for every prototype."""
        labels, features = self.labels.tolist(), list(self.features)
        chosen = []
        for prototype, label in zip(self.prototypes, self.prototype_labels.tolist(), strict=True):
            least, nearest = float("inf"), (-1, -1)
            for image, views in enumerate(features):
                if labels[image] != label:
                    continue
                value, view = (views - prototype).square().sum(dim=1).min(dim=0)
                if value.item() < least:
                    least, nearest = value.item(), (image, int(view.item()))
            chosen.append(nearest)
        return chosen

    def run_loop_all_views(self) -> Chosen:
        """All views at once, for every prototype."""
        num_views = self.features.shape[1]
        views, view_labels = self.features.flatten(0, 1), self.labels.repeat_interleave(num_views)
        chosen = []
        for prototype, label in zip(self.prototypes, self.prototype_labels, strict=True):
            distance = (views - prototype).square().sum(dim=1)
            chosen.append(divmod(int(distance.masked_fill(view_labels != label, torch.inf).argmin()), num_views))
        return chosen

    def run_masked_product(self) -> Chosen:
        """Everything at once."""
        num_views = self.features.shape[1]
        views, view_labels = self.features.flatten(0, 1), self.labels.repeat_interleave(num_views)
        squares = views.square().sum(dim=1, keepdim=True) + self.prototypes.square().sum(dim=1)
        distance = squares - 2 * (views @ self.prototypes.T)  # [view, prototype]
        distance.masked_fill_(view_labels[:, None] != self.prototype_labels, torch.inf)
        return [divmod(view, num_views) for view in distance.argmin(dim=0).tolist()]


def best_of(runs: int, work: Callable[[], Chosen]) -> tuple[float, Chosen]:
    """Run WORK several times: the least seconds, and what it chose."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        chosen = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), chosen


def main() -> None:
    """Measure and print the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"classes": 200, "per-class": 10, "images": 2000, "views": 8, "dim": 256}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    size = vars(parser.parse_args())
    keep_freed_memory()  # as the stages do; the contenders with large matrices gain most
    problem = Problem(**size)
    contenders = {
        "project": best_of(10, lambda: problem.run_project(distinct_views=False)),
        "loop": best_of(3, problem.run_loop),
        "loop_all_views": best_of(1, problem.run_loop_all_views),
        "masked_product": best_of(3, problem.run_masked_product),
    }
    distinct_s, _ = best_of(10, lambda: problem.run_project(distinct_views=True))
    ours, chosen = contenders["project"]
    line = {
        "benchmark": "project",
        "device": device_name(),
        "threads": torch.get_num_threads(),
        **size,
        "seconds": {name: round(seconds, 4) for name, (seconds, _) in contenders.items()}
        | {"project_distinct_views": round(distinct_s, 4)},
        "ratio": {name: round(seconds / ours, 1) for name, (seconds, _) in contenders.items() if name != "project"},
        "equal": all(other == chosen for _, other in contenders.values()),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
