"""What the finished network says of the test images, and why: computed once for all pages that show it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.data.bags import BagReader
from pipeline.model.files import load_model
from pipeline.model.network import BagOutput, Network, PrototypeNetwork
from pipeline.reasons import Explanation, explain_outputs
from pipeline.report.shown import Element
from pipeline.runtime import Runtime
from pipeline.training.embedding import encoded_views, outputs
from pipeline.training.readers import check_classes

NUM_NEAREST = 5
"""Test images that are shown beside a prototype."""

_NUM_RANKED = 5
_PROTOTYPES_PER_STEP = 256  # sorting many at once takes memory


@dataclass(frozen=True)
class TestOutputs:
    """What a network says of the test images, in the order of their keys.

    Attributes:
        network: in evaluation mode, on the CPU.
        class_names: in label order.
        reader: the test split, as the network sees it.
        logits: class scores, unnormalised.
        output: of all bags; None for a black box.
        class_weights: of the last layer; None for a black box.
        grid: rows and columns of the places of a view; (1, 1) where whole views are compared.
    """

    network: Network
    class_names: tuple[str, ...]
    reader: BagReader
    logits: Float[Tensor, "bag class"]
    output: BagOutput | None
    class_weights: Float[Tensor, "class prototype"] | None
    grid: tuple[int, int]

    @property
    def num_places(self) -> int:
        """Elements of a view."""
        return self.grid[0] * self.grid[1]

    def explanation(self, bag_idx: int, *, top: int) -> Explanation:
        """Explain one test image; see :func:`pipeline.reasons.explain_outputs`. Not for a black box."""
        assert self.output is not None
        assert self.class_weights is not None
        names = ("logits", "similarity", "distance", "element")
        of_bag = BagOutput(*(getattr(self.output, name)[bag_idx : bag_idx + 1] for name in names))
        (explanation,) = explain_outputs(
            of_bag,
            self.class_weights,
            [self.reader.labels[bag_idx]],
            elements_per_view=self.num_places,
            top=top,
            num_ranked=_NUM_RANKED,
        )
        return explanation

    def rankings(self) -> list[list[tuple[int, float]]]:
        """Give, for each image, the most probable classes with their probabilities, 0..1; the first is predicted.

        The true class comes last where it is not among them.
        """
        probability = torch.softmax(self.logits, dim=1)
        best, ranked = probability.sort(dim=1, descending=True, stable=True)
        rankings = []
        for bag_idx, (label, labels, shares) in enumerate(
            zip(self.reader.labels, ranked[:, :_NUM_RANKED].tolist(), best[:, :_NUM_RANKED].tolist(), strict=True)
        ):
            ranking = list(zip(labels, shares, strict=True))
            if label not in labels:
                ranking.append((label, float(probability[bag_idx, label])))
            rankings.append(ranking)
        return rankings

    def most_similar(self, top: int) -> list[list[int]]:
        """Give, for each image, the prototypes most similar to it; equal ones by index."""
        assert self.output is not None
        ranked: list[list[int]] = (
            self.output.similarity.sort(dim=1, descending=True, stable=True).indices[:, :top].tolist()
        )
        return ranked

    @functools.cached_property
    def nearest_images(self) -> list[list[int]]:
        """For each prototype, positions of the NUM_NEAREST images nearest to it; equally near ones by key."""
        assert self.output is not None
        nearest: list[list[int]] = []
        for distance in torch.split(self.output.distance, _PROTOTYPES_PER_STEP, dim=1):
            nearest += distance.sort(dim=0, stable=True).indices[:NUM_NEAREST].T.tolist()
        return nearest

    def nearest_element(self, bag_idx: int, prototype_idx: int) -> Element:
        """Say which view or place of an image lies nearest to a prototype."""
        assert self.output is not None
        view, place = divmod(int(self.output.element[bag_idx, prototype_idx]), self.num_places)
        return view, -1 if self.num_places == 1 else place


def read_test_outputs(final: Path, crops: Path, *, runtime: Runtime) -> TestOutputs:
    """Ask the network in FINAL about the test images; features that are kept are not computed anew.

    Args:
        final: folder of the finished network.
        crops: folder with shards.
        runtime: device, decoding workers, cache.

    Raises:
        PipelineError: a file is missing or damaged, or the network knows other classes than the shards.
    """
    network, description = load_model(final)
    reader = BagReader(crops, "test", views=network.views)
    class_names: Sequence[str] = description["class_names"]
    check_classes(reader, class_names, final)
    encoded = encoded_views(network, reader, runtime=runtime, what="features of test")[0]
    if not isinstance(network, PrototypeNetwork):
        with torch.no_grad():
            logits = network.cpu().logits_of(encoded, torch.tensor(reader.lengths))
        return TestOutputs(network, tuple(class_names), reader, logits, None, None, (1, 1))
    output = outputs(network, encoded, reader.lengths)
    return TestOutputs(
        network=network,
        class_names=tuple(class_names),
        reader=reader,
        logits=output.logits,
        output=output,
        class_weights=network.class_weights().detach().cpu(),
        grid=(encoded.shape[2], encoded.shape[3]) if network.grid else (1, 1),
    )
