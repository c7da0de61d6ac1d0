"""The batched generator against the package's own, mask by mask and to the bit, and what it does with many pictures."""

import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import automatic_mask_generator
from segment_anything.modeling import Sam
from segment_anything.utils.amg import remove_small_regions

from pipeline.data.datasets.bird_renderer import render
from pipeline.data.datasets.bird_species import SPECIES
from pipeline.data.images import read_image
from pipeline.data.masks import StoredMask, decode_mask
from pipeline.errors import PipelineError
from pipeline.params import SamParams
from pipeline.segmenters import sam_batched
from pipeline.segmenters.interface import Picture
from pipeline.segmenters.sam import SamSegmenter
from pipeline.segmenters.sam_batched import BatchedMaskGenerator, fill_holes, remove_islands
from pipeline.segmenters.sam_decoder import DecodedPoints, PointDecoder
from pipeline.segmenters.tiny_sam import TINY_SAM_WEIGHTS, load_tiny_sam
from tests.pipeline.segmenters.random_sam import (
    KEEP_ALL,
    blobs,
    noise,
    packages_masks,
    packages_records,
    random_sam,
    rounds_alike,
)

CUB = Path(__file__).parents[4] / "shared" / "data" / "CUB_200_2011" / "images"

OPEN = KEEP_ALL.model_copy(update={"points_per_side": 6, "crop_n_points_downscale_factor": 2})
"""Settings with which the trained network's masks stay, those at the edges of crops excepted."""


class PackagesDecoder(PointDecoder):
    """The package's own decoder behind our interface.

    Where matrix products round by company (:func:`rounds_alike`), everything but the decoder is compared with it.
    """

    def __init__(self, model: Sam, dtype: torch.dtype = torch.float32) -> None:
        self._model = model

    def decode(self, embedding: torch.Tensor, prompts: torch.Tensor) -> DecodedPoints:
        prompting = self._model.prompt_encoder
        dense = prompting.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(len(prompts), -1, *embedding.shape[2:])
        masks, iou = self._model.mask_decoder.predict_masks(embedding, prompting.get_dense_pe(), prompts, dense)
        return DecodedPoints(iou=iou[:, 1:], mask_weights=masks[:, 1:].flatten(2), image=masks[:, 1:].flatten(2))

    def draw(self, decoded: DecodedPoints, points: torch.Tensor, *, columns: int, rows: int) -> torch.Tensor:
        masks = decoded.mask_weights[points]
        return masks.view(*masks.shape[:2], -1, 4 * columns)[:, :, : 4 * rows]


@pytest.fixture(autouse=True)
def comparable_decoder(request, monkeypatch) -> None:
    if "to_the_bit" in request.fixturenames and not rounds_alike(random_sam()):
        monkeypatch.setattr(sam_batched, "PointDecoder", PackagesDecoder)


@pytest.fixture
def to_the_bit() -> None:
    """Mark a test that compares bits with those of the package."""


@pytest.fixture(scope="module")
def trained() -> Sam:
    if not TINY_SAM_WEIGHTS.is_file():
        pytest.skip(f"{TINY_SAM_WEIGHTS.name} is not there")
    return load_tiny_sam()


def masks_of(model: Sam, params: SamParams, *images: np.ndarray, **settings: Any) -> list[list[StoredMask]]:
    return list(BatchedMaskGenerator(model, params, **settings).generate(Picture(image) for image in images))


def assert_the_packages(model: Sam, params: SamParams, image: np.ndarray) -> list[StoredMask]:
    want = packages_masks(model, params, image)
    (got,) = masks_of(model, params, image)
    assert len(got) == len(want)
    assert got == want
    return got


def bird(number: int) -> np.ndarray:
    return render(SPECIES[number], (0, number, 0, 0), 256).image


def quantile(values: Iterable[float | None], share: float) -> float:
    """Choose a threshold that passes the rest of VALUES, whatever weights they come from."""
    return float(np.clip(np.quantile([value for value in values if value is not None], share), 0.001, 1))


