"""The test images as the evaluation sees them: their views, and what the data set knows of object and parts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from pipeline.data.bags import BagReader, ViewRow
from pipeline.data.boxes import Box
from pipeline.data.catalogue import ImageRow, load_images
from pipeline.errors import PipelineError
from pipeline.metrics.interface import Need
from pipeline.saliency.frame import paste


class TestImages:
    """Test images in the order of their keys.

    Attributes:
        reader: their bags.
        rows: what the data set knows of each.
        part_names: in part_idx order; empty where the data set has no parts.
        absent: what the data set lacks, and why, by need.
    """

    __test__ = False  # no test, for pytest

    def __init__(self, dataset: Path, reader: BagReader) -> None:
        """Find the rows of the reader's images.

        Raises:
            PipelineError: the shards have an image that the data set does not have.
        """
        table = load_images(dataset)
        by_key = {row.image_key: row for row in table.rows}
        if unknown := [key for key in reader.image_keys if key not in by_key]:
            raise PipelineError(f"{dataset} has no image {unknown[0]!r} of the shards: run `dvc repro crops`")
        self.reader = reader
        self.rows: tuple[ImageRow, ...] = tuple(by_key[key] for key in reader.image_keys)
        self.part_names = table.part_names
        self.absent: dict[Need, str] = {}
        num_without = sum(row.object_mask is None for row in self.rows)
        if num_without:
            self.absent["object_masks"] = (
                "the data set has no object masks"
                if num_without == len(self.rows)
                else f"{num_without} of {len(self.rows)} test images have no object mask"
            )
        if not self.part_names:
            self.absent["parts"] = "the data set has no part locations"

    def __len__(self) -> int:
        return len(self.rows)

    def view_rows(self, image: int) -> list[ViewRow]:
        """The views of one image."""
        return self.reader.rows(image)

    def views(self, image: int) -> UInt8[Tensor, "view 3 side side"]:
        """Decode the views of one image, RGB."""
        return torch.from_numpy(self.reader.views(image)).permute(0, 3, 1, 2)

    def box_shares(self, images: Sequence[int]) -> Float[Tensor, "view 4"]:
        """Give the boxes of all views of some images: x0, y0, x1, y1, shares of the image's sides."""
        shares = []
        for image in images:
            width, height = self.size(image)
            for view in self.view_rows(image):
                box = view.box
                shares.append((box.x0 / width, box.y0 / height, box.x1 / width, box.y1 / height))
        return torch.tensor(shares)

    def size(self, image: int) -> tuple[int, int]:
        """Width and height of one image, pixels."""
        return self.rows[image].width, self.rows[image].height

    def object_masks(self, images: Sequence[int], side_px: int) -> Bool[Tensor, "image side side"]:
        """Read object masks, each brought to a square by the nearest pixel; only where none is absent.

        Raises:
            PipelineError: a mask is missing or damaged.
        """
        return torch.stack([self._object_mask(image, side_px) for image in images])

    def _object_mask(self, image: int, side_px: int) -> Bool[Tensor, "side side"]:
        path = self.rows[image].object_mask
        assert path is not None
        try:
            with Image.open(path, formats=["PNG"]) as picture:
                mask = np.asarray(picture.convert("L"), dtype=bool)
        except FileNotFoundError:
            raise PipelineError(f"{path} does not exist: run `dvc checkout` or `dvc repro dataset`") from None
        except Exception as error:  # whatever a damaged file makes PIL trip over
            raise PipelineError(f"{path} is damaged ({type(error).__name__}): run `dvc repro -f -s dataset`") from None
        height, width = mask.shape
        return torch.from_numpy(paste(mask, Box(0, 0, width, height), (width, height), side_px))

    def part_locations(self, images: Sequence[int], side_px: int) -> Float[Tensor, "image part 2"]:
        """Give x and y of each part in squares of SIDE_PX, pixels; NaN for parts that are not visible."""
        located = torch.full((len(images), len(self.part_names), 2), torch.nan)
        for idx, image in enumerate(images):
            width, height = self.size(image)
            for part in self.rows[image].parts:
                # a location is a pixel: its centre is half a pixel further
                x, y = (int(part.x) + 0.5) / width, (int(part.y) + 0.5) / height
                located[idx, part.part_idx] = torch.tensor((x * side_px, y * side_px))
        return located
