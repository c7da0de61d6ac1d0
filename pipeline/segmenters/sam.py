"""Segment Anything's automatic mask generator: the ``segment-anything`` package's, or the same masks in batches."""

import importlib.util
import logging
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.amg import MaskData

from pipeline.data.masks import StoredMask, decode_mask
from pipeline.errors import PipelineError
from pipeline.params import MasksParams, SamParams
from pipeline.segmenters.interface import Picture, Segment, Segmenter
from pipeline.segmenters.records import check_points, segments_of_records, sturdy
from pipeline.segmenters.sam_batched import BatchedMaskGenerator
from pipeline.segmenters.tiny_sam import load_tiny_sam
from pipeline.weights import how_to_get

_log = logging.getLogger(__name__)

_DOWNLOADS = {"vit_b": "sam-vit-b", "vit_l": "sam-vit-l", "vit_h": "sam-vit-h"}
_PACKAGES_POINTS_PER_BATCH = 64
_OURS = {"model_type", "batched", "cuda_precision", "images_per_batch", "points_per_batch"}


class SamSegmenter(Segmenter):
    """The package's own masks; score is the predicted IoU.

    Deviation: the authors' code gives the network BGR images; here it gets RGB, which it was trained on, unless
    ``compat.bgr_masks`` is true (DEVIATIONS.md A12).
    """

    holds_device = True
    version = 2

    def __init__(self, model: Sam, params: SamParams) -> None:
        """Take a network that is already built and on its device.

        Raises:
            PipelineError: settings that the package cannot run with.
        """
        check_points(params, "sam")
        self._batched = self._packaged = None
        if params.batched:
            on_cuda = model.device.type == "cuda"
            dtype = torch.bfloat16 if on_cuda and params.cuda_precision == "bfloat16" else torch.float32
            self._batched = BatchedMaskGenerator(model.eval(), params, dtype)
        else:
            self._packaged = _packages_generator(model.eval(), params)
        _log.info("%d point prompts per image", params.num_prompts)

    @classmethod
    def from_params(cls, params: MasksParams, device: str) -> "SamSegmenter":
        """Build the network and load its weights.

        Raises:
            PipelineError: the checkpoint is missing, is none, or belongs to another model type.
        """
        if device == "mps":
            _log.warning("the segment-anything package needs float64, which Apple GPUs lack: running on the CPU")
            device = "cpu"
        return cls(_load(Path(params.weights), params.sam.model_type).to(device), params.sam)

    def segment(self, picture: Picture) -> list[Segment]:
        """Find the masks of one image, the highest predicted IoU first; see :class:`Segmenter`."""
        if self._packaged is not None:
            return segments_of_records(self._packaged.generate(picture.image))
        (masks,) = self.stream([picture])
        height, width = picture.image.shape[:2]
        return [
            Segment(decode_mask(mask.rle, height=height, width=width), mask.score, mask.stability) for mask in masks
        ]

    def stream(self, pictures: Iterable[Picture]) -> Iterator[list[StoredMask]]:
        """Find the masks of many images, several at once; see :class:`Segmenter`."""
        return super().stream(pictures) if self._batched is None else self._batched.generate(pictures)


def _packages_generator(model: Sam, params: SamParams) -> SamAutomaticMaskGenerator:
    if params.min_mask_region_area > 0 and importlib.util.find_spec("cv2") is None:
        raise PipelineError(
            "masks.sam.min_mask_region_area needs OpenCV where masks.sam.batched is false:"
            " pip install opencv-python-headless, or set batched to true"
        )
    points = params.points_per_batch
    return sturdy(SamAutomaticMaskGenerator, MaskData)(
        model,
        points_per_batch=_PACKAGES_POINTS_PER_BATCH if points == "auto" else points,
        **params.model_dump(exclude=_OURS),
    )


def _load(weights: Path, model_type: str) -> Sam:
    if model_type == "tiny":
        return load_tiny_sam(weights)
    way_out = how_to_get(_DOWNLOADS[model_type])
    if not weights.is_file():
        raise PipelineError(f"masks.weights: {weights} does not exist; {way_out}")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError):
        raise PipelineError(f"masks.weights: {weights} is no whole checkpoint; {way_out}") from None
    model = sam_model_registry[model_type]()
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError):
        raise PipelineError(
            f"masks.weights: {weights} does not fit masks.sam.model_type {model_type!r}; {way_out}"
        ) from None
    return model