# one picture, against the package


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((40, 56), {"crop_n_layers": 0}),
        ((56, 40), {"crop_n_layers": 1, "points_per_batch": 7}),
        ((64, 64), {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2}),
        ((150, 101), {"crop_n_layers": 1, "points_per_batch": 10}),
        ((101, 150), {"crop_n_layers": 2, "crop_nms_thresh": 0.7}),
        ((33, 57), {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "box_nms_thresh": 0.9}),
        ((300, 220), {"crop_n_layers": 1, "points_per_side": 9, "box_nms_thresh": 0.8}),
        ((30, 200), {"crop_n_layers": 0, "points_per_side": 9}),
        ((200, 9), {"crop_n_layers": 1, "crop_overlap_ratio": 0.0}),
        ((80, 60), {"crop_n_layers": 1, "crop_overlap_ratio": 0.9}),
        ((3, 5), {"crop_n_layers": 1}),
        ((1, 1), {"crop_n_layers": 0}),
        ((1, 30), {"crop_n_layers": 0}),
    ],
)
def test_masks_are_the_packages_own_whatever_the_size_of_the_picture(size, settings, to_the_bit):
    params = KEEP_ALL.model_copy(update={"points_per_side": 4} | settings)
    assert assert_the_packages(random_sam(), params, blobs(*size))


@pytest.mark.parametrize(("side", "depth"), [(96, 1), (128, 3)])
def test_masks_are_the_packages_own_for_other_networks(side, depth, to_the_bit):
    assert assert_the_packages(random_sam(side, depth=depth), KEEP_ALL, blobs(90, 130))


@pytest.fixture(scope="module")
def everything(trained) -> list[StoredMask]:
    return masks_of(trained, OPEN, bird(0))[0]


@pytest.mark.parametrize("name", ["predicted IoU", "stability", "box NMS", "crop NMS", "all"])
def test_each_filter_leaves_out_what_the_package_leaves_out(trained, everything, name, to_the_bit):
    strict = {
        "pred_iou_thresh": quantile((mask.score for mask in everything), 0.7),
        "stability_score_thresh": quantile((mask.stability for mask in everything), 0.7),
        "box_nms_thresh": 0.5,
        "crop_nms_thresh": 0.5,
    }
    names = {"predicted IoU": ["pred_iou_thresh"], "stability": ["stability_score_thresh"]}
    names |= {"box NMS": ["box_nms_thresh"], "crop NMS": ["crop_nms_thresh"]}
    params = OPEN.model_copy(update={key: strict[key] for key in names.get(name, [*strict])})
    kept = assert_the_packages(trained, params, bird(0))
    assert 0 < len(kept) < len(everything)


def test_masks_that_end_at_an_edge_of_a_crop_inside_the_image_are_left_out(trained, monkeypatch, to_the_bit):
    def never(boxes, *rest):
        return torch.zeros(len(boxes), dtype=torch.bool)

    kept = assert_the_packages(trained, OPEN, bird(0))
    monkeypatch.setattr(sam_batched, "is_box_near_crop_edge", never)
    monkeypatch.setattr(automatic_mask_generator, "is_box_near_crop_edge", never)
    assert len(assert_the_packages(trained, OPEN, bird(0))) > len(kept) > 0


def test_small_regions_are_cleaned_up_as_in_the_package_and_new_duplicates_go(trained, everything, to_the_bit):
    pytest.importorskip("cv2", reason="the package's clean-up needs OpenCV")
    params = OPEN.model_copy(update={"box_nms_thresh": 0.7, "crop_nms_thresh": 0.7})
    as_they_are = assert_the_packages(trained, params, bird(0))
    clean = assert_the_packages(trained, params.model_copy(update={"min_mask_region_area": 60}), bird(0))
    assert 0 < len(clean) < len(as_they_are) < len(everything)
    assert {mask.rle for mask in clean} - {mask.rle for mask in as_they_are}


