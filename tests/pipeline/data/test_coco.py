import contextlib
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.artifacts import IMAGES, write_table
from pipeline.data import coco
from pipeline.data.boxes import box_of_mask
from pipeline.data.coco import masks_of_image, read_instances, write_instances
from pipeline.data.masks import MaskTableWriter, StoredMask, decode_mask, encode_mask
from pipeline.errors import PipelineError
from tests.pipeline.data.plain_runs import plain_runs

HEIGHT, WIDTH = 12, 9


def random_masks(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.random((HEIGHT, WIDTH)) < 0.4 for _ in range(count)]


def write_project(folder, masks_of):
    """Write both tables for MASKS_OF: image key to (mask, score, stability), best first."""
    rows = [
        {
            "image_key": key,
            "path": f"images/gull/{key}.jpg",
            "sha256": "",
            "width": WIDTH,
            "height": HEIGHT,
            "label": 0,
            "class_name": "gull",
            "split": "train",
            "object_box": None,
            "parts": [],
            "object_mask": None,
            "part_mask": None,
        }
        for key in sorted(masks_of)
    ]
    (folder / "dataset").mkdir(parents=True)
    (folder / "masks").mkdir()
    write_table(folder / "dataset" / "images.parquet", rows, IMAGES, class_names=["gull"], part_names=[])
    with MaskTableWriter(folder / "masks" / "masks.parquet") as table:
        for key, masks in sorted(masks_of.items()):
            table.add(key, [StoredMask(encode_mask(m), box_of_mask(m), int(m.sum()), *rest) for m, *rest in masks])


@pytest.fixture
def project(tmp_path):
    first, second, third = random_masks(3)
    write_project(tmp_path, {"a": [(first, 0.9, 0.97), (second, 0.1, None)], "b": [], "ç": [(third, -3.0, None)]})
    return tmp_path


def exported(folder):
    out = folder / "out" / "instances.json"
    counts = write_instances(folder / "dataset", folder / "masks", out)
    return out, counts


def test_pycocotools_reads_the_exported_masks(project):
    out, counts = exported(project)
    assert counts == (3, 3)
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO(str(out))
    assert [image["file_name"] for image in read.dataset["images"]] == [f"images/gull/{key}.jpg" for key in "abç"]
    assert {(image["width"], image["height"]) for image in read.dataset["images"]} == {(WIDTH, HEIGHT)}
    assert [len(read.getAnnIds(imgIds=[image_id])) for image_id in (1, 2, 3)] == [2, 0, 1]
    assert read.getCatIds(catNms=["segment"]) == [1]
    for annotation, mask in zip(read.dataset["annotations"], random_masks(3), strict=True):
        np.testing.assert_array_equal(read.annToMask(annotation), mask)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
        assert annotation["iscrowd"] == 0


def test_the_file_says_scores_as_briefly_as_they_are_exact(project):
    out, _ = exported(project)
    entries = json.loads(out.read_text(encoding="utf-8"))["annotations"]
    assert [entry["score"] for entry in entries] == [0.9, 0.1, -3.0]
    assert [entry.get("attributes") for entry in entries] == [{"stability": 0.97}, None, None]
    assert [entry["id"] for entry in entries] == [1, 2, 3]
    assert [entry["image_id"] for entry in entries] == [1, 1, 3]


def test_equal_masks_give_equal_files_and_nothing_else_is_left(project):
    out, _ = exported(project)
    before = out.read_bytes()
    assert exported(project)[0].read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_an_export_without_any_mask_is_a_whole_file(tmp_path):
    write_project(tmp_path, {"a": []})
    out, counts = exported(tmp_path)
    assert counts == (1, 0)
    assert json.loads(out.read_text())["annotations"] == []
    assert [image.annotations for image in read_instances(out)] == [[]]


def test_a_failing_export_leaves_the_old_file(project):
    out, _ = exported(project)
    before = out.read_bytes()
    with MaskTableWriter(project / "masks" / "masks.parquet") as table:
        mask = random_masks(1)[0]
        table.add("unknown", [StoredMask(encode_mask(mask), box_of_mask(mask), int(mask.sum()), 0.5)])
    with pytest.raises(PipelineError, match="unknown"):
        exported(project)
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_is_no_place_for_the_file(project):
    with pytest.raises(PipelineError, match="is a folder"):
        write_instances(project / "dataset", project / "masks", project)


def test_a_place_that_cannot_be_written_is_one_line(project):
    (project / "file").write_text("")
    with pytest.raises(PipelineError) as error:
        write_instances(project / "dataset", project / "masks", project / "file" / "x.json")
    assert_one_line(error, project / "file" / "x.json")


