import pytest
import torch

from pipeline.segmenters.sam_encoder import encode_fused
from tests.pipeline.segmenters.random_sam import random_sam


def encoder_and_images(side: int, *, relative: bool = True):
    encoder = random_sam(side).image_encoder
    for block in encoder.blocks:
        block.attn.use_rel_pos = relative
    return encoder, torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("side", [48, 64, 112])  # windows that fit, padded ones, and several in a row
@torch.inference_mode()
def test_fused_attention_gives_the_packages_embedding_up_to_rounding(side, relative):
    encoder, images = encoder_and_images(side, relative=relative)
    assert {block.window_size for block in encoder.blocks} == {0, 3}
    torch.testing.assert_close(encode_fused(encoder, images), encoder(images), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_relative_positions_and_absolute_ones_take_part():
    encoder, images = encoder_and_images(64)
    with_both = encode_fused(encoder, images)
    for block in encoder.blocks:
        block.attn.use_rel_pos = False
    without_relative = encode_fused(encoder, images)
    encoder.pos_embed = None
    without_any = encode_fused(encoder, images)
    assert (with_both - without_relative).abs().max() > 0.1
    assert (without_relative - without_any).abs().max() > 0.1
    torch.testing.assert_close(without_any, encoder(images), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_relative_positions_of_another_window_are_interpolated_as_in_the_package():
    encoder, images = encoder_and_images(64)
    for block in encoder.blocks:
        block.attn.rel_pos_h = torch.nn.Parameter(torch.randn(9, block.attn.rel_pos_h.shape[1]))
    torch.testing.assert_close(encode_fused(encoder, images), encoder(images), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_in_bfloat16_it_is_about_as_far_from_float32_as_the_packages_own():
    encoder, images = encoder_and_images(112)
    exact = encoder(images)
    with torch.autocast("cpu", torch.bfloat16):
        ours, packages = encode_fused(encoder, images).float(), encoder(images).float()
    our_error, packages_error = (ours - exact).square().mean().sqrt(), (packages - exact).square().mean().sqrt()
    assert 0 < our_error < 1.3 * packages_error
    assert packages_error < 0.1 * exact.std()


@torch.inference_mode()
def test_the_network_and_the_pictures_are_not_changed():
    encoder, images = encoder_and_images(64)
    before, seen = {key: value.clone() for key, value in encoder.state_dict().items()}, images.clone()
    encode_fused(encoder, images)
    assert torch.equal(images, seen)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
