"""Running a frozen backbone over a split: encoded views, bag after bag, in bounded memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import timm
import torch
from jaxtyping import Float
from torch import Tensor

import pipeline
from pipeline.data.bags import BagReader
from pipeline.io import progress, sha256_of
from pipeline.model.backbone import VIEWS_PER_STEP
from pipeline.model.network import BagOutput, Network, PrototypeNetwork
from pipeline.runtime import Runtime
from pipeline.training.batches import ImageBags, loader
from pipeline.training.feature_store import FeatureStore, hash_of_state

Versions = tuple[Tensor, ...]
"""Encoded views [view, channel, *place]: as they are; and, where asked for, of their mirror images, mirrored back."""

_IMAGES_PER_BATCH = 4
_BAGS_PER_STEP = 64
# whose code decides what is computed
_SOURCES = (
    "data/bags.py",
    "model/backbone.py",
    "model/network.py",
    "training/batches.py",
    "training/embedding.py",
)


def encoded_views(
    network: Network, reader: BagReader, *, runtime: Runtime, what: str, mirror: bool = False
) -> Versions:
    """Encode every view of a split; see :func:`iterate_encoded`.

    Where the runtime has a cache, the tensors lie in files and are read as they are used.
    """
    store, keys = _place(network, reader, runtime, mirror)
    if store is None:
        parts = iterate_encoded(network, reader, runtime=runtime, what=what, mirror=mirror)
        return tuple(map(torch.cat, zip(*parts, strict=True)))
    if (found := _find(store, keys)) is not None:
        return found
    for _ in _computed(network, reader, store, keys, runtime=runtime, what=what, mirror=mirror):
        pass
    found = _find(store, keys)
    assert found is not None
    return found


def iterate_encoded(
    network: Network, reader: BagReader, *, runtime: Runtime, what: str, mirror: bool = False
) -> Iterator[Versions]:
    """Encode a split, a few bags at a time, in the reader's order.

    Args:
        network: its backbone is put into evaluation mode and, where something must be computed, onto the device.
        reader: the split.
        runtime: device, decoding workers, cache.
        what: name of the progress bar.
        mirror: also encode each view's mirror image.

    Yields:
        float32 on the CPU, the packed views of whole bags.
    """
    store, keys = _place(network, reader, runtime, mirror)
    if store is not None and (found := _find(store, keys)) is not None:
        yield from zip(*(torch.split(version, _chunks(reader)) for version in found), strict=True)
    else:
        yield from _computed(network, reader, store, keys, runtime=runtime, what=what, mirror=mirror)


def _chunks(reader: BagReader) -> list[int]:
    lengths = reader.lengths
    return [sum(lengths[start : start + _IMAGES_PER_BATCH]) for start in range(0, len(lengths), _IMAGES_PER_BATCH)]


def _computed(
    network: Network,
    reader: BagReader,
    store: FeatureStore | None,
    keys: Sequence[str],
    *,
    runtime: Runtime,
    what: str,
    mirror: bool,
) -> Iterator[Versions]:
    if store is None:
        yield from _encode(network, reader, runtime=runtime, what=what, mirror=mirror)
        return
    with store.writing(keys, sum(reader.lengths)) as writer:
        for versions in _encode(network, reader, runtime=runtime, what=what, mirror=mirror):
            writer.add(versions)
            yield versions


def _encode(network: Network, reader: BagReader, *, runtime: Runtime, what: str, mirror: bool) -> Iterator[Versions]:
    device = runtime.torch_device
    network.backbone.to(device).eval()
    step = VIEWS_PER_STEP[device.split(":")[0]]
    batches = loader(ImageBags(reader), _IMAGES_PER_BATCH, num_workers=decoding_workers(runtime))
    for batch in progress(batches, what=what, total=len(batches), unit="batch"):
        chunks: list[Versions] = []
        with torch.no_grad():
            for views in torch.split(batch.views, step):
                on_device = views.to(device)
                versions = [network.encode(on_device).float().cpu()]
                if mirror:
                    mirrored = network.encode(on_device.flip(3)).float().cpu()
                    versions.append(mirrored.flip(3) if mirrored.dim() == 4 else mirrored)
                chunks.append(tuple(versions))
        yield tuple(map(torch.cat, zip(*chunks, strict=True)))


def _find(store: FeatureStore, keys: Sequence[str]) -> Versions | None:
    found = [store.find(key) for key in keys]
    return None if any(version is None for version in found) else tuple(v for v in found if v is not None)


def _place(
    network: Network, reader: BagReader, runtime: Runtime, mirror: bool
) -> tuple[FeatureStore | None, list[str]]:
    """Say where the encoded views of a split are kept, and under which keys: one per version."""
    if runtime.cache is None:
        return None, []
    folder = Path(pipeline.__file__).parent
    parts = [
        *(sha256_of((folder / source).read_bytes()) for source in _SOURCES),
        torch.__version__,
        timm.__version__,
        runtime.torch_device,
        torch.get_num_threads(),  # sums are cut into as many parts
        network.backbone.name,
        network.grid,
        hash_of_state(network.backbone.state_dict()),
        reader.fingerprint(),
    ]
    key = sha256_of("\n".join(map(str, parts)).encode())
    store = FeatureStore(runtime.cache / "features", limit_bytes=int(runtime.cache_gib * 2**30))
    return store, [f"{key}-{version}" for version in ("view", "mirror")[: 1 + mirror]]


@torch.no_grad()
def outputs(
    network: PrototypeNetwork, encoded: Float[Tensor, "view channel *place"], lengths: Sequence[int]
) -> BagOutput:
    """Classify all bags of a split on the CPU, some at a time; ``element`` counts within each bag.

    Args:
        network: in evaluation mode.
        encoded: all views, bag after bag.
        lengths: views of each bag.
    """
    network.cpu().eval()
    parts: list[BagOutput] = []
    stop = 0
    for start in range(0, len(lengths), _BAGS_PER_STEP):
        views = torch.tensor(lengths[start : start + _BAGS_PER_STEP])
        begin, stop = stop, stop + int(views.sum())
        chunk = encoded[begin:stop]
        elements = views * network.elements_per_view(chunk)
        output = network.classify(network.features_of(chunk), elements)
        first = (torch.cumsum(elements, 0) - elements)[:, None]
        parts.append(BagOutput(output.logits, output.similarity, output.distance, output.element - first))
    return BagOutput(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("logits", "similarity", "distance", "element")
        )
    )


def accuracy_of(logits: Float[Tensor, "bag class"], labels: Sequence[int]) -> float:
    """Give the plain share of bags whose largest score is that of their label, to six decimals."""
    return round((logits.argmax(dim=1) == torch.tensor(labels)).float().mean().item(), 6)


def decoding_workers(runtime: Runtime) -> int:
    """Say how many processes decode: none beside a CPU network, which uses all cores itself."""
    return 0 if runtime.torch_device == "cpu" else runtime.num_workers
