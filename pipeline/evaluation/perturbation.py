"""Images changed on purpose: all over, as a camera might (continuity); or outside of a box (output completeness).

What is changed are the views, as the network gets them: masks and boxes stay, so nothing but the network is tested.

Deviation: the authors' code changes pictures before they are cut, and then compares a picture with itself
(DEVIATIONS.md B3, views are changed).
"""

import hashlib

import numpy as np
import simplejpeg
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional

from pipeline.data.boxes import Box
from pipeline.params import PerturbationParams

_BLUR_SIGMA_PER_PX = 0.15  # as OpenCV chooses the width of a Gaussian from the side of its kernel ...
_BLUR_SIGMA = 0.35  # ... sigma = 0.3 ((side - 1) / 2 - 1) + 0.8


def changed_views(
    views: UInt8[Tensor, "view 3 side side"], params: PerturbationParams, *, seed: int, image_key: str
) -> UInt8[Tensor, "view 3 side side"]:
    """Change colours, add noise, blur and compress all views of an image.

    Args:
        views: RGB.
        params: how much of each.
        seed: start of the noise, together with the key.
        image_key: of the image the views are of.
    """
    pixels = views.float() / 255
    pixels = functional.adjust_brightness(pixels, params.brightness)
    pixels = functional.adjust_contrast(pixels, params.contrast)
    pixels = functional.adjust_saturation(pixels, params.saturation)
    pixels = functional.adjust_hue(pixels, params.hue)
    pixels = pixels + params.noise_variance**0.5 / 255 * noise_like(views, seed=seed, image_key=image_key)
    if params.blur_px > 1:
        sigma = _BLUR_SIGMA_PER_PX * params.blur_px + _BLUR_SIGMA
        pixels = functional.gaussian_blur(pixels, [params.blur_px, params.blur_px], [sigma, sigma])
    levels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
    return torch.stack([_compressed(view, params.jpeg_quality) for view in levels])


def noise_like(views: Tensor, *, seed: int, image_key: str) -> Float[Tensor, "view 3 side side"]:
    """Draw standard Gaussian noise for the views of an image: the same whenever it is asked for."""
    start = int.from_bytes(hashlib.sha256(f"{seed}/{image_key}".encode()).digest()[:8], "big") >> 1
    return torch.randn(views.shape, generator=torch.Generator().manual_seed(start))


def outside_box(boxes: list[Box], kept: tuple[float, float, float, float], side_px: int) -> Bool[Tensor, "view s s"]:
    """Say which pixels of views lie outside a box of the image.

    Args:
        boxes: what each view shows, image pixels.
        kept: x0, y0, x1, y1 in image pixels, half-open; a pixel is inside where its centre is.
        side_px: of the views.
    """
    places = (np.arange(side_px) + 0.5) / side_px
    outside = []
    for box in boxes:
        x, y = box.x0 + places * box.width_px, box.y0 + places * box.height_px
        inside_x, inside_y = (kept[0] <= x) & (x < kept[2]), (kept[1] <= y) & (y < kept[3])
        outside.append(~(inside_y[:, None] & inside_x[None, :]))
    return torch.from_numpy(np.stack(outside))


def noised_views(
    views: UInt8[Tensor, "view 3 side side"],
    outside: Bool[Tensor, "view side side"],
    noise: Float[Tensor, "view 3 side side"],
    std: float,
) -> Float[Tensor, "view 3 side side"]:
    """Add noise to the pixels marked in OUTSIDE; values stay in 0..1.

    Args:
        views: RGB.
        outside: the pixels that change.
        noise: of variance 1.
        std: of the noise that is added, of values 0..1.
    """
    return (views.float() / 255 + std * noise * outside[:, None]).clamp(0, 1)


def _compressed(view: UInt8[Tensor, "3 side side"], quality: int) -> UInt8[Tensor, "3 side side"]:
    pixels = np.ascontiguousarray(view.permute(1, 2, 0).numpy())
    decoded: np.ndarray = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(pixels, quality, "RGB", "444"), "RGB")
    return torch.from_numpy(decoded).permute(2, 0, 1)
