"""Metrics of explanations: whole batches at once against plain loops of the same definitions, in one process.

    python -m benchmarks.metrics

Measured are, by family and sort of saliency, all declared metrics of the family, on random evidence in batches of 16
images, 5 maps each. ``bool`` maps are ellipses (as mask saliency), ``graded`` ones are above 0 in a box (as PRP);
families that look at no map are measured once, on more images. The loop is ``benchmarks/plain_metrics.py``: NumPy, one
map or pair of maps or image at a time, and scikit-learn for classification.

``salient_boxes`` is choosing the pixels of graded maps above their 95th percentile and finding the box around them:
``numpy`` is a loop with ``np.quantile`` and ``np.nonzero``, ``torch`` one with ``torch.quantile`` instead.

``bootstrap`` is all intervals of a row. The loop resamples the images draw after draw and computes each metric again,
in our own way; it is timed for a few draws and scaled. Values of images are given, so of metrics that are means only
the mean is computed again. ``activation_entropy`` is timed but not compared, for it keeps the scale of all images.

Prints one JSON line: images/s, the best of several runs, ratios, and whether the results are the same to 1e-6 (of
themselves, where above 1; pixels and boxes: exactly).
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pipeline  # noqa: F401  (before torch: it says how OpenMP's threads wait)

# isort: split
import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks import plain_metrics
from benchmarks.device import device_name
from pipeline.cli import command_line
from pipeline.evaluation.explanations import select
from pipeline.metrics.complexity import covered_parts
from pipeline.metrics.interface import Deletion, Evidence, Look, Metric, Scenes
from pipeline.metrics.maps import box_of, percentile_mask, positive_mask
from pipeline.metrics.registry import METRICS
from pipeline.metrics.statistics import MeanOverImages, Statistic
from pipeline.metrics.uncertainty import Bootstrap
from pipeline.runtime import keep_freed_memory

Measured = dict[str, Any]
Values = dict[str, np.ndarray]
"""What came of each metric of a family: of each image, or of all."""

_NUM_RANKS, _NUM_CLASSES, _PER_CLASS, _DIM, _NUM_ELEMENTS, _NUM_PARTS, _NUM_STEPS = 5, 20, 5, 128, 10, 7, 11
_PER_BATCH = 16
_PERCENTILE = 95.0
_TOLERANCE = 1e-6
_HAS_VALUE = 0.9  # share of images, of metrics that are means
_SCALE_OF_ALL_IMAGES = "activation_entropy"


@dataclass(frozen=True, slots=True)
class Contest:
    """The evidence of one family, both ways.

    Attributes:
        metrics: of the family.
        batches: with maps.
        whole: all images, without maps.
    """

    metrics: Sequence[Metric]
    batches: Sequence[Evidence]
    whole: Evidence

    def ours(self) -> Values:
        """All metrics of the family, batch by batch, as the stage computes them."""
        found: Values = {}
        for declared in self.metrics:
            if declared.of_image is not None:
                found[declared.key] = np.concatenate([declared.of_image(batch).numpy() for batch in self.batches])
            else:
                assert declared.of_set is not None
                found[declared.key] = np.array([declared.of_set(self.whole).value(len(self.whole.labels))])
        return found

    def plain(self) -> Values:
        """The same, image by image."""
        batches, whole = [plain_metrics.as_arrays(batch) for batch in self.batches], plain_metrics.as_arrays(self.whole)
        found: Values = {}
        for declared in self.metrics:
            name = declared.family, declared.key
            if declared.of_image is not None:
                one = plain_metrics.OF_IMAGE[name]
                found[declared.key] = np.array(
                    [one(batch, image) for batch in batches for image in range(len(batch.labels))]
                )
            else:
                found[declared.key] = np.array([plain_metrics.OF_SET[name](whole)])
        return found


# --- evidence


def make_batches(num_images: int, *, side_px: int, is_graded: bool | None, seed: int) -> list[Evidence]:
    """Draw evidence about images, batch by batch; without maps where IS_GRADED is None."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % _NUM_CLASSES
    parts = torch.split(labels, _PER_BATCH)
    last_layer = torch.randn(_NUM_CLASSES, _NUM_CLASSES * _PER_CLASS, generator=generator)
    vectors = torch.rand(_NUM_CLASSES * _PER_CLASS, _DIM, generator=generator)
    return [_batch(part, last_layer, vectors, side_px, is_graded, generator) for part in parts]


