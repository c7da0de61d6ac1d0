"""The kinds of saliency, behind one function: what each shows, and which networks have it."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pipeline.data.bags import BagReader
from pipeline.model.network import PrototypeNetwork
from pipeline.saliency.prp import prp_maps
from pipeline.saliency.upsample import upsampled_maps
from pipeline.saliency.views import mask_maps, view_maps

NEEDS_PIXELS = frozenset({"prp"})
"""Kinds that run the network again, on the pixels of views."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What saliency is made of: some images, and what lies nearest to the prototypes that explain them.

    Attributes:
        images: positions of the bags in the reader.
        sizes: width and height of each image, pixels.
        prototype: those that explain each image.
        element: position in its bag of the element nearest to each of them.
        elements: similarity of each element to them; NaN beyond the elements of the image.
        elements_per_view: places of a view; 1 where views are compared.
        pixels: of the view nearest to each prototype, RGB, uint8 0..255 or float 0..1; None for kinds that do not need
            them.
    """

    images: Sequence[int]
    sizes: Sequence[tuple[int, int]]
    prototype: Int[Tensor, "image rank"]
    element: Int[Tensor, "image rank"]
    elements: Float[Tensor, "image rank element"]
    elements_per_view: int
    pixels: Shaped[Tensor, "image rank 3 side side"] | None


def why_not(kind: str, network: PrototypeNetwork) -> str | None:
    """Say why a network has no saliency of a kind; None where it has."""
    if kind == "upsample" and not network.grid:
        return f"`{network.head}` compares whole views and has no places to enlarge"
    if kind in ("mask", "view") and network.views == "whole":
        return f"`{network.head}` is shown the whole image, and no views"
    return None


def maps_of(
    kind: str, network: PrototypeNetwork, reader: BagReader, shown: Shown, *, side_px: int, device: str
) -> Shaped[Tensor, "image rank {side_px} {side_px}"]:
    """Make saliency maps of one kind that the network has; the frame is the whole image.

    Args:
        kind: ``mask``, ``view``, ``prp`` or ``upsample``; see ``evaluate.saliency``.
        network: in evaluation mode.
        reader: the bags of the images.
        shown: what the maps are of.
        side_px: of the maps.
        device: where the network runs, if it must.

    Returns:
        On the CPU: bool for ``mask`` and ``view``, float for the others.

    Raises:
        PipelineError: a shard is damaged, or relevance cannot be followed through the backbone.
    """
    view = shown.element // shown.elements_per_view
    if kind == "mask":
        return mask_maps(reader, shown.images, shown.sizes, view, side_px)
    if kind == "view":
        return view_maps(reader, shown.images, shown.sizes, view, side_px)
    if kind == "upsample":
        return upsampled_maps(reader, shown.images, shown.sizes, shown.elements, view, shown.elements_per_view, side_px)
    assert shown.pixels is not None
    return prp_maps(
        network,
        reader,
        shown.images,
        shown.sizes,
        shown.pixels,
        shown.prototype,
        shown.element,
        shown.elements_per_view,
        side_px,
        device=device,
    )
