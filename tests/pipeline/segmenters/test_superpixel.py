import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest

from pipeline.data.boxes import Box, box_of_mask
from pipeline.params import SuperpixelParams
from pipeline.segmenters.interface import Picture
from pipeline.segmenters.superpixel import SuperpixelSegmenter, merge_regions, region_graph

SIDE_PX = SuperpixelParams().image_side_px


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def shapes(height: int = 240, width: int = SIDE_PX) -> tuple[np.ndarray, list[np.ndarray]]:
    """A disc, an ellipse and a rectangle of flat colours on grey; with the mask of each."""
    y, x = np.mgrid[:height, :width] * (SIDE_PX / width)
    masks = [
        (x - 80) ** 2 + (y - 90) ** 2 < 45**2,
        ((x - 220) / 60) ** 2 + ((y - 70) / 30) ** 2 < 1,
        (abs(x - 200) < 50) & (abs(y - 175) < 30),
    ]
    image = np.full((height, width, 3), 128, dtype=np.uint8)
    for mask, colour in zip(masks, [(200, 40, 40), (40, 160, 60), (50, 60, 200)], strict=True):
        image[mask] = colour
    return image, masks


def blobs(seed: int, height: int = 200, width: int = SIDE_PX) -> np.ndarray:
    """A picture with structure of every size, a bit noisy: sums of coarse random grids."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for cells in (3, 8, 20):
        coarse = rng.uniform(-1, 1, (cells, cells, 3))
        image += coarse[np.arange(height)[:, None] * cells // height, np.arange(width) * cells // width]
    image += rng.normal(0, 0.05, image.shape)
    return (127.5 + 40 * image).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(240, SIDE_PX), (480, 2 * SIDE_PX), (180, 240)])
def test_flat_shapes_are_the_best_masks(height, width):
    image, masks = shapes(height, width)
    best = SuperpixelSegmenter(SuperpixelParams()).segment(Picture(image))[:4]
    for mask in masks:
        assert max(iou(segment.mask, mask) for segment in best) >= 0.9


@pytest.mark.parametrize("seed", [0, 1])
def test_masks_keep_the_limits_of_area_border_and_overlap(seed):
    params = SuperpixelParams()
    image = blobs(seed)
    segments = SuperpixelSegmenter(params).segment(Picture(image))
    assert len(segments) > 20
    num_px = image.shape[0] * image.shape[1]
    for segment in segments:
        mask = segment.mask
        assert mask.shape == image.shape[:2]
        assert params.min_area_frac * num_px <= mask.sum() <= params.max_area_frac * num_px
        inner_px = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
        border_px = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
        assert border_px <= params.max_border_frac * (inner_px + border_px)
    overlaps = [iou(a.mask, b.mask) for a, b in itertools.combinations(segments, 2)]
    assert max(overlaps) <= params.suppression_iou
    assert max(overlaps) > 0.3  # nested masks are kept where they differ enough


@pytest.mark.parametrize(
    "limit", [{"min_area_frac": 0.05}, {"max_area_frac": 0.02}, {"max_border_frac": 0.0}, {"suppression_iou": 0.3}]
)
def test_each_tighter_limit_leaves_out_masks(limit):
    image = blobs(0)
    usual = SuperpixelSegmenter(SuperpixelParams()).segment(Picture(image))
    tighter = SuperpixelSegmenter(SuperpixelParams(**limit)).segment(Picture(image))
    assert 0 < len(tighter) < len(usual)


def test_scores_fall_and_are_above_zero():
    scores = [segment.score for segment in SuperpixelSegmenter(SuperpixelParams()).segment(Picture(blobs(2)))]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0


def digest(image: np.ndarray) -> str:
    sha = hashlib.sha256()
    for segment in SuperpixelSegmenter(SuperpixelParams()).segment(Picture(image)):
        sha.update(segment.mask.tobytes() + np.float64(segment.score).tobytes())
    return sha.hexdigest()


def test_runs_and_processes_give_the_same_bits(tmp_path):
    image = blobs(3, 300, 400)
    here = digest(image)
    assert digest(image.copy()) == here
    np.save(tmp_path / "image.npy", image)
    code = f"""
import hashlib, numpy as np
from pipeline.params import SuperpixelParams
from pipeline.segmenters.interface import Picture
from pipeline.segmenters.superpixel import SuperpixelSegmenter
sha = hashlib.sha256()
for segment in SuperpixelSegmenter(SuperpixelParams()).segment(Picture(np.load({str(tmp_path / "image.npy")!r}))):
    sha.update(segment.mask.tobytes() + np.float64(segment.score).tobytes())
