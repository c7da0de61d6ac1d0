"""A small data set, its crops and an untrained model of them: what explaining other pictures needs."""

import numpy as np
from PIL import Image

from pipeline.artifacts import IMAGES, PROTOTYPES, write_table
from pipeline.data.bags import BagReader
from pipeline.data.segmentation import write_masks
from pipeline.data.shards import write_crops
from pipeline.io import sha256_of_file
from pipeline.model.files import save_model
from pipeline.params import CompatParams
from pipeline.runtime import Runtime
from pipeline.training.prototype_rows import prototype_rows
from tests.small_networks import network_of

RUNTIME = Runtime(workers=1, device="cpu")
CLASSES = ["wren", "gull", "tern"]
KEYS = ("one", "three", "two")
SUPERPIXEL = {"segmenter": "superpixel", "weights": "pipeline/segmenters/superpixel.py"}
GRID = {"segmenter": "grid", "weights": "pipeline/segmenters/grid.py", "grid": {"rows": 2, "columns": 2}}


def blobs(seed):
    """A picture with a few blots of one colour each, which a segmenter finds."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:96, :112]
    picture = np.full((96, 112, 3), rng.integers(60, 200, size=3), dtype=np.uint8)
    for _ in range(4):
        y, x, radius = rng.integers(15, 80), rng.integers(15, 95), rng.integers(8, 22)
        picture[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = rng.integers(0, 256, size=3)
    return picture


class Run:
    """A data set, its crops, and a model of them."""

    def __init__(self, folder, head, masks, crops, compat=CompatParams(), class_names=CLASSES):
        self.folder, self.final = folder, folder / "final"
        self.class_names = list(class_names)
        rows = []
        for label, (key, split) in enumerate(zip(KEYS, ("train", "val", "test"), strict=True)):
            path = folder / "dataset" / f"{key}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(blobs(label)).save(path)
            row = {"image_key": key, "path": path.name, "sha256": sha256_of_file(path), "split": split, "parts": []}
            rows.append(row | {"width": 112, "height": 96, "label": label, "class_name": self.class_names[label]})
        write_table(folder / "dataset/images.parquet", rows, IMAGES, class_names=self.class_names, part_names=[])
        store = folder / "store.sqlite"
        write_masks(folder / "dataset", folder / "masks", store=store, params=masks, runtime=RUNTIME)
        write_crops(
            folder / "dataset", folder / "masks", folder / "crops", params=crops, runtime=RUNTIME, compat=compat
        )
        self.network = network_of(head)
        self.reader = BagReader(folder / "crops", "train", "val", "test", views=self.network.views)
        save_model(
            self.final,
            self.network,
            class_names=self.class_names,
            size_px=self.reader.size_px,
            preparation=self.reader.preparation,
        )
        self._write_prototypes()

    def _write_prototypes(self):
        """Let each prototype be a view, or a place, of the training image; the last one has no source."""
        rows = prototype_rows(self.network, self.class_names)
        views = self.reader.rows(self.reader.image_keys.index(KEYS[0]))
        for row in rows[:-1]:
            view = views[row["prototype_idx"] % len(views)]
            place_idx = 0 if self.network.grid else None
            row |= {"image_key": KEYS[0], "view_idx": view.view_idx, "place_idx": place_idx, "mask_idx": view.mask_idx}
            row |= {"box": list(view.box), "distance_before": 0.25, "distance_after": 0.0}
        write_table(self.final / "prototypes.parquet", rows, PROTOTYPES)

    def picture(self, key):
        return self.folder / "dataset" / f"{key}.png"
