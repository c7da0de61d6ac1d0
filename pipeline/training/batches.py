"""Batches of ragged bags: the views of all images packed along one axis, never padded."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.data.bags import BagReader


class PackedBags(NamedTuple):
    """A batch; a tuple, so that Lightning moves it to the device.

    Attributes:
        views: packed views: uint8 RGB [view, 3, side, side]; or encoded ones [view, version, channel, *place].
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


class EncodedBags(Dataset[PackedBags]):
    """Bags that a frozen backbone has encoded."""

    def __init__(
        self,
        versions: Sequence[Float[Tensor, "view channel *place"]],
        lengths: Sequence[int],
        labels: Sequence[int],
    ) -> None:
        """Take the encoded views.

        Args:
            versions: all views, bag after bag; first the views themselves, then (where given) their mirror images.
            lengths: views of each bag.
            labels: class of each bag.
        """
        self._versions = versions
        self._stops = np.cumsum(lengths)
        self._lengths = list(lengths)
        self._labels = list(labels)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, bag_idx: int) -> PackedBags:
        stop, length = int(self._stops[bag_idx]), self._lengths[bag_idx]
        return PackedBags(
            torch.stack([version[stop - length : stop] for version in self._versions], dim=1),
            torch.tensor([length]),
            torch.tensor([self._labels[bag_idx]]),
        )


class EpochOrder(Sampler[int]):
    """A new order of the bags in every epoch, which hangs on nothing else than seed and epoch.

    So an epoch that is run again, after a kill, is the same.
    """

    def __init__(
        self, labels: Sequence[int], seed: int, sampling: Literal["shuffled", "class_balanced"] = "shuffled"
    ) -> None:
        """Set up the draws.

        Args:
            labels: class of each bag.
            seed: of all orders.
            sampling: every bag once; or as many draws in all, of every class equally many (but for a remainder of one,
                whose classes are drawn). A bag is drawn again only when all of its class were.
        """
        self._of_class = [np.flatnonzero(np.asarray(labels) == label) for label in sorted(set(labels))]
        self._num = len(labels)
        self._seed = seed
        self._balanced = sampling == "class_balanced"
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls this at the start of every epoch, 0 is the first."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self._seed, self._epoch])
        if not self._balanced:
            yield from generator.permutation(self._num).tolist()
            return
        share, rest = divmod(self._num, len(self._of_class))
        one_more = set(generator.permutation(len(self._of_class))[:rest].tolist())
        drawn: list[int] = []
        for idx, bags in enumerate(self._of_class):
            num = share + (idx in one_more)
            rounds = [generator.permutation(bags) for _ in range(-(-num // len(bags)))]
            drawn.extend(np.concatenate(rounds)[:num].tolist() if rounds else [])
        yield from generator.permutation(drawn).tolist()


def pack(bags: Sequence[PackedBags]) -> PackedBags:
    """Put several batches behind one another."""
    return PackedBags(*(torch.cat(tensors) for tensors in zip(*bags, strict=True)))


def loader(
    bags: Dataset[PackedBags], batch_images: int, *, num_workers: int = 0, order: EpochOrder | None = None
) -> DataLoader[PackedBags]:
    """Batch BAGS.

    Args:
        bags: of one split.
        batch_images: bags per batch; the last batch may be smaller, nothing is left out.
        num_workers: processes that decode; they draw no random numbers, so their number changes nothing.
        order: None keeps the order.
    """
    return DataLoader(
        bags,
        batch_size=batch_images,
        sampler=order,
        # the loader draws its processes' seeds from here, as often as their number makes it; nobody uses them
        generator=torch.Generator(),
        collate_fn=pack,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        multiprocessing_context="spawn" if num_workers > 0 else None,
    )
