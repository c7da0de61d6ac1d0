"""What the mask generators of Segment Anything and SAM 2 share: their records, and two of their pitfalls."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipeline.errors import PipelineError
from pipeline.params import Sam2Params, SamParams
from pipeline.segmenters.interface import Segment, best_first


def segments_of_records(records: Iterable[Mapping[str, Any]]) -> list[Segment]:
    """Turn a generator's records into segments, the highest predicted IoU first; ties in the generator's order."""
    return best_first(
        Segment(record["segmentation"], float(record["predicted_iou"]), float(record["stability_score"]))
        for record in records
        if record["segmentation"].any()
    )


def sturdy(generator_class: Any, no_masks: Callable[[], Any]) -> Any:
    """Derive a generator that gives the same masks and lives through images on which the package fails.

    With ``crop_n_layers`` above 0 the packages raise an IndexError when no mask passes the thresholds in any crop (a
    blank picture is enough), and a ValueError when a picture of a few pixels is cut into crops without area.

    Args:
        generator_class: the package's automatic mask generator.
        no_masks: makes the package's ``MaskData`` without entries.
    """

    class SturdyGenerator(generator_class):  # type: ignore[misc]  # the packages ship no types
        def _process_crop(self, image: Any, crop_box: list[int], *rest: Any) -> Any:
            x0, y0, x1, y1 = crop_box
            if x0 >= x1 or y0 >= y1:
                return no_masks()
            data = super()._process_crop(image, crop_box, *rest)
            data["crop_boxes"] = data["crop_boxes"].reshape(-1, 4)  # of no masks, it comes without the axis of four
            return data

    return SturdyGenerator


def check_points(params: SamParams | Sam2Params, section: str) -> None:
    """Refuse settings that leave a crop layer without prompts; SECTION names them in the error.

    Raises:
        PipelineError: the points per side, divided layer by layer, reach 0.
    """
    if params.points_per_side < params.crop_n_points_downscale_factor**params.crop_n_layers:
        raise PipelineError(
            f"masks.{section}: crop layer {params.crop_n_layers} would get no point of the grid; raise points_per_side"
            " or lower crop_n_layers or crop_n_points_downscale_factor"
        )
