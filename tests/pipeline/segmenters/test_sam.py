import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.segmentation import fingerprint
from pipeline.errors import PipelineError
from pipeline.params import MasksParams, SamParams
from pipeline.segmenters import make_segmenter, settings_of
from pipeline.segmenters.interface import Picture
from pipeline.segmenters.sam import SamSegmenter
from pipeline.segmenters.tiny_sam import build_tiny_sam, save_tiny_sam
from tests.pipeline.segmenters.random_sam import (
    KEEP_ALL,
    PACKAGES_SETTINGS,
    blobs,
    noise,
    packages_masks,
    packages_records,
    random_sam,
)

PACKAGED = KEEP_ALL.model_copy(update={"batched": False})


@pytest.mark.parametrize("crop_n_layers", [0, 1])
def test_unbatched_masks_are_the_packages_own_with_the_highest_predicted_iou_first(crop_n_layers):
    params = PACKAGED.model_copy(update={"crop_n_layers": crop_n_layers})
    model, image = random_sam(), noise(40, 56)
    segmenter, want = SamSegmenter(model, params), packages_masks(model, params, image)
    assert len(want) > 5
    assert [segment.stored() for segment in segmenter.segment(Picture(image))] == want
    assert list(segmenter.stream([Picture(image)] * 2)) == [want] * 2
    assert any(mask.stability > 0 for mask in want)


def test_batched_or_not_the_masks_are_the_same_up_to_rounding():
    model, image = random_sam(), blobs(90, 120)
    ((batched,), (packaged,)) = (SamSegmenter(model, p).stream([Picture(image)]) for p in (KEEP_ALL, PACKAGED))
    np.testing.assert_allclose([mask.score for mask in batched], [mask.score for mask in packaged], atol=1e-5)
    common = {mask.rle for mask in batched} & {mask.rle for mask in packaged}
    assert len(common) >= 0.9 * len(packaged) > 5


def test_every_setting_reaches_the_packages_generator_under_its_own_name():
    generator = SamSegmenter(random_sam(), PACKAGED)._packaged
    values = {name: getattr(PACKAGED, name) for name in PACKAGES_SETTINGS}
    num_points = values.pop("points_per_side")
    assert [len(grid) for grid in generator.point_grids] == [num_points**2] * 2
    values.pop("crop_n_points_downscale_factor")
    assert len(values) == 8
    assert {name: getattr(generator, name) for name in values} == values
    assert generator.points_per_batch == 64
    fewer = PACKAGED.model_copy(update={"points_per_batch": 7})
    assert SamSegmenter(random_sam(), fewer)._packaged.points_per_batch == 7


@pytest.mark.parametrize("batched", [True, False])
def test_the_network_sees_rgb(batched):
    model, image = random_sam(), noise(32, 32)
    seen = []
    model.image_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image[..., 0], image[..., 2] = 255, 0  # red
    params = KEEP_ALL.model_copy(update={"crop_n_layers": 0, "batched": batched})
    SamSegmenter(model, params).segment(Picture(image))
    red, _, blue = (seen[0] * model.pixel_std + model.pixel_mean)[0, :, 0, 0].tolist()
    assert (round(red), round(blue)) == (255, 0)


@pytest.mark.parametrize("batched", [True, False])
def test_an_image_without_masks_gives_none_though_the_package_fails_on_it(batched):
    params = KEEP_ALL.model_copy(update={"pred_iou_thresh": 1.0, "batched": batched})
    model, image = random_sam(), noise(40, 56)
    with pytest.raises(IndexError):
        packages_records(model, params, image)
    assert SamSegmenter(model, params).segment(Picture(image)) == []


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1)])
def test_an_image_too_thin_for_crops_is_segmented_without_them(shape, batched):
    params = KEEP_ALL.model_copy(update={"batched": batched})
    segments = SamSegmenter(random_sam(), params).segment(Picture(noise(*shape)))
    assert segments
    assert all(segment.mask.shape == shape for segment in segments)


@pytest.mark.parametrize("batched", [True, False])
def test_settings_that_leave_a_crop_layer_without_points_are_refused(batched):
    params = KEEP_ALL.model_copy(update={"points_per_side": 1, "crop_n_points_downscale_factor": 2, "batched": batched})
    with pytest.raises(PipelineError, match=r"masks\.sam: crop layer 1"):
        SamSegmenter(random_sam(), params)


