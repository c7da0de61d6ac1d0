"""Places of feature grids as elements: what the heads share that compare places, not views, with prototypes.

Axes: view, place (of one view's grid, row by row), element (all places of all views of a batch, packed), bag,
prototype.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def places_of(encoded: Float[Tensor, "view channel *place"]) -> Float[Tensor, "element channel"]:
    """Line up the places of all grids: view after view, each row by row; a pooled view has one place."""
    return encoded.reshape(*encoded.shape[:2], -1).transpose(1, 2).flatten(0, 1)


def mean_of_bags(
    values: Float[Tensor, "element prototype"], lengths: Int[Tensor, " bag"]
) -> Float[Tensor, "bag prototype"]:
    """Average the elements of each bag.

    Args:
        values: of packed elements.
        lengths: elements of each bag, at least 1; they add up to the element axis.

    Returns:
        Means, each summed by itself in the order of its elements: they do not depend on how bags are batched.
    """
    return torch.segment_reduce(values, "mean", lengths=lengths, axis=0)
