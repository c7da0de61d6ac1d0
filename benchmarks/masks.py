"""Masks from Segment Anything: the package's automatic generator and ours, same weights and settings, one process.

    python -m benchmarks.masks --model vit_b --profile default --images 3 IMAGE_FOLDER
    python -m benchmarks.masks --model tiny --profile fast

Prints one JSON line: images/s of both and their ratio, peak memory, how many masks are the same, what share of the
time the encoder takes.

Without ``--weights``, ``tiny`` has its trained weights and synthetic birds; the others have random weights, arranged so
that filters see what they see with the published ones: about 30 % of the masks pass the predicted IoU, about 4 % the
stability, and outlines are smooth. Box suppression, which would leave a single mask of random ones, lets all pass.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything.modeling import Sam
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.device import BF16_PEAK_FLOPS, device_name
from pipeline.cli import command_line
from pipeline.data.datasets.synthetic import SyntheticBirds
from pipeline.data.images import decode_image, read_image
from pipeline.data.masks import StoredMask
from pipeline.errors import PipelineError
from pipeline.io import progress
from pipeline.params import MasksParams, SamParams, SyntheticParams
from pipeline.runtime import keep_freed_memory
from pipeline.segmenters.interface import Picture
from pipeline.segmenters.sam_batched import BatchedMaskGenerator
from pipeline.segmenters.sam_encoder import encode_fused
from pipeline.segmenters.tiny_sam import load_tiny_sam

_PASS_IOU, _PASS_STABILITY = 0.30, 0.04  # shares of all masks, of random weights
_SAME_IOU = 0.95
_SAMPLED_POINTS = 128
_MODEST = {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.6}  # thresholds for the tiny one, as in demo-sam


def main(
    images: Annotated[Path | None, typer.Argument(help="Folder of pictures, read in the order of names.")] = None,
    model: Literal["tiny", "vit_b", "vit_l", "vit_h"] = "tiny",
    weights: Annotated[Path | None, typer.Option(help="A published checkpoint.")] = None,
    profile: Literal["paper", "default", "fast"] = "default",
    num_images: Annotated[int, typer.Option("--images", min=1, help="How many pictures are timed.")] = 5,
    device: str = "cpu",
    precision: Literal["float32", "bfloat16"] = "float32",
    images_per_batch: int | None = None,
    points_per_batch: int | None = None,
) -> None:
    """Time both generators on the same pictures and compare their masks."""
    keep_freed_memory()
    torch.manual_seed(0)
    pictures = _pictures(images, num_images + 1)
    network = _network(model, weights).to(device).eval()
    params = MasksParams(segmenter="sam", profile=profile, sam=SamParams(model_type=model)).resolved().sam
    if model == "tiny":
        params = params.model_copy(update=_MODEST)
    elif weights is None:
        params = _like_trained(network, params, pictures[1:])
    sizes = {"images_per_batch": images_per_batch or "auto", "points_per_batch": points_per_batch or "auto"}
    ours = BatchedMaskGenerator(network, params.model_copy(update=sizes), getattr(torch, precision))
    packages = SamAutomaticMaskGenerator(
        network,
        output_mode="coco_rle",
        **params.model_dump(exclude={*sizes, "model_type", "batched", "cuda_precision"}),
    )
    warm_up, timed = pictures[0], pictures[1:]
    list(ours.generate([warm_up]))
    if device != "cpu":
        packages.generate(warm_up.image)

    our_masks, our_s, our_peak = timed(
        device, lambda: list(progress(ours.generate(timed), what="ours", total=len(timed)))
    )
    package_masks, package_s, package_peak = timed(
        device,
        lambda: [packages.generate(picture.image) for picture in progress(timed, what="package", total=len(timed))],
    )
    encoder_s, encoder_flops = _encoder(network, len(timed), precision, _crops_per_image(params))
    matches = [_matches(theirs, mine) for theirs, mine in zip(package_masks, our_masks, strict=True)]
    num_masks = sum(len(masks) for masks in package_masks)
    gpu = torch.cuda.get_device_name() if device.startswith("cuda") else None
    peak = next((flops for name, flops in BF16_PEAK_FLOPS.items() if gpu and name in gpu), None)
    line: dict[str, Any] = {
        "benchmark": "masks",
        "device": gpu or device_name(),
        "torch": torch.__version__,
        "model": model,
        "weights": "trained" if model == "tiny" or weights else "random",
        "profile": profile,
        "precision": precision,
        "images": len(timed),
        "image_sizes": sorted({f"{p.image.shape[1]}x{p.image.shape[0]}" for p in timed}),
        "prompts_per_image": params.num_prompts,
        "masks_per_image": round(num_masks / len(timed), 1),
        "package_images_per_s": _rounded(len(timed) / package_s),
        "ours_images_per_s": _rounded(len(timed) / our_s),
        "ratio": round(package_s / our_s, 2),
        "ours_prompts_per_s": _rounded(params.num_prompts * len(timed) / our_s),
        "package_peak_mib": package_peak,
        "ours_peak_mib": our_peak,
        "masks_matched": round(sum(same for same, _ in matches) / max(1, num_masks), 4),
        "masks_identical": round(sum(equal for _, equal in matches) / max(1, num_masks), 4),
        "masks_per_image_ours": round(sum(len(masks) for masks in our_masks) / len(timed), 1),
        "encoder_share": round(encoder_s / our_s, 3),
        "encoder_tflops": round(encoder_flops / encoder_s / 1e12, 2),
        "encoder_share_of_bf16_peak": None if peak is None else round(encoder_flops / encoder_s / peak, 3),
    }
    print(json.dumps(line))


def _pictures(folder: Path | None, count: int) -> list[Picture]:
    if folder is None:
        birds = SyntheticBirds(SyntheticParams(), seed=0)
        records = birds.listing().records[:: len(birds.listing().records) // count][:count]
        return [Picture(decode_image(birds.image_bytes(record), record.image_key)) for record in records]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    if len(files) < count:
        raise PipelineError(f"{folder}: {count} pictures are needed, one of them to warm up, but it has {len(files)}")
    return [Picture(read_image(path)) for path in files[:: len(files) // count][:count]]


def _network(model: str, weights: Path | None) -> Sam:
    if model == "tiny":
        return load_tiny_sam(*([weights] if weights else []))
    return sam_model_registry[model](str(weights) if weights else None)


def _like_trained(network: Sam, params: SamParams, pictures: Sequence[Picture]) -> SamParams:
    """Arrange random weights, and choose thresholds, so that the filters do what they do with trained ones."""
    decoder = network.mask_decoder
    with torch.inference_mode():
        for layer in (decoder.output_upscaling[0], decoder.output_upscaling[3]):
            layer.weight.copy_(layer.weight.mean(dim=(2, 3), keepdim=True).expand_as(layer.weight))  # no checkerboard
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(40)
            mlp.layers[-1].bias.mul_(40)
        decoder.iou_prediction_head.layers[-1].bias.add_(0.5)  # scores between 0 and 1
        sampled = [_sample(network, picture, params.stability_score_offset) for picture in pictures]
    iou, stability = (torch.cat(values) for values in zip(*sampled, strict=True))
    iou_threshold = iou.quantile(1 - _PASS_IOU).item()
    passing = stability[iou > iou_threshold]
    return params.model_copy(
        update={
            "pred_iou_thresh": iou_threshold,
            "stability_score_thresh": passing.quantile(1 - _PASS_STABILITY / _PASS_IOU).item(),
            "box_nms_thresh": 1.0,
            "crop_nms_thresh": 1.0,
        }
    )


def _sample(network: Sam, picture: Picture, offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict masks for a few random points; give their predicted IoUs and stabilities."""
    predictor = SamPredictor(network)
    predictor.set_image(picture.image)
    size = torch.tensor(predictor.input_size[::-1], dtype=torch.float64, device=network.device)
    points = torch.rand(_SAMPLED_POINTS, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.ones(len(points), 1, device=network.device)
    logits, iou, _ = predictor.predict_torch(points.to(network.device) * size, labels, return_logits=True)
    inner, outer = ((logits > limit).sum((-2, -1)) for limit in (offset, -offset))
    return iou.flatten(), (inner / outer).flatten()


def _crops_per_image(params: SamParams) -> int:
    return sum(4**layer for layer in range(params.crop_n_layers + 1))


def _encoder(network: Sam, num_images: int, precision: str, crops_per_image: int) -> tuple[float, float]:
    """Measure the encoder alone on as many crops: seconds, and floating-point operations of its matrix products."""
    crops = num_images * crops_per_image
    batch = 8 if network.device.type == "cuda" else 1
    side = network.image_encoder.img_size
    inputs = torch.zeros(batch, 3, side, side, device=network.device)
    bfloat16 = precision == "bfloat16"
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.image_encoder(inputs[:1])
    with torch.inference_mode(), torch.autocast(network.device.type, torch.bfloat16, enabled=bfloat16):

        def encode() -> None:
            encode_fused(network.image_encoder, inputs) if bfloat16 else network.image_encoder(inputs)

        encode()
        num_batches = min(4, -(-crops // batch))
        if network.device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(num_batches):
            encode()
        if network.device.type == "cuda":
            torch.cuda.synchronize()
        seconds_per_crop = (time.perf_counter() - start) / (num_batches * batch)
    return seconds_per_crop * crops, counter.get_total_flops() * crops


def _matches(theirs: Sequence[dict[str, Any]], mine: Sequence[StoredMask]) -> tuple[int, int]:
    """Count their masks that one of mine covers at an IoU of 0.95 or more, and those that are among mine."""
    if not theirs or not mine:
        return 0, 0
    size = theirs[0]["segmentation"]["size"]
    coded = [{"size": size, "counts": mask.rle} for mask in mine]
    overlaps = np.asarray(coco.iou(coded, [record["segmentation"] for record in theirs], [0] * len(theirs)))
    mine_exactly = {(mask.rle, mask.score, mask.stability) for mask in mine}
    equal = [
        (record["segmentation"]["counts"].encode(), record["predicted_iou"], record["stability_score"]) in mine_exactly
        for record in theirs
    ]
    return int((overlaps.max(axis=0) >= _SAME_IOU).sum()), sum(equal)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


app = command_line(main)

if __name__ == "__main__":
    app()
