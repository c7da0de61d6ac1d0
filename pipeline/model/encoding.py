"""Running the backbone over pixels that are made on the way, in steps that suit the device."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from pipeline.model.backbone import VIEWS_PER_STEP
from pipeline.model.network import Network


@torch.no_grad()
def encode(
    network: Network, bags: Sequence[Shaped[Tensor, "_ 3 side side"]], device: str
) -> list[Float[Tensor, "_ channel *place"]]:
    """Encode the views of some bags: all of one kind, uint8 0..255 or float 0..1.

    The backbone is on DEVICE afterwards; what is returned is float32 on the CPU, bag by bag. Bags may be empty.
    """
    network.backbone.to(device).eval()
    step = VIEWS_PER_STEP[device.split(":")[0]]
    packed = torch.cat(list(bags))
    encoded = torch.cat([network.encode(part.to(device)).float().cpu() for part in torch.split(packed, step)])
    return list(torch.split(encoded, [len(bag) for bag in bags]))
