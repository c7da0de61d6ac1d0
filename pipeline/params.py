"""``params.yaml``: every number that changes a result, typed, explained and checked before anything runs.

One frozen model per section. Each default is the value of the embedded demo; values of the paper stand in
``presets/``. Unknown keys, missing keys and values out of range are refused by name.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from pipeline.errors import PipelineError
from pipeline.validation import first_problem


class Section(BaseModel):
    """A group of params: frozen, and nothing in it that is not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class SyntheticParams(Section):
    """The synthetic birds (``dataset.name: synthetic``)."""

    num_species: int = Field(12, ge=10, le=20)
    """Classes. Neighbouring species differ in one or two parts only."""
    train_per_species: int = Field(40, ge=4)
    """Training images per species; the validation images are cut from these."""
    test_per_species: int = Field(12, ge=1)
    """Test images per species."""
    image_size_px: int = Field(256, ge=96, le=1024)
    """Side of the square images, pixels."""


class DatasetParams(Section):
    """Which images, and how they are split."""

    name: Literal["synthetic", "cub200", "dogs", "cars196", "folder"] = "synthetic"
    """Which reader understands the source."""
    source: str = "pipeline/data/datasets/synthetic.py"
    """The unpacked data set's folder. For ``synthetic``, the module that draws the images."""
    val_frac: float = Field(0.15, gt=0, lt=1)
    """Share of each class's training images held out for validation (at least one image), where the data set brings
    no validation images itself. The paper's code validates on test images (DEVIATIONS.md A6); we never do."""
    folds: int = Field(0, ge=0)
    """Above 0, validation images are one fold of so many of the training images, stratified by class, instead of
    ``val_frac``; at least 2."""
    fold: int = Field(0, ge=0)
    """Which fold, counted from 0."""
    classes: tuple[str, ...] = ()
    """Class names to keep, as the data set writes them; empty keeps all."""
    synthetic: SyntheticParams = SyntheticParams()

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> "DatasetParams":
        if self.folds == 1:
            raise ValueError("folds must be 0 or at least 2")
        if self.fold >= max(1, self.folds):
            raise ValueError("fold must be below folds, and 0 without folds")
        return self


class SuperpixelParams(Section):
    """Region merging on superpixels (``masks.segmenter: superpixel``); needs no weights and no GPU."""

    image_side_px: int = Field(320, ge=64)
    """The longer image side is brought to this many pixels before segmenting; masks come back in image pixels."""
    num_superpixels: int = Field(250, ge=2)
    """About how many SLIC superpixels the merging starts from."""
    compactness: float = Field(10.0, gt=0)
    """SLIC: weight of nearness in space against nearness in Lab colour."""
    sigma_px: float = Field(1.0, ge=0)
    """SLIC: Gaussian smoothing before the clustering, pixels of the resized image."""
    gradient_weight: float = Field(8.0, ge=0)
    """Merge cost: weight of the mean gradient along the common border, against the Lab distance of the means."""
    min_area_frac: float = Field(0.005, ge=0, le=1)
    """Smallest segment, share of the image."""
    max_area_frac: float = Field(0.5, gt=0, le=1)
    """Largest segment, share of the image."""
    max_border_frac: float = Field(0.25, ge=0, le=1)
    """Largest share of a segment's outline that may lie on the image border (background does)."""
    suppression_iou: float = Field(0.6, gt=0, le=1)
    """Of two segments that overlap more than this, only the more persistent one is stored."""


class GridParams(Section):
    """Equal rectangles (``masks.segmenter: grid``); the paper's patch baseline with ``use_object_box``."""

    rows: int = Field(2, ge=1)
    """Cells from top to bottom."""
    columns: int = Field(2, ge=1)
    """Cells from left to right."""
    use_object_box: bool = False
    """Divide the labelled object's box instead of the whole image, where the data set has one."""


