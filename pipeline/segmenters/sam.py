"""Segment Anything's automatic mask generator, through the ``segment-anything`` package."""

import importlib.util
import logging
import pickle
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.utils.amg import MaskData

from pipeline.data.boxes import Box
from pipeline.errors import PipelineError
from pipeline.params import MasksParams, SamParams
from pipeline.segmenters.interface import Segment, Segmenter
from pipeline.segmenters.records import check_points, segments_of_records, sturdy

_LOG = logging.getLogger(__name__)

_CHECKPOINTS = {"vit_b": "sam_vit_b_01ec64.pth", "vit_l": "sam_vit_l_0b3195.pth", "vit_h": "sam_vit_h_4b8939.pth"}


class SamSegmenter(Segmenter):
    """The package's own masks; score is the predicted IoU.

    Deviation: the paper's code gives the network BGR images; here it gets RGB, which it was trained on.
    """

    holds_device = True
    version = 1

    def __init__(self, model: Sam, params: SamParams) -> None:
        """Take a network that is already built and on its device.

        Raises:
            PipelineError: settings that the package cannot run with.
        """
        check_points(params, "sam")
        if params.min_mask_region_area > 0 and importlib.util.find_spec("cv2") is None:
            raise PipelineError(
                "masks.sam.min_mask_region_area needs OpenCV: pip install opencv-python-headless, or set it to 0"
            )
        generator_class = sturdy(SamAutomaticMaskGenerator, MaskData)
        self._generator = generator_class(model.eval(), **params.model_dump(exclude={"model_type"}))

    @classmethod
    def from_params(cls, params: MasksParams, device: str) -> "SamSegmenter":
        """Build the network and load its weights.

        Raises:
            PipelineError: the checkpoint is missing, is none, or belongs to another model type.
        """
        weights, model_type = Path(params.weights), params.sam.model_type
        wanted = f"{_CHECKPOINTS[model_type]} of the Segment Anything repository, for example under weights/"
        if not weights.is_file():
            raise PipelineError(f"masks.weights: {weights} does not exist; put there {wanted}")
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError):
            raise PipelineError(f"masks.weights: {weights} is no whole checkpoint; use {wanted}") from None
        model = sam_model_registry[model_type]()
        try:
            model.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError):
            raise PipelineError(
                f"masks.weights: {weights} does not fit masks.sam.model_type {model_type!r}; use {wanted}"
            ) from None
        if device == "mps":
            _LOG.warning("the segment-anything package needs float64, which Apple GPUs lack: running on the CPU")
            device = "cpu"
        return cls(model.to(device), params.sam)

    def segment(self, image: UInt8[np.ndarray, "height width 3"], object_box: Box | None = None) -> list[Segment]:
        """Find the masks of one image, the highest predicted IoU first; see :class:`Segmenter`."""
        return segments_of_records(self._generator.generate(image))
