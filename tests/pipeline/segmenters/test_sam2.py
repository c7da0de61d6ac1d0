import sys
from types import ModuleType

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.params import MasksParams, Sam2Params
from pipeline.segmenters import make_segmenter
from pipeline.segmenters.interface import Picture
from pipeline.segmenters.sam2 import Sam2Segmenter


def record(rows: slice, iou: float, stability: float) -> dict:
    mask = np.zeros((6, 8), dtype=bool)
    mask[rows] = True
    return {"segmentation": mask, "predicted_iou": iou, "stability_score": stability, "area": int(mask.sum())}


class FakeGenerator:
    """Stands in for the package's generator: keeps what it was given, gives fixed records."""

    def __init__(self, model, **settings):
        self.model, self.settings = model, settings

    def generate(self, image):
        self.image = image
        return [
            record(slice(0, 1), 0.8, 0.95),
            record(slice(1, 3), 0.9, 0.91),
            record(slice(0, 0), 0.99, 0.99),  # empty
            record(slice(3, 6), 0.8, 0.97),
        ]


class FakeHydraError(Exception):
    pass


@pytest.fixture
def sam2_package(monkeypatch) -> dict:
    """Put a stand-in for ``sam2`` and ``hydra`` in place.

    Gives a dict of what ``build_sam2`` is called with, and of the ``error`` it raises where that is set.
    """
    calls: dict = {"error": None}

    def build_sam2(config, checkpoint, device, apply_postprocessing):
        calls.update(config=config, checkpoint=checkpoint, device=device, apply_postprocessing=apply_postprocessing)
        if calls["error"] is not None:
            raise calls["error"]
        return "network"

    contents = {
        "hydra": {},
        "hydra.errors": {"HydraException": FakeHydraError},
        "sam2": {},
        "sam2.automatic_mask_generator": {"SAM2AutomaticMaskGenerator": FakeGenerator},
        "sam2.build_sam": {"build_sam2": build_sam2},
        "sam2.utils": {},
        "sam2.utils.amg": {"MaskData": dict},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def params_with(tmp_path, **settings) -> MasksParams:
    weights = tmp_path / "sam2.pt"
    weights.write_bytes(b"weights")
    return MasksParams(segmenter="sam2", weights=str(weights), sam2=Sam2Params(**settings))


def test_records_become_segments_with_the_highest_predicted_iou_first_and_none_empty():
    image = np.zeros((6, 8, 3), dtype=np.uint8)
    generator = FakeGenerator("network")
    segments = Sam2Segmenter(generator).segment(Picture(image))
    assert generator.image is image
    assert [(segment.score, segment.stability) for segment in segments] == [(0.9, 0.91), (0.8, 0.95), (0.8, 0.97)]
    assert [segment.mask.sum() for segment in segments] == [16, 8, 24]


def test_the_network_is_built_without_post_processing_and_every_setting_reaches_the_generator(sam2_package, tmp_path):
    params = params_with(tmp_path, points_per_side=7, use_m2m=True)
    segmenter = make_segmenter(params, device="cpu")
    assert sam2_package["config"] == "configs/sam2.1/sam2.1_hiera_b+.yaml"
    assert sam2_package["checkpoint"] == params.weights
    assert (sam2_package["device"], sam2_package["apply_postprocessing"]) == ("cpu", False)
    generator = segmenter._generator
    assert generator.model == "network"
    assert generator.settings == params.sam2.model_dump(exclude={"config"})
    assert generator.settings["points_per_side"] == 7
    assert len(segmenter.segment(Picture(np.zeros((6, 8, 3), dtype=np.uint8)))) == 3


def test_with_bgr_the_generator_gets_red_and_blue_exchanged(sam2_package, tmp_path):
    params = params_with(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    rgb, bgr = make_segmenter(params), make_segmenter(params, bgr=True)
    generators = rgb._generator, bgr._segmenter._generator
    for segmenter, generator, expected in zip((rgb, bgr), generators, (image, image[..., ::-1]), strict=True):
        assert len(segmenter.segment(Picture(image))) == 3
        np.testing.assert_array_equal(generator.image, expected)
        del generator.image
        (masks,) = segmenter.stream([Picture(image)])
        assert len(masks) == 3
        np.testing.assert_array_equal(generator.image, expected)
        assert generator.image.flags.c_contiguous  # torch takes no negative strides


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sam2", None)
    with pytest.raises(PipelineError, match=r"pip install 'protomask-pipeline\[sam2\]'"):
        make_segmenter(MasksParams(segmenter="sam2"))


def test_a_missing_checkpoint_is_named(sam2_package, tmp_path):
    with pytest.raises(
        PipelineError, match=r"masks\.weights: .*absent\.pt does not exist.*pipeline\.download sam2\.1-hiera-base-plus"
    ):
        make_segmenter(MasksParams(segmenter="sam2", weights=str(tmp_path / "absent.pt")))


@pytest.mark.parametrize("error", [RuntimeError("missing\nkeys"), KeyError("model")])
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(sam2_package, tmp_path, error):
    sam2_package["error"] = error
    with pytest.raises(PipelineError, match=r"does not fit masks\.sam2\.config") as refused:
        make_segmenter(params_with(tmp_path))
    assert "\n" not in str(refused.value)


def test_an_unknown_configuration_is_named(sam2_package, tmp_path):
    sam2_package["error"] = FakeHydraError("no such config")
    with pytest.raises(PipelineError, match=r"masks\.sam2\.config: the sam2 package has no 'nowhere\.yaml'"):
        make_segmenter(params_with(tmp_path, config="nowhere.yaml"))


def test_settings_that_leave_a_crop_layer_without_points_are_refused(sam2_package, tmp_path):
    with pytest.raises(PipelineError, match=r"masks\.sam2: crop layer 2"):
        make_segmenter(params_with(tmp_path, points_per_side=3, crop_n_points_downscale_factor=2))
