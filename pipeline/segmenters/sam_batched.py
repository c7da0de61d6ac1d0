"""The masks of Segment Anything's automatic generator, from batches of images, crops and points.

What the package does one after the other for every crop of every image, in the order in which it costs least:

1. In threads, beside the network, the picture and its crops are brought to the size of the input.
2. Crops of any images go through the encoder together.
3. The points of a crop are decoded together; a mask is drawn only if its predicted IoU passes.
4. What is drawn is up-sampled in the package's two steps, a bounded number of pixels at a time, judged (stability, box
   near the edge of the crop) and turned into runs, all on the device; duplicates are recognised by their boxes.
5. In a thread again: duplicates between crops, small holes and islands, COCO's run lengths.

Everything that decides about a mask is computed as in the package, so the masks are the package's own: bit for bit in
float32 on a CPU where the network's matrix products round alike in any batch (see :mod:`.sam_decoder`) and one crop is
encoded at a time; otherwise up to the rounding of those products.
"""

import collections
import dataclasses
import itertools
import logging
import math
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage
from segment_anything.modeling import Sam
from segment_anything.utils.amg import build_all_layer_point_grids, generate_crop_boxes, is_box_near_crop_edge
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torchvision.ops.boxes import batched_nms, box_area

from pipeline.data.boxes import Box, box_of_mask
from pipeline.data.masks import StoredMask, decode_mask, encode_mask
from pipeline.engine import map_ahead
from pipeline.errors import PipelineError
from pipeline.params import SamParams
from pipeline.segmenters.interface import Picture
from pipeline.segmenters.mask_runs import MaskRuns, find_runs, join_runs
from pipeline.segmenters.sam_decoder import PointDecoder
from pipeline.segmenters.sam_encoder import encode_fused

_log = logging.getLogger(__name__)

_PREPARING_THREADS = 2
_KEPT_GRIDS = 32  # of points, embedded: one picture has a few sizes of crops, and the next one mostly the same
_SQUARE = ndimage.generate_binary_structure(rank=2, connectivity=2)  # a pixel and its eight neighbours


