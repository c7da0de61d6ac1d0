"""An even sample of images: every class in turn, by seed."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence


def draw_evenly(image_keys: Sequence[str], labels: Sequence[int], num: int, *, seed: int) -> list[int]:
    """Draw one image of each class in every round, in an order of its own, until there are NUM or no more.

    Which image of a class comes when, and which class in a round, hangs on the seed and on the images' own keys: a
    larger sample holds the smaller one, and a sample smaller than the number of classes is no run of neighbours.

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
    rounds = max((len(queue) for queue in by_class.values()), default=0)
    in_order = [
        position
        for turn in range(rounds)
        for position in sorted(
            (queue[turn] for queue in by_class.values() if turn < len(queue)),
            key=lambda idx: _rank(image_keys[idx], seed),
        )
    ]
    return sorted(in_order[:num])


def _rank(image_key: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{image_key}".encode()).digest()
