"""Sanity checks: a metric of an explanation must get worse when the explanation is made worthless.

Three things are randomised, one at a time (after Adebayo et al. 2018, "Sanity Checks for Saliency Maps", who randomise
weights and labels): the weights of the backbone and of the layer on it, which prototype is which, and where on the
image the maps lie. What stays as good as it was, beyond chance, measures something else than the explanation.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from pipeline.evaluation.explanations import select
from pipeline.metrics.interface import Evidence, Metric
from pipeline.metrics.maps import box_of
from pipeline.metrics.measure import Measured
from pipeline.metrics.statistics import MeanOverImages, Statistic
from pipeline.metrics.uncertainty import Bootstrap
from pipeline.model.backbone import Backbone
from pipeline.model.network import PrototypeNetwork
from pipeline.training.seeding import untouched_generators

Randomisation = Literal["weights", "prototypes", "maps"]
RANDOMISATIONS: tuple[Randomisation, ...] = ("weights", "prototypes", "maps")


def with_random_weights(network: PrototypeNetwork, *, seed: int) -> PrototypeNetwork:
    """Copy a network and start its backbone and the layer on it anew; prototypes and last layer stay."""
    altered = copy.deepcopy(network)
    with untouched_generators():
        torch.manual_seed(seed)
        altered.backbone = Backbone(network.backbone.name, pretrained=False)
        if altered.prototypes is not altered.add_on.weight:
            altered.add_on.reset_parameters()
        else:  # the layer is the prototypes
            torch.nn.init.xavier_uniform_(altered.add_on.weight)
    return altered.eval()


def with_shuffled_prototypes(network: PrototypeNetwork, *, seed: int) -> PrototypeNetwork:
    """Copy a network and exchange its prototypes; what the last layer and explanations say of them stays."""
    altered = copy.deepcopy(network)
    order = np.random.default_rng(seed).permutation(len(altered.prototypes))
    with torch.no_grad():
        altered.prototypes.copy_(altered.prototypes[torch.from_numpy(order)].clone())
    return altered


def moved_maps(
    maps: Shaped[Tensor, "image rank side side"], image_keys: Sequence[str], *, seed: int
) -> Shaped[Tensor, "image rank side side"]:
    """Move each map to a random place where its box still lies in the frame.

    Shape, area, box and values stay, only the place is lost. A map that fills the frame from one side to the other
    moves along it all the same: what leaves on one side comes back on the other. A map moves the same whenever it is
    asked for.
    """
    side = maps.shape[-1]
    boxes = box_of(maps != 0).tolist()
    moved = torch.empty_like(maps)
    for image, image_key in enumerate(image_keys):
        start = int.from_bytes(hashlib.sha256(f"maps/{seed}/{image_key}".encode()).digest()[:8], "big")
        rng = np.random.default_rng(start)
        for rank, (x0, y0, x1, y1) in enumerate(boxes[image]):
            down, right = _shift(rng, y0, y1, side), _shift(rng, x0, x1, side)
            moved[image, rank] = maps[image, rank].roll((down, right), (0, 1))
    return moved


def _shift(rng: np.random.Generator, start: int, stop: int, side: int) -> int:
    """Draw how far what lies from START to STOP moves; anywhere, where it fills the frame."""
    if stop - start == side:
        return int(rng.integers(side))
    return int(rng.integers(side - (stop - start) + 1)) - start


def applies(declared: Metric, randomisation: Randomisation) -> bool:
    """Whether a randomisation has anything to do with a metric that has a better side."""
    if declared.direction == "neither" or "patterns" in declared.needs:  # those are of the masks alone
        return False
    return randomisation != "maps" or "maps" in declared.needs


def restricted(measured: Measured, whole: Evidence, images: Int[np.ndarray, " image"]) -> Statistic | None:
    """Compute a metric of some of the images again, without looking at them again.

    Args:
        measured: of all images.
        whole: evidence about all images.
        images: positions of those wanted.
    """
    if isinstance(measured.statistic, MeanOverImages):
        return MeanOverImages(measured.statistic.values[images])
    if measured.statistic is None or measured.declared.of_set is None:
        return None
    return measured.declared.of_set(select(whole, torch.from_numpy(images)))


def insensitive(
    real: Mapping[tuple[str, str], Statistic],
    randomised: Mapping[Randomisation, Sequence[Measured]],
    bootstrap: Bootstrap,
) -> dict[tuple[str, str], list[str]]:
    """Say which metrics are no worse, beyond chance, after which randomisation.

    Args:
        real: statistics of the sample, by family and key.
        randomised: the same metrics of the same images after each randomisation.
        bootstrap: of the sample.

    Returns:
        By family and key, for metrics that were tried; one that has no interval after a randomisation was not tried.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for randomisation, altered in randomised.items():
        for after in altered:
            before = real.get(after.name)
            if before is None or after.statistic is None or not applies(after.declared, randomisation):
                continue
            if before.num_images == 0:  # not about images
                continue
            difference = bootstrap.difference(before, after.statistic)
            if difference is None:
                continue
            is_higher_better = after.declared.direction == "higher"
            is_worse = difference.interval.high < 0 if is_higher_better else difference.interval.low > 0
            failed = found.setdefault(after.name, [])
            if not is_worse:
                failed.append(randomisation)
    return found
