"""Region merging on superpixels: masks without weights, training or a GPU.

SLIC cuts the image into some hundred superpixels, the leaves. The two neighbouring regions that are cheapest to merge
are merged, again and again, until one region is left; every region that ever existed is a node of this tree and a
candidate mask. A region that stays unmerged over a long range of costs stands out from its surroundings, so
candidates are ranked by *persistence*: the cost at which the region is merged away minus the cost at which it arose.

The cost of merging regions i and j is ::

    (|lab_i - lab_j| + gradient_weight * gradient_ij) * sqrt(a_i * a_j / (a_i + a_j))

with the regions' mean CIE Lab colours (L from 0 to 100), the mean colour step across their common border (Lab units,
between pixels on either side, after smoothing), and areas a as shares of the image. The last factor is that of Ward's
method: small regions go first, large ones only when they look alike.
"""

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, UInt, UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2lab
from skimage.segmentation import slic

from pipeline.data.masks import StoredMask
from pipeline.params import MasksParams, SuperpixelParams
from pipeline.segmenters.interface import Picture, Segment, Segmenter

_MIN_PERSISTENCE = 1e-6  # what rounding leaves of 0; such a region does not differ from what it is merged with
_SLIC_ITERATIONS = 5  # half of scikit-image's default: as good masks, in half the time
# fragments below this share of the mean superpixel join a neighbour whatever its colour: 0.5, scikit-image's default,
# moves edges
_SLIC_MIN_SIZE = 0.1


@dataclass(frozen=True, slots=True)
class RegionGraph:
    """The superpixels and what lies between neighbours; ``leaf`` counts superpixels, ``edge`` pairs that touch.

    Attributes:
        area_px: pixels of each leaf.
        lab_sum: sum of the pixels' Lab colours.
        outline_px: pixel sides that part the leaf from others or lie on the image border.
        border_px: those on the image border.
        pairs: leaf_idx of both neighbours, the smaller first; sorted.
        shared_px: pixel sides the neighbours have in common.
        step_sum: sum over these sides of the colour step across them, Lab units.
    """

    area_px: Int[np.ndarray, " leaf"]
    lab_sum: Float[np.ndarray, "leaf 3"]
    outline_px: Int[np.ndarray, " leaf"]
    border_px: Int[np.ndarray, " leaf"]
    pairs: Int[np.ndarray, "edge 2"]
    shared_px: Int[np.ndarray, " edge"]
    step_sum: Float[np.ndarray, " edge"]


@dataclass(frozen=True, slots=True)
class MergeTree:
    """Every region that ever existed: the leaves first, then the merged ones in the order they arose.

    With the leaves in the order of a walk through the tree each node is a run of consecutive leaves, so that two
    nodes either do not overlap or one holds the other.

    Attributes:
        rank: position of each leaf in that order.
        first: rank of the node's first leaf.
        last: rank of its last leaf, plus one.
        persistence: merge cost of the parent minus the node's own; 0 for the root.
        area_px: pixels of the node.
        outline_px: pixel sides around the node, those around its holes and on the image border included.
        border_px: those on the image border.
    """

    rank: Int[np.ndarray, " leaf"]
    first: Int[np.ndarray, " node"]
    last: Int[np.ndarray, " node"]
    persistence: Float[np.ndarray, " node"]
    area_px: Int[np.ndarray, " node"]
    outline_px: Int[np.ndarray, " node"]
    border_px: Int[np.ndarray, " node"]


class SuperpixelSegmenter(Segmenter):
    """Masks from a tree of merged superpixels; see the module."""

    holds_device = False
    version = 1

    def __init__(self, params: SuperpixelParams) -> None:
        self._params = params

    @classmethod
    def from_params(cls, params: MasksParams, device: str) -> "SuperpixelSegmenter":
        """Build it from its section; there are no weights."""
        return cls(params.superpixel)

    def segment(self, picture: Picture) -> list[Segment]:
        """Find the masks of one image, the most persistent first; see :class:`Segmenter`.

        Areas, border shares and overlaps are judged at the working size; in image pixels they differ by rounding.
        """
        return list(self._segments(picture))

    def stream(self, pictures: Iterable[Picture]) -> Iterator[list[StoredMask]]:
        """Find the masks of many images; see :class:`Segmenter`. No more than one mask is unpacked at a time."""
        for picture in pictures:
            yield [segment.stored() for segment in self._segments(picture)]

    def _segments(self, picture: Picture) -> Iterator[Segment]:
        params = self._params
        work = _resized(picture.image, params.image_side_px)
        leaves = _superpixels(work, params)
        tree = merge_regions(region_graph(leaves, _smooth_lab(work, params.sigma_px)), params.gradient_weight)
        kind = np.min_scalar_type(len(tree.rank))
        ranks = _nearest(tree.rank.astype(kind)[leaves], *picture.image.shape[:2])
        for node in choose_nodes(tree, params):
            # first <= rank < last in one comparison: unsigned numbers below `first` wrap around to large ones
            mask = ranks - kind.type(tree.first[node]) < kind.type(tree.last[node] - tree.first[node])
            if mask.any():  # an image smaller than the working size may have no pixel where a thin node lies
                yield Segment(mask, float(tree.persistence[node]))


