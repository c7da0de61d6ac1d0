"""The nearest items of every prototype, batch after batch: memory does not grow with the number of items.

An item is what distances are measured to: a view in projection, an image in pruning.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

Name = tuple[str | int, ...]
"""What decides between items at equal distances: the smaller name is the nearer one."""


class EmbeddedBag(NamedTuple):
    """The features of one training image's views."""

    image_key: str
    label: int
    features: Float[Tensor, "view dim"]


def in_batches(bags: Iterable[EmbeddedBag], num_views: int) -> Iterator[list[EmbeddedBag]]:
    """Group BAGS as they come; a batch ends with the bag that brings it to NUM_VIEWS views."""
    batch: list[EmbeddedBag] = []
    room = num_views
    for bag in bags:
        batch.append(bag)
        room -= len(bag.features)
        if room <= 0:
            yield batch
            batch, room = [], num_views
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest items of every prototype, nearest first.

    Attributes:
        distance: infinite where a prototype has no further item.
        item: position in ``names`` and ``values``; -1 where a prototype has no further item.
        names: of the items; no two are equal.
        values: what is remembered of each item.
    """

    distance: Float[Tensor, "prototype rank"]
    item: Int[Tensor, "prototype rank"]
    names: Sequence[Name]
    values: Shaped[Tensor, "item *value"]

    def compact(self) -> "Nearest":
        """Forget the items that no prototype has, and let go of the memory that they lie in."""
        is_used = torch.zeros(len(self.names) + 1, dtype=torch.bool, device=self.item.device)
        is_used[self.item] = True  # the last one answers for -1
        used = torch.nonzero(is_used[:-1]).flatten()
        position = torch.full((len(self.names) + 1,), -1, device=used.device)
        position[used] = torch.arange(len(used), device=used.device)
        return Nearest(
            self.distance.clone(),
            position[self.item],
            [self.names[idx] for idx in used.tolist()],
            self.values[used],
        )


def merge(one: Nearest, other: Nearest, k: int) -> Nearest:
    """Keep the K nearest of the items of both; they have no item in common."""
    names = [*one.names, *other.names]
    order = sorted(range(len(names)), key=names.__getitem__)
    place = torch.full((len(names) + 1,), -1, device=one.item.device)  # the last one answers for -1
    place[order] = torch.arange(len(names), device=place.device)
    second = torch.where(other.item < 0, -1, other.item + len(one.names))
    item, by_name = place[torch.cat([one.item, second], dim=1)].sort(dim=1)
    distance = torch.cat([one.distance, other.distance], dim=1).gather(1, by_name)
    distance, by_distance = distance.sort(dim=1, stable=True)  # equal ones stay in the order of their names
    return Nearest(
        distance[:, :k],
        item.gather(1, by_distance)[:, :k],
        [names[idx] for idx in order],
        torch.cat([one.values, other.values])[order],
    ).compact()