def test_masks_of_a_large_picture_are_the_packages_own():
    model = random_sam()
    if not rounds_alike(model):
        pytest.skip("the package's own bits depend on the company of a point on this machine")
    params = KEEP_ALL.model_copy(update={"crop_n_layers": 0, "points_per_side": 3})
    assert assert_the_packages(model, params, blobs(1500, 2000))


@pytest.mark.parametrize("settings", [{"crop_n_layers": 2}, {"crop_n_layers": 0, "points_per_side": 9}])
def test_masks_of_the_trained_network_are_the_packages_own(trained, settings, to_the_bit):
    strict = {"box_nms_thresh": 0.8, "crop_nms_thresh": 0.8, "stability_score_offset": 1.0}
    assert len(assert_the_packages(trained, OPEN.model_copy(update=settings | strict), bird(1))) > 2


@pytest.mark.parametrize("number", [0, -1])
def test_masks_of_photographs_are_the_packages_own(trained, number, to_the_bit):
    if not CUB.is_dir():
        pytest.skip(f"{CUB} is not there")
    image = read_image(sorted(CUB.rglob("*.jpg"))[number])
    assert assert_the_packages(trained, OPEN.model_copy(update={"box_nms_thresh": 0.8, "crop_nms_thresh": 0.8}), image)


def test_duplicates_of_the_clean_up_are_those_of_the_laxer_threshold(trained, to_the_bit):
    pytest.importorskip("cv2", reason="the package's clean-up needs OpenCV")
    lax = OPEN.model_copy(update={"box_nms_thresh": 0.7, "min_mask_region_area": 60})
    strict = lax.model_copy(update={"crop_nms_thresh": 0.7})
    num_lax, num_strict = (len(assert_the_packages(trained, params, bird(0))) for params in (lax, strict))
    assert num_lax > num_strict > 0


def test_empty_masks_are_dropped_and_nothing_else(to_the_bit):
    model, image = random_sam(), blobs(40, 50)
    model.mask_threshold = 0.1
    params = KEEP_ALL.model_copy(update={"crop_n_layers": 0, "stability_score_offset": 0.0})
    assert 0 < len(assert_the_packages(model, params, image)) < len(packages_records(model, params, image))


def test_a_picture_on_which_nothing_passes_has_no_masks():
    model = random_sam()
    assert masks_of(model, KEEP_ALL.model_copy(update={"pred_iou_thresh": 1.0}), noise(40, 56)) == [[]]
    assert masks_of(model, KEEP_ALL.model_copy(update={"stability_score_thresh": 1.0}), noise(40, 56)) == [[]]


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1), (2, 2)])
@pytest.mark.parametrize("crop_n_layers", [1, 2])
def test_crops_without_area_are_passed_over(size, crop_n_layers, to_the_bit):
    model, params = random_sam(), KEEP_ALL.model_copy(update={"crop_n_layers": crop_n_layers})
    (got,) = masks_of(model, params, noise(*size))
    (want,) = SamSegmenter(model, params.model_copy(update={"batched": False})).stream([Picture(noise(*size))])
    assert got == want


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_runs_give_the_same_bytes(dtype):
    runs = [masks_of(random_sam(), KEEP_ALL, blobs(60, 80), noise(50, 40), dtype=dtype) for _ in range(2)]
    assert runs[0] == runs[1]
    assert all(runs[0])


def test_segmenter_gives_the_pixels_of_what_it_streams():
    segmenter, image = SamSegmenter(random_sam(), KEEP_ALL), blobs(50, 70)
    (stored,) = segmenter.stream([Picture(image)])
    assert [segment.stored() for segment in segmenter.segment(Picture(image))] == stored != []