def region_graph(leaves: Int[np.ndarray, "height width"], lab: Float32[np.ndarray, "height width 3"]) -> RegionGraph:
    """Measure superpixels and their common borders.

    Args:
        leaves: leaf_idx of every pixel; all of 0 to the maximum occur.
        lab: the image in Lab, smoothed.
    """
    num_leaves = int(leaves.max()) + 1
    area_px = np.bincount(leaves.ravel(), minlength=num_leaves)
    lab_sum = np.stack([np.bincount(leaves.ravel(), lab[..., c].ravel(), num_leaves) for c in range(3)], axis=1)
    border = np.concatenate([leaves[0], leaves[-1], leaves[:, 0], leaves[:, -1]])
    border_px = np.bincount(border, minlength=num_leaves)

    # pixel pairs left-right and above-below that belong to different leaves
    keys, steps = [], []
    for near, far, lab_near, lab_far in (
        (leaves[:, :-1], leaves[:, 1:], lab[:, :-1], lab[:, 1:]),
        (leaves[:-1], leaves[1:], lab[:-1], lab[1:]),
    ):
        across = near != far
        near, far = near[across].astype(np.int64), far[across].astype(np.int64)
        keys.append(np.minimum(near, far) * num_leaves + np.maximum(near, far))
        steps.append(np.sqrt(np.square(lab_near[across] - lab_far[across]).sum(axis=1, dtype=np.float64)))
    key, edge_of_side, shared_px = np.unique(np.concatenate(keys), return_inverse=True, return_counts=True)
    pairs = np.stack([key // num_leaves, key % num_leaves], axis=1)
    step_sum = np.bincount(edge_of_side, np.concatenate(steps), len(key))
    inner_px = np.bincount(pairs.ravel(), np.repeat(shared_px, 2), num_leaves).astype(np.int64)
    return RegionGraph(area_px, lab_sum, inner_px + border_px, border_px, pairs, shared_px, step_sum)


def merge_regions(graph: RegionGraph, gradient_weight: float) -> MergeTree:
    """Merge neighbours, the cheapest pair first, until one region is left; the module has the cost.

    Equal costs go to the pair with the lower node numbers.
    """
    num_leaves = len(graph.area_px)
    num_px = int(graph.area_px.sum())
    # plain Python numbers: the loop below touches single values, where numpy's scalars are several times slower
    area_px: list[int] = graph.area_px.tolist()
    lab_sum: list[list[float]] = graph.lab_sum.tolist()
    outline_px: list[int] = graph.outline_px.tolist()
    border_px: list[int] = graph.border_px.tolist()
    neighbours: list[dict[int, tuple[int, float]]] = [{} for _ in range(num_leaves)]  # node: (shared_px, step_sum)
    for (a, b), shared, step in zip(
        graph.pairs.tolist(), graph.shared_px.tolist(), graph.step_sum.tolist(), strict=True
    ):
        neighbours[a][b] = neighbours[b][a] = (shared, step)

    def cost(a: int, b: int) -> float:
        shared, step = neighbours[a][b]
        area_a, area_b = area_px[a], area_px[b]
        distance = math.sqrt(sum((x / area_a - y / area_b) ** 2 for x, y in zip(lab_sum[a], lab_sum[b], strict=True)))
        return (distance + gradient_weight * step / shared) * math.sqrt(area_a * area_b / ((area_a + area_b) * num_px))

    queue = [(cost(a, b), a, b) for a, b in graph.pairs.tolist()]
    heapq.heapify(queue)
    height = [0.0] * num_leaves
    children: list[tuple[int, int]] = []  # of node num_leaves, num_leaves + 1, ...
    merged = [False] * num_leaves
    while queue:
        merge_cost, a, b = heapq.heappop(queue)
        if merged[a] or merged[b]:
            continue
        new = num_leaves + len(children)
        merged[a] = merged[b] = True
        merged.append(False)
        children.append((a, b))
        # merging can make the next merge cheaper; a parent is still not lower than its children
        height.append(max(merge_cost, height[a], height[b]))
        shared_px, _ = neighbours[a][b]
        area_px.append(area_px[a] + area_px[b])
        lab_sum.append([x + y for x, y in zip(lab_sum[a], lab_sum[b], strict=True)])
        outline_px.append(outline_px[a] + outline_px[b] - 2 * shared_px)
        border_px.append(border_px[a] + border_px[b])
        around = {node: edge for node, edge in neighbours[a].items() if node != b}
        for node, (shared, step) in neighbours[b].items():
            if node != a:
                shared_a, step_a = around.get(node, (0, 0.0))
                around[node] = (shared_a + shared, step_a + step)
        neighbours.append(around)
        for node, edge in around.items():
            neighbours[node].pop(a, None)
            neighbours[node].pop(b, None)
            neighbours[node][new] = edge
            heapq.heappush(queue, (cost(node, new), node, new))
    return _numbered(num_leaves, children, height, area_px, outline_px, border_px)


def _numbered(
    num_leaves: int,
    children: list[tuple[int, int]],
    height: list[float],
    area_px: list[int],
    outline_px: list[int],
    border_px: list[int],
) -> MergeTree:
    """Rank the leaves so that every node is a run of them, from the root down."""
    num_nodes = num_leaves + len(children)
    size = [1] * num_leaves
    for a, b in children:
        size.append(size[a] + size[b])
    first, persistence = [0] * num_nodes, [0.0] * num_nodes
    for node in range(num_nodes - 1, num_leaves - 1, -1):
        a, b = children[node - num_leaves]
        first[a], first[b] = first[node], first[node] + size[a]
        for child in (a, b):
            persistence[child] = height[node] - height[child]
    starts = np.array(first)
    return MergeTree(
        rank=starts[:num_leaves],
        first=starts,
        last=starts + np.array(size),
        persistence=np.array(persistence),
        area_px=np.array(area_px),
        outline_px=np.array(outline_px),
        border_px=np.array(border_px),
    )


def choose_nodes(tree: MergeTree, params: SuperpixelParams) -> list[int]:
    """Pick the nodes that become masks: distinct, of fitting area, not along the border, none overlapping a better one.

    Returns:
        Nodes, the most persistent first; equal ones in the order they arose.
    """
    area = tree.area_px
    num_px = area[-1]  # the last node is the root: the whole image
    fits = (
        (area >= params.min_area_frac * num_px)
        & (area <= params.max_area_frac * num_px)
        & (tree.border_px <= params.max_border_frac * tree.outline_px)
        & (tree.persistence > _MIN_PERSISTENCE)
    )
    candidates = np.flatnonzero(fits)
    candidates = candidates[np.argsort(-tree.persistence[candidates], kind="stable")]
    chosen: list[int] = []
    for node in candidates.tolist():
        others = np.array(chosen, dtype=np.int64)
        if not (_iou(tree, node, others) > params.suppression_iou).any():
            chosen.append(node)
    return chosen


def _iou(tree: MergeTree, node: int, others: Int[np.ndarray, " other"]) -> Float[np.ndarray, " other"]:
    """Overlap of a node with others; of nested nodes the smaller one is the intersection, the larger one the union."""
    first, last, area = tree.first, tree.last, tree.area_px
    nested = ((first[others] <= first[node]) & (last[node] <= last[others])) | (
        (first[node] <= first[others]) & (last[others] <= last[node])
    )
    ratio = np.minimum(area[others], area[node]) / np.maximum(area[others], area[node])
    return np.where(nested, ratio, 0.0)


def _resized(image: UInt8[np.ndarray, "height width 3"], side_px: int) -> UInt8[np.ndarray, "rows columns 3"]:
    """Bring the longer side to ``side_px``, keeping the aspect as well as whole pixels can."""
    height, width = image.shape[:2]
    scale = side_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _superpixels(
    work: UInt8[np.ndarray, "height width 3"], params: SuperpixelParams
) -> Int[np.ndarray, "height width"]:
    """Number the SLIC superpixel of every pixel, 0 upwards, no number unused."""
    leaves = slic(
        work.astype(np.float32) / 255,  # single precision halves the time
        n_segments=params.num_superpixels,
        compactness=params.compactness,
        sigma=(params.sigma_px, params.sigma_px),
        max_num_iter=_SLIC_ITERATIONS,
        min_size_factor=_SLIC_MIN_SIZE,
        start_label=0,
    )
    used = np.bincount(leaves.ravel()) > 0
    return np.asarray((np.cumsum(used) - 1)[leaves])


def _smooth_lab(work: UInt8[np.ndarray, "height width 3"], sigma_px: float) -> Float32[np.ndarray, "height width 3"]:
    lab: Float32[np.ndarray, "height width 3"] = rgb2lab(work.astype(np.float32) / 255)
    return np.asarray(gaussian_filter(lab, (sigma_px, sigma_px, 0), mode="nearest"))


def _nearest(labels: UInt[np.ndarray, "rows columns"], height: int, width: int) -> UInt[np.ndarray, "height width"]:
    """Give each image pixel the label at its centre."""
    rows, columns = labels.shape
    row = (2 * np.arange(height) + 1) * rows // (2 * height)
    column = (2 * np.arange(width) + 1) * columns // (2 * width)
    return np.asarray(labels[row[:, None], column])
