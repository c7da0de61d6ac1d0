"""Bags that lose their views, or get them, one after the other: what each view is worth to the prediction."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.metrics.interface import Deletion
from pipeline.model.network import PrototypeNetwork

_ELEMENTS_PER_STEP = 8192  # of bags that are classified together


def view_importance(
    top: Int[Tensor, "image rank"],
    view: Int[Tensor, "image rank"],
    similarity: Float[Tensor, "image prototype"],
    class_weights: Float[Tensor, "class prototype"],
    predicted: Int[Tensor, " image"],
    *,
    num_views: int,
) -> Float[Tensor, "image num_views"]:
    """Say how important the explanation calls each view.

    A view's importance is the sum, over the top prototypes to which it is nearest, of similarity x weight in the score
    of the predicted class; 0 for a view that is nearest to none of them.

    Args:
        top: the prototypes that explain each image.
        view: position in its bag of the view nearest to each of them.
        similarity: of every prototype to the image.
        class_weights: weight of each prototype's similarity in each class's score.
        predicted: classes.
        num_views: length of the axis of views, at least that of the largest bag.
    """
    contribution = similarity.gather(1, top) * class_weights[predicted].gather(1, top)
    return contribution.new_zeros((len(top), num_views)).scatter_add(1, view, contribution)


@torch.no_grad()
def deletion_curves(
    network: PrototypeNetwork,
    features: Float[Tensor, "element dim"],
    lengths: Int[Tensor, " image"],
    predicted: Int[Tensor, " image"],
    importance: Float[Tensor, "image view"],
    image_keys: Sequence[str],
    *,
    num_steps: int,
    num_random: int,
    seed: int,
) -> Deletion:
    """Classify every bag while its views are taken out, and put in, one after the other.

    Views of equal importance go in the order of the bag. What a bag of n views gives after k of them is the value at
    the share k / n; between these shares values are interpolated linearly, so that bags of all sizes have values at
    the same ones. An empty bag resembles no prototype: all similarities are 0, so are the scores, which have no bias,
    and all classes are equally probable.

    Args:
        network: in evaluation mode, on the CPU.
        features: the elements of all bags, one bag after the other; equally many of each view.
        lengths: views of each bag, at least 1.
        predicted: the class whose probability (softmax of the scores) is followed.
        importance: of each view; what lies beyond a bag's length is not read.
        image_keys: of the images; random orders hang on them and on the seed, not on other images.
        num_steps: the shares are 0, 1 / num_steps, ..., 1.
        num_random: random orders, whose curves are averaged.
        seed: start of the random orders.
    """
    num_classes = len(network.class_weights())
    sizes = lengths.tolist()
    kept = [
        _kept(np.stack([_ranking(of_view[:size]), *_random_rankings(size, num_random, seed, key)]))
        for of_view, size, key in zip(importance.numpy(), sizes, image_keys, strict=True)
    ]  # of each image [partial bag, view]
    owner = torch.repeat_interleave(torch.tensor([len(bags) for bags in kept]))
    probability = _probabilities(network, features, lengths, kept, predicted[owner])
    curves: list[Tensor] = []
    for values, size in zip(torch.split(probability, [len(bags) for bags in kept]), sizes, strict=True):
        whole, parts = values[0], values[1:].reshape(1 + num_random, 2, size - 1)
        ends = torch.stack([whole, whole.new_tensor(1 / num_classes)]).expand(1 + num_random, 2)
        removed = torch.cat([ends[:, :1], parts[:, 0], ends[:, 1:]], dim=1)  # [order, share]
        inserted = torch.cat([ends[:, 1:], parts[:, 1], ends[:, :1]], dim=1)
        curves.append(_at_steps(torch.stack([removed, inserted]), num_steps))
    at_steps = torch.stack(curves)  # [image, removed or inserted, order, step]
    return Deletion(
        removed=at_steps[:, 0, 0],
        inserted=at_steps[:, 1, 0],
        removed_at_random=at_steps[:, 0, 1:].mean(dim=1),
        inserted_at_random=at_steps[:, 1, 1:].mean(dim=1),
    )


def _ranking(importance: Float[np.ndarray, " view"]) -> Int[np.ndarray, " view"]:
    """Rank views by importance, the most important one first; equal ones by position."""
    return np.argsort(np.argsort(-importance, kind="stable"), kind="stable")


def _random_rankings(num_views: int, num: int, seed: int, image_key: str) -> Int[np.ndarray, "num num_views"]:
    generator = np.random.default_rng([seed, *hashlib.sha256(image_key.encode()).digest()])
    return generator.permuted(np.tile(np.arange(num_views), (num, 1)), axis=1)


def _kept(ranking: Int[np.ndarray, "order view"]) -> Bool[Tensor, "bag view"]:
    """Say which views each partial bag has: first the whole bag; then, by order, what is left, and what was put in."""
    num_taken = np.arange(1, ranking.shape[1])[:, None]
    put_in = ranking[:, None, :] < num_taken  # [order, step, view]
    partial = np.stack([~put_in, put_in], axis=1).reshape(-1, ranking.shape[1])
    return torch.from_numpy(np.concatenate([np.ones((1, ranking.shape[1]), dtype=bool), partial]))


def _probabilities(
    network: PrototypeNetwork,
    features: Float[Tensor, "element dim"],
    lengths: Int[Tensor, " image"],
    kept: Sequence[Bool[Tensor, "_ _"]],
    predicted: Int[Tensor, " bag"],
) -> Float[Tensor, " bag"]:
    """Classify partial bags of all images, some at a time, and give the probability of the class of each."""
    per_view = len(features) // int(lengths.sum())
    first = torch.cumsum(lengths, 0) - lengths
    views = torch.cat([start + bags.nonzero()[:, 1] for start, bags in zip(first, kept, strict=True)])
    sizes = torch.cat([bags.sum(dim=1) for bags in kept])
    parts: list[Tensor] = []
    stop_view = 0
    for start, stop in _steps((sizes * per_view).tolist()):
        begin_view, stop_view = stop_view, stop_view + int(sizes[start:stop].sum())
        elements = views[begin_view:stop_view, None] * per_view + torch.arange(per_view)
        logits = network.classify(features[elements.flatten()], sizes[start:stop] * per_view).logits
        parts.append(logits.softmax(dim=1).gather(1, predicted[start:stop, None])[:, 0])
    return torch.cat(parts)


def _steps(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut a list of bags where the elements of a step would become too many: start and stop of each step."""
    start, num_elements = 0, 0
    for position, size in enumerate(sizes):
        if position > start and num_elements + size > _ELEMENTS_PER_STEP:
            yield start, position
            start, num_elements = position, 0
        num_elements += size
    yield start, len(sizes)


def _at_steps(curve: Float[Tensor, "*curve point"], num_steps: int) -> Float[Tensor, "*curve step"]:
    """Interpolate curves over equally spaced shares linearly onto the shares 0, 1 / num_steps, ..., 1."""
    num_intervals = curve.shape[-1] - 1
    place = torch.arange(num_steps + 1) * num_intervals  # in steps: no rounding
    low = place // num_steps
    share = (place - low * num_steps) / num_steps
    high = (low + 1).clamp(max=num_intervals)
    return curve[..., low] * (1 - share) + curve[..., high] * share
