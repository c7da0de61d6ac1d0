import importlib.util
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from pipeline.errors import PipelineError
from pipeline.params import MasksParams, SamParams
from pipeline.segmenters import make_segmenter
from pipeline.segmenters.sam import SamSegmenter

KEEP_ALL = SamParams(
    points_per_side=3,
    pred_iou_thresh=0,
    stability_score_thresh=0,
    box_nms_thresh=1,
    crop_nms_thresh=1,
    crop_n_layers=1,
    crop_n_points_downscale_factor=1,
)
"""Settings with which random weights give masks."""


def tiny_sam() -> Sam:
    """A SAM of the package's own modules, small enough for a test; random weights."""
    torch.manual_seed(0)
    side, dim = 64, 32
    grid = (side // 16, side // 16)
    return Sam(
        ImageEncoderViT(
            img_size=side,
            patch_size=16,
            embed_dim=16,
            depth=1,
            num_heads=2,
            mlp_ratio=2,
            out_chans=dim,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            global_attn_indexes=(0,),
        ),
        PromptEncoder(embed_dim=dim, image_embedding_size=grid, input_image_size=(side, side), mask_in_chans=4),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=1, embedding_dim=dim, mlp_dim=32, num_heads=2),
            transformer_dim=dim,
            iou_head_depth=2,
            iou_head_hidden_dim=16,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    ).eval()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def packages_own(model: Sam, params: SamParams, image: np.ndarray) -> list[dict]:
    generator = SamAutomaticMaskGenerator(
        model,
        points_per_side=params.points_per_side,
        pred_iou_thresh=params.pred_iou_thresh,
        stability_score_thresh=params.stability_score_thresh,
        stability_score_offset=params.stability_score_offset,
        box_nms_thresh=params.box_nms_thresh,
        crop_n_layers=params.crop_n_layers,
        crop_nms_thresh=params.crop_nms_thresh,
        crop_overlap_ratio=params.crop_overlap_ratio,
        crop_n_points_downscale_factor=params.crop_n_points_downscale_factor,
    )
    return generator.generate(image)


@pytest.mark.parametrize("crop_n_layers", [0, 1])
def test_masks_are_the_packages_own_with_the_highest_predicted_iou_first(crop_n_layers):
    params = KEEP_ALL.model_copy(update={"crop_n_layers": crop_n_layers, "stability_score_offset": 0.01})
    model, image = tiny_sam(), noise(40, 56)
    want = sorted(
        (record for record in packages_own(model, params, image) if record["area"] > 0),
        key=lambda record: -record["predicted_iou"],
    )
    got = SamSegmenter(model, params).segment(image)
    assert len(got) == len(want) > 5
    for segment, record in zip(got, want, strict=True):
        np.testing.assert_array_equal(segment.mask, record["segmentation"])
        assert segment.score == record["predicted_iou"]
        assert segment.stability == record["stability_score"]
    assert any(segment.stability > 0 for segment in got)


def test_every_setting_reaches_the_generator_under_its_own_name():
    values = {name: getattr(KEEP_ALL, name) for name in SamParams.model_fields if name != "model_type"}
    generator = SamSegmenter(tiny_sam(), KEEP_ALL)._generator
    num_points = values.pop("points_per_side")
    assert [len(grid) for grid in generator.point_grids] == [num_points**2] * 2
    values.pop("crop_n_points_downscale_factor")
    assert len(values) == 9
    assert {name: getattr(generator, name) for name in values} == values


def test_the_network_sees_rgb():
    model, image = tiny_sam(), noise(32, 32)
    seen = []
    model.image_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image[..., 0], image[..., 2] = 255, 0  # red
    SamSegmenter(model, KEEP_ALL.model_copy(update={"crop_n_layers": 0})).segment(image)
    red, _, blue = (seen[0] * model.pixel_std + model.pixel_mean)[0, :, 0, 0].tolist()
    assert (round(red), round(blue)) == (255, 0)


def test_an_image_without_masks_gives_none_though_the_package_fails_on_it():
    params = KEEP_ALL.model_copy(update={"pred_iou_thresh": 1.0})
    model, image = tiny_sam(), noise(40, 56)
    with pytest.raises(IndexError):
        packages_own(model, params, image)
    assert SamSegmenter(model, params).segment(image) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1)])
def test_an_image_too_thin_for_crops_is_segmented_without_them(shape):
    segments = SamSegmenter(tiny_sam(), KEEP_ALL).segment(noise(*shape))
    assert segments
    assert all(segment.mask.shape == shape for segment in segments)


def test_settings_that_leave_a_crop_layer_without_points_are_refused():
    params = KEEP_ALL.model_copy(update={"points_per_side": 1, "crop_n_points_downscale_factor": 2})
    with pytest.raises(PipelineError, match=r"masks\.sam: crop layer 1"):
        SamSegmenter(tiny_sam(), params)


def test_removing_small_regions_without_opencv_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PipelineError, match="opencv-python-headless"):
        SamSegmenter(tiny_sam(), KEEP_ALL.model_copy(update={"min_mask_region_area": 10}))


@pytest.mark.parametrize(
    ("model_type", "checkpoint"),
    [("vit_b", "sam_vit_b_01ec64.pth"), ("vit_l", "sam_vit_l_0b3195.pth"), ("vit_h", "sam_vit_h_4b8939.pth")],
)
def test_a_missing_checkpoint_is_named_with_the_one_to_get(tmp_path, model_type, checkpoint):
    params = MasksParams(segmenter="sam", weights=str(tmp_path / "absent.pth"), sam=SamParams(model_type=model_type))
    with pytest.raises(PipelineError, match=rf"masks\.weights: .*absent\.pth does not exist; put there {checkpoint}"):
        make_segmenter(params)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match=r"weights\.pth is no whole checkpoint"):
        make_segmenter(MasksParams(segmenter="sam", weights=str(path)))


@pytest.fixture
def tiny_registry(monkeypatch, tmp_path) -> Path:
    """Let ``vit_b`` build the tiny network; gives the path of a checkpoint that fits."""
    monkeypatch.setattr("pipeline.segmenters.sam.sam_model_registry", {"vit_b": tiny_sam})
    path = tmp_path / "tiny.pth"
    model = tiny_sam()
    torch.nn.init.constant_(model.mask_decoder.iou_prediction_head.layers[-1].bias, 0.5)
    torch.save(model.state_dict(), path)
    return path


def test_weights_come_from_the_checkpoint(tiny_registry):
    image = noise(40, 56)
    params = KEEP_ALL.model_copy(update={"crop_n_layers": 0})
    segmenter = make_segmenter(MasksParams(segmenter="sam", weights=str(tiny_registry), sam=params))
    loaded = [segment.score for segment in segmenter.segment(image)]
    fresh = [segment.score for segment in SamSegmenter(tiny_sam(), params).segment(image)]
    assert loaded
    assert loaded != fresh
    assert segmenter.holds_device


@pytest.mark.parametrize("state", [{"other.weight": torch.zeros(1)}, torch.zeros(3)])
def test_a_checkpoint_of_another_network_is_refused(tiny_registry, state):
    torch.save(state, tiny_registry)
    with pytest.raises(PipelineError, match=r"does not fit masks\.sam\.model_type 'vit_b'") as error:
        make_segmenter(MasksParams(segmenter="sam", weights=str(tiny_registry)))
    assert "\n" not in str(error.value)
