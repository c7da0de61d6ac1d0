"""Augmentation on whole batches, drawn for every view or once for each image (ranges of the authors' code)."""

from collections.abc import Sequence
from typing import Any, Literal

import kornia.augmentation as augmentation
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

_OF_THE_BATCH = ("order", "forward_input_shape")  # what kornia does not draw for every sample


def make_augmentation(
    strength: Literal["none", "flip", "light", "medium"],
    *,
    per: Literal["view", "image"] = "view",
    wrapped_borders: bool = False,
) -> "Augmentation":
    """Build the augmentation named in ``train.joint.augmentation``.

    Args:
        strength: "medium" has the ranges of the authors' "medium".
        per: "view" draws for every view by itself (as the authors' code, DEVIATIONS.md A14), "image" once for all
            views of a bag.
        wrapped_borders: what rotation and shear bring into view comes from the opposite border, as in the authors'
            code; otherwise it is black (Deviation, DEVIATIONS.md A13). What the perspective brings is black in both.
    """
    flip = augmentation.RandomHorizontalFlip(p=0.5)
    affine = WrappingAffine if wrapped_borders else augmentation.RandomAffine
    if strength == "none":
        return Augmentation([], [], per)
    if strength == "flip":
        return Augmentation([flip], [], per)
    if strength == "light":
        return Augmentation(
            [flip, affine(degrees=10.0, shear=(-5.0, 5.0, -5.0, 5.0), p=1.0)],
            [augmentation.ColorJitter(0.15, 0.15, 0.15, 0.0, p=1.0)],
            per,
        )
    return Augmentation(
        [
            flip,
            # kornia moves a corner by up to half its scale times the side
            augmentation.RandomPerspective(distortion_scale=0.1, p=0.5),
            affine(degrees=15.0, shear=(-15.0, 15.0, -15.0, 15.0), p=1.0),
        ],
        [augmentation.ColorJitter(0.15, 0.15, 0.15, 0.025, p=1.0)],
        per,
    )


class Augmentation(nn.Module):
    """Takes packed uint8 RGB views and gives float RGB in 0..1: moved first, then changed in colour."""

    def __init__(
        self, geometry: Sequence[nn.Module], colour: Sequence[nn.Module], per: Literal["view", "image"]
    ) -> None:
        """Take kornia's modules.

        Args:
            geometry: what moves pixels.
            colour: what changes their values.
            per: what has a draw of its own; see :func:`make_augmentation`.
        """
        super().__init__()
        self._geometry = nn.ModuleList(geometry)
        self._colour = nn.ModuleList(colour)
        self._per = per

    @torch.no_grad()
    def forward(
        self, views: UInt8[Tensor, "view 3 side side"], lengths: Int[Tensor, " bag"]
    ) -> Float[Tensor, "view 3 side side"]:
        """Augment views.

        Args:
            views: packed, bag after bag.
            lengths: views of each bag.

        Raises:
            ValueError: a draw per image, and the lengths do not add up to the views.
        """
        bag_idxs = self._bag_idxs(views, lengths)
        with torch.autocast(views.device.type, enabled=False):  # bfloat16 would move pixels about
            return _applied(self._colour, _applied(self._geometry, views.float() / 255, bag_idxs), bag_idxs).clamp(0, 1)

    @torch.no_grad()
    def two_versions(
        self, views: UInt8[Tensor, "view 3 side side"], lengths: Int[Tensor, " bag"]
    ) -> tuple[Float[Tensor, "view 3 side side"], Float[Tensor, "view 3 side side"]]:
        """Augment views twice: moved alike, so that places correspond, but each time with other colours.

        Takes what :meth:`forward` takes. Without changes in colour the versions are equal.
        """
        bag_idxs = self._bag_idxs(views, lengths)
        with torch.autocast(views.device.type, enabled=False):
            moved = _applied(self._geometry, views.float() / 255, bag_idxs)
            first, second = (_applied(self._colour, moved, bag_idxs).clamp(0, 1) for _ in range(2))
        return first, second

    def _bag_idxs(self, views: Tensor, lengths: Int[Tensor, " bag"]) -> Int[Tensor, " view"] | None:
        """Say which draw each view takes; None: the one of its own."""
        if self._per == "view":
            return None
        bag_idxs = torch.repeat_interleave(lengths.cpu())
        if len(bag_idxs) != len(views):
            raise ValueError(f"bags of {lengths.tolist()} views have {len(bag_idxs)} in all, but {len(views)} came")
        return bag_idxs


def _applied(steps: nn.ModuleList, pictures: Tensor, bag_idxs: Int[Tensor, " view"] | None) -> Tensor:
    """Apply kornia's modules one after another, each with parameters that it draws itself."""
    for step in steps:
        pictures = step(pictures, params=_drawn(step, pictures.shape, bag_idxs))
    return pictures


def _drawn(step: Any, shape: torch.Size, bag_idxs: Int[Tensor, " view"] | None) -> dict[str, Tensor]:
    """Let a module draw the parameters of all views, or of all bags and hand them to their views."""
    drawn: dict[str, Tensor]
    if bag_idxs is None or len(bag_idxs) == 0:
        drawn = step.forward_parameters(shape)
        return drawn
    num_bags = int(bag_idxs[-1]) + 1
    drawn = step.forward_parameters(torch.Size((num_bags, *shape[1:])))
    chosen = drawn["batch_prob"].cpu() > 0.5  # [bag]
    of_views = {}
    for name, values in drawn.items():
        if name in _OF_THE_BATCH:
            of_views[name] = values
            continue
        rows = bag_idxs
        if len(values) != num_bags:  # before 0.9, kornia draws for the samples alone that the step is applied to
            rows = (chosen.cumsum(0) - 1)[bag_idxs[chosen[bag_idxs]]]
        of_views[name] = values[rows.to(values.device)]
    return of_views


class WrappingAffine(augmentation.RandomAffine):  # type: ignore[misc]  # untyped here
    """Kornia's random affine transform of pictures that go on at the opposite border, as OpenCV's BORDER_WRAP.

    Always bilinear; between the last pixel and the first again lies a seam, which is interpolated like any place.
    """

    def apply_transform(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any], transform: Tensor | None = None
    ) -> Tensor:
        """Warp pictures.

        Args:
            input: float [view, channel, height, width].
            params: not used, they are in ``transform``.
            flags: not used.
            transform: from pixels of the picture to those of the result, centres at whole numbers [view, 3, 3].
        """
        assert transform is not None
        height, width = input.shape[-2:]
        back = torch.linalg.inv(transform)[..., None, None]  # [view, 3, 3, 1, 1]
        y = torch.arange(height, device=input.device, dtype=input.dtype)[:, None]
        x = torch.arange(width, device=input.device, dtype=input.dtype)
        # products written out: as matrices, TensorFloat-32 could round them to tenths of a pixel
        from_x = back[:, 0, 0] * x + back[:, 0, 1] * y + back[:, 0, 2]  # [view, height, width]
        from_y = back[:, 1, 0] * x + back[:, 1, 1] * y + back[:, 1, 2]
        places = torch.stack([from_x.remainder(width) / width, from_y.remainder(height) / height], dim=-1)
        around = functional.pad(input, (0, 1, 0, 1), mode="circular")  # the first column and row once more, at the end
        return functional.grid_sample(around, 2 * places - 1, padding_mode="border", align_corners=True)