def test_removing_small_regions_without_opencv_says_what_to_install_or_is_done_in_batches(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    small = {"min_mask_region_area": 10}
    with pytest.raises(PipelineError, match=r"opencv-python-headless, or set batched to true"):
        SamSegmenter(random_sam(), PACKAGED.model_copy(update=small))
    assert SamSegmenter(random_sam(), KEEP_ALL.model_copy(update=small)).segment(Picture(blobs(30, 40)))


@pytest.mark.parametrize(
    ("model_type", "name"), [("vit_b", "sam-vit-b"), ("vit_l", "sam-vit-l"), ("vit_h", "sam-vit-h")]
)
def test_a_missing_checkpoint_is_named_with_the_command_that_gets_it(tmp_path, model_type, name):
    params = MasksParams(segmenter="sam", weights=str(tmp_path / "absent.pth"), sam=SamParams(model_type=model_type))
    message = rf"masks\.weights: .*absent\.pth does not exist; run `python -m pipeline\.download {name}`$"
    with pytest.raises(PipelineError, match=message):
        make_segmenter(params)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(
        PipelineError, match=r"weights\.pth is no whole checkpoint; run `python -m pipeline\.download sam-vit-b`$"
    ):
        make_segmenter(MasksParams(segmenter="sam", weights=str(path)))


@pytest.fixture
def tiny_registry(monkeypatch, tmp_path) -> Path:
    """Let ``vit_b`` build the random network; gives the path of a checkpoint that fits."""
    monkeypatch.setattr("pipeline.segmenters.sam.sam_model_registry", {"vit_b": random_sam})
    path = tmp_path / "tiny.pth"
    model = random_sam()
    torch.nn.init.constant_(model.mask_decoder.iou_prediction_head.layers[-1].bias, 0.7)
    torch.save(model.state_dict(), path)
    return path


def test_weights_come_from_the_checkpoint(tiny_registry):
    image = noise(40, 56)
    params = KEEP_ALL.model_copy(update={"crop_n_layers": 0, "model_type": "vit_b"})
    segmenter = make_segmenter(MasksParams(segmenter="sam", weights=str(tiny_registry), sam=params))
    loaded = [segment.score for segment in segmenter.segment(Picture(image))]
    fresh = [segment.score for segment in SamSegmenter(random_sam(), params).segment(Picture(image))]
    assert loaded
    assert loaded != fresh
    assert segmenter.holds_device


@pytest.mark.parametrize("state", [{"other.weight": torch.zeros(1)}, torch.zeros(3)])
def test_a_checkpoint_of_another_network_is_refused(tiny_registry, state):
    torch.save(state, tiny_registry)
    with pytest.raises(PipelineError, match=r"does not fit masks\.sam\.model_type 'vit_b'") as error:
        make_segmenter(MasksParams(segmenter="sam", weights=str(tiny_registry)))
    assert "\n" not in str(error.value)


def test_the_projects_own_network_is_loaded_from_its_weights_and_refuses_others(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_tiny_sam(path, build_tiny_sam())
    params = MasksParams(segmenter="sam", weights=str(path), sam=KEEP_ALL)
    assert make_segmenter(params).segment(Picture(blobs(40, 50)))
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(PipelineError, match=r"tiny\.safetensors is no whole safetensors file") as error:
        make_segmenter(params)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("batched", [True, False])
def test_with_bgr_the_network_sees_red_and_blue_exchanged(tiny_registry, batched):
    sam = KEEP_ALL.model_copy(update={"crop_n_layers": 0, "model_type": "vit_b", "batched": batched})
    params = MasksParams(segmenter="sam", weights=str(tiny_registry), sam=sam)
    image = noise(32, 48)
    before, exchanged = image.copy(), image[..., ::-1].copy()
    rgb, bgr = make_segmenter(params), make_segmenter(params, bgr=True)
    assert bgr.holds_device
    of_rgb, of_bgr = ([mask.score for mask in s.segment(Picture(image))] for s in (rgb, bgr))
    assert len(of_bgr) > 5
    assert of_rgb != of_bgr
    (expected,) = rgb.stream([Picture(exchanged)])
    assert list(bgr.stream([Picture(image)] * 2)) == [expected] * 2
    assert [segment.stored() for segment in bgr.segment(Picture(image))] == expected
    np.testing.assert_array_equal(image, before)


# devices


@pytest.mark.parametrize(("batched", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_on_an_apple_gpu_the_network_stays_on_the_cpu_in_float32_and_says_so(tiny_registry, batched, precision, caplog):
    sam = KEEP_ALL.model_copy(update={"model_type": "vit_b", "batched": batched, "cuda_precision": precision})
    segmenter = make_segmenter(MasksParams(segmenter="sam", weights=str(tiny_registry), sam=sam), device="mps")
    assert [record.levelname for record in caplog.records if "Apple" in record.getMessage()] == ["WARNING"]
    assert segmenter.segment(Picture(blobs(30, 40)))
    if batched:
        assert segmenter._batched._model.device.type == "cpu"


@pytest.mark.parametrize(
    ("device", "precision", "dtype"),
    [
        ("cpu", "bfloat16", torch.float32),
        ("cpu", "float32", torch.float32),
        ("cuda", "bfloat16", torch.bfloat16),
        ("cuda", "float32", torch.float32),
    ],
)
def test_cuda_precision_counts_on_cuda_only(device, precision, dtype, monkeypatch):
    made = []
    monkeypatch.setattr("pipeline.segmenters.sam.BatchedMaskGenerator", lambda *args: made.append(args))
    model = random_sam()
    monkeypatch.setattr(type(model), "device", property(lambda self: torch.device(device)))
    SamSegmenter(model, KEEP_ALL.model_copy(update={"cuda_precision": precision}))
    assert [args[2] for args in made] == [dtype]


# profiles


@pytest.mark.parametrize("segmenter", ["sam", "sam2"])
@pytest.mark.parametrize(("profile", "num_prompts"), [("paper", 21_504), ("default", 1_024), ("fast", 256)])
def test_a_profile_sets_the_prompts_of_an_image(segmenter, profile, num_prompts):
    resolved = MasksParams(segmenter=segmenter, profile=profile).resolved()
    section = getattr(resolved, segmenter)
    per_layer = [
        4**layer * int(section.points_per_side / section.crop_n_points_downscale_factor**layer) ** 2
        for layer in range(section.crop_n_layers + 1)
    ]
    assert section.num_prompts == sum(per_layer) == num_prompts
    assert resolved.profile == "custom"
    assert resolved.resolved() == resolved


def test_a_profile_overrides_grid_and_thresholds_and_leaves_the_rest():
    written = SamParams(model_type="tiny", batched=False, points_per_side=3, pred_iou_thresh=0.1, box_nms_thresh=0.3)
    sam = MasksParams(segmenter="sam", profile="paper", sam=written).resolved().sam
    assert (sam.points_per_side, sam.crop_n_layers, sam.pred_iou_thresh) == (32, 2, 0.86)
    assert (sam.model_type, sam.batched, sam.box_nms_thresh) == ("tiny", False, 0.3)


def test_custom_changes_nothing_and_profiles_are_for_networks_with_prompts():
    params = MasksParams(segmenter="sam", sam=KEEP_ALL)
    assert params.resolved() == params
    grid = MasksParams(segmenter="grid", profile="fast").resolved()
    assert (grid.grid, grid.sam) == (MasksParams().grid, MasksParams().sam)


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="profile"):
        MasksParams(segmenter="sam", profile="best")


def test_a_profile_and_its_values_written_out_are_the_same_settings():
    by_name = MasksParams(segmenter="sam", profile="fast")
    written = MasksParams(segmenter="sam", sam=by_name.resolved().sam)
    assert written.profile == "custom"
    assert settings_of(by_name) == settings_of(written) != settings_of(MasksParams(segmenter="sam"))
    assert settings_of(by_name)["settings"]["points_per_side"] == 16


def test_sizes_of_batches_do_not_change_the_fingerprint_and_what_shapes_masks_does(tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"any")

    def of(**changes) -> str:
        sam = SamParams(**changes)
        return fingerprint(MasksParams(segmenter="sam", weights=str(weights), sam=sam))

    assert of() == of(images_per_batch=3) == of(points_per_batch=7) == of(images_per_batch=1, points_per_batch=1)
    shaping = {"pred_iou_thresh": 0.5, "crop_n_layers": 0, "min_mask_region_area": 3, "cuda_precision": "float32"}
    assert len({of(), *(of(**{name: value}) for name, value in shaping.items())}) == 5


@pytest.mark.parametrize("segmenter", ["sam", "sam2"])
def test_bgr_changes_the_fingerprint_and_without_it_the_fingerprint_is_what_it_was(tmp_path, segmenter):
    weights = tmp_path / "weights"
    weights.write_bytes(b"any")
    params = MasksParams(segmenter=segmenter, weights=str(weights))
    section = getattr(params, segmenter).model_dump(mode="json")
    for key in {"images_per_batch", "points_per_batch"} & set(section):
        del section[key]
    settings = {"segmenter": segmenter, "settings": section, "version": {"sam": 2, "sam2": 1}[segmenter]}
    # the hash as stores had it before there was such a switch
    of_weights = hashlib.sha256(b"any").hexdigest()
    known = hashlib.sha256(f"{json.dumps(settings, sort_keys=True)}\n{of_weights}".encode()).hexdigest()
    assert fingerprint(params) == fingerprint(params, bgr=False) == known
    assert fingerprint(params, bgr=True) != known


@pytest.mark.parametrize("key", ["images_per_batch", "points_per_batch"])
@pytest.mark.parametrize("value", [0, -1, "many", 1.5])
def test_sizes_of_batches_are_positive_or_auto(key, value):
    assert getattr(SamParams(**{key: "auto"}), key) == "auto"
    with pytest.raises(ValueError, match=key):
        SamParams(**{key: value})
