"""Pictures of single prototypes, drawn when they are asked for, from the data set and the shards of the workspace."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.artifacts import PROTOTYPES, VIEWS_TABLE, WHOLE_IMAGE, read_table
from pipeline.data.bags import BagReader, ViewRow
from pipeline.data.boxes import Box
from pipeline.data.catalogue import ImageRow, load_images
from pipeline.data.masks import encode_mask
from pipeline.model.network import PrototypeNetwork
from pipeline.report.thumbnails import SourceImage, SourceView, Thumbnail, around_place, draw_source


class PrototypePictures:
    """Draws the training views that the prototypes of a model are shown by.

    Attributes:
        missing: why there are no pictures; empty where there are.
    """

    def __init__(self, model: Path, network: PrototypeNetwork, *, dataset: Path, crops: Path, side_px: int) -> None:
        """Read what the prototypes are.

        Args:
            model: folder of the network.
            network: as it lies there.
            dataset: folder with ``images.parquet``; pictures are left out where it is not there.
            crops: folder with shards; likewise.
            side_px: longer side of the photographs.

        Raises:
            PipelineError: a table is damaged.
        """
        self.rows: list[dict[str, Any]] = read_table(model / "prototypes.parquet", PROTOTYPES).to_pylist()
        self._side_px = side_px
        self._drawn: dict[int, tuple[Thumbnail, Thumbnail] | None] = {}
        self._images: Mapping[str, ImageRow] = {}
        self.missing = ""
        for needed in (dataset / "images.parquet", crops / VIEWS_TABLE):
            if not needed.exists():
                self.missing = f"{needed} is not there: prototypes are named, but not shown"
                return
        self._images = {row.image_key: row for row in load_images(dataset).rows}
        self._reader = BagReader(crops, "train", "val", views=network.views)
        self._bag_of = {image_key: bag_idx for bag_idx, image_key in enumerate(self._reader.image_keys)}

    def drawn(self, prototype_idx: int) -> tuple[Thumbnail, Thumbnail] | None:
        """Draw the training photograph with the outline of the mask and the box, and the view or place itself.

        None where the prototype has no source, or the data set here does not have it.

        Raises:
            PipelineError: a photograph or a shard is damaged.
        """
        if prototype_idx not in self._drawn:
            self._drawn[prototype_idx] = self._draw(self.rows[prototype_idx])
        return self._drawn[prototype_idx]

    def _draw(self, row: Mapping[str, Any]) -> tuple[Thumbnail, Thumbnail] | None:
        image, bag_idx = self._images.get(row["image_key"]), None
        if image is not None:
            bag_idx = self._bag_of.get(image.image_key)
        if image is None or bag_idx is None:
            return None
        view = {view.view_idx: view for view in self._reader.rows(bag_idx)}.get(row["view_idx"])
        if view is None or view.mask_idx != row["mask_idx"]:
            return None  # the shards were made anew since
        drawn = source_view(self._reader, view, image, box=Box(*row["box"]), place_idx=row["place_idx"])
        return draw_source(SourceImage(image.path, image.width, image.height, (drawn,)), side_px=self._side_px)[0]


def source_view(reader: BagReader, view: ViewRow, image: ImageRow, *, box: Box, place_idx: int | None) -> SourceView:
    """Read what a prototype is: a view and its mask, or what lies around a place of a view.

    Args:
        reader: has the view.
        view: the source of the prototype, or where its place is.
        image: that the view was cut from.
        box: of the view; or what lies under the place, within the view. Image pixels.
        place_idx: of the view's feature grid; None where views are compared.

    Raises:
        PipelineError: a shard is missing or was changed after its table was written.
    """
    pixels = reader.view(view)
    if place_idx is not None:
        pixels = around_place(pixels, box, view.box)
    if view.mask_idx == WHOLE_IMAGE:
        return SourceView(pixels, box, None)
    shown = view.box  # the mask is known where the view shows it, and that is all of it but where boxes are clipped
    mask = np.zeros((image.height, image.width), dtype=bool)
    inside = Image.fromarray(reader.mask(view)).resize((shown.width_px, shown.height_px), Image.Resampling.NEAREST)
    mask[shown.y0 : shown.y1, shown.x0 : shown.x1] = np.asarray(inside, dtype=bool)
    return SourceView(pixels, box, encode_mask(mask))