print(sha.hexdigest())
"""
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 900), (900, 3), (64, 64), (200, 320)])
def test_one_colour_has_no_masks(shape):
    assert SuperpixelSegmenter(SuperpixelParams()).segment(Picture(np.full((*shape, 3), 90, dtype=np.uint8))) == []


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 5), (1, 900), (900, 3), (40, 31), (17, 400)])
@pytest.mark.parametrize("grey", [False, True])
def test_masks_of_odd_images_have_their_size_and_some_pixels(shape, grey):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    if grey:
        image[:] = image[..., :1]
    for segment in SuperpixelSegmenter(SuperpixelParams()).segment(Picture(image)):
        assert segment.mask.shape == shape
        assert segment.mask.any()


def test_image_pixels_take_the_mask_at_their_centre_whatever_the_image_size():
    image, (disc, *_) = shapes()
    small = SuperpixelSegmenter(SuperpixelParams()).segment(Picture(image))
    large = SuperpixelSegmenter(SuperpixelParams()).segment(Picture(image.repeat(3, axis=0).repeat(3, axis=1)))

    def box_of_disc(segments: list, scale: int) -> Box:
        mask = disc.repeat(scale, axis=0).repeat(scale, axis=1)
        return box_of_mask(max((segment.mask for segment in segments), key=lambda other: iou(mask, other)))

    shrunk = [value / 3 for value in box_of_disc(large, 3)]
    assert max(abs(a - b) for a, b in zip(shrunk, box_of_disc(small, 1), strict=True)) <= 2


def test_the_graph_measures_areas_outlines_and_common_borders():
    leaves = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]])
    lab = np.zeros((3, 3, 3), dtype=np.float32)
    lab[:2, 2] = (3, 4, 0)  # leaf 1: a step of 5 from leaf 0
    graph = region_graph(leaves, lab)
    assert graph.area_px.tolist() == [4, 2, 3]
    assert graph.lab_sum.tolist() == [[0, 0, 0], [6, 8, 0], [0, 0, 0]]
    assert graph.pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert graph.shared_px.tolist() == [2, 2, 1]
    assert graph.step_sum.tolist() == [10, 0, 5]
    assert graph.border_px.tolist() == [4, 3, 5]
    assert graph.outline_px.tolist() == [8, 6, 8]


def test_merging_joins_the_cheapest_neighbours_first_at_the_cost_of_the_definition():
    # three columns; the left two look alike, so the right one stays alone the longest
    leaves = np.array([[0, 1, 2]]).repeat(2, axis=0)
    lab = np.zeros((2, 3, 3), dtype=np.float32)
    lab[:, 1, 0], lab[:, 2, 0] = 1, 9
    tree = merge_regions(region_graph(leaves, lab), gradient_weight=2.0)
    third = 1 / 3
    first_cost = (1 + 2 * 1) * np.sqrt(third * third / (2 * third))
    last_cost = (8.5 + 2 * 8) * np.sqrt(2 * third * third / (3 * third))
    np.testing.assert_allclose(
        tree.persistence, [first_cost, first_cost, last_cost, last_cost - first_cost, 0], rtol=1e-12
    )
    assert tree.area_px.tolist() == [2, 2, 2, 4, 6]
    assert tree.outline_px.tolist() == [6, 6, 6, 8, 10]
    assert tree.border_px.tolist() == [6 - 2, 2, 6 - 2, 4 + 2, 10]


def test_every_node_is_a_run_of_leaves_that_holds_its_children():
    image = blobs(4, 60, 80)
    leaves = (np.arange(60)[:, None] // 12) * 5 + np.arange(80) // 16
    tree = merge_regions(region_graph(leaves, image.astype(np.float32)), gradient_weight=1.0)
    assert sorted(tree.rank.tolist()) == list(range(25))
    assert len(tree.first) == 49
    ranks = tree.rank[leaves]
    for node in range(49):
        mask = (ranks >= tree.first[node]) & (ranks < tree.last[node])
        assert mask.sum() == tree.area_px[node]
        inner_px = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
        border_px = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
        assert (tree.border_px[node], tree.outline_px[node]) == (border_px, inner_px + border_px)
    assert (tree.persistence >= 0).all()