def assert_nearly(got: list[StoredMask], want: list[StoredMask], size: tuple[int, int]) -> None:
    """Find for nearly every mask of WANT one of GOT with nearly the same pixels, and about as many."""
    assert 0.9 * len(want) <= len(got)
    got_pixels = np.array([decode_mask(mask.rle, height=size[0], width=size[1]).ravel() for mask in got], dtype=float)
    best = []
    for mask in want:
        pixels = decode_mask(mask.rle, height=size[0], width=size[1]).ravel().astype(float)
        both = got_pixels @ pixels
        best.append((both / (got_pixels.sum(axis=1) + pixels.sum() - both)).max())
    assert np.quantile(best, 0.2) > 0.9
    assert np.median(best) > 0.95


def test_in_bfloat16_masks_are_nearly_those_of_float32(trained):
    params = OPEN.model_copy(update={"crop_n_layers": 0})
    ((exact,), (close,)) = (masks_of(trained, params, bird(0), dtype=d) for d in (torch.float32, torch.bfloat16))
    large = [mask for mask in exact if mask.area_px > 100]  # of a few pixels, one more or less is a large share
    assert len(large) > 10
    assert_nearly(close, large, (256, 256))


def test_in_bfloat16_masks_of_random_weights_are_nearly_those_of_float32():
    params, image = KEEP_ALL.model_copy(update={"crop_n_layers": 0, "points_per_side": 4}), blobs(60, 80)
    ((exact,), (close,)) = (masks_of(random_sam(), params, image, dtype=d) for d in (torch.float32, torch.bfloat16))
    assert exact != close
    assert_nearly(close, exact, (60, 80))


# many pictures at once

SIZES = [(40, 56), (70, 50), (33, 90), (1, 1), (100, 60)]


def pictures() -> list[Picture]:
    return [Picture(blobs(*size, seed=number)) for number, size in enumerate(SIZES)]


def assert_the_same_pixels(got: list[list[StoredMask]], want: list[list[StoredMask]]) -> None:
    """Compare all but the last bits of the numbers, by which masks of nearly equal score may change places."""
    assert len(got) == len(want)
    for ours, others in zip(got, want, strict=True):
        assert sorted(mask.rle for mask in ours) == sorted(mask.rle for mask in others)
        np.testing.assert_allclose([mask.score for mask in ours], [mask.score for mask in others], atol=1e-5)


@pytest.fixture(scope="module", params=[0, 1], ids=["no crops", "crops"])
def alone(request) -> tuple[SamParams, list[list[StoredMask]]]:
    params = KEEP_ALL.model_copy(update={"crop_n_layers": request.param, "points_per_side": 3, "images_per_batch": 1})
    return params, [masks_of(random_sam(), params, picture.image)[0] for picture in pictures()]


def test_many_pictures_one_by_one_give_the_bits_that_each_gives_alone(alone):
    params, want = alone
    assert list(SamSegmenter(random_sam(), params).stream(pictures())) == want
    assert all(want)


@pytest.mark.parametrize("images_per_batch", [2, 3, 5, 100])
def test_many_pictures_at_once_give_the_pixels_that_each_gives_alone_in_their_order(alone, images_per_batch):
    params, want = alone  # not the bits: the encoder's products round otherwise for several pictures
    params = params.model_copy(update={"images_per_batch": images_per_batch})
    assert_the_same_pixels(list(SamSegmenter(random_sam(), params).stream(pictures())), want)


def test_no_pictures_have_no_results():
    assert masks_of(random_sam(), KEEP_ALL) == []