def run_command(*arguments):
    command = [sys.executable, "-m", "pipeline.data.masks", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_writes_the_same_file(project):
    out, _ = exported(project)
    other = project / "by_command.json"
    done = run_command("export", "--coco", other, "--dataset", project / "dataset", "--masks", project / "masks")
    assert done.returncode == 0, done.stderr
    assert other.read_bytes() == out.read_bytes()
    assert "3 masks of 3 images" in done.stderr


def test_the_command_says_in_one_line_what_is_missing(tmp_path):
    done = run_command("export", "--coco", tmp_path / "x.json", "--dataset", tmp_path, "--masks", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / "images.parquet") in done.stderr


# what others write


def write_file(path, annotations, images=None, **more):
    images = images or [{"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT}]
    content = {"images": images, "annotations": annotations, "categories": [], **more}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def annotation(segmentation, **more):
    return {"id": 1, "image_id": 7, "category_id": 3, "segmentation": segmentation, **more}


def masks_in(path):
    [image] = read_instances(path)
    return masks_of_image(image, height=HEIGHT, width=WIDTH)


def decoded(masks):
    return [decode_mask(mask.rle, height=HEIGHT, width=WIDTH) for mask in masks]


def test_run_lengths_of_both_kinds_are_the_same_mask_whatever_iscrowd_says(tmp_path):
    [mask] = random_masks(1)
    compressed = {"size": [HEIGHT, WIDTH], "counts": encode_mask(mask).decode()}
    listed = {"size": [HEIGHT, WIDTH], "counts": plain_runs(mask)}
    path = write_file(
        tmp_path / "x.json", [annotation(one, iscrowd=crowd) for one in (compressed, listed) for crowd in (0, 1)]
    )
    masks = masks_in(path)
    assert len(masks) == 4
    assert set(masks) == {StoredMask(encode_mask(mask), box_of_mask(mask), int(mask.sum()), 1.0)}


def test_polygons_are_drawn_as_pycocotools_does_and_merged(tmp_path):
    polygons = [[1, 1, 6, 1, 6, 5.5, 1, 5.5], [4.2, 4, 8, 4, 8, 11], [3, 3, 4, 4]]  # the last has no area
    [mask] = masks_in(write_file(tmp_path / "x.json", [annotation(polygons)]))
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons[:2], HEIGHT, WIDTH))).astype(bool)
    np.testing.assert_array_equal(decoded([mask])[0], expected)
    assert mask.area_px == expected.sum() > 20
    assert decoded([mask])[0][2, 1:5].all()


def test_a_rectangle_as_polygon_is_that_rectangle(tmp_path):
    [mask] = masks_in(write_file(tmp_path / "x.json", [annotation([[2, 3, 7, 3, 7, 9, 2, 9]])]))
    assert mask.box == (2, 3, 7, 9)
    assert mask.area_px == 30


def test_masks_without_a_pixel_and_boxes_alone_are_left_out(tmp_path):
    empty = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    entries = [annotation(empty), annotation([]), annotation(None), annotation([[1, 1, 5, 5]])]
    box_alone = {"id": 5, "image_id": 7, "bbox": [1, 1, 3, 3]}
    assert masks_in(write_file(tmp_path / "x.json", [*entries, box_alone])) == []


def with_area(area_px):
    return {"size": [HEIGHT, WIDTH], "counts": [3, area_px, HEIGHT * WIDTH - 3 - area_px]}


def test_the_best_score_comes_first_and_equal_ones_keep_their_order(tmp_path):
    entries = [annotation(with_area(area), score=score) for area, score in [(5, 0.5), (6, 2), (7, 0.5), (4, 0.5)]]
    masks = masks_in(write_file(tmp_path / "x.json", entries))
    assert [(mask.score, mask.area_px) for mask in masks] == [(2.0, 6), (0.5, 5), (0.5, 7), (0.5, 4)]


def test_without_scores_the_larger_mask_comes_first(tmp_path):
    entries = [annotation(with_area(area)) for area in (5, 8, 6)]
    masks = masks_in(write_file(tmp_path / "x.json", [*entries, annotation(with_area(50), score=0.9)]))
    assert [(mask.score, mask.area_px) for mask in masks] == [(1.0, 8), (1.0, 6), (1.0, 5), (0.9, 50)]


@pytest.mark.parametrize(
    "more",
    [
        {"score": 0.25, "attributes": {"stability": 0.5}},
        {"attributes": {"score": 0.25, "stability": 0.5, "occluded": False}},
        {"predicted_iou": 0.25, "stability_score": 0.5},
    ],
)
def test_scores_are_found_where_tools_put_them(tmp_path, more):
    [mask] = masks_in(write_file(tmp_path / "x.json", [annotation(with_area(5), **more)]))
    assert (mask.score, mask.stability) == (0.25, 0.5)


