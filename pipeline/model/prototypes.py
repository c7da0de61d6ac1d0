"""Distances to prototypes, similarities, and the reduction of a bag's views: the mathematics of the prototype layer.

Axes: view (all views of all images of a batch, packed one after the other), bag (image), prototype, dim, class.
Bags are ragged: ``lengths`` says how many of the packed views belong to each bag, so nothing is padded.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pooling:
    """How the distances of a bag's views to a prototype become one.

    Attributes:
        kind: ``nearest`` (the paper's), ``top_k_mean`` or ``soft``; see ``model.pooling`` in params.yaml.
        k: views that ``top_k_mean`` averages.
        temperature: of ``soft``, in squared distance.
    """

    kind: Literal["nearest", "top_k_mean", "soft"] = "nearest"
    k: int = 1
    temperature: float = 1.0


def squared_distance(
    features: Float[Tensor, "view dim"], prototypes: Float[Tensor, "prototype dim"]
) -> Float[Tensor, "view prototype"]:
    """Compute ||z - p||^2, at least 0 (paper section 3).

    Expanded as z.z - 2 z.p + p.p, one matrix product, in float64: in float32 the terms cancel and leave an error that
    grows with ``dim`` and swamps small distances (with TensorFloat-32 on CUDA, most of them). Rounding below zero is
    clipped.
    """
    wide = torch.float32 if features.device.type == "mps" else torch.float64  # MPS has no float64
    z, p = features.to(wide), prototypes.to(wide)
    distance = z.square().sum(dim=1, keepdim=True) + p.square().sum(dim=1) - 2 * (z @ p.T)  # [view, prototype]
    return distance.clamp_min(0).to(features.dtype)


def log_similarity(distance: Float[Tensor, "*any"], epsilon: float) -> Float[Tensor, "*any"]:
    """Turn squared distances into similarities log((d + 1) / (d + epsilon)): large is close, at least 0."""
    return torch.log((distance + 1) / (distance + epsilon))


def bag_of_view(lengths: Int[Tensor, " bag"]) -> Int[Tensor, " view"]:
    """Say for each packed view to which bag it belongs."""
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def nearest_view(
    distance: Float[Tensor, "view prototype"], lengths: Int[Tensor, " bag"]
) -> tuple[Float[Tensor, "bag prototype"], Int[Tensor, "bag prototype"]]:
    """Reduce each bag to its nearest view, per prototype.

    Args:
        distance: squared distances of packed views.
        lengths: views of each bag, at least 1; they add up to the view axis.

    Returns:
        The least distance, through which the gradient flows to that one view; and the position of that view on the
        packed axis, the first where several are equally near. The result does not depend on how bags are batched.
    """
    bag = bag_of_view(lengths)
    num_bags, num_views = len(lengths), len(distance)
    index = bag[:, None].expand_as(distance)
    least = distance.new_full((num_bags, distance.shape[1]), torch.inf)
    least = least.scatter_reduce(0, index, distance.detach(), "amin")  # [bag, prototype]
    position = torch.arange(num_views, device=distance.device)[:, None].expand_as(distance)
    candidate = torch.where(distance.detach() == least[bag], position, num_views)
    first = torch.full_like(least, num_views, dtype=torch.long).scatter_reduce(0, index, candidate, "amin")
    return distance.gather(0, first), first


def pooled_distance(
    distance: Float[Tensor, "view prototype"], lengths: Int[Tensor, " bag"], pooling: Pooling
) -> tuple[Float[Tensor, "bag prototype"], Int[Tensor, "bag prototype"]]:
    """Reduce each bag to one distance per prototype.

    Args:
        distance: squared distances of packed views.
        lengths: views of each bag, at least 1.
        pooling: the least distance; the mean of the ``k`` least (of all, in a smaller bag); or the mean of all,
            weighted by the softmax of -distance / temperature over the bag.

    Returns:
        The distance of each bag; and the position of the nearest view, as :func:`nearest_view` gives it.
    """
    least, view = nearest_view(distance, lengths)
    if pooling.kind == "nearest":
        return least, view
    bag = bag_of_view(lengths)
    if pooling.kind == "soft":
        # shifted by the least distance, the largest weight is 1: nothing overflows
        weight = torch.exp((least.detach()[bag] - distance) / pooling.temperature)
        empty = torch.zeros_like(least)
        return empty.index_add(0, bag, weight * distance) / empty.index_add(0, bag, weight), view
    first = torch.cumsum(lengths, 0) - lengths
    place = torch.arange(len(distance), device=distance.device) - first[bag]  # of each view in its bag
    padded = distance.new_full((len(lengths), int(lengths.max()), distance.shape[1]), torch.inf)
    padded = padded.index_put((bag, place), distance)  # [bag, place, prototype]
    nearest = padded.topk(min(pooling.k, padded.shape[1]), dim=1, largest=False).values
    num = lengths.clamp_max(pooling.k)[:, None]
    is_view = nearest < torch.inf
    return torch.where(is_view, nearest, 0).sum(dim=1) / num, view


def nearest_of(distance: Float[Tensor, "bag prototype"], wanted: torch.Tensor) -> Float[Tensor, " bag"]:
    """Find each bag's least distance over the prototypes marked in ``wanted`` (bool, [bag, prototype]).

    The gradient flows to one prototype, also where several are equally near. A bag without a wanted prototype gives
    infinity.
    """
    return distance.masked_fill(~wanted, torch.inf).min(dim=1).values