def _batch(
    labels: Tensor,
    last_layer: Tensor,
    vectors: Tensor,
    side_px: int,
    is_graded: bool | None,
    generator: torch.Generator,
) -> Evidence:
    def uniform(*shape: int) -> Tensor:
        return torch.rand(len(labels), *shape, generator=generator)

    num_prototypes = last_layer.shape[1]
    similarity = 5 * uniform(num_prototypes)
    top = similarity.sort(dim=1, descending=True).indices[:, :_NUM_RANKS]
    logits = 3 * uniform(_NUM_CLASSES) + torch.nn.functional.one_hot(labels, _NUM_CLASSES)
    elements = 5 * uniform(_NUM_RANKS, _NUM_ELEMENTS)
    num_elements = torch.randint(3, _NUM_ELEMENTS + 1, labels.shape, generator=generator)
    elements[(torch.arange(_NUM_ELEMENTS) >= num_elements[:, None, None]).expand_as(elements)] = torch.nan
    parts = uniform(_NUM_PARTS, 2) * side_px
    parts[uniform(_NUM_PARTS) < 0.2] = torch.nan
    look = Look(logits=logits, similarity=similarity, elements=elements, centre=uniform(_NUM_RANKS, 2))

    def again(*ranks: int) -> Look:
        """Another look at the same images, in which all is a little different."""
        return Look(
            logits=logits.view(-1, *[1] * len(ranks), _NUM_CLASSES) + 0.1 * uniform(*ranks, _NUM_CLASSES),
            similarity=similarity.view(-1, *[1] * len(ranks), num_prototypes) + 0.1 * uniform(*ranks, num_prototypes),
            elements=elements + 0.1 * uniform(_NUM_RANKS, _NUM_ELEMENTS),
            centre=look.centre + 0.1 * uniform(_NUM_RANKS, 2),
        )

    curves = [uniform(_NUM_STEPS) for _ in range(4)]
    evidence = Evidence(
        labels=labels,
        look=look,
        top=top,
        vectors=vectors[top],
        features=uniform(_NUM_RANKS, _DIM),
        last_layer=last_layer,
        parts=parts,
        changed=again(),
        noised=again(_NUM_RANKS),
        patterns=tuple(
            frozenset(patterns.tolist()) for patterns in torch.randint(0, 12, (len(labels), 10), generator=generator)
        ),
        deletion=_deletion(curves),
        scenes=Scenes(
            visible=uniform(_NUM_PARTS) < 0.8,
            claimed=(4 * uniform(_NUM_PARTS) - 1).round().clamp(min=0),  # some are equal, some 0
            without=logits[:, None] - uniform(_NUM_PARTS, _NUM_CLASSES),
            only=logits[:, None] - 2 * uniform(_NUM_PARTS, _NUM_CLASSES),
            none=uniform(_NUM_CLASSES),
            differs=uniform(_NUM_CLASSES, _NUM_PARTS) < 0.4,
        ),
    )
    if is_graded is None:
        return evidence
    middle, radius = 0.3 + 0.4 * uniform(_NUM_RANKS, 2), 0.15 + 0.15 * uniform(_NUM_RANKS, 2)
    with_maps: dict[str, Look] = {}
    for name, shift in {"look": 0.0, "changed": 0.03, "noised": -0.02}.items():
        shape = _ellipses(middle + shift, radius, side_px)
        maps = torch.where(_boxes(middle + shift, radius, side_px), uniform(_NUM_RANKS, side_px, side_px).square(), 0.0)
        with_maps[name] = _with_maps(getattr(evidence, name), maps if is_graded else shape, parts)
    thing = _ellipses(torch.full((len(labels), 1, 2), 0.5), 0.2 + 0.1 * uniform(1, 2), side_px)[:, 0]
    return replace(evidence, object_mask=thing, **with_maps)  # type: ignore[arg-type]


def _deletion(curves: Sequence[Tensor]) -> Deletion:
    removed, inserted, removed_at_random, inserted_at_random = curves
    return Deletion(
        removed=removed,
        inserted=inserted,
        removed_at_random=removed_at_random,
        inserted_at_random=inserted_at_random,
    )


def _with_maps(look: Look, maps: Tensor, parts: Tensor) -> Look:
    salient = maps if maps.dtype == torch.bool else percentile_mask(maps, _PERCENTILE) & positive_mask(maps)
    return replace(look, maps=maps, salient=salient, covered=covered_parts(salient, parts))


def _distances(middle: Tensor, radius: Tensor, side_px: int) -> tuple[Tensor, Tensor]:
    place = (torch.arange(side_px) + 0.5) / side_px
    x, y = ((place - middle[..., axis, None]) / radius[..., axis, None] for axis in (0, 1))
    return x[..., None, :], y[..., :, None]


