"""Adapters of masks, boxes, views and class weights.

The reference's corners are inclusive where they come from a mask; there they are made half-open, or back.
"""

import math
from collections.abc import Iterable

import numpy as np

from pipeline.data.bags import filled_up
from pipeline.data.boxes import Box, box_around, box_of_mask
from pipeline.data.splits import fold_of, shuffled_split
from pipeline.data.views import box_of_view, choose_masks, cut_view
from pipeline.params import CropsParams, GridParams
from pipeline.segmenters.grid import GridSegmenter
from pipeline.segmenters.interface import Picture, Segment
from pipeline.segmenters.slit import segments_from_boundaries
from pipeline.training.readers import class_weights
from tests.conformance.answers import Answer, Deviating, Lacking, Skip, Translated, adapter
from tests.conformance.vectors import Case, Given

SMALLEST_VIEW_PX = 32
NO_SHIFT = Lacking("how far a mask lies from the centre is not kept")
# every mask becomes a view, in the order of area
ALL_MASKS = {
    "order": "area",
    "min_area_frac": 0,
    "max_area_frac": 1,
    "duplicate_iou": 1,
    "min_extent_px": 1,
    "padding_frac": 0,
}


def _inclusive(box: Box) -> tuple[int, int, int, int]:
    return box.x0, box.y0, box.x1 - 1, box.y1 - 1


def _chosen(masks: list[np.ndarray], **limits: int) -> list[int]:
    stored = [Segment(mask, score=0.0).stored() for mask in masks]
    height, width = masks[0].shape if masks else (1, 1)
    params = CropsParams.model_validate({**ALL_MASKS, "max_views": max(1, len(masks)), **limits})
    choice = choose_masks(stored, height=height, width=width, params=params)
    if "duplicate" in choice.passed_over:
        raise Skip("equal masks are one view (DEVIATIONS.md equal masks)")
    return list(choice.mask_idxs)


@adapter("segmentation/segmentation.py", "generate_segment_masks")
def segments_in_order(case: Case) -> Answer:
    """Where the intended order is given, it keeps masks of 2 pixels; sizes and boxes are those of the order without."""
    masks = [mask.astype(bool) for mask in case.inputs["masks"]]
    kept = _chosen(masks, min_extent_px=3)
    stored = [Segment(masks[idx], score=0.0).stored() for idx in kept]
    order = _chosen(masks, min_extent_px=2) if "order" in case.intended else kept
    num_px = case.inputs["masks"][0].size if masks else 1
    return {
        "order": np.array(order, dtype=np.int64),
        "size": np.array([mask.area_px / num_px for mask in stored]),
        "shift": NO_SHIFT,
        "bounding_boxes": np.array([_inclusive(mask.box) for mask in stored], dtype=np.int64).reshape(-1, 4),
    }


@adapter("segmentation/helpers.py", "compute_mask_center_shift")
def sizes(case: Case) -> Answer:
    masks = [mask.astype(bool) for mask in case.inputs["masks"]]
    areas = [Segment(mask, score=0.0).stored().area_px / mask.size for mask in masks]
    return {"size": np.array(areas), "shift": NO_SHIFT}


@adapter("segmentation/slit/slit.py", "probs_to_masks")
def segments_between_boundaries(case: Case) -> Answer:
    probability = case.inputs["probs"]
    segments = segments_from_boundaries(probability, threshold=case.params["threshold"], min_extent_px=1)
    return {
        "masks": np.array([segment.mask for segment in segments], dtype=bool).reshape(-1, *probability.shape),
        "areas": np.array([segment.stored().area_px for segment in segments], dtype=np.int64),
    }


@adapter("segmentation/patches/patches.py", "segment_image")
def cells(case: Case) -> Answer:
    """The reference's cells are of equal size; the pixels that are left over are taken off the area beforehand."""
    (height, width), num = case.params["image_hw"], case.params["split_factor"]
    x0, y0, x1, y1 = (int(corner) for corner in case.inputs["bbox"])
    area = Box(x0, y0, x1 - (x1 - x0) % num, y1 - (y1 - y0) % num)
    segmenter = GridSegmenter(GridParams(rows=num, columns=num, use_object_box=True))
    segments = segmenter.segment(Picture(np.zeros((height, width, 3), dtype=np.uint8), area))
    masks = np.array([segment.mask for segment in segments])
    if (area.x1, area.y1) == (x1, y1):
        return {"masks": masks}
    return {"masks": Translated(masks, "the grid's area is cut to whole cells (DEVIATIONS.md grid, C12)")}


