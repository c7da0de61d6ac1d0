import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import VIEWS, WHOLE_IMAGE, write_table
from pipeline.data.catalogue import ImageRow
from pipeline.errors import PipelineError
from pipeline.report.view_cover import areas_of_unions, read_view_cover

WIDTH, HEIGHT = 20, 10


def row(image_key):
    return ImageRow(image_key, Path("a.png"), "", WIDTH, HEIGHT, 0, "gull", "train", None, (), None, None)


def write_views(path, *views):
    """Write a table of (image_key, mask_idx, box, in_bag)."""
    rows = []
    for idx, (image_key, mask_idx, box, in_bag) in enumerate(views):
        content = {"image_key": image_key, "view_idx": idx, "split": "train", "label": 0, "mask_idx": mask_idx}
        content |= {"mask_box": box, "box": box, "area_px": 1, "shard": "a.tar", "jpeg_offset": 0, "jpeg_size": 1}
        rows.append(content | {"in_bag": in_bag})
    write_table(path, rows, VIEWS, class_names=["gull"], size_px=1, preparation=None)
    return path


def area_of_union(boxes):
    """Paint one box after the other."""
    painted = np.zeros((60, 60), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        painted[y0:y1, x0:x1] = True
    return int(painted.sum())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("per_step", [1, 7, 1000])
def test_the_area_of_a_union_is_that_of_painting_one_box_after_the_other(monkeypatch, seed, per_step):
    monkeypatch.setattr("pipeline.report.view_cover._IMAGES_PER_STEP", per_step)
    rng = np.random.default_rng(seed)
    num_images = 40
    image_idx = rng.integers(0, num_images - 5, 200)  # some images have many boxes, some none
    first = rng.integers(0, 40, (200, 2))
    boxes = np.concatenate([first, first + rng.integers(1, 20, (200, 2))], axis=1)
    expected = [area_of_union(boxes[image_idx == idx]) for idx in range(num_images)]
    assert areas_of_unions(boxes, image_idx, num_images).tolist() == expected
    assert max(expected) > 0 == expected[-1]


def test_without_boxes_nothing_is_covered():
    nothing = np.zeros((0, 4), dtype=np.int64)
    assert areas_of_unions(nothing, np.zeros(0, dtype=np.int64), 3).tolist() == [0, 0, 0]


def test_the_share_is_of_each_image_and_leaves_the_whole_image_and_what_is_in_no_bag_aside(tmp_path):
    path = write_views(
        tmp_path / "views.parquet",
        ("a", 0, [0, 0, 10, 10], True),
        ("a", 1, [5, 0, 15, 10], True),
        ("a", WHOLE_IMAGE, [0, 0, WIDTH, HEIGHT], True),
        ("b", 0, [0, 0, 2, 10], True),
        ("b", WHOLE_IMAGE, [0, 0, WIDTH, HEIGHT], False),
        ("c", WHOLE_IMAGE, [0, 0, WIDTH, HEIGHT], True),
    )
    cover = read_view_cover(path, [row(key) for key in "cbad"])
    assert cover.fracs.tolist() == [0.75, 0.1, 0.0]
    assert (cover.num_images, cover.num_whole) == (3, 2)
    assert cover.mean_frac == pytest.approx(0.85 / 3)


@pytest.mark.parametrize(
    ("is_whole", "words"),
    [
        ((False, False), ""),
        ((False, True), "of 1 images the whole is a view, too, and shows everything"),
        ((True, True), "the whole image is a view, too, and shows everything"),
    ],
)
def test_it_is_said_for_how_many_images_the_whole_is_a_view(tmp_path, is_whole, words):
    views = [
        (key, WHOLE_IMAGE if whole else 0, [0, 0, WIDTH, HEIGHT], True)
        for key, whole in zip("ab", is_whole, strict=True)
    ]
    assert (
        read_view_cover(write_views(tmp_path / "views.parquet", *views), [row("a"), row("b")]).of_whole_images == words
    )


def test_tables_that_do_not_fit_are_refused_by_name(tmp_path):
    path = write_views(tmp_path / "views.parquet", ("a", 0, [0, 0, 1, 1], True))
    with pytest.raises(PipelineError, match=re.escape("views.parquet names a, which is no image of the data set")):
        read_view_cover(path, [row("b")])
    path = write_views(tmp_path / "views.parquet", ("a", WHOLE_IMAGE, [0, 0, 1, 1], False))
    with pytest.raises(PipelineError, match=r"views\.parquet lists no view"):
        read_view_cover(path, [row("a")])
