"""Augmentation on whole batches, drawn anew for every view (the ranges are those of the authors' code)."""

from typing import Literal

import kornia.augmentation as augmentation
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn


def make_augmentation(strength: Literal["none", "flip", "light", "medium"]) -> nn.Module:
    """Build the augmentation named in ``train.joint.augmentation``.

    It takes uint8 RGB views and gives float RGB in 0..1. "medium" has the ranges of the authors' "medium"; borders
    that come into view are black (Deviation: theirs wrap around, DEVIATIONS.md A13).
    """
    flip = augmentation.RandomHorizontalFlip(p=0.5)
    steps: list[nn.Module]
    if strength == "none":
        steps = []
    elif strength == "flip":
        steps = [flip]
    elif strength == "light":
        steps = [
            flip,
            augmentation.RandomAffine(degrees=10.0, shear=(-5.0, 5.0, -5.0, 5.0), p=1.0),
            augmentation.ColorJitter(0.15, 0.15, 0.15, 0.0, p=1.0),
        ]
    else:
        steps = [
            flip,
            # kornia moves a corner by up to half its scale times the side
            augmentation.RandomPerspective(distortion_scale=0.1, p=0.5),
            augmentation.RandomAffine(degrees=15.0, shear=(-15.0, 15.0, -15.0, 15.0), p=1.0),
            augmentation.ColorJitter(0.15, 0.15, 0.15, 0.025, p=1.0),
        ]
    return _OnFloats(nn.Sequential(*steps))


class _OnFloats(nn.Module):
    def __init__(self, steps: nn.Module) -> None:
        super().__init__()
        self._steps = steps

    @torch.no_grad()
    def forward(self, views: UInt8[Tensor, "view 3 side side"]) -> Float[Tensor, "view 3 side side"]:
        floats: Tensor = self._steps(views.float() / 255)
        return floats.clamp(0, 1)
