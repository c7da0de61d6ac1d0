"""Runs so small that what changed between them can be counted by hand."""

from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
from PIL import Image

from pipeline.artifacts import IMAGES, MASKS, METRICS_DETAIL, PER_IMAGE, PROTOTYPES, write_table
from pipeline.data.masks import encode_mask
from pipeline.io import sha256_of, write_json
from pipeline.metrics.classification import MeanOfClassScores, OfEqualClasses, precision_of

CLASS_NAMES = ["gull", "<b>x</b>"]
SIDE_PX = 16


@dataclass(frozen=True)
class Toy:
    """A run: eight test images, four of each class, and three prototypes of training images."""

    row: str = "protomask"
    keys: tuple = tuple(f"test_{idx}" for idx in range(8))
    labels: tuple = (0, 0, 0, 0, 1, 1, 1, 1)
    predicted: tuple = (0, 0, 0, 1, 1, 1, 0, 0)
    sizes: tuple = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)  # compactness.local_size of each image
    shade: int = 100  # of the pictures
    prototypes: tuple = ((0, "train_0", 0), (0, "train_1", 0), (1, "train_2", -1))  # label, image_key, mask_idx


BEFORE = Toy()
# one image is broken (2), two are mended (6, 7); the second prototype moves
AFTER = replace(
    BEFORE,
    predicted=(0, 0, 1, 1, 1, 1, 1, 1),
    sizes=(1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0),
    prototypes=((0, "train_0", 0), (0, "train_2", 1), (1, "train_2", -1)),
)


def details_of(toy):
    """Numbers of a run, from formulas written out."""
    right = np.equal(toy.labels, toy.predicted)
    labels = np.array(toy.labels)
    recalls = [right[labels == label].mean() for label in np.unique(labels)]
    precision = OfEqualClasses(MeanOfClassScores(labels, np.array(toy.predicted), 2, precision_of), labels)
    num = len(labels)
    values = {
        ("classification", "accuracy"): (right.mean(), num),
        ("classification", "balanced_accuracy"): (np.mean(recalls), num),
        ("classification", "topk_accuracy"): (1.0, num),
        ("classification", "precision"): (precision.value(num), num),
        ("compactness", "global_size"): (float(len(toy.prototypes)), 0),
        ("compactness", "local_size"): (np.mean(toy.sizes), num),
    }
    return [
        {
            "row": toy.row,
            "family": family,
            "metric": key,
            "value": float(value),
            "low": None,
            "high": None,
            "num_images": num_images,
            "reason": None,
            "insensitive_to": None,
        }
        for (family, key), (value, num_images) in values.items()
    ]


def per_image_of(toy):
    rows = zip(toy.keys, toy.labels, toy.predicted, toy.sizes, strict=True)
    return [
        {
            "row": toy.row,
            "image_key": key,
            "label": label,
            "predicted": predicted,
            "confidence": 0.75,
            "label_probability": 0.75 if label == predicted else 0.25,
            "values": [("classification.accuracy", float(label == predicted)), ("compactness.local_size", size)],
        }
        for key, label, predicted, size in rows
    ]


def write_run(folder, toy):
    """Write all files of a run that a comparison reads, below FOLDER."""
    details = details_of(toy)
    metrics = {}
    for detail in details:
        metrics.setdefault(toy.row, {}).setdefault(detail["family"], {})[detail["metric"]] = detail["value"]
    write_json(folder / "results" / "metrics.json", metrics)
    write_table(folder / "results" / "metrics_detail.parquet", details, METRICS_DETAIL)
    write_table(folder / "results" / "per_image.parquet", per_image_of(toy), PER_IMAGE)
    write_table(folder / "models" / "final" / "prototypes.parquet", prototypes_of(toy), PROTOTYPES)
    images = [(key, label, "test") for key, label in zip(toy.keys, toy.labels, strict=True)]
    images += [(f"train_{idx}", 0, "train") for idx in range(3)]
    rows = []
    for key, label, split in sorted(images):
        buffer = BytesIO()
        Image.new("RGB", (SIDE_PX, SIDE_PX), (toy.shade, 40 * label, 0)).save(buffer, format="PNG")
        path = folder / "data" / "dataset" / "images" / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
        rows.append(
            {
                "image_key": key,
                "path": f"images/{key}.png",
                "sha256": sha256_of(buffer.getvalue()),
                "width": SIDE_PX,
                "height": SIDE_PX,
                "label": label,
                "class_name": CLASS_NAMES[label],
                "split": split,
                "parts": [],
            }
        )
    write_table(folder / "data" / "dataset" / "images.parquet", rows, IMAGES, class_names=CLASS_NAMES, part_names=[])
    mask = np.zeros((SIDE_PX, SIDE_PX), dtype=bool)
    mask[4:12, 4:12] = True
    masks = [
        {
            "image_key": f"train_{idx}",
            "mask_idx": mask_idx,
            "rle": encode_mask(mask),
            "box": [4, 4, 12, 12],
            "area_px": int(mask.sum()),
            "score": 1.0,
        }
        for idx in range(3)
        for mask_idx in range(2)
    ]
    write_table(folder / "data" / "masks" / "masks.parquet", masks, MASKS)


def prototypes_of(toy):
    return [
        {
            "prototype_idx": idx,
            "label": label,
            "class_name": CLASS_NAMES[label],
            "weight": 1.0,
            "image_key": key,
            "view_idx": 0,
            "mask_idx": mask_idx,
            "box": [4, 4, 12, 12] if mask_idx >= 0 else [0, 0, SIDE_PX, SIDE_PX],
            "distance_before": 0.1,
            "distance_after": 0.0,
        }
        for idx, (label, key, mask_idx) in enumerate(toy.prototypes)
    ]
