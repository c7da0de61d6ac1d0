"""Shards: the bags of a split as plain webdataset tars, written deterministically.

One sample is one image, that is one bag::

    KEY.json         image_key, label, class_name, width, height, views: [{member, mask_idx, mask_box, box, area_px}]
    KEY.00.jpg       a view, RGB JPEG
    KEY.00.mask.png  the mask inside it, 1 bit
    ...
    KEY.whole.jpg    the whole image; a view of the bag (the last) where `views` lists it, always there for a black box

Any webdataset reader opens them; ``views.parquet`` beside them says where in its tar each view's bytes lie, for
:mod:`pipeline.data.bags`.
"""

import functools
import io
import json
import logging
import tarfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import webdataset
from jaxtyping import Bool
from PIL import Image

from pipeline.artifacts import VIEWS, VIEWS_TABLE, WHOLE_IMAGE, write_table
from pipeline.data.boxes import box_of_mask
from pipeline.data.catalogue import ImageRow, load_images
from pipeline.data.images import read_image
from pipeline.data.masks import StoredMask, decode_mask, join_masks, segmentation_of
from pipeline.data.preparation import Preparation
from pipeline.data.views import EmptyBagError, choose_masks, cut_views, encode_view, shows_whole_image
from pipeline.engine import map_in_order
from pipeline.errors import PipelineError
from pipeline.io import new_folder, progress
from pipeline.params import CompatParams, CropsParams
from pipeline.runtime import Runtime

_log = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class _Sample:
    """One bag, encoded: the members of its webdataset sample, its table rows, what was passed over."""

    image_key: str
    split: str
    members: dict[str, bytes]
    rows: list[dict[str, Any]]
    passed_over: dict[str, int]
    num_masks: int


def write_crops(
    dataset: Path,
    masks: Path,
    out: Path,
    *,
    params: CropsParams,
    runtime: Runtime,
    compat: CompatParams = CompatParams(),
) -> dict[str, Any]:
    """Cut the views of every image and pack them into ``{split}-%05d.tar`` and ``views.parquet`` in OUT.

    Args:
        dataset: folder with ``images.parquet``.
        masks: folder with ``masks.parquet``.
        out: replaced as a whole when everything is written.
        params: the choice and the look of views.
        runtime: workers.
        compat: ``clipped_boxes`` and ``aliased_resizing``.

    Returns:
        Counts of images, masks and views; in = out + dropped for both images and masks.

    Raises:
        EmptyBagError: an image has no view and ``params.empty_bag`` is ``error``.
        PipelineError: an input is missing, damaged or does not fit the other.
    """
    images = load_images(dataset)
    work = join_masks(images.rows, masks / "masks.parquet")
    encode = functools.partial(_encode_bag, params=params, compat=compat)
    rows: list[dict[str, Any]] = []
    images_out: Counter[str] = Counter()
    dropped, passed_over, num_masks_in, num_fallback = 0, Counter[str](), 0, 0
    with new_folder(out) as folder, ExitStack() as stack:
        writers = {split: stack.enter_context(_SplitWriter(folder, split, params.bags_per_shard)) for split in _SPLITS}
        samples = map_in_order(encode, work, runtime=runtime)
        for sample in progress(samples, what="crops", total=len(images.rows)):
            num_masks_in += sample.num_masks
            passed_over.update(sample.passed_over)
            if not sample.members:
                dropped += 1
                continue
            rows.extend(writers[sample.split].add(sample))
            images_out[sample.split] += 1
            num_fallback += not params.whole_image and sample.rows[0]["mask_idx"] == WHOLE_IMAGE
        stack.close()
        rows.sort(key=lambda row: (row["split"], row["image_key"], row["view_idx"]))
        write_table(
            folder / VIEWS_TABLE,
            rows,
            VIEWS,
            class_names=list(images.class_names),
            size_px=params.size_px,
            preparation=Preparation.of(segmentation_of(masks / "masks.parquet"), params, compat).model_dump(
                mode="json"
            ),
        )
    num_mask_views = sum(row["mask_idx"] != WHOLE_IMAGE for row in rows)
    num_out = sum(images_out.values())
    assert len(images.rows) == num_out + dropped, "an image got lost"
    assert num_masks_in == num_mask_views + sum(passed_over.values()), "a mask got lost"
    return {
        "num_in": len(images.rows),
        "num_out": num_out,
        "dropped": {"empty_bag": dropped},
        "whole_image_instead_of_masks": num_fallback,
        "num_per_split": {split: images_out[split] for split in _SPLITS},
        "masks": {"num_in": num_masks_in, "num_out": num_mask_views, "dropped": dict(sorted(passed_over.items()))},
        "num_views": sum(row["in_bag"] for row in rows),
    }


