"""Segment Anything's image encoder with torch's fused attention, for reduced precision on a GPU.

The package writes out every attention matrix, 805 MB per image and global layer for ``vit_b`` in float32, and adds its
decomposed relative positions to it: bias[query, key] = row_bias[query, row of key] + column_bias[query, column of key].
Such a sum is a product of vectors, too: append both biases to the query, and to the key a one at its row and at its
column. Then no matrix has to be written out, and a fused kernel does the rest.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from segment_anything.modeling.image_encoder import get_rel_pos, window_partition, window_unpartition
from torch import Tensor

_ALIGNED = 8  # fused kernels want vectors of a multiple of this length


def encode_fused(encoder: Any, images: Float[Tensor, "image 3 side side"]) -> Float[Tensor, "image dim row column"]:
    """Run ENCODER (the package's ``ImageEncoderViT``); equal to calling it, up to rounding.

    Args:
        encoder: not changed.
        images: normalised and padded by the package's ``Sam.preprocess``.
    """
    x = encoder.patch_embed(images)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks:
        shortcut, x = x, block.norm1(x)
        if block.window_size > 0:
            rows, columns = x.shape[1:3]
            windows, padded = window_partition(x, block.window_size)
            attended = _attention(block.attn, windows)
            x = window_unpartition(attended, block.window_size, padded, (rows, columns))
        else:
            x = _attention(block.attn, x)
        x = shortcut + x
        x = x + block.mlp(block.norm2(x))
    embedding: Tensor = encoder.neck(x.permute(0, 3, 1, 2))
    return embedding


def _attention(attention: Any, x: Float[Tensor, "window row column dim"]) -> Float[Tensor, "window row column dim"]:
    rows, columns = x.shape[1:3]
    qkv = attention.qkv(x).reshape(len(x), rows * columns, 3, attention.num_heads, -1)
    queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # window head pixel channel
    scaled = queries * attention.scale
    if attention.use_rel_pos:
        on_grid = queries.reshape(*queries.shape[:2], rows, columns, -1)
        row_bias = torch.einsum("whrcd,rkd->whrck", on_grid, get_rel_pos(rows, rows, attention.rel_pos_h))
        column_bias = torch.einsum("whrcd,ckd->whrck", on_grid, get_rel_pos(columns, columns, attention.rel_pos_w))
        scaled = torch.cat([scaled, row_bias.flatten(2, 3), column_bias.flatten(2, 3)], dim=-1)
        places = torch.cat(
            [
                torch.eye(rows, dtype=keys.dtype, device=keys.device).repeat_interleave(columns, dim=0),
                torch.eye(columns, dtype=keys.dtype, device=keys.device).repeat(rows, 1),
            ],
            dim=1,
        )  # pixel (row column)
        keys = torch.cat([keys, places.expand(*keys.shape[:2], -1, -1)], dim=-1)
        padding = -keys.shape[-1] % _ALIGNED
        scaled, keys = F.pad(scaled, (0, padding)), F.pad(keys, (0, padding))
    attended = F.scaled_dot_product_attention(scaled, keys, values, scale=1.0)
    projected: Tensor = attention.proj(attended.transpose(1, 2).reshape(len(x), rows, columns, -1))
    return projected
