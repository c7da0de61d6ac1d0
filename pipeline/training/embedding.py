"""Running a frozen network over a split: pooled backbone features, view by view, in bounded memory."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.data.bags import BagReader
from pipeline.io import progress
from pipeline.model.backbone import Backbone
from pipeline.runtime import Runtime
from pipeline.training.batches import ImageBags, loader

_IMAGES_PER_BATCH = 4
_VIEWS_PER_STEP = {"cpu": 16, "cuda": 256, "mps": 64}


def iterate_pooled(
    backbone: Backbone, reader: BagReader, *, runtime: Runtime, what: str, mirror: bool = False
) -> Iterator[Float[Tensor, "view version channel"]]:
    """Compute the pooled backbone features of a split, a few bags at a time, in the reader's order.

    Args:
        backbone: put into evaluation mode and onto the runtime's device.
        reader: the split.
        runtime: device and decoding workers.
        what: name of the progress bar.
        mirror: also embed each view's mirror image, as version 1.

    Yields:
        float32 on the CPU, the packed views of whole bags.
    """
    device = runtime.torch_device
    backbone.to(device).eval()
    step = _VIEWS_PER_STEP[device.split(":")[0]]
    batches = loader(ImageBags(reader), _IMAGES_PER_BATCH, num_workers=decoding_workers(runtime))
    for batch in progress(batches, what=what, total=len(batches), unit="batch"):
        chunks: list[Tensor] = []
        with torch.no_grad():
            for views in batch.views.split(step):
                on_device = views.to(device)
                versions = [on_device, on_device.flip(3)] if mirror else [on_device]
                chunks.append(torch.stack([backbone.pooled(version).float() for version in versions], dim=1).cpu())
        yield torch.cat(chunks)


def pooled_features(
    backbone: Backbone, reader: BagReader, *, runtime: Runtime, what: str, mirror: bool = False
) -> Float[Tensor, "view version channel"]:
    """Compute the pooled backbone features of every view of a split; see :func:`iterate_pooled`."""
    return torch.cat(list(iterate_pooled(backbone, reader, runtime=runtime, what=what, mirror=mirror)))


def decoding_workers(runtime: Runtime) -> int:
    """Say how many processes decode: none beside a CPU network, which uses all cores itself."""
    return 0 if runtime.torch_device == "cpu" else runtime.num_workers
