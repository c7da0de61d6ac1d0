import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.data.boxes import Box, box_of_mask
from pipeline.errors import PipelineError
from pipeline.params import MasksParams, SlitParams
from pipeline.segmenters import make_segmenter
from pipeline.segmenters.interface import Picture
from pipeline.segmenters.slit import SlitSegmenter, segments_from_boundaries


def cross_of_boundaries() -> np.ndarray:
    """A 9 x 12 image with boundary in row 3 and column 4; widened, rows 2-4 and columns 3-5."""
    probability = np.zeros((9, 12), dtype=np.float32)
    probability[3, :] = probability[:, 4] = 0.5
    return probability


def test_the_boundary_and_its_neighbours_part_four_quarters():
    segments = segments_from_boundaries(cross_of_boundaries(), threshold=0.4, min_extent_px=1)
    assert [box_of_mask(segment.mask) for segment in segments] == [
        *(Box(6, 5, 12, 9), Box(6, 0, 12, 2), Box(0, 5, 3, 9), Box(0, 0, 3, 2))
    ]
    # equal areas of 12 pixels come in reading order of their first pixels
    assert [segment.score for segment in segments] == [24 / 108, 12 / 108, 12 / 108, 6 / 108]


def test_segments_lower_or_narrower_than_the_extent_are_left_out():
    segments = segments_from_boundaries(cross_of_boundaries(), threshold=0.4, min_extent_px=3)
    assert [box_of_mask(segment.mask) for segment in segments] == [Box(6, 5, 12, 9), Box(0, 5, 3, 9)]


def test_a_probability_at_the_threshold_is_no_boundary():
    [whole] = segments_from_boundaries(np.full((4, 5), 0.5, dtype=np.float32), threshold=0.5, min_extent_px=1)
    assert whole.mask.all()
    assert whole.score == 1.0


class VerticalLine(torch.nn.Module):
    """Stands in for the network: boundary logits on one column, at a quarter of the input's size."""

    device = torch.device("cpu")

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.seen = pixel_values
        logits = torch.full((1, 1, pixel_values.shape[2] // 4, pixel_values.shape[3] // 4), -20.0)
        logits[..., 8] = 20.0
        return SimpleNamespace(logits=logits)


def square_processor(images, size, return_tensors):
    assert return_tensors == "pt"
    pixels = torch.as_tensor(images.copy()).permute(2, 0, 1)[None].float()
    return {"pixel_values": torch.nn.functional.interpolate(pixels, (size["height"], size["width"]))}


def test_network_boundaries_come_back_in_image_pixels():
    model = VerticalLine()
    segmenter = SlitSegmenter(model, square_processor, SlitParams(image_side_px=64, boundary_threshold=0.5))
    image = np.zeros((30, 48, 3), dtype=np.uint8)  # 48 pixels for 16 logits: 3 pixels a logit
    left, right = segmenter.segment(Picture(image))
    assert model.seen.shape == (1, 3, 64, 64)
    # logit 8 has its centre at pixel 25; interpolated, the logit is above 0 less than half a logit around it
    probability = segmenter.boundary_probability(image)
    assert probability.shape == (30, 48)
    assert np.flatnonzero(probability[0] > 0.5).tolist() == [24, 25, 26]
    assert box_of_mask(left.mask) == Box(0, 0, 23, 30)  # one more pixel for the widening
    assert box_of_mask(right.mask) == Box(28, 0, 48, 30)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PipelineError, match=r"pip install 'protomask-pipeline\[slit\]'"):
        make_segmenter(MasksParams(segmenter="slit"))


@pytest.fixture
def transformers_that_load(monkeypatch):
    """Put a stand-in for ``transformers`` in place; returns it, so that tests can set what it loads."""
    fake = SimpleNamespace(model=VerticalLine(), processor=square_processor)
    fake.model.config = SimpleNamespace(num_labels=1)
    fake.AutoModelForSemanticSegmentation = SimpleNamespace(
        from_pretrained=lambda folder, local_files_only: fake.model if local_files_only else None
    )
    fake.AutoImageProcessor = SimpleNamespace(
        from_pretrained=lambda folder, local_files_only: fake.processor if local_files_only else None
    )
    monkeypatch.setitem(sys.modules, "transformers", fake)
    return fake


def test_network_and_processor_are_loaded_from_the_weights_folder_only(transformers_that_load, tmp_path):
    params = MasksParams(segmenter="slit", weights=str(tmp_path), slit=SlitParams(image_side_px=64))
    segments = make_segmenter(params).segment(Picture(np.zeros((30, 48, 3), dtype=np.uint8)))
    assert len(segments) == 2


def test_a_missing_folder_is_named(transformers_that_load, tmp_path):
    with pytest.raises(PipelineError, match=r"masks\.weights: .*absent is no folder"):
        make_segmenter(MasksParams(segmenter="slit", weights=str(tmp_path / "absent")))


def test_a_network_with_several_classes_is_refused(transformers_that_load, tmp_path):
    transformers_that_load.model.config.num_labels = 150
    with pytest.raises(PipelineError, match="150 output channels"):
        make_segmenter(MasksParams(segmenter="slit", weights=str(tmp_path)))
