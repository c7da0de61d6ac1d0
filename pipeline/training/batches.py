"""Batches of ragged bags: the views of all images packed along one axis, never padded."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from pipeline.data.bags import BagReader


class PackedBags(NamedTuple):
    """A batch; a tuple, so that Lightning moves it to the device.

    Attributes:
        views: packed views: uint8 RGB [view, 3, side, side]; or pooled backbone features [view, version, channel].
        lengths: views of each bag.
        labels: class of each bag.
    """

    views: Shaped[Tensor, "view ..."]
    lengths: Int[Tensor, " bag"]
    labels: Int[Tensor, " bag"]


class ImageBags(Dataset[PackedBags]):
    """Bags of a split, decoded when asked for; one bag is a batch of one."""

    def __init__(self, reader: BagReader) -> None:
        self._reader = reader
        self._labels = reader.labels

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, bag_idx: int) -> PackedBags:
        views = torch.from_numpy(self._reader.views(bag_idx)).permute(0, 3, 1, 2)  # [view, 3, side, side]
        return PackedBags(views, torch.tensor([len(views)]), torch.tensor([self._labels[bag_idx]]))


class PooledBags(Dataset[PackedBags]):
    """Bags whose pooled backbone features are known."""

    def __init__(
        self, pooled: Float[Tensor, "view version channel"], lengths: Sequence[int], labels: Sequence[int]
    ) -> None:
        """Take the features of packed views.

        Args:
            pooled: all views, bag after bag; version 0 is the view itself, 1 (where given) its mirror image.
            lengths: views of each bag.
            labels: class of each bag.
        """
        self._pooled = pooled
        self._stops = np.cumsum(lengths)
        self._lengths = list(lengths)
        self._labels = list(labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, bag_idx: int) -> PackedBags:
        stop, length = int(self._stops[bag_idx]), self._lengths[bag_idx]
        return PackedBags(
            self._pooled[stop - length : stop], torch.tensor([length]), torch.tensor([self._labels[bag_idx]])
        )


def pack(bags: Sequence[PackedBags]) -> PackedBags:
    """Put several batches behind one another."""
    return PackedBags(*(torch.cat(tensors) for tensors in zip(*bags, strict=True)))


def loader(
    bags: Dataset[PackedBags], batch_images: int, *, num_workers: int = 0, shuffle_seed: int | None = None
) -> DataLoader[PackedBags]:
    """Batch BAGS; with a seed, in a new order every epoch that depends on nothing else than the seed.

    Args:
        bags: of one split.
        batch_images: bags per batch; the last batch may be smaller, nothing is left out.
        num_workers: processes that decode; they draw no random numbers, so their number changes nothing.
        shuffle_seed: None keeps the order.
    """
    sampler: RandomSampler | None = None
    if shuffle_seed is not None:
        sampler = RandomSampler(bags, generator=torch.Generator().manual_seed(shuffle_seed))  # type: ignore[arg-type]
    return DataLoader(
        bags,
        batch_size=batch_images,
        sampler=sampler,
        # the loader draws its processes' seeds from here, as often as their number makes it; nobody uses them
        generator=torch.Generator(),
        collate_fn=pack,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        multiprocessing_context="spawn" if num_workers > 0 else None,
    )
