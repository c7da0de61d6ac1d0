import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from pipeline.params import GridParams, MasksParams, SamParams
from pipeline.segmenters import make_segmenter, settings_of
from pipeline.segmenters.grid import GridSegmenter
from pipeline.segmenters.interface import Picture, Segment, best_first
from pipeline.segmenters.superpixel import SuperpixelSegmenter


def test_params_name_the_segmenter_that_is_built():
    assert isinstance(make_segmenter(MasksParams()), SuperpixelSegmenter)
    assert isinstance(make_segmenter(MasksParams(segmenter="grid")), GridSegmenter)


@pytest.mark.parametrize("name", ["superpixel", "grid"])
def test_segmenters_without_a_network_can_be_sent_to_worker_processes(name):
    segmenter = make_segmenter(MasksParams(segmenter=name))
    assert not segmenter.holds_device
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    here, there = segmenter.segment(Picture(image)), pickle.loads(pickle.dumps(segmenter)).segment(Picture(image))
    assert len(here) == len(there) > 0
    assert all(np.array_equal(a.mask, b.mask) and a.score == b.score for a, b in zip(here, there, strict=True))


@pytest.mark.parametrize("name", ["superpixel", "grid"])
def test_segmenters_without_a_network_start_without_torch(name):
    code = (
        "import sys; from pipeline.params import MasksParams; from pipeline.segmenters import make_segmenter;"
        f"make_segmenter(MasksParams(segmenter={name!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", ["superpixel", "grid", "sam", "sam2", "slit", "coco"])
def test_settings_name_the_active_segmenter_and_can_be_written_as_json(name):
    settings = settings_of(MasksParams(segmenter=name))
    assert settings["segmenter"] == name
    assert settings["version"] >= 1
    assert settings["settings"]
    assert json.loads(json.dumps(settings)) == settings


def test_settings_change_with_what_shapes_the_masks_only():
    def with_sam(**keys) -> dict:
        return settings_of(MasksParams(segmenter="sam", sam=SamParams(**keys)))

    assert with_sam(points_per_batch=1) == with_sam(points_per_batch=2)
    assert with_sam(points_per_side=1) != with_sam(points_per_side=2)
    assert with_sam(model_type="vit_b") != with_sam(model_type="vit_h")
    other_section = MasksParams(grid=GridParams(rows=5))
    assert settings_of(other_section) == settings_of(MasksParams())
    assert settings_of(MasksParams(weights="elsewhere")) == settings_of(MasksParams())


def test_best_first_keeps_the_order_of_equal_scores():
    mask = np.ones((1, 1), dtype=bool)
    segments = [
        Segment(mask, score, stability)
        for stability, score in zip([0.0, 0.1, 0.2, 0.3], [0.5, 0.9, 0.5, 0.9], strict=True)
    ]
    assert [segment.stability for segment in best_first(segments)] == [0.1, 0.3, 0.0, 0.2]
