"""``data/dataset`` and ``data/masks`` to go with crops that a test has built."""

import numpy as np
from PIL import Image

from pipeline.artifacts import IMAGES, MASKS, VIEWS, metadata_of, read_table, write_table
from pipeline.data.masks import encode_mask


def write_dataset(dataset, masks, crops, *, side_px, part_names=(), object_masks=False):
    """Write the tables of the images whose views lie in CROPS.

    Pictures are squares of SIDE_PX. With PART_NAMES each image has all its parts but the last in places of its own;
    with OBJECT_MASKS the object is the middle of the image. Each image has two masks: its upper half, its left half.
    """
    views = read_table(crops / "views.parquet", VIEWS)
    class_names = metadata_of(views, "class_names")
    rows = {row["image_key"]: row for row in views.to_pylist()}
    dataset.mkdir(parents=True)
    upper, left, middle = (np.zeros((side_px, side_px), dtype=bool) for _ in range(3))
    upper[: side_px // 2] = True
    left[:, : side_px // 2] = True
    middle[side_px // 4 : -side_px // 4, side_px // 4 : -side_px // 4] = True
    Image.fromarray(middle.astype(np.uint8) * 255).save(dataset / "object.png")
    images, stored = [], []
    for position, (key, row) in enumerate(sorted(rows.items())):
        rng = np.random.default_rng(position)
        images.append(
            {
                "image_key": key,
                "path": f"{key}.jpg",
                "sha256": "0" * 64,
                "width": side_px,
                "height": side_px,
                "label": row["label"],
                "class_name": class_names[row["label"]],
                "split": row["split"],
                "object_box": None,
                "parts": [
                    {"part_idx": part_idx, "x": float(x), "y": float(y)}
                    for part_idx, (x, y) in enumerate(rng.integers(side_px, size=(max(0, len(part_names) - 1), 2)))
                ],
                "object_mask": "object.png" if object_masks else None,
                "part_mask": None,
            }
        )
        stored.extend(
            {
                "image_key": key,
                "mask_idx": mask_idx,
                "rle": encode_mask(mask),
                "box": box,
                "area_px": int(mask.sum()),
                "score": 1.0 - 0.1 * mask_idx,
                "stability": None,
            }
            for mask_idx, (mask, box) in enumerate(
                ((upper, [0, 0, side_px, side_px // 2]), (left, [0, 0, side_px // 2, side_px]))
            )
        )
    write_table(dataset / "images.parquet", images, IMAGES, class_names=list(class_names), part_names=list(part_names))
    write_table(masks / "masks.parquet", stored, MASKS)
