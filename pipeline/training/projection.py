"""Projection: each prototype becomes the feature of its nearest own-class training view (paper: push).

The nearest view of the whole training split, not of a batch (DEVIATIONS.md A1); a class without views keeps its
prototypes (A2). Memory is bounded in the number of images: per prototype only its best few candidates are kept.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.model.prototypes import squared_distance


class EmbeddedBag(NamedTuple):
    """The features of one training image's views."""

    image_key: str
    label: int
    features: Float[Tensor, "view dim"]


@dataclass(frozen=True, slots=True)
class ProjectionSource:
    """The view that a prototype was replaced by.

    Attributes:
        distance_before: squared distance of the learned prototype to the view.
    """

    image_key: str
    view_idx: int
    distance_before: float


@dataclass(frozen=True, slots=True)
class Projection:
    """The projected prototypes and where each comes from; None where a class has no view."""

    prototypes: Float[Tensor, "prototype dim"]
    sources: tuple[ProjectionSource | None, ...]


@dataclass(frozen=True, slots=True)
class _Candidate:
    distance: float
    image_key: str
    view_idx: int
    feature: Float[Tensor, " dim"]

    @property
    def rank(self) -> tuple[float, str, int]:
        return (self.distance, self.image_key, self.view_idx)

    @property
    def view(self) -> tuple[str, int]:
        return (self.image_key, self.view_idx)


@torch.no_grad()
def project(
    prototypes: Float[Tensor, "prototype dim"],
    prototype_labels: Int[Tensor, " prototype"],
    bags: Iterable[EmbeddedBag],
    *,
    distinct_views: bool,
) -> Projection:
    """Find the nearest own-class view of every prototype and take its feature.

    Equal distances go to the smaller (image_key, view_idx), so neither the order of bags nor their batching matters.

    Args:
        prototypes: the learned vectors.
        prototype_labels: the class that owns each.
        bags: the training split, in any order, read once.
        distinct_views: no view serves two prototypes of a class: the nearest pair goes first, the others take their
            next nearest view. Where a class has fewer views than prototypes, views are shared after all.
    """
    of_class: dict[int, list[int]] = {}
    for idx, label in enumerate(prototype_labels.tolist()):
        of_class.setdefault(label, []).append(idx)
    candidates: list[list[_Candidate]] = [[] for _ in range(len(prototypes))]
    for bag in bags:
        owned = of_class.get(bag.label, [])
        if not owned:
            continue
        # with k prototypes in a class, one loses at most its k - 1 best views to the others
        num_kept = len(owned) if distinct_views else 1
        distance = squared_distance(bag.features, prototypes[owned])  # [view, own prototype]
        for column, idx in enumerate(owned):
            kept = candidates[idx]
            for view_idx, value in enumerate(distance[:, column].tolist()):
                # `>`: an equal distance may still win by its key
                if len(kept) == num_kept and value > kept[-1].distance:
                    continue
                kept.append(_Candidate(value, bag.image_key, view_idx, bag.features[view_idx]))
                kept.sort(key=lambda candidate: candidate.rank)
                del kept[num_kept:]
    chosen: list[_Candidate | None] = [None] * len(prototypes)
    for owned in of_class.values():
        for idx, candidate in zip(owned, _assign([candidates[idx] for idx in owned]), strict=True):
            chosen[idx] = candidate
    projected = prototypes.clone()
    for idx, candidate in enumerate(chosen):
        if candidate is not None:
            projected[idx] = candidate.feature
    return Projection(
        projected,
        tuple(
            None if found is None else ProjectionSource(found.image_key, found.view_idx, found.distance)
            for found in chosen
        ),
    )


def _assign(candidates: Sequence[Sequence[_Candidate]]) -> list[_Candidate | None]:
    """Give each prototype of one class a view: nearest pair first, each view once while there are enough."""
    chosen: list[_Candidate | None] = [None] * len(candidates)
    taken: set[tuple[str, int]] = set()
    pairs = sorted(
        ((candidate.rank, slot, candidate) for slot, kept in enumerate(candidates) for candidate in kept),
        key=lambda pair: pair[:2],
    )
    for _, slot, candidate in pairs:
        if chosen[slot] is None and candidate.view not in taken:
            chosen[slot] = candidate
            taken.add(candidate.view)
    return [kept[0] if found is None and kept else found for found, kept in zip(chosen, candidates, strict=True)]
