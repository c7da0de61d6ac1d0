"""Evidence from a network with prototypes: what it says of test images, how it explains it, and what changes it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pipeline.evaluation.images import TestImages
from pipeline.evaluation.looks import Seen, look_at
from pipeline.evaluation.perturbation import changed_views, noise_like, noised_views, outside_box
from pipeline.metrics.complexity import covered_parts
from pipeline.metrics.interface import Evidence, Look, Need
from pipeline.metrics.maps import box_of, percentile_mask, positive_mask
from pipeline.metrics.measure import Batch
from pipeline.model.encoding import encode
from pipeline.model.network import PrototypeNetwork
from pipeline.params import EvaluateParams
from pipeline.saliency.kinds import NEEDS_PIXELS, Shown, maps_of

NOT_SAMPLED = "only asked of the images of evaluate.sample_images"
_SAMPLED_PER_BATCH = 4  # images; each has several bags of pixels at once
_PER_BATCH = 16

Maps = Shaped[Tensor, "image rank side side"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is explained: a network, and the test images it is asked about.

    Attributes:
        network: in evaluation mode.
        test: all test images.
        images: which of them, ascending.
        encoded: their views, one bag after the other.
        sampled: which of them the costly part looks at.
        params: thresholds and settings.
        seed: start of noise.
        device: where the backbone runs.
    """

    network: PrototypeNetwork
    test: TestImages
    images: Sequence[int]
    encoded: Float[Tensor, "view channel *place"]
    sampled: frozenset[int]
    params: EvaluateParams
    seed: int
    device: str

    def of_sample(self) -> "Subject":
        """The same network, asked about the sampled images alone."""
        bags = torch.split(self.encoded, [len(self.test.view_rows(image)) for image in self.images])
        chosen = [(image, bag) for image, bag in zip(self.images, bags, strict=True) if image in self.sampled]
        return replace(self, images=[image for image, _ in chosen], encoded=torch.cat([bag for _, bag in chosen]))