@adapter("dataloader/helpers.py", "expand_bboxes")
def grown_boxes(case: Case) -> Answer:
    """The reference's limit is a share of the area; a least side follows from it, for the boxes that are below it.

    The intended side is the root of that share, the reference's the share itself. Each axis is asked for by itself:
    its side is a whole number of pixels, and no single share gives both.
    """
    boxes = np.atleast_2d(case.inputs["bboxes"] if "bboxes" in case.inputs else case.inputs["bbox"])
    (width, height), share = case.params["img_size"], case.params["min_percent"]
    if case.intended:
        sides = math.ceil(math.sqrt(share) * width), math.ceil(math.sqrt(share) * height)
    else:
        sides = int(share * width), int(share * height)
    grown = np.array([_grown(Box(*box), width, height, share, sides) for box in boxes.tolist()])
    if not case.intended:
        return {"out": Deviating(grown, "boxes grow, do not shrink and are shifted back (DEVIATIONS.md A22)")}
    how = "the least side is the root of the least area, for boxes below it (DEVIATIONS.md A22)"
    return {"out": Translated(grown, how) if share else grown}


def _grown(box: Box, width: int, height: int, share: float, sides: tuple[int, int]) -> Box:
    if box.area_px >= share * width * height:
        return box
    of_width, of_height = (
        box_of_view(
            box,
            height=height,
            width=width,
            params=CropsParams(padding_frac=0, square=False, min_box_side_frac=side / extent),
        )
        for side, extent in zip(sides, (width, height), strict=True)
    )
    return Box(of_width.x0, of_height.y0, of_width.x1, of_height.y1)


@adapter("datasets/functional.py", "crop_bounding_box")
def clipped_boxes(case: Case) -> Answer:
    height, width = case.params["shape_hw"]
    return {"out": np.array([Box(*box).clipped(width, height) for box in case.inputs["boxes"].tolist()])}


@adapter("datasets/functional.py", "combine_bounding_boxes")
def box_around_boxes(case: Case) -> Answer:
    """The reference drops the fractions of the result; here boxes are whole pixels before."""
    return {"out": np.array(box_around([Box(*box) for box in np.trunc(case.inputs["boxes"]).astype(int).tolist()]))}


def _on_canvas(image: np.ndarray, side: int) -> np.ndarray:
    canvas = np.zeros((side, side, *image.shape[2:]), dtype=image.dtype)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def _filled(image: np.ndarray, mask: np.ndarray, background: str) -> np.ndarray:
    """Cut a view of the whole image, on a black square of the view's size, so that nothing is resized."""
    height, width = mask.shape
    side = max(SMALLEST_VIEW_PX, height, width)
    params = CropsParams.model_validate({"background": background, "size_px": side})
    view, _ = cut_view(_on_canvas(image, side), _on_canvas(mask, side), Box(0, 0, side, side), params)
    return view[:height, :width]


@adapter("segmentation/helpers.py", "cut_image_by_single_mask")
def background_zero(case: Case) -> Answer:
    return {"out": _filled(case.inputs["img"], case.inputs["seg"].astype(bool), "zero")}


@adapter("dataloader/helpers.py", "add_original_background")
def background_original(case: Case) -> Answer:
    cut_out, image = case.inputs["mask"], case.inputs["img"]
    mask = case.inputs["seg"].astype(bool) if "seg" in case.inputs else cut_out.any(axis=2)
    if (cut_out[mask] != image[mask]).any():
        raise Skip("a view is cut from one image: masks are no pictures, and none is laid on another image")
    return {"out": _filled(image, mask, "original")}


@adapter("dataloader/helpers.py", "add_mean_background")
def background_mean(case: Case) -> Answer:
    filled = _filled(case.inputs["mask"], case.inputs["seg"].astype(bool), "mean")
    return {"out": filled}


@adapter("augmentation/enums.py", "get_augmentation_pipeline")
def crops(case: Case) -> Answer:
    """The box is that of a mask which fills it; a square view from its first corner shows the crop without resizing."""
    image = case.inputs["img"]
    height, width = image.shape[:2]
    x0, y0, x1, y1 = case.inputs["bbox"].tolist()
    mask = np.zeros((height, width), dtype=bool)
    mask[max(0, y0) : max(0, y1 + 1), max(0, x0) : max(0, x1 + 1)] = True
    box = box_of_mask(mask)
    side = max(SMALLEST_VIEW_PX, height, width)
    params = CropsParams(background="original", size_px=side)
    canvas, on_canvas = _on_canvas(image, 2 * side), _on_canvas(mask, 2 * side)
    view, _ = cut_view(canvas, on_canvas, Box(box.x0, box.y0, box.x0 + side, box.y0 + side), params)
    return {
        "crop": view[: box.height_px, : box.width_px],
        "crop_v2_0_8": Lacking("a crop holds the last row and column of its box (DEVIATIONS.md A10)"),
        "keypoints": Lacking("parts stay in pixels of the image and are not moved with a crop"),
    }


