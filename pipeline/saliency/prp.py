"""Prototype relevance propagation: which pixels of a view make it similar to a prototype.

Gautam et al. 2023, "This looks More Like that: Enhancing Self-Explaining Models by Prototypical Relevance Propagation",
Pattern Recognition 136. The similarity starts with relevance 1; the distance shares it over the channels of the feature
(:func:`distance_shares`), the sigmoid passes it through, and :mod:`pipeline.saliency.relevance` leads it through the
1x1 convolution, the average over places and the backbone to the pixels of the nearest view. What each pixel gets is at
least 0, and adds up to 1 over a view to within 0.001, and over its map.

Deviation: the 1x1 convolution and the average over places are passed in the order of the network here, which computes
the average first.
Deviation: no share is negative, so nothing has to be cut at 0 afterwards (authors' code: relevance below 0 is cut, and
what is left adds up to anything).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from pipeline.data.bags import BagReader
from pipeline.model.network import PrototypeNetwork
from pipeline.model.places import places_of
from pipeline.saliency.frame import uncrop_share
from pipeline.saliency.relevance import conserving, unsupported

LARGEST_LOSS = 1e-3
"""What the relevance of a view may lack of 1 by rounding."""
_LEAST_DIFFERENCE = 1e-6  # features are between 0 and 1, in float32: less is rounding
_PAIRS_PER_STEP = {"cpu": 2, "cuda": 64, "mps": 16}


def distance_shares(
    features: Float[Tensor, "pair dim"], vectors: Float[Tensor, "pair dim"]
) -> Float[Tensor, "pair dim"]:
    """Share a relevance of 1 over channels in proportion to 1 / (z_c - p_c)^2: the nearer, the more relevant.

    Differences below 1e-6 count as 1e-6: a channel that agrees takes almost everything, several share equally.

    Args:
        features: z, between 0 and 1.
        vectors: the prototype of each.
    """
    difference = (features - vectors).abs().clamp_min(_LEAST_DIFFERENCE).double()
    closeness = difference.reciprocal().square()
    return (closeness / closeness.sum(dim=1, keepdim=True)).to(features.dtype)


def relevance_in_views(
    network: PrototypeNetwork,
    views: Shaped[Tensor, "pair 3 side_px side_px"],
    place: Int[Tensor, " pair"],
    prototype: Int[Tensor, " pair"],
    *,
    device: str,
) -> Float[Tensor, "pair side_px side_px"]:
    """Find out how much each pixel of a view matters to a prototype.

    Args:
        network: is not changed, whatever happens.
        views: RGB, uint8 0..255 or float 0..1; one that several prototypes are asked about is there as often.
        place: the element of the view that is compared: 0, or the place on its grid where places are.
        prototype: that it is compared with.
        device: where the work is done.

    Returns:
        On the CPU; at least 0, summing to 1 over each view to within ``LARGEST_LOSS``.

    Raises:
        PipelineError: the backbone has layers that relevance cannot be followed through.
    """
    scaled = views.float() / 255 if views.dtype == torch.uint8 else views
    vectors = network.prototypes.detach()
    backbone = network.backbone
    bounds = ((0 - backbone.mean) / backbone.std, (1 - backbone.mean) / backbone.std)
    pieces: list[Tensor] = []
    with conserving(network, _scores, scaled[:1], bounds=bounds, device=device) as scores_of:
        for chosen in torch.split(torch.arange(len(views)), _PAIRS_PER_STEP[device.split(":")[0]]):
            pixels = scaled[chosen].to(device).requires_grad_()
            scores = scores_of(pixels)
            own = scores.unflatten(0, (len(chosen), -1))[torch.arange(len(chosen)), place[chosen]]  # type: ignore[no-untyped-call]
            start = _start(network, own.detach().cpu(), vectors[prototype[chosen]].cpu(), prototype[chosen])
            [relevance] = torch.autograd.grad(own, pixels, start.to(device))
            pieces.append(relevance.sum(dim=1).cpu())
    relevance = torch.cat(pieces)
    loss = float((relevance.sum(dim=(1, 2)) - 1).abs().max())
    if not loss <= LARGEST_LOSS:
        raise unsupported(f"a view lacks {loss:.2g} of its relevance")
    return relevance


def _scores(network: PrototypeNetwork, views: Tensor) -> Tensor:
    """Compute what the add-on layer gives: [element, dim], not yet between 0 and 1."""
    scores: Tensor = network.add_on(places_of(network.encode(views)))
    return scores


def _start(network: PrototypeNetwork, scores: Tensor, vectors: Tensor, prototype: Int[Tensor, " pair"]) -> Tensor:
    """Share out the relevance of the similarity over what the add-on layer gives.

    Where a prototype is one of its rows, that row's score has all of it.
    """
    if not network.is_projected:
        return functional.one_hot(prototype, scores.shape[1]).to(scores.dtype)
    return distance_shares(scores.sigmoid(), vectors)


def prp_maps(
    network: PrototypeNetwork,
    reader: BagReader,
    bag_idxs: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    pixels: Shaped[Tensor, "image rank 3 view_px view_px"],
    prototype: Int[Tensor, "image rank"],
    element: Int[Tensor, "image rank"],
    elements_per_view: int,
    side_px: int,
    *,
    device: str,
) -> Float[Tensor, "image rank {side_px} {side_px}"]:
    """Bring the relevance of the pixels of nearest views into the frame; it sums to 1 over each map.

    Args:
        network: is not changed.
        reader: has the boxes.
        bag_idxs: the images.
        sizes: width and height of each, pixels.
        pixels: the view nearest to each top prototype, RGB, uint8 0..255 or float 0..1.
        prototype: the top prototypes of each image.
        element: position in its bag of the element nearest to each.
        elements_per_view: 1, or the places of a view.
        side_px: of the maps.
        device: where the work is done.

    Raises:
        PipelineError: see :func:`relevance_in_views`.
    """
    of_views = relevance_in_views(
        network, pixels.flatten(0, 1), (element % elements_per_view).flatten(), prototype.flatten(), device=device
    )
    maps = of_views.new_zeros(*element.shape, side_px, side_px)
    ranked = of_views.unflatten(0, element.shape)  # type: ignore[no-untyped-call]  # [image, rank, view_px, view_px]
    views = (element // elements_per_view).tolist()
    for idx, (bag_idx, size, own) in enumerate(zip(bag_idxs, sizes, views, strict=True)):
        rows = reader.rows(bag_idx)
        for rank, view in enumerate(own):
            maps[idx, rank] = uncrop_share(ranked[idx, rank], rows[view].box, size, side_px)
    return maps
