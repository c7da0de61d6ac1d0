"""Evidence about causes: what becomes of a prediction when views, or parts of the object, are taken away."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.datasets.scenes import differing
from pipeline.evaluation.explanations import Explanations, Subject
from pipeline.evaluation.parted_bags import PartedBags, parted_bags
from pipeline.evaluation.view_deletion import deletion_curves, view_importance
from pipeline.metrics.interface import Deletion, Evidence, Need, Scenes
from pipeline.model.encoding import encode
from pipeline.params import Params
from pipeline.training.feature_store import hash_of_state

_NUM_STEPS = 10  # of the curves: shares 0, 0.1, ..., 1


class Causes:
    """Adds partial bags and, for the synthetic birds, scenes without some parts to the evidence about sampled images.

    Attributes:
        absent: what the data set does not allow, and why, by need.
    """

    def __init__(self, dataset: Path, masks: Path, params: Params) -> None:
        """Take what it needs to draw scenes again.

        Args:
            dataset: folder with ``images.parquet``.
            masks: folder with ``masks.parquet``.
            params: the whole of it; see :func:`pipeline.evaluation.parted_bags.parted_bags`.
        """
        self._dataset = dataset
        self._masks = masks
        self._params = params
        self._drawn: dict[str, Iterator[PartedBags]] = {}
        self._known: dict[tuple[str, int], tuple[PartedBags, Tensor]] = {}
        self.absent: dict[Need, str] = {}
        if params.dataset.name != "synthetic":
            self.absent["scenes"] = "only synthetic birds can be drawn again without a part"

    def add(self, explanations: Explanations, chosen: list[int], evidence: Evidence) -> Evidence:
        """Add what becomes of some sampled images.

        Args:
            explanations: whose evidence it is.
            chosen: positions in ``subject.images``.
            evidence: about these images.
        """
        if "deletion" not in evidence.absent:
            evidence = replace(evidence, deletion=self._deletion(explanations, chosen))
        if "scenes" not in evidence.absent:
            evidence = replace(evidence, scenes=self._scenes(explanations, chosen, evidence))
        return evidence

    def _deletion(self, explanations: Explanations, chosen: list[int]) -> Deletion:
        """Take views out of bags, and put them in."""
        subject, seen = explanations.subject, explanations.seen
        network = subject.network
        bags = [explanations.encoded(idx) for idx in chosen]
        lengths = [len(bag) for bag in bags]
        predicted = seen.look.logits[chosen].argmax(dim=1)
        importance = view_importance(
            explanations.top[chosen],
            seen.view[chosen],
            seen.look.similarity[chosen],
            network.class_weights(),
            predicted,
            num_views=max(lengths),
        )
        with torch.no_grad():
            features = network.features_of(torch.cat(bags))
        return deletion_curves(
            network,
            features,
            torch.tensor(lengths),
            predicted,
            importance,
            [subject.test.rows[subject.images[idx]].image_key for idx in chosen],
            num_steps=_NUM_STEPS,
            num_random=subject.params.random_orders,
            seed=subject.seed,
        )

    def _scenes(self, explanations: Explanations, chosen: list[int], evidence: Evidence) -> Scenes:
        """Classify the scenes without some parts, and say what the explanation claims for each part."""
        subject = explanations.subject
        network, test = subject.network, subject.test
        backbone = hash_of_state(network.backbone.state_dict())
        num_parts = len(test.part_names)
        visible = torch.zeros(len(chosen), num_parts, dtype=torch.bool)
        without: list[Tensor] = []
        only: list[Tensor] = []
        none: list[Tensor] = []
        for place, idx in enumerate(chosen):
            bags, changed = self._parted(subject, subject.images[idx], backbone)
            encoded = bags.completed(explanations.encoded(idx), changed)  # [scene, view, channel, *place]
            lengths = torch.full((len(encoded),), encoded.shape[1])
            with torch.no_grad():
                scores = network.logits_of(encoded.flatten(0, 1), lengths)
            of_image = bags.by_part(scores)
            for found, value in zip((without, only, none), of_image, strict=True):
                found.append(value)
            visible[place, bags.parts] = True
        look = evidence.look
        assert evidence.top is not None
        assert look.covered is not None
        predicted = look.logits.argmax(dim=1)
        contribution = look.similarity.gather(1, evidence.top) * network.class_weights()[predicted].gather(
            1, evidence.top
        )
        return Scenes(
            visible=visible,
            claimed=(contribution[:, :, None] * look.covered).sum(dim=1),
            without=torch.stack(without),
            only=torch.stack(only),
            none=torch.stack(none),
            differs=torch.from_numpy(differing(test.reader.class_names))[evidence.labels],
        )

    def _parted(self, subject: Subject, image: int, backbone: str) -> tuple[PartedBags, Tensor]:
        """Draw the scenes of an image and encode the views that changed; once for all networks with one BACKBONE."""
        if (backbone, image) not in self._known:
            sampled = sorted(subject.sampled)  # the order in which they are asked about
            if backbone not in self._drawn:
                self._drawn[backbone] = parted_bags(
                    self._dataset, self._masks, subject.test.reader, sampled, self._params
                )
            bags = next(self._drawn[backbone])
            assert bags.bag_idx == image
            [encoded] = encode(subject.network, [bags.views], subject.device)
            self._known[backbone, image] = replace(bags, views=bags.views[:0]), encoded
        return self._known[backbone, image]
