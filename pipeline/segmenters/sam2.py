"""SAM 2.1's automatic mask generator, through the ``sam2`` package (extra ``sam2``)."""

import pickle
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.params import MasksParams
from pipeline.segmenters.interface import Picture, Segment, Segmenter
from pipeline.segmenters.records import check_points, segments_of_records, sturdy
from pipeline.weights import how_to_get

_WAY_OUT = how_to_get("sam2.1-hiera-base-plus")


class Sam2Segmenter(Segmenter):
    """The package's own masks; score is the predicted IoU.

    ``min_mask_region_area`` needs the package's compiled CUDA extension; where that is missing, the package warns and
    leaves masks as they are.

    Deviation: as with SAM, RGB images unless ``compat.bgr_masks`` is true (DEVIATIONS.md A12).
    """

    holds_device = True
    version = 1

    def __init__(self, generator: Any) -> None:
        """Take a mask generator of the package, ready to run."""
        self._generator = generator

    @classmethod
    def from_params(cls, params: MasksParams, device: str) -> "Sam2Segmenter":
        """Build the network from the package's configuration and load its weights.

        Raises:
            PipelineError: the package, the configuration or the checkpoint is missing, or the two do not fit.
        """
        try:
            from hydra.errors import HydraException
            from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
            from sam2.build_sam import build_sam2
            from sam2.utils.amg import MaskData
        except ImportError:
            raise PipelineError("masks.segmenter is 'sam2': pip install 'protomask-pipeline[sam2]'") from None
        weights, settings = Path(params.weights), params.sam2
        check_points(settings, "sam2")
        if not weights.is_file():
            raise PipelineError(f"masks.weights: {weights} does not exist; {_WAY_OUT}")
        try:
            # without post-processing the network's masks are those of the paper's code
            model = build_sam2(settings.config, str(weights), device=device, apply_postprocessing=False)
        except HydraException:
            raise PipelineError(
                f"masks.sam2.config: the sam2 package has no {settings.config!r}; for example"
                " configs/sam2.1/sam2.1_hiera_b+.yaml"
            ) from None
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError) as error:
            raise PipelineError(
                f"masks.weights: {weights} does not fit masks.sam2.config {settings.config!r}, or is no whole"
                f" checkpoint ({type(error).__name__}); {_WAY_OUT}"
            ) from error
        generator_class = sturdy(SAM2AutomaticMaskGenerator, MaskData)
        return cls(generator_class(model, **settings.model_dump(exclude={"config"})))

    def segment(self, picture: Picture) -> list[Segment]:
        """Find the masks of one image, the highest predicted IoU first; see :class:`Segmenter`."""
        return segments_of_records(self._generator.generate(picture.image))