def test_annotations_may_come_before_the_images_and_in_any_order(tmp_path):
    images = [{"id": image_id, "file_name": f"{image_id}.jpg"} for image_id in (3, "x")]
    entries = [annotation(with_area(area), id=area, image_id=image_id) for area, image_id in [(1, 3), (2, "x"), (3, 3)]]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"annotations": entries, "info": {"images": [1]}, "images": images}))
    read = read_instances(path)
    assert [image.file_name for image in read] == ["3.jpg", "x.jpg"]
    assert [len(image.annotations) for image in read] == [2, 1]
    assert [image.size for image in read] == [None, None]


@pytest.mark.parametrize("chunk", [1, 7, 100, 10**6])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_reads_the_same_in_pieces_of_any_size(project, monkeypatch, chunk, indent):
    out, _ = exported(project)
    whole = read_instances(out)
    content = json.loads(out.read_text(encoding="utf-8"))
    content |= {"more": [1, -2.5e3, True, None, "ü]}", {"annotations": []}], "year": 2024}
    for bom, ascii_only in (("", True), ("\ufeff", False)):
        out.write_text(bom + json.dumps(content, indent=indent, ensure_ascii=ascii_only) + " \n", encoding="utf-8")
        monkeypatch.setattr(coco, "_CHUNK", chunk)
        assert read_instances(out) == whole
    assert len(whole) == 3


def assert_one_line(error, *names):
    assert "\n" not in str(error.value)
    for name in names:
        assert str(name) in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[1, 2]",
        '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [',
        '{"images": [{"id": 1, "file_name": "a.jpg"}',
        '{"images": [{"id": 1 "file_name": "a.jpg"}]}',
        '{"images": [], "annotations": [], }',
        '{"images": []} more',
        '{"images": [{"id": 1, "file_name": "a',
        "{1: 2}",
        '"""A module."""\n',
        '{"images": ' + "[" * 100_000,
    ],
)
def test_what_is_no_whole_json_object_is_one_line_that_names_the_file(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(PipelineError) as error:
        read_instances(path)
    assert_one_line(error, path)
    assert len(str(error.value)) < 400


def test_a_binary_file_and_a_missing_one_are_named(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(PipelineError) as error:
        read_instances(path)
    assert_one_line(error, path)
    path.write_bytes(bytes(range(256)))
    with pytest.raises(PipelineError) as error:
        read_instances(path)
    assert_one_line(error, path)
    with pytest.raises(PipelineError) as error:
        read_instances(tmp_path)
    assert_one_line(error, tmp_path)


IMAGE = {"id": 7, "file_name": "a.jpg"}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"annotations": []}, "images"),
        ({"images": [{"id": 7}]}, "file_name"),
        ({"images": [{"id": 7, "file_name": ""}]}, "file_name"),
        ({"images": [3]}, "file_name"),
        ({"images": [IMAGE, {**IMAGE, "file_name": "b.jpg"}]}, "id 7"),
        ({"images": [IMAGE], "annotations": [annotation([], image_id=8, id=31)]}, "annotation 31 is of image 8"),
        ({"images": [IMAGE], "annotations": [{"id": 1}]}, "image_id"),
        ({"images": [IMAGE], "annotations": ["x" * 1000]}, "image_id"),
        ({"images": [IMAGE], "annotations": [annotation([], score="high")]}, "score"),
        ({"images": [IMAGE], "annotations": [annotation([], score=float("nan"))]}, "score"),
    ],
)
def test_a_file_at_odds_with_itself_is_one_line_that_says_where(tmp_path, content, named):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(PipelineError) as error:
        read_instances(path)
    assert_one_line(error, path, named)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("segmentation", "named"),
    [
        ({"size": [HEIGHT, WIDTH + 1], "counts": [3, 5]}, f"{WIDTH + 1}x{HEIGHT}"),
        ({"size": [HEIGHT, WIDTH], "counts": [3, 5]}, "run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": [3, -5, HEIGHT * WIDTH + 2]}, "run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": [3, 5.5]}, "neither"),
        ({"size": [HEIGHT, WIDTH], "counts": "é"}, "run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "35"}, "run lengths"),
        ({"size": [HEIGHT], "counts": "35"}, "neither"),
        ({"counts": "35"}, "neither"),
        ("35", "neither"),
        ([1, 2, 3, 4, 5, 6], "neither"),
        ([[1, 2, 3, 4, 5, 6, 7]], "polygon"),
        ([[1, 2, 3, 4, 5, "x"]], "polygon"),
        ([[1, 2, 3, 4, 5, None]], "polygon"),
        ([[1, 2, 3, 4, 5, 1e9]], "leaves the image"),
    ],
)
def test_a_damaged_segmentation_names_its_annotation(tmp_path, segmentation, named):
    path = write_file(tmp_path / "x.json", [annotation(with_area(3)), annotation(segmentation, id=42)])
    with pytest.raises(ValueError, match=named) as error:
        masks_in(path)
    assert_one_line(error, "annotation 42")
