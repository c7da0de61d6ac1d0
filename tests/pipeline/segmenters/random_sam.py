"""A SAM with random weights, the package's own masks to compare with, and pictures, for the tests of this folder."""

from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from pipeline.data.boxes import Box
from pipeline.data.masks import StoredMask, encode_mask
from pipeline.params import SamParams

PACKAGES_SETTINGS = set(SamParams.model_fields) - {
    "model_type",
    "batched",
    "cuda_precision",
    "images_per_batch",
    "points_per_batch",
}
"""Fields of the params that the package's generator takes as they are."""

KEEP_ALL = SamParams(
    model_type="tiny",
    points_per_side=5,
    pred_iou_thresh=0,
    stability_score_thresh=0,
    stability_score_offset=0.01,
    box_nms_thresh=1,
    crop_nms_thresh=1,
    crop_n_layers=1,
    crop_n_points_downscale_factor=1,
)
"""Settings that leave out nothing but duplicates of equal boxes; random logits are small, and so is the offset."""


def random_sam(side: int = 64, *, dim: int = 32, depth: int = 2) -> Sam:
    """Build a SAM of the package's own modules, small enough for a test.

    Args:
        side: of the square input, pixels.
        dim: channels of embedding and decoder.
        depth: layers of the decoder.
    """
    torch.manual_seed(0)
    grid = (side // 16, side // 16)
    model = Sam(
        ImageEncoderViT(
            img_size=side,
            patch_size=16,
            embed_dim=16,
            depth=2,
            num_heads=2,
            mlp_ratio=2,
            out_chans=dim,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,  # divides no grid of the tests, so that windows are padded
            global_attn_indexes=(1,),
        ),
        PromptEncoder(embed_dim=dim, image_embedding_size=grid, input_image_size=(side, side), mask_in_chans=4),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=depth, embedding_dim=dim, mlp_dim=32, num_heads=2),
            transformer_dim=dim,
            iou_head_depth=2,
            iou_head_hidden_dim=16,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    ).eval()
    for name, parameter in model.image_encoder.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:  # zeros otherwise, which hide what is done with them
            torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.constant_(model.mask_decoder.iou_prediction_head.layers[-1].bias, 0.5)
    return model


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw soft patches of colour: noise of 6 x 6 pixels, enlarged."""
    return np.asarray(Image.fromarray(noise(6, 6, seed)).resize((width, height), Image.Resampling.BICUBIC))


def packages_records(model: Sam, params: SamParams, image: np.ndarray) -> list[dict[str, Any]]:
    generator = SamAutomaticMaskGenerator(
        model,
        points_per_batch=64 if params.points_per_batch == "auto" else params.points_per_batch,
        **{name: getattr(params, name) for name in PACKAGES_SETTINGS},
    )
    return generator.generate(image)


def packages_masks(model: Sam, params: SamParams, image: np.ndarray) -> list[StoredMask]:
    """Give the package's masks as ours are kept; the empty ones are left out, the highest predicted IoU comes first."""
    masks = [
        StoredMask(
            rle=encode_mask(record["segmentation"]),
            box=Box(*_half_open(*map(int, record["bbox"]))),
            area_px=record["area"],
            score=record["predicted_iou"],
            stability=record["stability_score"],
        )
        for record in packages_records(model, params, image)
        if record["area"] > 0
    ]
    return sorted(masks, key=lambda mask: -mask.score)


def _half_open(x: int, y: int, width: int, height: int) -> tuple[int, int, int, int]:
    return x, y, x + width + 1, y + height + 1  # the package's edges are inclusive


def rounds_alike(model: Sam) -> bool:
    """Find out whether this machine's matrix products round a point's numbers alike in any company.

    Some do (MKL with AVX-512), some do not (MKL with AVX2): there, the package itself gives a point other last bits
    when it is decoded with other points, and nothing that orders the work otherwise can equal it to the bit.
    """
    decoder, side = model.mask_decoder, model.image_encoder.img_size
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        grid = model.prompt_encoder.image_embedding_size
        embedding = torch.randn(1, decoder.transformer_dim, *grid, generator=generator)
        points = torch.rand(64, 1, 2, generator=generator) * side
        sparse, dense = model.prompt_encoder((points, torch.ones(64, 1)), None, None)
        position = model.prompt_encoder.get_dense_pe()
        masks, iou = decoder.predict_masks(embedding, position, sparse, dense)
        for few in (slice(0, 8), slice(8, 11)):
            few_masks, few_iou = decoder.predict_masks(embedding, position, sparse[few], dense[few])
            if not (torch.equal(few_masks, masks[few]) and torch.equal(few_iou, iou[few])):
                return False
    return True
