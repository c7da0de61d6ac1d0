"""A tiny Segment Anything network, with weights that come with the project.

It is built from the ``segment-anything`` package's own modules and speaks their language: whatever runs with one of
the published checkpoints runs with this one, offline and on a CPU. It has only ever seen synthetic birds, and only
single points (``pipeline.segmenters.train_tiny_sam`` made the weights): box and mask prompts, several points and
``multimask_output=False`` go through parts of the network that were never trained.
"""

from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from pipeline.errors import PipelineError
from pipeline.io import new_file

TINY_SAM_WEIGHTS = Path(__file__).with_name("tiny_sam.safetensors")
"""The weights that come with the project."""
TINY_SAM_SIZE_PX = 256
"""Longer side of the image as the network sees it; smaller ones are enlarged."""
TINY_SAM_DIM = 64
"""Channels of image embedding, prompts and decoder."""

_PATCH_PX = 16
_REMAKE = "remake it with `python -m pipeline.segmenters.train_tiny_sam`"


def build_tiny_sam() -> Sam:
    """Build the network with random weights, in evaluation mode on the CPU. Masks come at a quarter of its input."""
    side = TINY_SAM_SIZE_PX // _PATCH_PX
    return Sam(
        ImageEncoderViT(
            img_size=TINY_SAM_SIZE_PX,
            patch_size=_PATCH_PX,
            embed_dim=128,
            depth=5,
            num_heads=4,
            mlp_ratio=3,
            out_chans=TINY_SAM_DIM,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
        ),
        PromptEncoder(
            embed_dim=TINY_SAM_DIM,
            image_embedding_size=(side, side),
            input_image_size=(TINY_SAM_SIZE_PX, TINY_SAM_SIZE_PX),
            mask_in_chans=8,
        ),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=TINY_SAM_DIM, mlp_dim=256, num_heads=4),
            transformer_dim=TINY_SAM_DIM,
            activation=torch.nn.ReLU,
            iou_head_depth=3,
            iou_head_hidden_dim=TINY_SAM_DIM,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    ).eval()


def load_tiny_sam(weights: Path = TINY_SAM_WEIGHTS) -> Sam:
    """Build the network with the weights of the safetensors file WEIGHTS, in evaluation mode on the CPU.

    Raises:
        PipelineError: WEIGHTS is missing, damaged or of another network.
    """
    if not weights.is_file():
        raise PipelineError(f"{weights} does not exist: {_REMAKE}")
    try:
        state = load_file(weights)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PipelineError(f"{weights} is no whole safetensors file ({reason}): {_REMAKE}") from None
    model = build_tiny_sam()
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise PipelineError(f"{weights} does not hold the weights of the tiny SAM: {_REMAKE}") from None
    return model


def save_tiny_sam(weights: Path, model: Sam) -> None:
    """Write the parameters and buffers of MODEL to the safetensors file WEIGHTS; equal ones give equal bytes."""
    state = {key: value.detach().cpu().contiguous() for key, value in sorted(model.state_dict().items())}
    with new_file(weights) as work:
        save_file(state, work)
