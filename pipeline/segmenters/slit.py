"""DirectSAM boundaries and the segments between them (SLIT), through ``transformers`` (extra ``slit``).

The network gives each pixel a boundary probability. What is left after removing the boundary, slightly widened, falls
into connected pieces: the segments. Boundary pixels belong to none.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from scipy.ndimage import binary_dilation, find_objects, generate_binary_structure, label

from pipeline.errors import PipelineError
from pipeline.params import MasksParams, SlitParams
from pipeline.segmenters.interface import Picture, Segment, Segmenter, best_first
from pipeline.weights import how_to_get

_CROSS = generate_binary_structure(rank=2, connectivity=1)  # a pixel and its four neighbours
_SQUARE = generate_binary_structure(rank=2, connectivity=2)  # and its eight


def segments_from_boundaries(
    probability: Float32[np.ndarray, "height width"], *, threshold: float, min_extent_px: int
) -> list[Segment]:
    """Cut an image along its boundaries.

    Args:
        probability: of each pixel to lie on a boundary, 0-1.
        threshold: a pixel is boundary where its probability is above this; so are its four neighbours.
        min_extent_px: segments whose box is narrower or lower are left out.

    Returns:
        The 8-connected pieces of the rest, the largest first, equal ones by their first pixel in reading order. Score
        is the share of the image.
    """
    boundary = binary_dilation(probability > threshold, _CROSS)
    pieces, num_pieces = label(~boundary, _SQUARE)
    area_px = np.bincount(pieces.ravel(), minlength=num_pieces + 1)
    segments = []
    for piece, (rows, columns) in enumerate(find_objects(pieces), start=1):
        if min(rows.stop - rows.start, columns.stop - columns.start) >= min_extent_px:
            segments.append(Segment(pieces == piece, score=float(area_px[piece] / pieces.size)))
    return best_first(segments)


class SlitSegmenter(Segmenter):
    """Segments between the boundaries that a DirectSAM network sees."""

    holds_device = True
    version = 1

    def __init__(self, model: Any, processor: Any, params: SlitParams) -> None:
        """Take a network of ``transformers`` with one output channel (boundary logits) and its image processor."""
        self._model = model
        self._processor = processor
        self._params = params

    @classmethod
    def from_params(cls, params: MasksParams, device: str) -> "SlitSegmenter":
        """Load network and image processor from a local copy of the model's repository.

        Raises:
            PipelineError: the package or the folder is missing, or the folder holds no boundary network.
        """
        try:
            from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
        except ImportError:
            raise PipelineError("masks.segmenter is 'slit': pip install 'protomask-pipeline[slit]'") from None
        weights = Path(params.weights)
        way_out = how_to_get("directsam")
        if not weights.is_dir():
            raise PipelineError(f"masks.weights: {weights} is no folder; {way_out}")
        try:
            model = AutoModelForSemanticSegmentation.from_pretrained(weights, local_files_only=True)
            processor = AutoImageProcessor.from_pretrained(weights, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise PipelineError(
                f"masks.weights: {weights} cannot be loaded ({' '.join(str(error).split())[:200]}); {way_out}"
            ) from None
        if model.config.num_labels != 1:
            raise PipelineError(
                f"masks.weights: {weights} has {model.config.num_labels} output channels, a boundary network has one;"
                f" {way_out}"
            )
        return cls(model.to(device).float().eval(), processor, params.slit)

    def segment(self, picture: Picture) -> list[Segment]:
        """Find the masks of one image, the largest first; see :class:`Segmenter`."""
        return segments_from_boundaries(
            self.boundary_probability(picture.image),
            threshold=self._params.boundary_threshold,
            min_extent_px=self._params.min_extent_px,
        )

    def boundary_probability(self, image: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, "height width"]:
        """Run the network on the image, stretched to its square input, and bring the result back to image pixels."""
        import torch  # here, so that the rule above can be used without torch

        side = self._params.image_side_px
        inputs = self._processor(images=image, size={"height": side, "width": side}, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(pixel_values=inputs["pixel_values"].to(self._model.device)).logits.float()
            logits = torch.nn.functional.interpolate(
                logits, size=image.shape[:2], mode="bilinear", align_corners=False
            )  # 1 1 height width
            return np.asarray(logits[0, 0].sigmoid().cpu().numpy())
