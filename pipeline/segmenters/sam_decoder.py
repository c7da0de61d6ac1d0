"""Segment Anything's mask decoder for many points on one image, without the work that changes nothing.

The package computes, for every batch of points, everything for every point. The same numbers come from less:

- In the first layer the image side is the same for every point, so its keys, values and queries are computed once.
- A mask's predicted IoU comes from a token, before any mask is drawn, so masks are drawn for the points that are
  still of interest, and only in the rows of the input that the picture covers.
- What all points share (positional encodings, the "no mask" prompt) is prepared once.

In float32 on a CPU each operation that is left adds its numbers in the order in which the package's adds them. Where
matrix products round alike whatever the size of the batch (MKL on processors with AVX-512), results are therefore the
same to the last bit. Elsewhere the package itself rounds differently from batch to batch, and so does this.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from segment_anything.modeling import Sam
from torch import Tensor

_ELEMENTS_AT_ONCE = {"cpu": 2**23}  # of the image side: few enough for the caches of a CPU (8 points of ViT-B)
_MANY_ELEMENTS_AT_ONCE = 2**28  # elsewhere


@dataclass(frozen=True, slots=True)
class DecodedPoints:
    """What the transformer says about a batch of points, before any mask is drawn.

    Attributes:
        iou: predicted IoU of each point's masks, in the order in which they are drawn.
        mask_weights: what each of the decoder's masks is in terms of the up-scaled image.
        image: the image as each point sees it, pixels of the embedding row by row.
    """

    iou: Float[Tensor, "point mask"]
    mask_weights: Float[Tensor, "point token channel"]
    image: Float[Tensor, "point pixel dim"]


class PointDecoder:
    """The decoder of a SAM for single points and several masks each ("multimask output")."""

    def __init__(self, model: Sam, dtype: torch.dtype = torch.float32) -> None:
        """Take a network on its device.

        Args:
            model: not changed.
            dtype: of the products on the image side, which are nearly all of the work. With bfloat16 its attention is
                torch's fused one; what is added up from layer to layer, and the tokens, which decide about predicted
                IoUs, stay in float32.
        """
        self._dtype = dtype
        self._device = model.device
        self._decoder = model.mask_decoder
        self._transformer = model.mask_decoder.transformer
        with torch.inference_mode():
            self._position = model.prompt_encoder.get_dense_pe().flatten(2).permute(0, 2, 1)  # 1 pixel dim
            self._no_mask = model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)

    def decode(
        self, embedding: Float[Tensor, "1 dim row column"], prompts: Float[Tensor, "point prompt dim"]
    ) -> DecodedPoints:
        """Run the transformer.

        Args:
            embedding: the encoder's output for one image.
            prompts: the prompt encoder's sparse output: each point and the package's padding point.
        """
        decoder, transformer = self._decoder, self._transformer
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(len(prompts), -1, -1), prompts.to(output_tokens.dtype)], dim=1)
        image = (embedding + self._no_mask).flatten(2).permute(0, 2, 1)  # 1 pixel dim: equal for all points so far

        first = transformer.layers[0]
        queries = first.norm1(first.self_attn(tokens, tokens, tokens))
        read = self._read_shared(first.cross_attn_token_to_image, queries + tokens, image)
        for layer, following in zip(transformer.layers, [*transformer.layers[1:], None], strict=True):
            queries = layer.norm2(queries + layer.cross_attn_token_to_image.out_proj(read))
            queries = layer.norm3(queries + layer.mlp(queries))
            writer, written = layer.cross_attn_image_to_token, queries
            if following is None:
                reader = transformer.final_attn_token_to_image
            else:
                reader, placed = following.cross_attn_token_to_image, queries + tokens
                queries = following.norm1(queries + following.self_attn(q=placed, k=placed, v=queries))
            image, read = self._write_and_read(
                image,
                writer=writer,
                norm=layer.norm4,
                writer_keys=_heads(writer, writer.k_proj(written + tokens)),
                writer_values=_heads(writer, writer.v_proj(written)),
                reader=reader,
                reader_queries=_heads(reader, reader.q_proj(queries + tokens)),
            )
        queries = transformer.norm_final_attn(queries + reader.out_proj(read))
        weights = [mlp(queries[:, 1 + index]) for index, mlp in enumerate(decoder.output_hypernetworks_mlps)]
        return DecodedPoints(
            iou=decoder.iou_prediction_head(queries[:, 0])[:, 1:],  # the first is for unambiguous prompts
            mask_weights=torch.stack(weights, dim=1),
            image=image,
        )

    def draw(
        self, decoded: DecodedPoints, points: Int[Tensor, " chosen"], *, columns: int, rows: int
    ) -> Float[Tensor, "chosen mask height width"]:
        """Draw all masks of some points, four pixels for one of the embedding on a side.

        Args:
            decoded: of a batch of points.
            points: which of them.
            columns: of the embedding.
            rows: of the embedding, from the top: those that the picture covers.

        Returns:
            Logits.
        """
        num_points = len(points)
        if num_points == 1 < len(decoded.iou):
            points = points.expand(2)  # alone, it would go through other kernels than among others, as in the package
        image = decoded.image[points, : rows * columns]
        # a transposed view, as in the package: a copy in another memory order is convolved with other roundings
        image = image.transpose(1, 2).view(len(points), -1, rows, columns)
        weights = decoded.mask_weights[points]  # all of them: one row alone is multiplied with other roundings
        with self._image_precision():
            upscaled = self._decoder.output_upscaling(image)
            drawn: Tensor = (weights @ upscaled.flatten(2)).view(*weights.shape[:2], *upscaled.shape[2:])
        return drawn[:num_points, 1:].float()

    def _read_shared(
        self,
        reader: Any,
        queries: Float[Tensor, "point token dim"],
        image: Float[Tensor, "1 pixel dim"],
    ) -> Float[Tensor, "point token inner"]:
        """Let tokens attend to an image that is the same for every point, as if all tokens were one point's."""
        num_points, num_tokens, _ = queries.shape
        folded = _heads(reader, reader.q_proj(queries)).transpose(0, 1).flatten(1, 2)  # head (point token) channel
        with self._image_precision():
            keys = _heads(reader, reader.k_proj(image + self._position))
            values = _heads(reader, reader.v_proj(image))
            read = self._attend(folded[None], keys, values)[0]  # head (point token) channel
        return read.view(len(read), num_points, num_tokens, -1).permute(1, 2, 0, 3).flatten(2).float()

    def _write_and_read(
        self,
        image: Float[Tensor, "one_or_point pixel dim"],
        *,
        writer: Any,
        norm: Any,
        writer_keys: Float[Tensor, "point head token writing"],
        writer_values: Float[Tensor, "point head token writing"],
        reader: Any,
        reader_queries: Float[Tensor, "point head token reading"],
    ) -> tuple[Float[Tensor, "point pixel dim"], Float[Tensor, "point token inner"]]:
        """Let the image attend to the tokens, then the next tokens to the image, a few points at a time.

        Args:
            image: of every point, which is overwritten, or the one that all of them share.
            writer: the attention from image to tokens.
            norm: of the image after that.
            writer_keys: of the tokens.
            writer_values: of the tokens.
            reader: the attention from tokens to image that comes next.
            reader_queries: of the tokens.

        Returns:
            The new image of every point, and what the tokens read in it, before the reader's output projection.
        """
        num_points, shared = len(writer_keys), len(image) == 1
        new_image = image.new_empty(num_points, *image.shape[1:]) if shared else image
        read = []
        with self._image_precision():
            shared_queries = _heads(writer, writer.q_proj(image + self._position)) if shared else None
            elements = _ELEMENTS_AT_ONCE.get(image.device.type, _MANY_ELEMENTS_AT_ONCE)
            for few in _pieces(num_points, max(1, elements // image[0].numel())):
                old = image if shared else image[few]
                queries = shared_queries
                if queries is None:
                    queries = _heads(writer, writer.q_proj(old + self._position))
                change = writer.out_proj(_joined(self._attend(queries, writer_keys[few], writer_values[few])))
                new_image[few] = new = norm(change + old)
                keys, values = _heads(reader, reader.k_proj(new + self._position)), _heads(reader, reader.v_proj(new))
                read.append(_joined(self._attend(reader_queries[few], keys, values)))
        return new_image, torch.cat(read).float()

    def _image_precision(self) -> AbstractContextManager[None]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype)

    def _attend(
        self,
        queries: Float[Tensor, "one_or_point head query channel"],
        keys: Float[Tensor, "point head key channel"],
        values: Float[Tensor, "point head key channel"],
    ) -> Float[Tensor, "point head query channel"]:
        if self._dtype != torch.float32:
            queries = queries.expand(len(keys), -1, -1, -1)
            return F.scaled_dot_product_attention(queries, keys, values)
        weights = (queries @ keys.transpose(2, 3)).div_(math.sqrt(keys.shape[3]))
        return torch.softmax(weights, dim=-1) @ values


def _heads(attention: Any, projected: Float[Tensor, "point token inner"]) -> Float[Tensor, "point head token channel"]:
    return projected.reshape(*projected.shape[:2], attention.num_heads, -1).transpose(1, 2)


def _joined(attended: Float[Tensor, "point head token channel"]) -> Float[Tensor, "point token inner"]:
    return attended.transpose(1, 2).flatten(2)


def _pieces(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
