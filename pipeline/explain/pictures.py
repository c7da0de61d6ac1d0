"""Explaining pictures that were never in the data set, segmented and cropped as those that a model was trained on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import ValidationError

from pipeline.artifacts import WHOLE_IMAGE
from pipeline.data.images import read_image
from pipeline.data.masks import StoredMask, decode_mask
from pipeline.data.preparation import Preparation, Segmentation
from pipeline.data.views import View, as_stored, choose_masks, cut_views, shows_whole_image
from pipeline.errors import PipelineError
from pipeline.model.encoding import encode
from pipeline.model.files import load_model
from pipeline.model.network import PrototypeNetwork
from pipeline.params import MasksParams
from pipeline.reasons import Explanation, explain_outputs
from pipeline.runtime import Runtime
from pipeline.segmenters import Picture, make_segmenter, segmenter_class
from pipeline.training.embedding import outputs
from pipeline.validation import first_problem

_DEFAULT_MODEL = Path("models/final")


@dataclass(frozen=True, slots=True)
class ExplainedPicture:
    """A picture, its bag and what a network says of it.

    Attributes:
        path: as it was given.
        image: RGB.
        masks: all masks of the segmenter; empty for networks that look at the whole image only.
        views: the bag; positions are the ``view_idx`` of reasons.
        explanation: of the image.
        class_names: of the network, in label order.
        prototype_labels: the class of each prototype; of a shared one, the class whose score it moves most.
        grid: rows and columns of the places that are compared; (1, 1) where views are.
    """

    path: Path
    image: UInt8[np.ndarray, "height width 3"]
    masks: tuple[StoredMask, ...]
    views: tuple[View, ...]
    explanation: Explanation
    class_names: tuple[str, ...]
    prototype_labels: tuple[int, ...]
    grid: tuple[int, int]

    @property
    def predicted(self) -> str:
        """Name the predicted class."""
        return self.class_names[self.explanation.predicted.label]

    def as_json(self) -> dict[str, Any]:
        """Say the same in numbers and names, JSON-like; boxes are half-open, image pixels."""
        height, width = self.image.shape[:2]
        return {
            "image": self.path.as_posix(),
            "width": width,
            "height": height,
            "num_masks": len(self.masks),
            "predicted": self.predicted,
            "ranking": [
                {"class_name": self.class_names[label], "probability": probability}
                for label, probability in self.explanation.ranking
            ],
            "total": self.explanation.predicted.total,
            "rest": self.explanation.predicted.rest,
            "reasons": [
                {
                    "prototype_idx": reason.prototype_idx,
                    "prototype_class": self.class_names[self.prototype_labels[reason.prototype_idx]],
                    "view_idx": reason.view_idx,
                    "place_idx": reason.place_idx,
                    "box": list(self.views[reason.view_idx].box),
                    "similarity": reason.similarity,
                    "distance": reason.distance,
                    "weight": reason.weight,
                    "contribution": reason.contribution,
                }
                for reason in self.explanation.predicted.reasons
            ],
        }


class Explainer:
    """A model, loaded once, that explains one picture after the other.

    Attributes:
        network: in evaluation mode.
        class_names: in label order.
    """

    def __init__(self, model: Path = _DEFAULT_MODEL, *, weights: str | None = None, runtime: Runtime | None = None):
        """Load a model and the segmenter that it was trained with.

        Args:
            model: folder with ``model.safetensors`` and ``model.json``, such as ``models/final``.
            weights: of the segmenter, where they do not lie where the model's ``masks.weights`` says.
            runtime: device; None takes what there is.

        Raises:
            PipelineError: the model is missing, damaged, a black box, or of masks that cannot be made of other
                pictures; or the segmenter's weights or package are missing.
        """
        self._device = (runtime or Runtime()).torch_device
        network, description = load_model(model)
        if not isinstance(network, PrototypeNetwork):
            raise PipelineError(f"{model} is a black box: it has no prototypes to explain with; name another model")
        self.network = network
        self.class_names = tuple(description["class_names"])
        try:
            self._preparation = Preparation.model_validate(description["preparation"])
            segmentation = self._preparation.segmentation
            masks = None if segmentation is None else segmentation.params
        except ValidationError as error:
            raise PipelineError(
                f"{model / 'model.json'} does not say how views are made ({first_problem(error)}): run `dvc repro`"
            ) from None
        self._segmenter = None
        if network.views == "bag":
            if segmentation is None or masks is None:
                raise PipelineError(f"{model / 'model.json'} does not say what made the masks: run `dvc repro`")
            if weights is not None:
                masks = masks.model_copy(update={"weights": weights})
            _check_segmenter(model, segmentation, masks)
            self._segmenter = make_segmenter(masks, device=self._device, bgr=segmentation.bgr)

    def explain(self, image: Path | UInt8[np.ndarray, "height width 3"], *, top: int = 5) -> ExplainedPicture:
        """Explain one picture.

        Args:
            image: a picture file of any format; or RGB, 0..255.
            top: how many reasons are given.

        Raises:
            PipelineError: the file is missing or no picture, or has no view and ``crops.empty_bag`` is not
                ``whole_image``.
        """
        path = image if isinstance(image, Path) else Path("picture")
        pixels = read_image(image) if isinstance(image, Path) else image
        masks = self._masks(pixels, path)
        views = self._views(pixels, masks, path)
        stacked = np.stack([view.pixels for view in views])
        (encoded,) = encode(self.network, [torch.from_numpy(stacked).permute(0, 3, 1, 2)], self._device)
        (explanation,) = explain_outputs(
            outputs(self.network, encoded, [len(views)]),
            self.network.class_weights(),
            [None],
            elements_per_view=self.network.elements_per_view(encoded),
            top=top,
        )
        return ExplainedPicture(
            path=path,
            image=pixels,
            masks=tuple(masks),
            views=tuple(views),
            explanation=explanation,
            class_names=self.class_names,
            prototype_labels=tuple(self.network.prototype_classes().tolist()),
            grid=(encoded.shape[2], encoded.shape[3]) if self.network.grid else (1, 1),
        )

    def _masks(self, image: UInt8[np.ndarray, "height width 3"], path: Path) -> list[StoredMask]:
        if self._segmenter is None:
            return []
        (masks,) = self._segmenter.stream([Picture(image, None, path.stem)])
        return masks

    def _views(self, image: UInt8[np.ndarray, "height width 3"], masks: Sequence[StoredMask], path: Path) -> list[View]:
        height, width = image.shape[:2]
        params = self._preparation.crops
        mask_idxs = choose_masks(masks, height=height, width=width, params=params).mask_idxs if masks else ()
        views = cut_views(
            image,
            masks,
            mask_idxs,
            params,
            mask_of=lambda mask_idx: decode_mask(masks[mask_idx].rle, height=height, width=width),
            clipped=self._preparation.clipped_boxes,
            aliased=self._preparation.aliased_resizing,
        )
        if self._segmenter is None:
            views = [view for view in views if view.mask_idx == WHOLE_IMAGE]
        elif not mask_idxs and not params.whole_image and params.empty_bag != "whole_image":
            raise PipelineError(
                f"{path}: no mask fits the limits that the model was trained with (`crops` in its model.json), and"
                " these leave such images out"
            )
        elif not shows_whole_image(mask_idxs, params):
            views = views[:-1]
        # as a network reads them from the shards that it is trained and evaluated on
        return [replace(view, pixels=as_stored(view.pixels, params)) for view in views]


def _check_segmenter(model: Path, segmentation: Segmentation, params: MasksParams) -> None:
    """Refuse what cannot segment other pictures as those of the data set were."""
    if segmentation.segmenter == "coco":
        raise PipelineError(
            f"{model}: its masks were read from {segmentation.weights}, which has none of other pictures; explain"
            " with a model that was trained on masks of a segmenter"
        )
    version = segmenter_class(params).version
    if version != segmentation.version:
        raise PipelineError(
            f"{model}: its masks were made by version {segmentation.version} of `{segmentation.segmenter}`, this is"
            f" version {version}: run `dvc repro`"
        )


def explain(
    images: Iterable[str | Path],
    *,
    model: str | Path = _DEFAULT_MODEL,
    top: int = 5,
    weights: str | None = None,
    runtime: Runtime | None = None,
) -> list[ExplainedPicture]:
    """Explain picture files: why each gets its class, as the prototypes that its views look like.

    >>> from pipeline.explain import explain
    >>> (found,) = explain(["bird.jpg"])
    >>> found.predicted, found.explanation.predicted.reasons[0].contribution

    Args:
        images: picture files of any format; they need not be in a data set.
        model: folder of a network with prototypes, such as ``models/final``.
        top: how many reasons are given for the predicted class.
        weights: see :class:`Explainer`, which is the way to go where pictures come one by one.
        runtime: device; None takes what there is.

    Raises:
        PipelineError: see :class:`Explainer` and :meth:`Explainer.explain`.
    """
    explainer = Explainer(Path(model), weights=weights, runtime=runtime)
    return [explainer.explain(Path(image), top=top) for image in images]