@adapter("datasets/interfaces/dataset_interface.py", "reduce_masks")
def fewer_masks(case: Case) -> Answer:
    """Masks are stripes, each a pixel shorter than the one before; copies are those of ``compat.equal_bags``."""
    will_copy = any(operation == "balance" for operation, _ in case.params["ops"])
    if (case.inputs["counts"] == 0).any() and not will_copy:
        raise Skip("an image without masks has a view all the same, the whole image (DEVIATIONS.md C7)")
    kept = [list(range(count)) for count in case.inputs["counts"].tolist()]
    is_copied = False
    for operation, limit in case.params["ops"]:
        if operation == "reduce" and not is_copied:
            kept = [_chosen(_stripes(len(idxs)), max_views=limit) for idxs in kept]
        elif operation == "balance":
            longest = {split: max(len(kept[idx]) for idx in rows) for split, rows in _rows_of(case.inputs["split"])}
            kept = [
                [idxs[idx] for idx in filled_up(len(idxs), longest[split])]
                for idxs, split in zip(kept, case.inputs["split"].tolist(), strict=True)
            ]
            is_copied = True
        else:
            raise Skip("views are chosen before they are copied, never after")
    slots = np.full((len(kept), max(map(len, kept), default=0)), -1)
    for row, idxs in zip(slots, kept, strict=True):
        row[: len(idxs)] = idxs
    mask_ids = Lacking("a copy has no number of its own") if is_copied else slots
    return {"n": np.array([len(idxs) for idxs in kept]), "slots": slots, "mask_ids": mask_ids}


def _rows_of(split: np.ndarray) -> list[tuple[int, np.ndarray]]:
    return [(number, np.flatnonzero(split == number)) for number in np.unique(split).tolist()]


def _stripes(count: int) -> list[np.ndarray]:
    return [np.arange(count)[None, :] < count - idx for idx in range(count)]


@adapter("datasets/interfaces/dataset_interface.py", "_compute_class_weights")
def weights_of_classes(case: Case) -> Answer:
    """Classes without an image in a split are left out of its numbering; they have no weight in the reference."""
    labels, split = case.inputs["labels"], case.inputs["split"]
    return {
        name: _weights(labels[split == number])
        for number, name in enumerate(("train", "validation", "test"))
        if name in case.expected
    }


def _weights(labels: Iterable[int]) -> np.ndarray:
    present, numbered = np.unique(np.asarray(labels), return_inverse=True)
    return class_weights(numbered.tolist(), [str(label) for label in present]).numpy()


@adapter("datasets/functional.py", "train_test_split")
def one_shuffle(case: Case) -> Answer:
    ids, params = case.inputs["ids"], case.params
    if not params.get("shuffle", True):
        raise Skip("a draw shuffles")
    rest, held_out = shuffled_split(
        case.inputs["labels"].tolist(),
        rest_frac=params["train_size"],
        seed=params["seed"],
        stratified=params["stratified"],
    )
    return {"train": ids[rest], "test": ids[held_out]}


@adapter("datasets/functional.py", "k_fold_split")
def one_fold(case: Case) -> Answer:
    ids, params = case.inputs["ids"], case.params
    rest, held_out = _fold(case.inputs["labels"], params["n_splits"], params["fold"], params)
    return {"train": ids[rest], "test": ids[held_out]}


@adapter("datasets/functional.py", "create_splits")
def held_out_images_and_folds(case: Case) -> Answer:
    """Test images are drawn first, then the others are split into folds, in the order of their list."""
    ids, labels, params = case.inputs["ids"], case.inputs["labels"], case.params
    rest, test = shuffled_split(
        labels.tolist(), rest_frac=params["train_size"], seed=params["seed"], stratified=params["stratified"]
    )
    answer = {"test": ids[test]}
    if params["k"] == 1:
        return answer | {"train_0": ids[rest], "val_0": ids[:0]}
    rest = np.sort(rest)
    for fold in range(params["k"]):
        train, val = _fold(labels[rest], params["k"], fold, params)
        answer |= {f"train_{fold}": ids[rest][train], f"val_{fold}": ids[rest][val]}
    return answer


def _fold(labels: np.ndarray, num_folds: int, fold: int, params: Given) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into those outside and those inside a fold."""
    held_out = fold_of(
        labels.tolist(), num_folds=num_folds, fold=fold, seed=params["seed"], stratified=params["stratified"]
    )
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out
