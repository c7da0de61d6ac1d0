"""Masks that exist already: a COCO instances file of another tool, of people, or of this pipeline."""

import logging
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pipeline.data.coco import ListedImage, masks_of_image, read_instances
from pipeline.data.datasets.sources import safe_name
from pipeline.data.masks import StoredMask, decode_mask
from pipeline.errors import PipelineError
from pipeline.params import CocoParams, MasksParams
from pipeline.segmenters.interface import Picture, Segment, Segmenter

_log = logging.getLogger(__name__)


class CocoSegmenter(Segmenter):
    """Looks an image up in the file by its name; see :func:`~pipeline.data.coco.masks_of_image` for order and scores.

    A listed image is that of the key which equals its ``file_name`` without folders and suffix (so names in
    ``data/dataset`` always fit); else the key that the data set's reader makes of the file name with its folders, as
    CUB-200-2011's does of ``001.Black_footed_Albatross/....jpg``.
    """

    holds_device = True  # no network, but a file that is read once, in one process, and not sent to workers
    version = 1

    def __init__(self, source: Path, images: Sequence[ListedImage], params: CocoParams) -> None:
        """Take the IMAGES of the file SOURCE."""
        self._source = source
        self._params = params
        self._num_images = len(images)
        self._by_stem: defaultdict[str, list[ListedImage]] = defaultdict(list)
        self._by_path: defaultdict[str, list[ListedImage]] = defaultdict(list)
        for image in images:
            parts = posixpath.splitext(image.file_name.replace("\\", "/"))[0].split("/")
            self._by_stem[parts[-1]].append(image)
            for name in {safe_name("/".join(parts[first:])) for first in range(len(parts))}:
                self._by_path[name].append(image)

    @classmethod
    def from_params(cls, params: MasksParams, device: str) -> "CocoSegmenter":
        """Read the file in ``masks.weights``.

        Raises:
            PipelineError: it is no COCO instances file.
        """
        source = Path(params.weights)
        return cls(source, read_instances(source), params.coco)

    @classmethod
    def looks_at(cls, params: MasksParams) -> tuple[Literal["object_box", "image_key"], ...]:
        """The image's name: two images with the same pixels have each their own annotations."""
        return ("image_key",)

    def segment(self, picture: Picture) -> list[Segment]:
        """Decode the masks that the file has for the image; see :class:`Segmenter`.

        Raises:
            PipelineError: the file lists the image twice, or not at all, in another size, or with damaged masks.
        """
        height, width = picture.image.shape[:2]
        return [
            Segment(decode_mask(mask.rle, height=height, width=width), mask.score, mask.stability)
            for mask in self._masks_of(picture)[0]
        ]

    def stream(self, pictures: Iterable[Picture]) -> Iterator[list[StoredMask]]:
        """As the base class, without unpacking the masks; logs what was not used."""
        num_found, num_empty = 0, 0
        for picture in pictures:
            masks, image = self._masks_of(picture)
            if image is not None:
                num_found += 1
                num_empty += len(image.annotations) - len(masks)
            yield masks
        _log.info(
            "%s: %d of its %d images were looked up (the others are not in the data set, or in the store already);"
            " %d annotations without a pixel were left out",
            self._source,
            num_found,
            self._num_images,
            num_empty,
        )

    def _masks_of(self, picture: Picture) -> tuple[list[StoredMask], ListedImage | None]:
        image = self._find(picture.image_key)
        if image is None:
            return [], None
        height, width = picture.image.shape[:2]
        if image.size is not None and image.size != (width, height):
            raise PipelineError(
                f"{self._source}: {image.file_name} is {image.size[0]}x{image.size[1]} there, but image"
                f" {picture.image_key} is {width}x{height}: annotate the images of the data set"
            )
        try:
            return masks_of_image(image, height=height, width=width), image
        except ValueError as error:
            raise PipelineError(f"{self._source}: {image.file_name}, {error}: correct the file") from None

    def _find(self, image_key: str) -> ListedImage | None:
        found = self._by_stem.get(image_key) or self._by_path.get(image_key, [])
        if len(found) > 1:
            raise PipelineError(
                f"{self._source}: {found[0].file_name} and {found[1].file_name} are both image {image_key}:"
                " remove or rename one"
            )
        if not found and self._params.missing == "error":
            raise PipelineError(
                f"{self._source}: lists no image {image_key}; add it, or set `masks.coco.missing: empty` to go on"
                " without masks"
            )
        return found[0] if found else None
