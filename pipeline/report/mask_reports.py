"""What ``masks`` and ``crops`` reported, read and checked before anything is shown."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import PipelineError
from pipeline.validation import first_problem

Report = TypeVar("Report", bound=BaseModel)


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Spread(_Report):
    """A distribution in a few numbers."""

    min: float
    q05: float
    q25: float
    median: float
    q75: float
    q95: float
    max: float
    mean: float


class Histogram(_Report):
    """Counts of masks between neighbouring edges."""

    edges: list[float]
    num_masks: list[int]


class ObjectIou(Spread):
    """The best IoU of a mask with the object, over the images whose object is known."""

    num_images: int
    share_at_least: dict[str, float]


class PartsInMasks(_Report):
    """Visible parts, and the share of them that lie in a mask, and in a mask's box."""

    num_visible: int
    in_a_mask: float
    in_a_box: float


class Quality(_Report):
    """The masks of all images, or of a split; None for what is not known, or where there is no value."""

    num_images: int
    num_masks: int
    masks_per_image: Spread | None
    area_frac: Spread | None
    area_histogram: Histogram
    box_fill: Spread | None
    covered_frac: Spread | None
    object_iou: ObjectIou | None
    parts: PartsInMasks | None
    reasons: dict[str, str] = {}


class Consistency(_Report):
    """How alike the masks of a class cover its parts."""

    mean: float | None
    mean_without_no_part: float | None


class QualityOfSplits(_Report):
    """The section ``quality`` of ``masks.json``."""

    all: Quality
    train: Quality | None = None
    val: Quality | None = None
    test: Quality | None = None
    mask_consistency: Consistency | None
    reasons: dict[str, str] = {}


class MasksReport(_Report):
    """What the page needs of ``masks.json``."""

    num_masks: int
    images_without_masks: int
    quality: QualityOfSplits


class DroppedMasks(_Report):
    """What became of the masks."""

    num_in: int
    num_out: int
    dropped: dict[str, int]


class CropsReport(_Report):
    """What the page needs of ``crops.json``."""

    num_in: int
    num_out: int
    dropped: dict[str, int]
    num_views: int
    whole_image_instead_of_masks: int
    masks: DroppedMasks


def checked_masks_report(content: Mapping[str, Any]) -> MasksReport:
    """Check the content of ``masks.json``.

    Raises:
        PipelineError: written by another version.
    """
    return _checked(content, MasksReport, name="masks.json", stage="masks")


def checked_crops_report(content: Mapping[str, Any]) -> CropsReport:
    """Check the content of ``crops.json``.

    Raises:
        PipelineError: written by another version, or the counts of masks do not add up.
    """
    report = _checked(content, CropsReport, name="crops.json", stage="crops")
    masks = report.masks
    num_dropped = sum(masks.dropped.values())
    if masks.num_in != masks.num_out + num_dropped:
        raise PipelineError(
            f"crops.json: {masks.num_in} masks came in, but {masks.num_out} chosen and {num_dropped} dropped ones went "
            "out: run `dvc checkout` or `dvc repro -f -s crops`"
        )
    return report


def _checked(content: Mapping[str, Any], model: type[Report], *, name: str, stage: str) -> Report:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise PipelineError(
            f"{name} was written by another version of the pipeline ({first_problem(error)}): run `dvc repro {stage}`"
        ) from None