def _ellipses(middle: Tensor, radius: Tensor, side_px: int) -> Tensor:
    x, y = _distances(middle, radius, side_px)
    return x.square() + y.square() < 1


def _boxes(middle: Tensor, radius: Tensor, side_px: int) -> Tensor:
    x, y = _distances(middle, radius, side_px)
    return (x.abs() < 1) & (y.abs() < 1)


def joined(batches: Sequence[Evidence]) -> Evidence:
    """Put batches together, without maps, as the stage does for metrics of all images."""

    def look(name: str) -> Look:
        looks = [getattr(batch, name) for batch in batches]
        keys = ("logits", "similarity", "elements", "centre")
        covered = None if looks[0].covered is None else torch.cat([one.covered for one in looks])
        return Look(**{key: torch.cat([getattr(one, key) for one in looks]) for key in keys}, covered=covered)

    return Evidence(
        labels=torch.cat([batch.labels for batch in batches]),
        look=look("look"),
        last_layer=batches[0].last_layer,
        patterns=tuple(pattern for batch in batches for pattern in batch.patterns or ()),
        **{key: torch.cat([getattr(batch, key) for batch in batches]) for key in ("top", "vectors", "features")},
    )


# --- measurements


def best_of(runs: int, work: Callable[[], Any]) -> tuple[float, Any]:
    """Do WORK several times: the least seconds, and its result."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def is_equal(one: Values, other: Values) -> bool:
    """Whether two ways give the same numbers, and for the same images none."""
    return one.keys() == other.keys() and all(
        np.allclose(one[key], other[key], rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True) for key in one
    )


def measure_family(contest: Contest, *, runs: int) -> Measured:
    """Measure one family."""
    ours_s, ours = best_of(runs, contest.ours)
    plain_s, plain = best_of(min(runs, 2), contest.plain)
    num_images = len(contest.whole.labels)
    return {
        "images": num_images,
        "images_per_s": {"ours": _rounded(num_images / ours_s), "loop": _rounded(num_images / plain_s)},
        "ratio": round(plain_s / ours_s, 1),
        "equal": is_equal(ours, plain),
    }


def measure_families(num_images: int, num_with_maps: int, *, side_px: int, runs: int) -> dict[str, Measured]:
    """Measure all families: with each sort of maps those that look at maps, the others once."""
    needs_maps = {declared.family for declared in METRICS if "maps" in declared.needs}
    found: dict[str, Measured] = {}
    for sort, is_graded in {"none": None, "bool": False, "graded": True}.items():
        num = num_images if is_graded is None else num_with_maps
        batches = make_batches(num, side_px=side_px, is_graded=is_graded, seed=0)
        whole = joined(batches)
        for family in dict.fromkeys(declared.family for declared in METRICS):
            if (family in needs_maps) == (is_graded is not None):
                metrics = [declared for declared in METRICS if declared.family == family]
                name = family if is_graded is None else f"{family}, {sort}"
                found[name] = measure_family(Contest(metrics, batches, whole), runs=runs)
    return found


def measure_salient_boxes(*, side_px: int, runs: int) -> Measured:
    """Measure the choice of salient pixels and the boxes around them, of the maps of one batch."""
    [evidence] = make_batches(_PER_BATCH, side_px=side_px, is_graded=True, seed=0)
    maps = evidence.look.maps
    assert maps is not None
    arrays = maps.flatten(0, 1).numpy()

    def ours() -> tuple[np.ndarray, np.ndarray]:
        masks = percentile_mask(maps, _PERCENTILE) & positive_mask(maps)
        return masks.flatten(0, 1).numpy(), box_of(masks).flatten(0, 1).numpy()

    def loop(mask_of: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        masks = [mask_of(values) & (values > 0) for values in arrays]
        return np.stack(masks), np.array([plain_metrics.box_of(mask) for mask in masks])

    def by_torch(values: np.ndarray) -> np.ndarray:
        of_map = torch.from_numpy(values)
        return (of_map >= torch.quantile(of_map, _PERCENTILE / 100)).numpy()

    ours_s, found = best_of(3 * runs, ours)
    loops = {
        "numpy": best_of(runs, lambda: loop(lambda values: plain_metrics.percentile_mask(values, _PERCENTILE))),
        "torch": best_of(1, lambda: loop(by_torch)),
    }
    return {
        "maps": len(arrays),
        "milliseconds": {"ours": _rounded(1e3 * ours_s)} | {name: _rounded(1e3 * s) for name, (s, _) in loops.items()},
        "ratio": {name: round(seconds / ours_s, 1) for name, (seconds, _) in loops.items()},
        "equal": all(
            np.array_equal(own, other) for _, result in loops.values() for own, other in zip(found, result, strict=True)
        ),
    }


def measure_bootstrap(num_images: int, *, draws: int, plain_draws: int, runs: int) -> Measured:
    """Measure all intervals of a row."""
    batches = make_batches(num_images, side_px=32, is_graded=False, seed=0)
    whole = joined(batches)
    rng = np.random.default_rng(0)
    statistics: dict[tuple[str, str], Statistic] = {}
    for declared in METRICS:
        if declared.of_set is not None:
            statistics[declared.family, declared.key] = declared.of_set(whole)
        else:
            values = np.where(rng.random(num_images) < _HAS_VALUE, rng.random(num_images), np.nan)
            statistics[declared.family, declared.key] = MeanOverImages(values)
    asked = {name: statistic for name, statistic in statistics.items() if statistic.num_images > 0}
    by_name = {(declared.family, declared.key): declared for declared in METRICS}
    bootstrap = Bootstrap(num_images, num_draws=draws, seed=0)
    # private, for the loop has to have the same draws
    drawn = np.concatenate(list(bootstrap._weights()))[:plain_draws]

    def again(name: tuple[str, str], images: np.ndarray, resampled: Evidence) -> float:
        statistic = asked[name]
        if isinstance(statistic, MeanOverImages):
            return float(np.nanmean(statistic.values[images]))
        of_set = by_name[name].of_set
        assert of_set is not None
        return of_set(resampled).value(num_images)

    def loop() -> Values:
        found: dict[str, list[float]] = {}
        for weights in drawn:
            images = np.repeat(np.arange(num_images), weights.astype(np.int64))
            resampled = select(whole, torch.from_numpy(images))
            for name in asked:
                found.setdefault(".".join(name), []).append(again(name, images, resampled))
        return {name: np.array(values) for name, values in found.items()}

    ours_s, _ = best_of(runs, lambda: [bootstrap.interval(statistic) for statistic in asked.values()])
    plain_s, plain = best_of(1, loop)
    plain_s *= draws / plain_draws
    compared = {name: statistic for name, statistic in asked.items() if name[1] != _SCALE_OF_ALL_IMAGES}
    ours = {".".join(name): statistic(drawn) for name, statistic in compared.items()}
    return {
        "images": num_images,
        "metrics": len(asked),
        "draws": draws,
        "draws_of_loop": plain_draws,
        "seconds": {"ours": _rounded(ours_s), "loop, scaled": _rounded(plain_s)},
        "ratio": round(plain_s / ours_s, 1),
        "equal": is_equal(ours, {name: values for name, values in plain.items() if name in ours}),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def measure(*, num_images: int, num_with_maps: int, side_px: int, draws: int, plain_draws: int, runs: int) -> Measured:
    """Measure everything."""
    families = measure_families(num_images, num_with_maps, side_px=side_px, runs=runs)
    salient_boxes = measure_salient_boxes(side_px=side_px, runs=runs)
    bootstrap = measure_bootstrap(num_images, draws=draws, plain_draws=plain_draws, runs=runs)
    return {
        "benchmark": "metrics",
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "side_px": side_px,
        "equal": all(part["equal"] for part in (*families.values(), salient_boxes, bootstrap)),
        "families": families,
        "salient_boxes": salient_boxes,
        "bootstrap": bootstrap,
    }


def main(
    images: Annotated[int, typer.Option(min=2, help="For metrics without maps, and intervals.")] = 1000,
    images_with_maps: Annotated[int, typer.Option(min=2, help="For metrics of maps.")] = 64,
    side_px: Annotated[int, typer.Option(min=32, help="Of the maps.")] = 224,
    draws: Annotated[int, typer.Option(min=20, help="Of the bootstrap.")] = 1000,
    draws_of_loop: Annotated[int, typer.Option(min=1, help="How many the loop is timed for.")] = 5,
    runs: Annotated[int, typer.Option(min=1, help="The best one counts; of the slow loops there are fewer.")] = 5,
) -> None:
    """Time metrics and intervals both ways."""
    keep_freed_memory()  # as the stages do
    line = measure(
        num_images=images,
        num_with_maps=images_with_maps,
        side_px=side_px,
        draws=draws,
        plain_draws=draws_of_loop,
        runs=runs,
    )
    print(json.dumps(line))
    if not line["equal"]:
        raise typer.Exit(1)


app = command_line(main)

if __name__ == "__main__":
    app()