def _encode_bag(item: tuple[ImageRow, list[StoredMask]], *, params: CropsParams, compat: CompatParams) -> _Sample:
    image_row, masks = item
    height, width = image_row.height, image_row.width
    choice = choose_masks(masks, height=height, width=width, params=params)
    passed_over = choice.passed_over
    if not choice.mask_idxs and not params.whole_image:
        if params.empty_bag == "error":
            raise EmptyBagError(image_row.path)
        if params.empty_bag == "drop":
            return _Sample(image_row.image_key, image_row.split, {}, [], passed_over, len(masks))
    image = read_image(image_row.path)
    if image.shape[:2] != (height, width):
        raise PipelineError(f"{image_row.path}: is {image.shape[1]}x{image.shape[0]}, its table says {width}x{height}")
    views = cut_views(
        image,
        masks,
        choice.mask_idxs,
        params,
        mask_of=lambda mask_idx: _mask_in_image(image_row, mask_idx, masks[mask_idx]),
        clipped=compat.clipped_boxes,
        aliased=compat.aliased_resizing,
    )
    members: dict[str, bytes] = {}
    entries: list[dict[str, Any]] = []
    for view_idx, view in enumerate(views):
        is_whole = view.mask_idx == WHOLE_IMAGE
        member = "whole" if is_whole else f"{view_idx:02d}"
        members[f"{member}.jpg"] = encode_view(view.pixels, params)
        if not is_whole:
            members[f"{member}.mask.png"] = _encode_mask_png(view.mask)
        entries.append(
            {
                "member": f"{member}.jpg",
                "mask_idx": view.mask_idx,
                "mask_box": list(view.mask_box),
                "box": list(view.box),
                "area_px": view.area_px,
            }
        )
    listed = entries if shows_whole_image(choice.mask_idxs, params) else entries[:-1]
    description = {
        "image_key": image_row.image_key,
        "label": image_row.label,
        "class_name": image_row.class_name,
        "width": width,
        "height": height,
        "views": listed,
    }
    encoded = json.dumps(description, sort_keys=True, ensure_ascii=False).encode("utf-8")
    rows = [
        {
            **entry,
            "image_key": image_row.image_key,
            "view_idx": view_idx,
            "split": image_row.split,
            "label": image_row.label,
            "in_bag": view_idx < len(listed),
        }
        for view_idx, entry in enumerate(entries)
    ]
    return _Sample(image_row.image_key, image_row.split, {"json": encoded, **members}, rows, passed_over, len(masks))


def _mask_in_image(image_row: ImageRow, mask_idx: int, stored: StoredMask) -> Bool[np.ndarray, "height width"]:
    """Decode a mask and make sure that it was predicted on this picture, not on an older one of another size."""
    try:
        mask = decode_mask(stored.rle, height=image_row.height, width=image_row.width)
        if box_of_mask(mask) != stored.box:
            raise ValueError(f"it does not fill its box {tuple(stored.box)}")
    except ValueError as error:
        raise PipelineError(
            f"{image_row.path}: mask {mask_idx} is not of this picture ({error}): run `dvc repro masks`"
        ) from None
    return mask


def _encode_mask_png(mask: Bool[np.ndarray, "side side"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()


class _SplitWriter:
    """Writes the shards of one split and finds out where each member's bytes came to lie."""

    def __init__(self, folder: Path, split: str, bags_per_shard: int) -> None:
        self._folder = folder
        self._split = split
        self._bags_per_shard = bags_per_shard
        self._num_bags = 0
        self._tar: webdataset.TarWriter | None = None
        self._path = folder
        self._rows: list[dict[str, Any]] = []

    def add(self, sample: _Sample) -> list[dict[str, Any]]:
        """Append one bag; the rows that come back get their offsets when the shard is closed."""
        if self._num_bags % self._bags_per_shard == 0:
            self._close_shard()
            self._path = self._folder / f"{self._split}-{self._num_bags // self._bags_per_shard:05d}.tar"
            # fixed time, owner and mode: equal bags make equal tars. A float as time would cost each member a kilobyte
            self._tar = webdataset.TarWriter(
                str(self._path), user="protomask", group="protomask", mode=0o644, mtime=0, encoder=False
            )
        assert self._tar is not None
        self._tar.write({"__key__": sample.image_key, **sample.members})
        self._num_bags += 1
        self._rows.extend(sample.rows)
        return sample.rows

    def _close_shard(self) -> None:
        if self._tar is None:
            return
        self._tar.close()
        self._tar = None
        with tarfile.open(self._path) as tar:
            places = {info.name: (info.offset_data, info.size) for info in tar}
        for row in self._rows:
            name = f"{row['image_key']}.{row.pop('member')}"
            row["shard"] = self._path.name
            row["jpeg_offset"], row["jpeg_size"] = places[name]
            row["mask_offset"], row["mask_size"] = places.get(name.removesuffix(".jpg") + ".mask.png", (None, None))
        self._rows = []

    def __enter__(self) -> "_SplitWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._close_shard()
        elif self._tar is not None:
            self._tar.close()