class SamParams(Section):
    """Segment Anything's automatic mask generator (``masks.segmenter: sam``), under the package's own names."""

    model_type: Literal["vit_b", "vit_l", "vit_h", "tiny"] = "vit_b"
    """Architecture of the checkpoint in ``masks.weights``; ``tiny`` is the project's own, trained on the synthetic
    birds (``pipeline/segmenters/tiny_sam.safetensors``)."""
    batched: bool = True
    """Images, crops and prompts in batches, masks filtered before they are up-sampled: in float32 the masks of the
    package's generator, much sooner. false runs the package's generator itself, always in float32."""
    cuda_precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Arithmetic of the batched network on CUDA; bfloat16 is several times faster and moves a few outlines by a
    pixel. Other devices compute in float32."""
    images_per_batch: Literal["auto"] | PositiveInt = "auto"
    """Images and crops encoded at once; memory, not results. auto: 1 on a CPU, 8 on CUDA."""
    points_per_side: int = Field(32, ge=1)
    """The image is prompted with a grid of this many points squared."""
    points_per_batch: Literal["auto"] | PositiveInt = "auto"
    """Prompts decoded at once; memory, not results. auto: 64 on a CPU (the package's number), 512 on CUDA."""
    pred_iou_thresh: float = Field(0.86, ge=0, le=1)
    """Masks whose predicted IoU is lower are dropped."""
    stability_score_thresh: float = Field(0.92, ge=0, le=1)
    """Masks that change more than this when the logit threshold moves by the offset are dropped."""
    stability_score_offset: float = Field(1.0, ge=0)
    """Shift of the logit threshold for the stability score, logits."""
    box_nms_thresh: float = Field(0.7, ge=0, le=1)
    """Of two masks whose boxes overlap more than this IoU, the lower-scored one is dropped."""
    crop_n_layers: int = Field(1, ge=0)
    """Layer i runs the model again on 2^i x 2^i image crops."""
    crop_nms_thresh: float = Field(0.7, ge=0, le=1)
    """As ``box_nms_thresh``, between masks of different crops."""
    crop_overlap_ratio: float = Field(512 / 1500, ge=0, le=1)
    """Overlap of neighbouring crops, share of the crop."""
    crop_n_points_downscale_factor: int = Field(2, ge=1)
    """In layer i the points per side are divided by this to the power i."""
    min_mask_region_area: int = Field(0, ge=0)
    """Holes and islands smaller than this are removed, pixels; 0 leaves masks as they are."""

    @property
    def num_prompts(self) -> int:
        """Point prompts per image, crops included."""
        return _num_prompts(self)


class Sam2Params(Section):
    """SAM 2.1's automatic mask generator (``masks.segmenter: sam2``, extra ``sam2``), under the package's names."""

    config: str = "configs/sam2.1/sam2.1_hiera_b+.yaml"
    """Model configuration inside the ``sam2`` package that fits the checkpoint in ``masks.weights``."""
    points_per_side: int = Field(32, ge=1)
    """The image is prompted with a grid of this many points squared."""
    points_per_batch: int = Field(512, ge=1)
    """Prompts decoded at once; memory, not results."""
    pred_iou_thresh: float = Field(0.8, ge=0, le=1)
    """Masks whose predicted IoU is lower are dropped."""
    stability_score_thresh: float = Field(0.9, ge=0, le=1)
    """Masks that change more than this when the logit threshold moves by the offset are dropped."""
    stability_score_offset: float = Field(0.5, ge=0)
    """Shift of the logit threshold for the stability score, logits."""
    mask_threshold: float = 0.0
    """Logit above which a pixel belongs to the mask."""
    box_nms_thresh: float = Field(0.7, ge=0, le=1)
    """Of two masks whose boxes overlap more than this IoU, the lower-scored one is dropped."""
    crop_n_layers: int = Field(2, ge=0)
    """Layer i runs the model again on 2^i x 2^i image crops."""
    crop_nms_thresh: float = Field(0.7, ge=0, le=1)
    """As ``box_nms_thresh``, between masks of different crops."""
    crop_overlap_ratio: float = Field(512 / 1500, ge=0, le=1)
    """Overlap of neighbouring crops, share of the crop."""
    crop_n_points_downscale_factor: int = Field(1, ge=1)
    """In layer i the points per side are divided by this to the power i."""
    min_mask_region_area: int = Field(10, ge=0)
    """Holes and islands smaller than this are removed, pixels; 0 leaves masks as they are."""
    use_m2m: bool = False
    """Refine each mask with a second pass over its own prediction."""

    @property
    def num_prompts(self) -> int:
        """Point prompts per image, crops included."""
        return _num_prompts(self)


def _num_prompts(params: SamParams | Sam2Params) -> int:
    return sum(
        4**layer * (params.points_per_side // params.crop_n_points_downscale_factor**layer) ** 2
        for layer in range(params.crop_n_layers + 1)
    )


_SPARSE_GRIDS = {
    "default": {"points_per_side": 32, "crop_n_layers": 0},  # 1,024 prompts
    "fast": {"points_per_side": 16, "crop_n_layers": 0},  # 256 prompts
}
_PACKAGE_FILTERS = {"stability_score_thresh": 0.95, "stability_score_offset": 1.0, "min_mask_region_area": 0}

PROFILES: dict[str, dict[str, dict[str, float]]] = {
    # paper: the prompts of the paper's SAM 2 runs, 32 x 32 on the image and on each of its 4 + 16 crops, and the
    # thresholds that its code has for either network
    "sam": {
        "paper": {
            "points_per_side": 32,
            "crop_n_layers": 2,
            "crop_n_points_downscale_factor": 1,
            "pred_iou_thresh": 0.86,
            "stability_score_thresh": 0.92,
            "stability_score_offset": 1.0,
            "min_mask_region_area": 0,
        },
        **{name: {**grid, **_PACKAGE_FILTERS, "pred_iou_thresh": 0.88} for name, grid in _SPARSE_GRIDS.items()},
    },
    "sam2": {
        "paper": {
            "points_per_side": 32,
            "crop_n_layers": 2,
            "crop_n_points_downscale_factor": 1,
            "pred_iou_thresh": 0.8,
            "stability_score_thresh": 0.9,
            "stability_score_offset": 0.5,
            "min_mask_region_area": 10,
        },
        **{name: {**grid, **_PACKAGE_FILTERS, "pred_iou_thresh": 0.8} for name, grid in _SPARSE_GRIDS.items()},
    },
}
"""What ``masks.profile`` puts in place of the values of ``masks.sam`` or ``masks.sam2``."""


class SlitParams(Section):
    """DirectSAM boundaries (``masks.segmenter: slit``, extra ``slit``)."""

    image_side_px: int = Field(1800, ge=64)
    """Side of the square network input, pixels."""
    boundary_threshold: float = Field(0.001, ge=0, le=1)
    """A pixel is boundary where the network's probability is above this."""
    min_extent_px: int = Field(3, ge=1)
    """Segments narrower or lower than this are dropped, pixels (the authors' code drops extents up to 2)."""


class CocoParams(Section):
    """Masks that exist already (``masks.segmenter: coco``): a COCO instances file in ``masks.weights``."""

    missing: Literal["error", "empty"] = "error"
    """An image that the file does not list: stop, or give it no masks. A listed image without annotations has none
    either way."""


class MasksParams(Section):
    """How images are split into masks. All masks are stored; choosing among them is ``crops``' business."""

    segmenter: Literal["superpixel", "grid", "sam", "sam2", "slit", "coco"] = "superpixel"
    """Which segmenter runs; its own section below holds its settings, the others have no effect."""
    weights: str = "pipeline/segmenters/superpixel.py"
    """Checkpoint file or folder; for ``coco``, the file with the masks. For segmenters without weights, the module
    that computes the masks."""
    profile: Literal["custom", "paper", "default", "fast"] = "custom"
    """Grid of prompts and thresholds of ``sam`` and ``sam2``. paper: 21,504 prompts per image (32 x 32 points on the
    image and on each of 4 + 16 crops); default: the packages' own, 1,024 (no crops); fast: 256 (16 x 16 points), a
    quarter of the time again, small parts are missed. custom: as written in the section below; the others override
    what is written there."""
    superpixel: SuperpixelParams = SuperpixelParams()
    grid: GridParams = GridParams()
    sam: SamParams = SamParams()
    sam2: Sam2Params = Sam2Params()
    slit: SlitParams = SlitParams()
    coco: CocoParams = CocoParams()

    def resolved(self) -> "MasksParams":
        """Give the same params with the values of ``profile`` in the section of the segmenter that runs."""
        changes = PROFILES.get(self.segmenter, {}).get(self.profile, {})
        section = getattr(self, self.segmenter).model_copy(update=changes)
        return self.model_copy(update={self.segmenter: section, "profile": "custom"})


class CropsParams(Section):
    """Which masks become views, and what a view looks like."""

    max_views: int = Field(5, ge=1)
    """At most this many masks of an image become views (the whole image not counted)."""
    order: Literal["score", "area"] = "score"
    """Which masks are preferred: the highest score (superpixel: persistence; SAM: predicted IoU), or the largest
    area (the paper). Ties go to the lower mask_idx."""
    min_area_frac: float = Field(0.005, ge=0, le=1)
    """Masks smaller than this share of the image are passed over."""
    max_area_frac: float = Field(1.0, gt=0, le=1)
    """Masks larger than this share of the image are passed over."""
    min_extent_px: int = Field(3, ge=1)
    """Masks whose box is narrower or lower than this are passed over, pixels (the paper's code keeps extents of 3 and
    more)."""
    duplicate_iou: float = Field(0.9, gt=0, le=1)
    """A mask whose IoU with a preferred one is at least this is passed over; 1 only removes equal masks."""
    whole_image: bool = True
    """The whole image is a view of its bag, too (the last one)."""
    empty_bag: Literal["whole_image", "drop", "error"] = "whole_image"
    """An image without a mask to choose: take the whole image as its only view, leave the image out (counted as
    dropped), or stop. Leaving test images out makes accuracies incomparable."""
    padding_frac: float = Field(0.1, ge=0)
    """The box grows by this share of its width and height on every side, within the image."""
    min_box_side_frac: float = Field(0.0, ge=0, le=1)
    """Boxes narrower (lower) than this share of the image's width (height) grow to it, within the image."""
    square: bool = False
    """Grow the box's shorter side to the longer one, within the image, so that resizing distorts less."""
    background: Literal["original", "zero", "mean"] = "original"
    """Pixels of the box outside the mask: as in the image (the paper's runs), black, or the mask's mean colour."""
    size_px: int = Field(224, ge=32)
    """Side of the square views, pixels; aspect is not kept (as in the paper)."""
    jpeg_quality: int = Field(95, ge=1, le=100)
    """Quality of the stored views."""
    bags_per_shard: int = Field(256, ge=1)
    """Images per tar file."""


class ModelParams(Section):
    """The network (paper section 3)."""

    head: Literal["protomask", "blackbox", "protopnet", "pipnet", "protopool"] = "protomask"
    """What decides on top of the backbone: protomask (prototypes over views of masks) | blackbox (a linear layer on the
    whole image) | protopnet, pipnet, protopool (prototypes over places of the whole image's feature grid). Rows of the
    table are named by it."""
    backbone: str = "tf_efficientnet_lite0"
    """Any timm model name. Weights of ``tf_efficientnet_lite0`` come from the package index; for others see
    ``weights``."""
    weights: str | None = None
    """Checkpoint file of the backbone (timm layout; .safetensors or .pth). null takes the pretrained ImageNet weights
    that timm names (downloaded once), or the packaged ones for ``tf_efficientnet_lite0``. A file replaced under the
    same name is not noticed: `dvc repro -f train`."""
    pretrained: bool = True
    """false starts from random weights (and ignores ``weights``)."""
    dim: int = Field(128, ge=2)
    """Length of a view's feature vector and of a prototype (paper: 1280)."""
    prototypes_per_class: int = Field(5, ge=1)
    """Prototypes each class owns (paper: 10)."""
    similarity_epsilon: float = Field(1e-4, gt=0)
    """epsilon in log((d + 1) / (d + epsilon)); bounds the similarity of a perfect match (paper's code: 1e-14)."""
    pooling: Literal["nearest", "top_k_mean", "soft"] = "nearest"
    """Distance of a bag to a prototype, from those of its views (ProtoMask): the least (the paper's) | the mean of the
    ``pooling_k`` least | all views weighted by a softmax of their nearness."""
    pooling_k: int = Field(3, ge=1)
    """Views that ``pooling: top_k_mean`` averages; a bag with fewer has all of them averaged."""
    pooling_temperature: float = Field(0.5, gt=0)
    """Softness of ``pooling: soft``, in squared distance: towards 0 it becomes the least distance."""
    shared_prototypes: int | None = Field(None, ge=2)
    """Prototypes of the heads whose classes share them (pipnet, protopool); null gives them as many as the other heads
    have: ``prototypes_per_class`` times the classes."""
    slots_per_class: int = Field(5, ge=1)
    """Places for shared prototypes that each class has (protopool; its paper: 10)."""


class LossParams(Section):
    """Weights of ProtoMask's joint loss (the paper's total loss; numbers of the authors' code)."""

    cross_entropy: float = Field(1.0, ge=0)
    """Weight of the cross entropy."""
    cluster: float = Field(0.8, ge=0)
    """Weight of the distance to the nearest own-class prototype (pulls)."""
    separation: float = Field(0.2, ge=0)
    """Weight of the distance to the nearest foreign prototype (pushes away; subtracted)."""
    diversity: float = Field(0.2, ge=0)
    """Weight of the term that keeps the prototypes of a class apart."""


class ProtoPNetLossParams(Section):
    """Weights of ProtoPNet's loss (Chen et al. 2019, arXiv 1806.10574; ``model.head: protopnet``)."""

    cross_entropy: float = Field(1.0, ge=0)
    """Weight of the cross entropy."""
    cluster: float = Field(0.8, ge=0)
    """Weight of the distance from an image's nearest place to an own-class prototype (pulls)."""
    separation: float = Field(0.08, ge=0)
    """Weight of the distance to the nearest foreign prototype (pushes away; subtracted)."""


class PipNetLossParams(Section):
    """Weights of PIP-Net's loss (Nauta et al. 2023; ``model.head: pipnet``)."""

    classification: float = Field(2.0, ge=0)
    """Weight of the classification loss."""
    alignment: float = Field(5.0, ge=0)
    """Weight of the term that gives two versions of a view the same prototypes at the same places."""
    presence: float = Field(2.0, ge=0)
    """Weight of the tanh term that lets every prototype be present in some image of a batch."""
    pretraining_epochs: int = Field(10, ge=0)
    """First epochs of the first phase, in which the classification term has no weight."""


class ProtoPoolLossParams(Section):
    """Weights of ProtoPool's loss (Rymarczyk et al. 2022, arXiv 2112.02902; ``model.head: protopool``)."""

    cross_entropy: float = Field(1.0, ge=0)
    """Weight of the cross entropy."""
    cluster: float = Field(0.8, ge=0)
    """Weight of the distance from an image's nearest place to a prototype of its class's slots (pulls)."""
    separation: float = Field(0.08, ge=0)
    """Weight of the distance to the nearest prototype outside them (pushes away; subtracted)."""
    orthogonality: float = Field(1.0, ge=0)
    """Weight of the term that lets the slots of a class choose different prototypes."""
    gumbel_epochs: int = Field(30, ge=1)
    """Epochs of the first phase in which the slots' choice hardens from soft to one prototype each; later phases stay
    hard."""


class WarmupParams(Section):
    """Phase 1: backbone frozen, add-on layer and prototypes learn on features computed once."""

    epochs: int = Field(60, ge=0)
    """Passes over the training images; 0 skips the phase (paper: 0)."""
    lr_addon: float = Field(3e-3, gt=0)
    """Learning rate of the 1x1 convolution."""
    lr_prototypes: float = Field(1e-2, gt=0)
    """Learning rate of the prototypes."""
    flip: bool = True
    """Also learn from the mirror image of every view (drawn per view and epoch)."""
    batch_images: int = Field(64, ge=1)
    """Images per step."""


class JointParams(Section):
    """Phase 2: backbone, add-on layer and prototypes learn together on augmented views."""

    epochs: int = Field(0, ge=0)
    """Passes over the training images; 0 skips the phase and leaves the backbone as it is (paper: 100). An epoch costs
    minutes on a CPU."""
    lr_backbone: float = Field(3e-5, gt=0)
    """Learning rate of the backbone."""
    lr_addon: float = Field(1e-3, gt=0)
    """Learning rate of the 1x1 convolution (the paper's code never trains it, DEVIATIONS.md A4)."""
    lr_prototypes: float = Field(1e-3, gt=0)
    """Learning rate of the prototypes (paper: 2e-3 to 3.5e-3)."""
    lr_step_epochs: int = Field(35, ge=1)
    """Every so many epochs the rates are multiplied by ``lr_gamma``."""
    lr_gamma: float = Field(0.5, gt=0, le=1)
    """Factor of the step decay."""
    trainable_layers: int | Literal["all"] = 2
    """How many of the backbone's last blocks learn (timm's own grouping by depth); the others stay frozen, their
    normalisation in evaluation mode."""
    augmentation: Literal["none", "flip", "light", "medium"] = "light"
    """Mirror; light adds rotation, shear and colour jitter; medium adds perspective (the paper's "medium": 15 degrees,
    scale 0.05, jitter 0.15)."""
    augment_per: Literal["view", "image"] = "view"
    """Drawn for every view by itself (the paper's code), or once for all views of an image."""

    @model_validator(mode="after")
    def _check_layers(self) -> "JointParams":
        if isinstance(self.trainable_layers, int) and self.trainable_layers < 1:
            raise ValueError("trainable_layers must be at least 1, or `all`")
        return self


class TrainParams(Section):
    """What a training run is."""

    prototype_init: Literal["features", "uniform"] = "features"
    """Where prototypes start: at features of own-class training views, spread by k-means; or uniform in (0, 1), the
    paper's way."""
    addon_init: Literal["pca", "random"] = "pca"
    """Where the 1x1 convolution starts: at the whitened principal components of the training views, which makes runs
    far less dependent on the seed; or at PyTorch's random weights, the paper's way. Heads that compare places of a
    feature grid start at random either way."""
    batch_images: int = Field(16, ge=1)
    """Images per step in the joint phase (paper: 16)."""
    accumulate_batches: int = Field(1, ge=1)
    """Batches whose gradients are averaged for a step (paper: 4). A last window with fewer is averaged over those."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the backbone in the joint phase: bfloat16 is faster on recent GPUs; weights, distances and losses
    stay in float32, and so does everything after training."""
    sampling: Literal["shuffled", "class_balanced"] = "shuffled"
    """Order of an epoch's training images: each once | as many draws in all, equally many of every class."""
    class_weights: bool = True
    """Weigh the cross entropy by inverse class frequency (the paper does)."""
    patience_epochs: int | None = Field(None, ge=1)
    """A phase ends after so many epochs without a better one on validation images; null runs all of them."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Validate and keep a running mean of the weights instead of the last ones: this share stays at every step; null
    does without."""
    loss: LossParams = LossParams()
    protopnet: ProtoPNetLossParams = ProtoPNetLossParams()
    pipnet: PipNetLossParams = PipNetLossParams()
    protopool: ProtoPoolLossParams = ProtoPoolLossParams()
    warmup: WarmupParams = WarmupParams()
    joint: JointParams = JointParams()
    baseline: bool = True
    """Also train a black box: same backbone, whole image, linear head, same epochs, rates and augmentation."""

    @model_validator(mode="after")
    def _check_something_learns(self) -> "TrainParams":
        if self.warmup.epochs + self.joint.epochs == 0:
            raise ValueError("warmup.epochs and joint.epochs are both 0: nothing would be learned")
        return self


class PruneParams(Section):
    """Dropping projected prototypes that lie among training images of other classes."""

    enabled: bool = False
    """Drop them, after projection (paper: the main tables are without pruning)."""
    k: int = Field(6, ge=1)
    """How many training images, the nearest ones of all classes, are asked about each prototype (paper: 6)."""
    threshold: int = Field(3, ge=1)
    """A prototype stays when at least this many of them are of its class (paper: 3); at most k."""

    @model_validator(mode="after")
    def _check_something_can_stay(self) -> "PruneParams":
        if self.threshold > self.k:
            raise ValueError(f"threshold ({self.threshold}) is above k ({self.k}): no prototype would stay")
        return self


class ProjectParams(Section):
    """Replacing each prototype by its nearest own-class training view (paper: push)."""

    distinct_views: bool = True
    """No two prototypes of a class take the same view: the nearer one does, the other takes its next nearest."""
    prune: PruneParams = PruneParams()


class FinetuneParams(Section):
    """Phase 3: only the last layer learns, on features of the frozen network."""

    epochs: int = Field(10, ge=0)
    """Passes over the training images (paper: 10); the best one on validation images is kept, the start included."""
    lr: float = Field(3e-4, gt=0)
    """Learning rate (paper: 3e-4)."""
    l1: float = Field(1e-3, ge=0)
    """Weight of the absolute weights to other classes (paper: 1e-3)."""
    batch_images: int = Field(64, ge=1)
    """Images per step (paper: 16 x 4)."""


class PerturbationParams(Section):
    """How an image is changed to see whether explanations stay (continuity); what is in it does not change.

    All changes are made at once, to the views, in this order. Defaults are those of the authors' code.
    """

    brightness: float = Field(1.125, gt=0)
    """Factor of all values; 1 leaves them."""
    contrast: float = Field(1.125, gt=0)
    """Factor of the distance to the mean grey; 1 leaves it."""
    saturation: float = Field(1.125, gt=0)
    """Factor of the distance to grey; 1 leaves it."""
    hue: float = Field(0.05, ge=-0.5, le=0.5)
    """Shift on the colour wheel, share of a turn; 0 leaves it."""
    noise_variance: float = Field(5.0, ge=0)
    """Variance of Gaussian noise, squared grey levels of 255; 0 adds none."""
    blur_px: int = Field(3, ge=1)
    """Side of the kernel of a Gaussian blur, odd; 1 blurs nothing."""
    jpeg_quality: int = Field(90, ge=1, le=100)
    """Quality at which the views are then compressed."""

    @model_validator(mode="after")
    def _kernel_has_a_middle(self) -> "PerturbationParams":
        if self.blur_px % 2 == 0:
            raise ValueError("blur_px must be odd")
        return self


class EvaluateParams(Section):
    """The metrics table (test images)."""

    top_classes: int = Field(3, ge=1)
    """k of the top-k accuracy (paper: 3)."""
    top_prototypes: int = Field(5, ge=1)
    """How many prototypes explain an image (paper: 5)."""
    weight_epsilon: float = Field(1e-3, ge=0)
    """Last-layer weights up to this size count as zero (paper: 1e-3)."""
    local_size_threshold: float = Field(0.1, ge=0, le=1)
    """A prototype is part of an explanation when its similarity is above this share of the largest (paper: 0.1)."""
    saliency: tuple[Literal["mask", "view", "prp", "upsample"], ...] = Field(("mask", "view", "prp"), min_length=1)
    """How an explanation says which pixels matter: mask (the segment of the nearest view) | view (its box) | prp
    (relevance propagated through the network inside the view) | upsample (similarities of the feature grid; heads that
    compare places). The first that the head has stands in the head's own row, the others in rows of their own."""
    map_side_px: int = Field(224, ge=16)
    """Saliency maps, object masks and part locations are brought to squares of this side (paper: 224)."""
    salient_frac: float = Field(0.05, gt=0, lt=1)
    """Graded saliency counts where it is among this share of the image's largest values (paper: 0.05)."""
    sample_images: int = Field(12, ge=1)
    """Test images, evenly from all classes, for what must run the network again: changed and noised images, parts left
    out, prp, views taken out, and the sanity checks. More make narrower intervals and take longer."""
    perturbation: PerturbationParams = PerturbationParams()
    noise_std: float = Field(0.05, gt=0)
    """Standard deviation of the noise outside the salient box (output completeness), of values 0..1 (paper: 0.05)."""
    random_orders: int = Field(4, ge=1)
    """Random orders of views that the orders of the explanation are compared with (deletion)."""
    bootstrap_draws: int = Field(1000, ge=20)
    """Resamples of the test images behind each 95 % interval."""

    @model_validator(mode="after")
    def _kinds_differ(self) -> "EvaluateParams":
        if len(set(self.saliency)) != len(self.saliency):
            raise ValueError("saliency names a kind twice")
        return self


class CompatParams(Section):
    """What the authors' code does and the paper does not mean: each true brings one departure back.

    The numbers are those of ``DEVIATIONS.md``, which says what each moves. Preset ``cub200-sam2-authors`` turns all on.
    """

    sklearn_splits: bool = False
    """Validation images are drawn by scikit-learn's stratified shuffle of all training images, from ``seed``."""
    bgr_masks: bool = False
    """SAM and SAM 2 are given BGR images (A12)."""
    clipped_boxes: bool = False
    """Views lack the last row and column of their mask's box (A10)."""
    aliased_resizing: bool = False
    """Views are resized without antialiasing."""
    equal_bags: bool = False
    """Views are copied until all bags of a split have equally many; each copy is augmented by itself."""
    validate_on_test: bool = False
    """Validation images are trained on, and epochs are chosen on TEST images (A6): reported numbers flatter."""
    constant_diversity: bool = False
    """The diversity term has no gradient (A3)."""
    frozen_addon: bool = False
    """The 1x1 convolution stays at its start (A4)."""
    saturating_distances: bool = False
    """The cluster and separation terms end at the feature dimension (A17)."""
    dropped_window: bool = False
    """A last, incomplete window of accumulated batches is not stepped (A8)."""
    wrapped_borders: bool = False
    """What rotation and shear bring into view comes from the opposite border (A13)."""
    last_epoch: bool = False
    """A phase hands on its last epoch, not its best one (A7)."""
    project_last_batch: bool = False
    """A prototype becomes the nearest view of the last batch that holds its class, not of the training split (A1)."""
    moving_finetune: bool = False
    """In fine-tuning, views are augmented and the normalisation statistics of the backbone keep moving (A5)."""


class ReportParams(Section):
    """The HTML report."""

    thumbnail_px: int = Field(224, ge=64)
    """Longer side of photographs in the report, pixels; views are half as large."""
    sheet_images: int = Field(24, ge=1)
    """Images whose masks the page of masks shows, drawn evenly from splits and classes."""


class Params(Section):
    """The whole of ``params.yaml``."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Start of every random draw: synthetic images, validation split, initialisation, shuffling, augmentation."""
    dataset: DatasetParams = DatasetParams()
    masks: MasksParams = MasksParams()
    crops: CropsParams = CropsParams()
    model: ModelParams = ModelParams()
    train: TrainParams = TrainParams()
    project: ProjectParams = ProjectParams()
    finetune: FinetuneParams = FinetuneParams()
    evaluate: EvaluateParams = EvaluateParams()
    compat: CompatParams = CompatParams()
    report: ReportParams = ReportParams()


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check PATH.

    Every key must be there: a default that is not written down would change results without a trace in the file.

    Raises:
        PipelineError: unknown or missing key, wrong type, value out of range, not YAML; names file and key.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PipelineError(
            f"{path} does not exist: run the command in the project's folder, or give --params"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PipelineError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    return check_params(content, path)


def check_params(content: Any, path: Path) -> Params:
    """Check the CONTENT of a params file; PATH is for the message.

    Raises:
        PipelineError: as :func:`load_params`.
    """
    if not isinstance(content, dict):
        raise PipelineError(f"{path}: expected `key: value` lines with sections such as `dataset:`")
    try:
        params = Params.model_validate(content, strict=False)
    except ValidationError as error:
        raise PipelineError(f"{path}: {first_problem(error)}") from None
    for key, default in _absent_keys(params, ""):
        raise PipelineError(f"{path}: key `{key}` is missing (the demo has {default!r})")
    return params


def _absent_keys(section: Section, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name not in section.model_fields_set:
            yield f"{prefix}{name}", value.model_dump(mode="json") if isinstance(value, Section) else value
        elif isinstance(value, Section):
            yield from _absent_keys(value, f"{prefix}{name}.")