def test_a_generator_can_be_used_again():
    generator = BatchedMaskGenerator(random_sam(), KEEP_ALL)
    first, second = ([*generator.generate(pictures()[:2])] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("crop_n_layers", [0, 1])
@pytest.mark.parametrize("images_per_batch", [1, 3])
def test_few_pictures_are_taken_ahead_of_what_is_given(images_per_batch, crop_n_layers):
    params = KEEP_ALL.model_copy(
        update={"crop_n_layers": crop_n_layers, "images_per_batch": images_per_batch, "points_per_side": 2}
    )
    num_drawn = 0

    def drawn() -> Iterator[Picture]:
        nonlocal num_drawn
        for number in range(16):
            num_drawn += 1
            yield Picture(noise(20, 30, number))

    ahead = [
        num_drawn - given for given, _ in enumerate(BatchedMaskGenerator(random_sam(), params).generate(drawn()), 1)
    ]
    assert len(ahead) == num_drawn == 16
    assert max(ahead) <= images_per_batch + 2 * sam_batched._PREPARING_THREADS + 1


def num_threads_soon() -> int:
    """Count threads; those that are about to end are waited for."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and "ThreadPoolExecutor" in thread.name:
            thread.join(timeout=5)
    return sum("ThreadPoolExecutor" in thread.name for thread in threading.enumerate())


def test_a_run_that_is_closed_early_leaves_no_threads():
    results = BatchedMaskGenerator(random_sam(), KEEP_ALL).generate(pictures())
    assert next(results)
    results.close()
    del results
    assert num_threads_soon() == 0


def test_what_goes_wrong_while_pictures_are_read_is_raised():
    def broken() -> Iterator[Picture]:
        yield from pictures()[:2]
        raise PipelineError("third.jpg is no picture")

    with pytest.raises(PipelineError, match=r"third\.jpg is no picture"):
        list(BatchedMaskGenerator(random_sam(), KEEP_ALL).generate(broken()))
    assert num_threads_soon() == 0


def test_what_goes_wrong_while_a_picture_is_prepared_or_finished_is_raised(monkeypatch):
    def fail(*_: Any) -> None:
        raise ValueError("a defect")

    for name in ("_prepare", "_finish"):
        with monkeypatch.context() as patch:
            patch.setattr(BatchedMaskGenerator, name, fail)
            with pytest.raises(ValueError, match="a defect"):
                masks_of(random_sam(), KEEP_ALL, *(picture.image for picture in pictures()))
    assert num_threads_soon() == 0


# memory


def failing(function: Any, at: set[int], error: Exception) -> Any:
    """Let some calls of FUNCTION, counted from 0, raise ERROR."""
    calls = iter(range(10**6))

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        if next(calls) in at:
            raise error
        return function(*args, **kwargs)

    return sometimes


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
]
BATCHES = KEEP_ALL.model_copy(update={"images_per_batch": 4, "points_per_batch": 6, "points_per_side": 3})


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["device", "CPU"])
@pytest.mark.parametrize(
    ("place", "call"), [("_encode", 0), ("_encode", 2), ("_decode", 0), ("_decode", 3), ("draw", 0), ("draw", 7)]
)
def test_out_of_memory_once_halves_the_batches_warns_once_and_changes_no_mask(place, call, error, monkeypatch, caplog):
    want = list(BatchedMaskGenerator(random_sam(), BATCHES).generate(pictures()))
    generator = BatchedMaskGenerator(random_sam(), BATCHES)
    owner = generator._decoder if place == "draw" else generator
    sizes: list[int] = []
    encode = generator._encode
    monkeypatch.setattr(generator, "_encode", lambda crops: (sizes.append(len(crops)), encode(crops))[1])
    monkeypatch.setattr(owner, place, failing(getattr(owner, place), {call}, error))
    got = list(generator.generate(pictures()))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "out of memory: going on with 2 crops and 3 points at once"
    ]
    assert max(sizes[-3:]) == 2
    assert_the_same_pixels(got, want)


@pytest.mark.parametrize("place", ["encode", "decode"])
def test_out_of_memory_twice_is_an_error_that_names_the_keys(place, monkeypatch):
    generator = BatchedMaskGenerator(random_sam(), BATCHES)
    owner, name = (generator, "_encode") if place == "encode" else (generator._decoder, "decode")
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), {1, 4}, OUT_OF_MEMORY[0]))
    with pytest.raises(PipelineError, match=r"masks\.sam\.images_per_batch and masks\.sam\.points_per_batch") as error:
        list(generator.generate(pictures()))
    assert "\n" not in str(error.value)
    assert "2 crops and 3 points" in str(error.value)


@pytest.mark.parametrize("name", ["_encode", "_decode"])
def test_other_errors_of_the_network_stay_what_they_are(name, monkeypatch, caplog):
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    generator = BatchedMaskGenerator(random_sam(), BATCHES)
    monkeypatch.setattr(generator, name, failing(getattr(generator, name), {0}, error))
    with pytest.raises(RuntimeError) as raised:
        list(generator.generate(pictures()))
    assert raised.value is error
    assert not caplog.records


@pytest.mark.parametrize(("height", "width"), [(1500, 2000), (400, 300)])
def test_no_block_of_upsampled_logits_is_larger_than_the_budget(height, width, monkeypatch):
    params = KEEP_ALL.model_copy(update={"points_per_side": 4, "crop_n_points_downscale_factor": 2})
    generator = BatchedMaskGenerator(random_sam(), params)
    interpolate, num_pixels = torch.nn.functional.interpolate, []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        block = interpolate(*args, **kwargs)
        num_pixels.append(block.numel())
        return block

    monkeypatch.setattr(torch.nn.functional, "interpolate", counted)
    assert list(generator.generate([Picture(blobs(height, width))])) != [[]]
    budget = generator._sizes.pixels
    assert budget // 4 < max(num_pixels) <= max(budget, 3 * height * width)


def test_only_points_with_a_promising_mask_are_drawn(monkeypatch):
    model, image = random_sam(), blobs(60, 80)
    params = KEEP_ALL.model_copy(update={"crop_n_layers": 0, "points_per_side": 9})
    (every_mask,) = masks_of(model, params, image)
    threshold = sorted(mask.score for mask in every_mask)[-10]
    drawn, draw = [], PointDecoder.draw

    def counted(self: PointDecoder, decoded: DecodedPoints, points: torch.Tensor, **where: int) -> torch.Tensor:
        drawn.append(len(points))
        return draw(self, decoded, points, **where)

    monkeypatch.setattr(PointDecoder, "draw", counted)
    (kept,) = masks_of(model, params.model_copy(update={"pred_iou_thresh": threshold}), image)
    assert 0 < len(kept) < 10
    assert 0 < sum(drawn) < 10
    assert {mask.rle for mask in kept} <= {mask.rle for mask in every_mask}


# small regions


def random_masks() -> Iterator[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(0)
    for _ in range(300):
        mask = rng.random(rng.integers(1, 25, 2)) < rng.choice([0.05, 0.2, 0.5, 0.8, 0.95])
        if mask.any():
            yield mask, int(rng.integers(1, 20))


@pytest.mark.parametrize(("mode", "ours"), [("holes", fill_holes), ("islands", remove_islands)])
def test_small_regions_are_those_of_the_package(mode, ours):
    pytest.importorskip("cv2", reason="the package's clean-up needs OpenCV")
    num_changed = 0
    for mask, min_area_px in random_masks():
        want, changed = remove_small_regions(mask, min_area_px, mode)
        got = ours(mask, min_area_px)
        np.testing.assert_array_equal(got, want)
        assert (got is not mask) == changed
        num_changed += changed
    assert num_changed > 30


def test_of_islands_of_equal_size_the_one_stays_that_stays_in_the_package():
    pytest.importorskip("cv2", reason="the package's clean-up needs OpenCV")
    mask = np.zeros((3, 5), dtype=bool)
    mask[0, 4] = mask[1, 0] = True
    np.testing.assert_array_equal(remove_islands(mask, 2), remove_small_regions(mask, 2, "islands")[0])


@pytest.mark.parametrize("ours", [fill_holes, remove_islands])
def test_masks_are_not_changed_in_place(ours):
    mask = noise(20, 20)[..., 0] > 128
    before = mask.copy()
    ours(mask, 10)
    np.testing.assert_array_equal(mask, before)


def test_full_masks_and_large_regions_stay_the_same_object():
    full, half = np.ones((6, 8), dtype=bool), np.zeros((6, 8), dtype=bool)
    half[:, :4] = True
    for mask in (full, half):
        assert fill_holes(mask, 24) is mask
        assert remove_islands(mask, 24) is mask
