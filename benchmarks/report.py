"""The pages of prototypes and test images at the size of whole data sets: seconds, memory, files.

    python -m benchmarks.report --images 6000 --prototypes 2000 --views 8 [--keep FOLDER]

Pictures, masks and views are made up, every one another picture, so nothing is shared by its content; what a network
says of them is drawn at random. Prints one JSON line; with --keep the site stays, to be opened in a browser.
"""

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from benchmarks.device import device_name, timed
from pipeline.artifacts import IMAGES, PROTOTYPES, write_table
from pipeline.data.bags import BagReader
from pipeline.data.boxes import box_of_mask
from pipeline.data.catalogue import load_images
from pipeline.data.masks import MaskTableWriter, StoredMask, encode_mask
from pipeline.data.shards import write_crops
from pipeline.io import progress
from pipeline.model.backbone import Backbone
from pipeline.model.network import BagOutput
from pipeline.model.protomask import ProtoMask
from pipeline.params import CropsParams
from pipeline.report.gallery import add_prototypes_page
from pipeline.report.image_pages import add_image_pages
from pipeline.report.site import Site
from pipeline.report.test_outputs import TestOutputs
from pipeline.report.test_pictures import draw_test_images
from pipeline.runtime import Runtime

_WIDTH, _HEIGHT = 320, 240
_PROTOTYPES_PER_CLASS = 10
_TOP, _THUMBNAIL_PX = 5, 224


def main(
    images: int = 600,
    prototypes: int = 200,
    views: int = 8,
    keep: Annotated[Path | None, typer.Option(help="Where the site goes; deleted otherwise.")] = None,
) -> None:
    """Measure the pages of IMAGES test images and PROTOTYPES and print the line."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        _write_data(folder, images, prototypes, views)
        test = _outputs(folder, prototypes)
        site_folder = folder / "site"
        site_folder.mkdir()
        seconds: dict[str, float] = {}
        _, total_s, peak_mib = timed("cpu", lambda: _write_site(folder, site_folder, test, seconds))
        files = [path for path in site_folder.rglob("*") if path.is_file()]
        line: dict[str, Any] = {
            "benchmark": "report",
            "device": device_name(),
            "num_images": images,
            "num_prototypes": prototypes,
            "views_per_image": views,
            "seconds": {name: round(value, 1) for name, value in seconds.items()} | {"total": round(total_s, 1)},
            "peak_mib": peak_mib,
            "num_files": len(files),
            "site_mib": round(sum(path.stat().st_size for path in files) / 2**20, 1),
            "prototypes_html_kib": (site_folder / "prototypes.html").stat().st_size // 2**10,
            "images_html_kib": (site_folder / "images.html").stat().st_size // 2**10,
        }
        if keep is not None:
            shutil.copytree(site_folder, keep)
    print(json.dumps(line))


def _write_data(folder: Path, num_images: int, num_prototypes: int, num_views: int) -> None:
    """Make the data set: test images, and a training image for each class."""
    num_classes = max(1, num_prototypes // _PROTOTYPES_PER_CLASS)
    names = [f"Species {label:03d}" for label in range(num_classes)]
    keys = [(f"train_{idx:05d}", "train", idx) for idx in range(num_classes)]
    keys = [(f"test_{idx:05d}", "test", idx % num_classes) for idx in range(num_images)] + keys
    rows = []
    (folder / "masks").mkdir()
    with MaskTableWriter(folder / "masks/masks.parquet") as table:
        for position, (key, split, label) in enumerate(progress(sorted(keys), what="pictures", total=len(keys))):
            rng = np.random.default_rng(position)
            path = folder / f"dataset/{key}.jpg"
            path.parent.mkdir(exist_ok=True)
            coarse = rng.integers(256, size=(12, 16, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC).save(path, quality=90)
            row = {"image_key": key, "path": path.name, "sha256": "0" * 64, "width": _WIDTH, "height": _HEIGHT}
            rows.append(row | {"label": label, "class_name": names[label], "split": split, "parts": []})
            table.add(key, [_mask(rng, idx) for idx in range(num_views)])
    write_table(folder / "dataset/images.parquet", rows, IMAGES, class_names=names, part_names=[])
    params = CropsParams(size_px=112, max_views=num_views, duplicate_iou=1.0)
    write_crops(folder / "dataset", folder / "masks", folder / "crops", params=params, runtime=Runtime())
    training = BagReader(folder / "crops", "train")
    sources = []
    for idx in range(num_prototypes):
        bag_idx = min(idx // _PROTOTYPES_PER_CLASS, num_classes - 1)
        view = training.rows(bag_idx)[idx % len(training.rows(bag_idx))]
        row = {"prototype_idx": idx, "label": view.label, "class_name": names[view.label], "weight": 1.0}
        row |= {"image_key": view.image_key, "view_idx": view.view_idx, "mask_idx": view.mask_idx}
        sources.append(row | {"box": list(view.box), "distance_before": 0.1, "distance_after": 0.0})
    write_table(folder / "final/prototypes.parquet", sources, PROTOTYPES)


def _mask(rng: np.random.Generator, idx: int) -> StoredMask:
    """Draw an ellipse."""
    rows, columns = np.mgrid[:_HEIGHT, :_WIDTH]
    y, x = rng.uniform(60, _HEIGHT - 60), rng.uniform(60, _WIDTH - 60)
    height, width = rng.uniform(15, 55, size=2)
    mask = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1
    return StoredMask(encode_mask(mask), box_of_mask(mask), int(mask.sum()), 1.0 - idx / 100)


def _outputs(folder: Path, num_prototypes: int) -> TestOutputs:
    """Draw what a network says of the test images."""
    reader = BagReader(folder / "crops", "test")
    generator = torch.Generator().manual_seed(0)
    names = tuple(reader.class_names)
    labels = torch.arange(num_prototypes).div(_PROTOTYPES_PER_CLASS, rounding_mode="floor").clamp(max=len(names) - 1)
    network = ProtoMask(
        Backbone("test_efficientnet"), dim=4, prototype_labels=labels, num_classes=len(names), epsilon=1e-4
    )
    similarity = torch.rand(len(reader), num_prototypes, generator=generator)
    lengths = torch.tensor(reader.lengths)[:, None]
    element = (torch.rand(similarity.shape, generator=generator) * lengths).long()
    weights = network.class_weights()
    output = BagOutput(similarity @ weights.T, similarity, 1 - similarity, element)
    return TestOutputs(network, names, reader, output.logits, output, weights, (1, 1))


def _write_site(folder: Path, site_folder: Path, test: TestOutputs, seconds: dict[str, float]) -> None:
    site = Site(site_folder, title="ProtoMask", dataset_name="made up")
    images, runtime, start = load_images(folder / "dataset"), Runtime(), time.perf_counter()
    pictures = draw_test_images(
        site,
        test,
        images=images,
        masks=folder / "masks/masks.parquet",
        top=_TOP,
        thumbnail_px=_THUMBNAIL_PX,
        runtime=runtime,
    )
    seconds["test_images"] = time.perf_counter() - start
    cards = add_prototypes_page(
        site,
        folder / "final",
        test=test,
        pictures=pictures,
        images=images,
        crops=folder / "crops",
        splits=("train",),
        top=_TOP,
        thumbnail_px=_THUMBNAIL_PX,
        runtime=runtime,
    )
    seconds["prototypes"] = time.perf_counter() - start - seconds["test_images"]
    add_image_pages(site, cards, test=test, pictures=pictures)
    seconds["pages"] = time.perf_counter() - start - seconds["test_images"] - seconds["prototypes"]


if __name__ == "__main__":
    typer.run(main)