class Explanations:
    """All evidence about a subject, with saliency of one kind.

    Attributes:
        subject: network and images.
        base: evidence about all images, without maps.
        seen: what lies nearest to the top prototypes of each image.
        top: the prototypes that explain each image.
        kept_maps: of the sampled images as they are, by position in the reader, if they took the network to run.
    """

    def __init__(
        self,
        subject: Subject,
        kind: str,
        *,
        absent: Mapping[Need, str],
        top: Int[Tensor, "image rank"] | None = None,
        known: Mapping[int, Shaped[Tensor, "rank side side"]] | None = None,
        altered: Callable[[Maps, Sequence[str]], Maps] | None = None,
        extra: Callable[["Explanations", list[int], Evidence], Evidence] | None = None,
    ) -> None:
        """Look at all images.

        Args:
            subject: network and images.
            kind: of saliency, one that the network has.
            absent: needs that are not met, whatever is looked at, and why.
            top: the prototypes that explain each image; None takes the most similar ones.
            known: maps of images as they are, by position in the reader, that need not be made again.
            altered: what is done to maps before anything is made of them; gets the images' keys, too.
            extra: adds to the evidence about sampled images (positions in ``subject.images``) what comes from
                elsewhere.
        """
        network, test = subject.network, subject.test
        self.subject = subject
        self._kind = kind
        self._known = known
        self._altered = altered
        self._extra = extra
        self._lengths = [len(test.view_rows(image)) for image in subject.images]
        self._stops = np.cumsum(self._lengths)
        self._boxes = test.box_shares(subject.images)
        wanted = subject.params.top_prototypes if top is None else top
        self.seen, self.top = look_at(network, subject.encoded, self._lengths, self._boxes, wanted)
        self._covered: list[Tensor | None] = [None] * len(subject.images)
        self.kept_maps: dict[int, Shaped[Tensor, "rank side side"]] = {}
        self.base = Evidence(
            labels=torch.tensor([test.reader.labels[image] for image in subject.images]),
            look=self.seen.look,
            top=self.top,
            vectors=network.prototypes.detach()[self.top],
            features=self.seen.features,
            last_layer=network.class_weights().detach(),
            params=subject.params,
            absent={**test.absent, **absent},
        )

    def batches(self) -> Iterator[Batch]:
        """Go through the images: first those of the sample, with all there is, then the others."""
        is_sampled = [image in self.subject.sampled for image in self.subject.images]
        for wanted, size, evidence_of in (
            (True, _SAMPLED_PER_BATCH, self._sampled_evidence),
            (False, _PER_BATCH, self._plain_evidence),
        ):
            chosen = [idx for idx, sampled in enumerate(is_sampled) if sampled == wanted]
            for start in range(0, len(chosen), size):
                part = chosen[start : start + size]
                yield Batch(np.array(part), evidence_of(part))

    @property
    def num_batches(self) -> int:
        """How many batches there are."""
        num_sampled = sum(image in self.subject.sampled for image in self.subject.images)
        return -(-num_sampled // _SAMPLED_PER_BATCH) + -(-(len(self.subject.images) - num_sampled) // _PER_BATCH)

    def whole(self) -> Evidence:
        """Give the evidence about all images, without maps; after the last batch."""
        if "parts" in self.base.absent:
            return self.base
        covered = [of_image for of_image in self._covered if of_image is not None]
        if len(covered) < len(self._covered):
            return replace(self.base, absent={"maps": NOT_SAMPLED, **self.base.absent})
        return replace(self.base, look=replace(self.base.look, covered=torch.stack(covered)))

    def _plain_evidence(self, chosen: list[int]) -> Evidence:
        evidence = select(self.base, chosen)
        not_sampled: dict[Need, str] = dict.fromkeys(("changed", "noised", "deletion", "scenes"), NOT_SAMPLED)
        if self._kind in NEEDS_PIXELS:
            return replace(evidence, absent={"maps": NOT_SAMPLED, **not_sampled, **self.base.absent})
        return replace(self._explained(evidence, chosen, None), absent={**not_sampled, **self.base.absent})

    def _sampled_evidence(self, chosen: list[int]) -> Evidence:
        views = [self.subject.test.views(self.subject.images[idx]) for idx in chosen]
        evidence = self._explained(select(self.base, chosen), chosen, views)
        if "changed" not in self.base.absent:
            evidence = replace(evidence, changed=self._changed(chosen, views))
        if "noised" not in self.base.absent:
            evidence = replace(evidence, noised=self._noised(evidence, chosen, views))
        return evidence if self._extra is None else self._extra(self, chosen, evidence)

    def _explained(self, evidence: Evidence, chosen: list[int], views: Sequence[Tensor] | None) -> Evidence:
        """Add maps, and what the data set knows of object and parts."""
        side_px, images = self.subject.params.map_side_px, self._images(chosen)
        test = self.subject.test
        if "object_masks" not in test.absent:
            evidence = replace(evidence, object_mask=test.object_masks(images, side_px))
        if "parts" not in test.absent:
            evidence = replace(evidence, parts=test.part_locations(images, side_px))
        seen = _select_seen(self.seen, chosen)
        if self._known is None:
            maps = self._maps(seen, chosen, views)
            if self._kind in NEEDS_PIXELS:
                self.kept_maps.update(zip(images, maps, strict=True))
        else:
            maps = torch.stack([self._known[image] for image in images])
        look = self._with(maps, seen, chosen)
        if look.covered is not None:
            for idx, covered in zip(chosen, look.covered, strict=True):
                self._covered[idx] = covered
        return replace(evidence, look=look)

    def _with_maps(
        self, seen: Seen, chosen: list[int], views: Sequence[Tensor] | None, *, view_of_rank: bool = False
    ) -> Look:
        """Add maps, where they are salient, and which parts that covers; see :meth:`_maps`."""
        return self._with(self._maps(seen, chosen, views, view_of_rank=view_of_rank), seen, chosen)

    def _maps(
        self, seen: Seen, chosen: list[int], views: Sequence[Tensor] | None, *, view_of_rank: bool = False
    ) -> Maps:
        """Make maps.

        Args:
            seen: of the images.
            chosen: the images.
            views: their pixels, or (``view_of_rank``) those of the nearest view of each rank; only for saliency that
                needs them.
            view_of_rank: what VIEWS are.
        """
        test = self.subject.test
        images = self._images(chosen)
        pixels = None
        if self._kind in NEEDS_PIXELS:
            assert views is not None
            pixels = torch.stack(
                list(views) if view_of_rank else [own[view] for own, view in zip(views, seen.view, strict=True)]
            )
        return maps_of(
            self._kind,
            self.subject.network,
            test.reader,
            Shown(
                images=images,
                sizes=[test.size(image) for image in images],
                prototype=self.top[chosen],
                element=seen.element,
                elements=seen.look.elements,
                elements_per_view=self.subject.network.elements_per_view(self.subject.encoded),
                pixels=pixels,
            ),
            side_px=self.subject.params.map_side_px,
            device=self.subject.device,
        )

    def _with(self, maps: Maps, seen: Seen, chosen: list[int]) -> Look:
        """Add maps to a look, where they are salient, and which parts that covers."""
        test, params = self.subject.test, self.subject.params
        if self._altered is not None:
            maps = self._altered(maps, [self._key(idx) for idx in chosen])
        if maps.dtype == torch.bool:
            salient = maps
        else:
            # a map that is 0 nearly everywhere reaches its percentile everywhere: there, what is above 0 is salient
            salient = percentile_mask(maps, 100 * (1 - params.salient_frac)) & positive_mask(maps)
        covered = None
        if "parts" not in test.absent:
            images = self._images(chosen)
            covered = covered_parts(salient, test.part_locations(images, params.map_side_px))
        return replace(seen.look, maps=maps, salient=salient, covered=covered)

    def _changed(self, chosen: list[int], views: Sequence[Tensor]) -> Look:
        """Look at the images after a change that should not matter."""
        subject = self.subject
        changed = [
            changed_views(own, subject.params.perturbation, seed=subject.seed, image_key=self._key(idx))
            for own, idx in zip(views, chosen, strict=True)
        ]
        return self._with_maps(self._seen(chosen, encode(subject.network, changed, subject.device)), chosen, changed)

    def _noised(self, evidence: Evidence, chosen: list[int], views: Sequence[Tensor]) -> Look:
        """Look at each rank's image after noise outside the box of its saliency.

        Ranks with the same box share an image, and views that lie in it are not encoded again.
        """
        subject, std = self.subject, self.subject.params.noise_std
        assert evidence.look.salient is not None
        boxes = box_of(evidence.look.salient) / subject.params.map_side_px  # [image, rank, 4], shares of the sides
        variant_of = torch.empty(boxes.shape[:2], dtype=torch.long)
        owners: list[int] = []  # position in chosen of each variant
        pixels: list[Tensor] = []
        is_touched: list[Tensor] = []
        for place, (idx, own) in enumerate(zip(chosen, views, strict=True)):
            image = subject.images[idx]
            width, height = subject.test.size(image)
            noise = noise_like(own, seed=subject.seed, image_key=self._key(idx))
            found: dict[tuple[float, ...], int] = {}
            for rank, shares in enumerate(boxes[place].tolist()):
                kept = (shares[0] * width, shares[1] * height, shares[2] * width, shares[3] * height)
                if kept not in found:
                    found[kept] = len(owners)
                    outside = outside_box([row.box for row in subject.test.view_rows(image)], kept, own.shape[-1])
                    owners.append(place)
                    pixels.append(noised_views(own, outside, noise, std))
                    is_touched.append(outside.flatten(1).any(dim=1))
                variant_of[place, rank] = found[kept]
        encoded = self._encoded_variants(chosen, owners, pixels, is_touched)
        seen = self._seen([chosen[place] for place in owners], encoded)
        rank_axis = torch.arange(variant_of.shape[1])
        own_rank = Seen(
            look=Look(
                logits=seen.look.logits[variant_of],
                similarity=seen.look.similarity[variant_of],
                elements=seen.look.elements[variant_of, rank_axis],
                centre=seen.look.centre[variant_of, rank_axis],
            ),
            features=seen.features[variant_of, rank_axis],
            element=seen.element[variant_of, rank_axis],
            view=seen.view[variant_of, rank_axis],
        )
        nearest = None
        if self._kind in NEEDS_PIXELS:
            nearest = [
                torch.stack([pixels[variant][view] for variant, view in zip(*pair, strict=True)])
                for pair in zip(variant_of.tolist(), own_rank.view.tolist(), strict=True)
            ]
        return self._with_maps(own_rank, chosen, nearest, view_of_rank=True)

    def _encoded_variants(
        self, chosen: list[int], owners: list[int], pixels: list[Tensor], is_touched: list[Tensor]
    ) -> list[Tensor]:
        """Encode the views that noise has touched; the others are what they were."""
        touched = encode(
            self.subject.network,
            [own[touch] for own, touch in zip(pixels, is_touched, strict=True)],
            self.subject.device,
        )
        encoded = []
        for place, new, touch in zip(owners, touched, is_touched, strict=True):
            bag = self.encoded(chosen[place]).clone()
            bag[touch] = new
            encoded.append(bag)
        return encoded

    def encoded(self, idx: int) -> Float[Tensor, "view channel *place"]:
        """Give the encoded views of one image, by its position in ``subject.images``."""
        stop = int(self._stops[idx])
        return self.subject.encoded[stop - self._lengths[idx] : stop]

    def _seen(self, owners: list[int], encoded: Sequence[Tensor]) -> Seen:
        """Look at other versions of the bags of images, through the prototypes that explain the images."""
        boxes = [self._boxes[int(self._stops[idx]) - self._lengths[idx] : int(self._stops[idx])] for idx in owners]
        seen, _ = look_at(
            self.subject.network,
            torch.cat(list(encoded)),
            [self._lengths[idx] for idx in owners],
            torch.cat(boxes),
            self.top[owners],
            num_elements=self.seen.look.elements.shape[2],
        )
        return seen

    def _images(self, chosen: Sequence[int]) -> list[int]:
        return [self.subject.images[idx] for idx in chosen]

    def _key(self, idx: int) -> str:
        return self.subject.test.rows[self.subject.images[idx]].image_key


def _select_seen(seen: Seen, chosen: Sequence[int]) -> Seen:
    return Seen(select(seen.look, chosen), seen.features[chosen], seen.element[chosen], seen.view[chosen])


_Selected = TypeVar("_Selected", Evidence, Look)
_WITHOUT_IMAGES = ("last_layer", "params", "absent")


def select(evidence: _Selected, images: Sequence[int] | Int[Tensor, " image"]) -> _Selected:
    """Keep the evidence about some images, in their order."""

    def selected(name: str, value: Any) -> Any:
        if value is None or name in _WITHOUT_IMAGES:
            return value
        if is_dataclass(value):
            return replace(value, **{own.name: selected(own.name, getattr(value, own.name)) for own in fields(value)})  # type: ignore[type-var]
        if isinstance(value, tuple):
            return tuple(value[int(idx)] for idx in images)
        return value[torch.as_tensor(images)]

    kept: _Selected = selected("", evidence)
    return kept
