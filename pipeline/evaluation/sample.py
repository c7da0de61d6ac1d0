"""Which test images the costly part of the evaluation looks at."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence


def draw_evenly(image_keys: Sequence[str], labels: Sequence[int], num: int, *, seed: int) -> list[int]:
    """Draw images class after class, one of each class in every round, until there are NUM or no more.

    Which image of a class comes when hangs on the seed and on the image's own key alone: a larger sample holds the
    smaller one.

    Args:
        image_keys: of all images.
        labels: class of each.
        num: images to draw.
        seed: start of the draw.

    Returns:
        Positions, ascending.
    """
    by_class: dict[int, list[int]] = defaultdict(list)
    for position in sorted(range(len(image_keys)), key=lambda idx: _rank(image_keys[idx], seed)):
        by_class[labels[position]].append(position)
    queues = [by_class[label] for label in sorted(by_class)]
    rounds = max((len(queue) for queue in queues), default=0)
    in_order = [queue[turn] for turn in range(rounds) for queue in queues if turn < len(queue)]
    return sorted(in_order[:num])


def _rank(image_key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{image_key}".encode()).digest()