@dataclasses.dataclass(frozen=True, slots=True)
class _Sizes:
    """How much goes through the network at once."""

    crops: int  # in the encoder
    points: int  # in the decoder
    pixels: int  # of logits in the size of the image, or of the input if that is larger

    @classmethod
    def choose(cls, params: SamParams, device: str) -> "_Sizes":
        # a CPU gains nothing from more; 64 is the package's number, and with another one tokens are rounded otherwise
        auto = cls(crops=1, points=64, pixels=2**24) if device == "cpu" else cls(crops=8, points=512, pixels=2**28)
        return cls(
            crops=auto.crops if params.images_per_batch == "auto" else params.images_per_batch,
            points=auto.points if params.points_per_batch == "auto" else params.points_per_batch,
            pixels=auto.pixels,
        )

    def halved(self) -> "_Sizes":
        return _Sizes(max(1, self.crops // 2), max(1, self.points // 2), max(1, self.pixels // 2))


@dataclasses.dataclass(frozen=True, slots=True)
class _Crop:
    """A part of a picture, or all of it, as the encoder wants it.

    Attributes:
        image_size: height and width of the picture.
        box: what the crop shows of it.
        layer: of the crops; 0 is the picture itself.
        pixels: RGB, the longer side brought to that of the input.
    """

    image_size: tuple[int, int]
    box: Box
    layer: int
    pixels: UInt8[Tensor, "3 height width"]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in the image."""
        return self.box.y1 - self.box.y0, self.box.x1 - self.box.x0


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """Masks, in the frame of a crop or of an image.

    Attributes:
        iou: predicted.
        stability: of the outline.
        boxes: x0, y0, x1, y1 as the package has them, inclusive.
        runs: of the masks.
    """

    iou: Float[Tensor, " mask"]
    stability: Float[Tensor, " mask"]
    boxes: Int[Tensor, "mask 4"]
    runs: MaskRuns

    def take(self, masks: Int[Tensor, " chosen"]) -> "_Found":
        return _Found(self.iou[masks], self.stability[masks], self.boxes[masks], self.runs.take(masks))

    def at(self, box: Box) -> "_Found":
        """Move the masks from the frame of a crop to that of its image."""
        corner = torch.tensor([box.x0, box.y0, box.x0, box.y0])
        return _Found(self.iou, self.stability, self.boxes + corner, self.runs.moved(box.x0, box.y0))

    def cpu(self) -> "_Found":
        return _Found(self.iou.cpu(), self.stability.cpu(), self.boxes.cpu(), self.runs.cpu())


@dataclasses.dataclass(frozen=True, slots=True)
class _Image:
    """A picture on its way.

    Attributes:
        size: height and width.
        crops: in the package's order; the picture itself is the first.
        found: of the crops that are decoded, in the same order.
    """

    size: tuple[int, int]
    crops: list[_Crop]
    found: list[_Found] = dataclasses.field(default_factory=list)


class BatchedMaskGenerator:
    """Segment Anything's automatic mask generator for many pictures; see the module."""

    def __init__(self, model: Sam, params: SamParams, dtype: torch.dtype = torch.float32) -> None:
        """Take a network on its device.

        Args:
            model: in evaluation mode; not changed.
            params: every setting of the package's generator, and the sizes of the batches.
            dtype: float32, or bfloat16 for autocast and fused attention.
        """
        self._model = model
        self._params = params
        self._dtype = dtype
        self._decoder = PointDecoder(model, dtype)
        self._resize = ResizeLongestSide(model.image_encoder.img_size)
        self._grids = build_all_layer_point_grids(
            params.points_per_side, params.crop_n_layers, params.crop_n_points_downscale_factor
        )
        self._prompts: dict[tuple[int, tuple[int, int]], Float[Tensor, "point prompt dim"]] = {}
        self._sizes = _Sizes.choose(params, model.device.type)
        self._shrunk = False

    def generate(self, pictures: Iterable[Picture]) -> Iterator[list[StoredMask]]:
        """Find the masks of PICTURES, in their order, the highest predicted IoU first.

        A few pictures are read ahead; in flight are only those of one batch of the encoder, and all of its finished
        ones are given before the next batch begins.

        Raises:
            PipelineError: the device's memory does not hold half the batch either.
        """
        images = map_ahead(self._prepare, pictures, threads=_PREPARING_THREADS)
        crops = ((image, crop) for image in images for crop in image.crops)
        waiting: collections.deque[Future[list[StoredMask]]] = collections.deque()
        with ThreadPoolExecutor(1) as finishing:
            while batch := list(itertools.islice(crops, self._sizes.crops)):
                failure = None
                founds = self._find([crop for _, crop in batch])
                try:
                    for (image, _), found in zip(batch, founds, strict=True):
                        image.found.append(found)
                        if len(image.found) == len(image.crops):
                            waiting.append(finishing.submit(self._finish, image))
                        while waiting and waiting[0].done():
                            yield waiting.popleft().result()
                except PipelineError as error:
                    failure = error
                while waiting:  # what is finished is given before anything else is begun, or said
                    yield waiting.popleft().result()
                if failure is not None:
                    raise failure

    def _prepare(self, picture: Picture) -> _Image:
        """Cut a picture into its crops, as large as the network wants them; in a thread."""
        height, width = picture.image.shape[:2]
        boxes, layers = generate_crop_boxes(
            (height, width), self._params.crop_n_layers, self._params.crop_overlap_ratio
        )
        crops = []
        for (x0, y0, x1, y1), layer in zip(boxes, layers, strict=True):
            if x0 < x1 and y0 < y1:  # a picture of a few pixels has crops without area, on which the package fails
                pixels = torch.from_numpy(self._resize.apply_image(picture.image[y0:y1, x0:x1]))
                crops.append(_Crop((height, width), Box(x0, y0, x1, y1), layer, pixels.permute(2, 0, 1)))
        return _Image((height, width), crops)

    def _find(self, crops: Sequence[_Crop]) -> Iterator[_Found]:
        """Find the masks of crops; once in a run with half of everything, when memory ran out."""
        num_done = 0
        while num_done < len(crops):
            batch = crops[num_done : num_done + self._sizes.crops]
            try:
                embeddings = self._encode(batch)
            except RuntimeError as error:
                self._shrink(error)
                continue
            for crop, embedding in zip(batch, torch.split(embeddings, 1), strict=True):
                try:
                    found = self._decode(crop, embedding)
                except RuntimeError as error:
                    self._shrink(error)
                    break
                num_done += 1
                yield found

    def _shrink(self, error: RuntimeError) -> None:
        """Go on with half of everything if ERROR is a lack of memory, the first one.

        Raises:
            RuntimeError: the error, if it is another.
            PipelineError: it is the second one.
        """
        # a CPU's allocator has no error of its own
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise error
        if self._shrunk:
            raise PipelineError(
                f"out of memory with {self._sizes.crops} crops and {self._sizes.points} points at once: set"
                " masks.sam.images_per_batch and masks.sam.points_per_batch lower; what is finished is kept"
            ) from None
        self._sizes, self._shrunk = self._sizes.halved(), True
        self._prompts.clear()
        traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        _log.warning(
            "out of memory: going on with %d crops and %d points at once", self._sizes.crops, self._sizes.points
        )

    def _encode(self, crops: Sequence[_Crop]) -> Float[Tensor, "crop dim row column"]:
        model = self._model
        with torch.inference_mode():
            inputs = torch.stack([model.preprocess(crop.pixels.to(model.device)) for crop in crops])
            if self._dtype == torch.float32:
                embeddings: Tensor = model.image_encoder(inputs)
                return embeddings
            with torch.autocast(model.device.type, self._dtype):
                return encode_fused(model.image_encoder, inputs).float()

    def _decode(self, crop: _Crop, embedding: Float[Tensor, "1 dim row column"]) -> _Found:
        """Find the masks of one crop; nothing of it stays on the device."""
        params = self._params
        with torch.inference_mode():
            parts = [
                part
                for prompts in torch.split(self._prompts_of(crop), self._sizes.points)
                for part in self._masks_of_points(crop, embedding, prompts)
            ]
            found = _joined(parts)
            return found.take(_suppress(found.boxes, found.iou, params.box_nms_thresh)).cpu()

    def _prompts_of(self, crop: _Crop) -> Float[Tensor, "point prompt dim"]:
        """Embed the grid of points of a crop; crops of one size share it."""
        key = (crop.layer, crop.size)
        if key not in self._prompts:
            points = self._grids[crop.layer] * np.array(crop.size)[None, ::-1]
            coordinates = torch.as_tensor(self._resize.apply_coords(points, crop.size), device=self._model.device)
            if len(self._prompts) == _KEPT_GRIDS:
                self._prompts.clear()
            self._prompts[key] = torch.cat(
                [
                    self._model.prompt_encoder(
                        (some[:, None], torch.ones(len(some), 1, dtype=torch.int, device=some.device)), None, None
                    )[0]
                    for some in torch.split(coordinates, self._sizes.points)
                ]
            )
        return self._prompts[key]

    def _masks_of_points(
        self, crop: _Crop, embedding: Float[Tensor, "1 dim row column"], prompts: Float[Tensor, "point prompt dim"]
    ) -> Iterator[_Found]:
        """Find the masks of some points, a few at a time; in the package's order, its filters applied."""
        decoded = self._decoder.decode(embedding, prompts)
        threshold = self._params.pred_iou_thresh
        wanted = decoded.iou > threshold if threshold > 0 else torch.ones_like(decoded.iou, dtype=torch.bool)
        points = wanted.any(dim=1).nonzero()[:, 0]
        rows = self._rows_to_draw(crop, embedding.shape[2])
        height, width = crop.size
        pixels_per_point = wanted.shape[1] * max(height * width, self._model.image_encoder.img_size**2)
        if len(points) == 0:
            yield self._judge(crop, decoded.iou[wanted], decoded.iou.new_zeros(0, height, width))
            return
        for few in torch.split(points, max(1, self._sizes.pixels // pixels_per_point)):
            drawn = self._decoder.draw(decoded, few, rows=rows, columns=embedding.shape[3])
            logits = self._to_crop_size(drawn[wanted[few]], crop)
            yield self._judge(crop, decoded.iou[few][wanted[few]], logits)

    def _rows_to_draw(self, crop: _Crop, embedding_rows: int) -> int:
        """Count the embedding's rows on which the picture's pixels depend; those below show padding."""
        side: int = self._model.image_encoder.img_size
        scale, remainder = divmod(side, 4 * embedding_rows)
        if remainder:
            return embedding_rows
        # the last input row lies between two low-resolution rows: interpolation needs the second as well
        low_resolution_rows = math.floor((crop.pixels.shape[1] - 0.5) / scale - 0.5) + 2
        return min(embedding_rows, math.ceil(low_resolution_rows / 4))

    def _to_crop_size(
        self, low: Float[Tensor, "mask low_row low_column"], crop: _Crop
    ) -> Float[Tensor, "mask height width"]:
        """Up-sample as the package does: to the input, whose padding is cut away, then to the crop.

        The package's first step gives a square; here it ends with the rows that were drawn.
        """
        side = self._model.image_encoder.img_size
        input_height, input_width = crop.pixels.shape[1:]
        input_rows = low.shape[1] * side // low.shape[2]
        large = F.interpolate(low[:, None], (input_rows, side), mode="bilinear", align_corners=False)
        large = large[..., :input_height, :input_width]
        return F.interpolate(large, crop.size, mode="bilinear", align_corners=False)[:, 0]

    def _judge(self, crop: _Crop, iou: Float[Tensor, " mask"], logits: Float[Tensor, "mask height width"]) -> _Found:
        """Keep the masks that are stable and do not end at an edge of the crop inside the image."""
        params, threshold = self._params, self._model.mask_threshold
        stability = _num_above(logits, threshold + params.stability_score_offset) / _num_above(
            logits, threshold - params.stability_score_offset
        )
        if params.stability_score_thresh > 0:
            stable = stability >= params.stability_score_thresh
            iou, stability, logits = iou[stable], stability[stable], logits[stable]
        runs = find_runs(logits > threshold)
        found = _Found(iou, stability, runs.inclusive_boxes(), runs)
        (x0, y0, x1, y1), (height, width) = crop.box, crop.image_size
        cut = is_box_near_crop_edge(found.boxes, [x0, y0, x1, y1], [0, 0, width, height])
        # the package carries empty masks along; they neither suppress another nor are suppressed
        return found.take((~cut & (runs.areas_px() > 0)).nonzero()[:, 0])

    def _finish(self, image: _Image) -> list[StoredMask]:
        """Bring the masks of all crops together and encode them; in a thread, on the CPU."""
        params = self._params
        found = _joined([part.at(crop.box) for crop, part in zip(image.crops, image.found, strict=True)])
        if params.crop_n_layers > 0:
            areas = box_area(torch.tensor([list(crop.box) for crop in image.crops]))
            num_found = torch.tensor([len(part.iou) for part in image.found])
            smallest_first = 1 / areas.repeat_interleave(num_found)
            found = found.take(_suppress(found.boxes, smallest_first, params.crop_nms_thresh))
        height, width = image.size
        masks = [
            StoredMask(rle, Box(x0, y0, x1 + 1, y1 + 1), area_px, iou, stability)
            for rle, (x0, y0, x1, y1), area_px, iou, stability in zip(
                found.runs.coco_counts(height=height, width=width),
                found.boxes.tolist(),
                found.runs.areas_px().tolist(),
                found.iou.tolist(),
                found.stability.tolist(),
                strict=True,
            )
        ]
        if params.min_mask_region_area > 0 and masks:
            masks = self._without_small_regions(masks, image.size)
        return sorted(masks, key=lambda mask: -mask.score)

    def _without_small_regions(self, masks: list[StoredMask], size: tuple[int, int]) -> list[StoredMask]:
        """Fill small holes, remove small islands, and the duplicates that arise: of two, the one that was changed."""
        height, width = size
        cleaned = []
        for mask in masks:
            pixels = decode_mask(mask.rle, height=height, width=width)
            clean = remove_islands(
                fill_holes(pixels, self._params.min_mask_region_area), self._params.min_mask_region_area
            )
            if clean is not pixels:
                mask = dataclasses.replace(
                    mask, rle=encode_mask(clean), box=box_of_mask(clean), area_px=int(clean.sum())
                )
            cleaned.append(mask)
        boxes = torch.tensor([[mask.box.x0, mask.box.y0, mask.box.x1 - 1, mask.box.y1 - 1] for mask in cleaned])
        unchanged = torch.tensor([float(new is old) for new, old in zip(cleaned, masks, strict=True)])
        kept = _suppress(boxes, unchanged, max(self._params.box_nms_thresh, self._params.crop_nms_thresh))
        return [cleaned[mask] for mask in kept.tolist()]


def fill_holes(mask: Bool[np.ndarray, "height width"], min_area_px: int) -> Bool[np.ndarray, "height width"]:
    """Add the 8-connected pieces of the background that are smaller than MIN_AREA_PX.

    Returns the same array if there are none.
    """
    pieces, area_px = _pieces(~mask)
    small = area_px < min_area_px
    return mask | np.append(False, small)[pieces] if small.any() else mask


def remove_islands(mask: Bool[np.ndarray, "height width"], min_area_px: int) -> Bool[np.ndarray, "height width"]:
    """Drop the 8-connected pieces that are smaller than MIN_AREA_PX, but for the largest if all of them are.

    Returns the same array if there is nothing to drop.
    """
    pieces, area_px = _pieces(mask)
    small = area_px < min_area_px
    if not small.any():
        return mask
    if small.all():
        small[_first_largest(pieces, area_px)] = False
    kept: np.ndarray = np.append(False, ~small)[pieces]
    return kept


def _first_largest(pieces: Int[np.ndarray, "height width"], area_px: Int[np.ndarray, " piece"]) -> int:
    """Choose the largest piece; of equal ones the first for OpenCV, which reads in blocks of 2 x 2 pixels."""
    rows, columns = np.nonzero(np.append(False, area_px == area_px.max())[pieces])
    first = np.lexsort((columns // 2, rows // 2))[0]
    return int(pieces[rows[first], columns[first]]) - 1


def _pieces(
    mask: Bool[np.ndarray, "height width"],
) -> tuple[Int[np.ndarray, "height width"], Int[np.ndarray, " piece"]]:
    """Number the 8-connected pieces from 1, 0 elsewhere; and count their pixels."""
    pieces, num_pieces = ndimage.label(mask, _SQUARE)
    return pieces, np.bincount(pieces.ravel(), minlength=num_pieces + 1)[1:]


def _suppress(boxes: Int[Tensor, "mask 4"], scores: Float[Tensor, " mask"], iou: float) -> Int[Tensor, " kept"]:
    """Leave out boxes that overlap a better one more than IOU; the best comes first."""
    kept: Tensor = batched_nms(boxes.float(), scores, torch.zeros(len(boxes)), iou_threshold=iou)
    return kept


def _num_above(logits: Float[Tensor, "mask height width"], threshold: float) -> Int[Tensor, " mask"]:
    # sums along rows fit 16 bits: no array of 64-bit integers in the size of the logits
    return (logits > threshold).sum(-1, dtype=torch.int16).sum(-1, dtype=torch.int32)


def _joined(parts: Sequence[_Found]) -> _Found:
    return _Found(
        torch.cat([part.iou for part in parts]),
        torch.cat([part.stability for part in parts]),
        torch.cat([part.boxes for part in parts]),
        join_runs([part.runs for part in parts]),
    )
