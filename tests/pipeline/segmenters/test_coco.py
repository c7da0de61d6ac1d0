import json
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.artifacts import IMAGES, write_table
from pipeline.data.coco import write_instances
from pipeline.data.masks import encode_mask, iterate_masks, segmentation_of
from pipeline.data.segmentation import write_masks
from pipeline.errors import PipelineError
from pipeline.io import sha256_of
from pipeline.params import CocoParams, GridParams, MasksParams, SuperpixelParams
from pipeline.runtime import Runtime
from pipeline.segmenters import make_segmenter
from pipeline.segmenters.interface import Picture

HERE = Runtime(workers=1)
HEIGHT, WIDTH = 30, 40


def with_area(area_px, height=HEIGHT, width=WIDTH):
    return {"size": [height, width], "counts": [0, area_px, height * width - area_px]}


def write_file(path, file_names, **of_image):
    """One annotation per image; its area is the position of the image in the file, from 1."""
    images = [{"id": i, "file_name": name, **of_image} for i, name in enumerate(file_names)]
    annotations = [{"id": i, "image_id": i, "segmentation": with_area(i + 1), "score": 0.5} for i in range(len(images))]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def segmenter_of(path, **keys):
    return make_segmenter(MasksParams(segmenter="coco", weights=str(path), coco=CocoParams(**keys)))


def picture(image_key, height=HEIGHT, width=WIDTH):
    return Picture(np.zeros((height, width, 3), dtype=np.uint8), None, image_key)


@pytest.mark.parametrize(
    ("file_name", "image_key"),
    [
        ("a-1.jpg", "a-1"),
        ("images/gull/a-1.jpg", "a-1"),
        ("C:\\pictures\\a-1.png", "a-1"),
        ("a-1", "a-1"),
        ("001.Black_footed_Albatross/Black_footed_0001.jpg", "001-Black_footed_Albatross-Black_footed_0001"),
        ("CUB/images/001.Black_footed/x.1.jpg", "001-Black_footed-x-1"),
        ("/", "unnamed"),
    ],
)
def test_an_image_is_found_by_its_name_in_the_data_set_or_in_the_source(tmp_path, file_name, image_key):
    segmenter = segmenter_of(write_file(tmp_path / "x.json", ["other.jpg", file_name]))
    [segment] = segmenter.segment(picture(image_key))
    assert segment.mask.sum() == 2
    assert segment.mask.shape == (HEIGHT, WIDTH)
    assert (segment.score, segment.stability) == (0.5, None)


def test_the_name_alone_goes_before_the_name_with_folders(tmp_path):
    segmenter = segmenter_of(write_file(tmp_path / "x.json", ["a/b.jpg", "images/a-b.jpg"]))
    assert segmenter.segment(picture("a-b"))[0].mask.sum() == 2
    assert segmenter.segment(picture("b"))[0].mask.sum() == 1


@pytest.mark.parametrize("names", [["a/x.jpg", "b/x.png"], ["x.jpg", "x.jpg"], ["1.x/y.jpg", "1/x/y.jpg"]])
def test_two_images_of_the_same_name_are_both_named(tmp_path, names):
    key = "1-x-y" if names[0].startswith("1") else "x"
    segmenter = segmenter_of(write_file(tmp_path / "f.json", names))
    with pytest.raises(PipelineError) as error:
        segmenter.segment(picture(key))
    assert_one_line(error, *names, key, tmp_path / "f.json")


def assert_one_line(error, *names):
    assert "\n" not in str(error.value)
    for name in names:
        assert str(name) in str(error.value)


def test_an_image_that_the_file_lacks_stops_or_has_no_masks(tmp_path):
    path = write_file(tmp_path / "x.json", ["a.jpg"])
    with pytest.raises(PipelineError) as error:
        segmenter_of(path).segment(picture("b"))
    assert_one_line(error, path, "b", "masks.coco.missing")
    assert segmenter_of(path, missing="empty").segment(picture("b")) == []


def test_a_listed_image_without_annotations_has_no_masks(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}]}))
    assert segmenter_of(path).segment(picture("a")) == []


def test_another_size_is_one_line_with_both(tmp_path):
    path = write_file(tmp_path / "x.json", ["a.jpg"], width=WIDTH, height=HEIGHT)
    assert len(segmenter_of(path).segment(picture("a"))) == 1
    with pytest.raises(PipelineError) as error:
        segmenter_of(path).segment(picture("a", HEIGHT, WIDTH + 1))
    assert_one_line(error, path, "image a", f"{WIDTH}x{HEIGHT}", f"{WIDTH + 1}x{HEIGHT}")
    path = write_file(tmp_path / "y.json", ["a.jpg"])  # the file says nothing, its masks do
    with pytest.raises(PipelineError) as error:
        segmenter_of(path).segment(picture("a", HEIGHT, WIDTH + 1))
    assert_one_line(error, path, "a.jpg", "annotation 0", f"{WIDTH}x{HEIGHT}", f"{WIDTH + 1}x{HEIGHT}")


def test_a_stream_gives_what_single_images_have_and_logs_what_it_did_not_use(tmp_path, caplog):
    path = write_file(tmp_path / "x.json", ["a.jpg", "b.jpg", "c.jpg"])
    content = json.loads(path.read_text())
    content["annotations"].append({"id": 9, "image_id": 1, "segmentation": with_area(0)})
    path.write_text(json.dumps(content))
    segmenter = segmenter_of(path, missing="empty")
    with caplog.at_level(logging.INFO):
        streamed = list(segmenter.stream(picture(key) for key in ("b", "z", "a")))
    assert streamed == [[one.stored() for one in segmenter.segment(picture(key))] for key in ("b", "z", "a")]
    assert [len(masks) for masks in streamed] == [1, 0, 1]
    assert "2 of its 3 images" in caplog.text
    assert "1 annotations without a pixel" in caplog.text


def test_what_is_no_coco_file_is_one_line(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"\x80weights")
    with pytest.raises(PipelineError) as error:
        segmenter_of(tmp_path / "x.pth")
    assert_one_line(error, tmp_path / "x.pth")


# through the stage


def write_dataset(folder, pixels):
    (folder / "images").mkdir(parents=True)
    rows = []
    for key, image in sorted(pixels.items()):
        path = folder / "images" / f"{key}.png"
        Image.fromarray(image).save(path)
        rows.append(
            {
                "image_key": key,
                "path": f"images/{key}.png",
                "sha256": sha256_of(path.read_bytes()),
                "width": image.shape[1],
                "height": image.shape[0],
                "label": 0,
                "class_name": "gull",
                "split": "train",
                "object_box": None,
                "parts": [],
                "object_mask": None,
                "part_mask": None,
            }
        )
    write_table(folder / "images.parquet", rows, IMAGES, class_names=["gull"], part_names=[])


def noise(seed):
    blocks = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 5, WIDTH // 5, 3), dtype=np.uint8)
    return blocks.repeat(5, axis=0).repeat(5, axis=1)


@pytest.mark.parametrize(
    "params",
    [
        MasksParams(superpixel=SuperpixelParams(image_side_px=64, num_superpixels=40)),
        MasksParams(segmenter="grid", grid=GridParams(rows=3, columns=4)),
    ],
    ids=["superpixel", "grid"],
)
def test_exported_masks_come_back_row_for_row(tmp_path, params):
    flat = np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)  # superpixel finds nothing in it
    write_dataset(tmp_path / "dataset", {"a": noise(0), "b": flat, "c": noise(1)})
    before = write_masks(
        tmp_path / "dataset", tmp_path / "masks", store=tmp_path / "s.sqlite", params=params, runtime=HERE
    )
    assert before["num_masks"] > 10
    write_instances(tmp_path / "dataset", tmp_path / "masks", tmp_path / "instances.json")
    back = MasksParams(segmenter="coco", weights=str(tmp_path / "instances.json"))
    after = write_masks(tmp_path / "dataset", tmp_path / "back", store=tmp_path / "s.sqlite", params=back, runtime=HERE)
    assert after == before
    tables = [pq.read_table(tmp_path / folder / "masks.parquet") for folder in ("back", "masks")]
    assert tables[0].equals(tables[1])  # but for the note of what made them
    noted = [segmentation_of(tmp_path / folder / "masks.parquet")["segmenter"] for folder in ("back", "masks")]
    assert noted == ["coco", params.segmenter]


def test_images_with_the_same_pixels_keep_their_own_annotations(tmp_path):
    write_dataset(tmp_path / "dataset", {"a": noise(0), "b": noise(0)})
    path = write_file(tmp_path / "x.json", ["a.png", "b.png"])
    params = MasksParams(segmenter="coco", weights=str(path))
    write_masks(tmp_path / "dataset", tmp_path / "masks", store=tmp_path / "s.sqlite", params=params, runtime=HERE)
    masks = dict(iterate_masks(tmp_path / "masks" / "masks.parquet"))
    assert [(key, mask.area_px) for key, [mask] in masks.items()] == [("a", 1), ("b", 2)]
    one = np.zeros((HEIGHT, WIDTH), dtype=bool)
    one[0, 0] = True
    assert masks["a"][0].rle == encode_mask(one)


def test_an_edited_file_replaces_the_masks(tmp_path):
    write_dataset(tmp_path / "dataset", {"a": noise(0), "b": noise(1)})
    path = tmp_path / "x.json"
    for names, areas in ((["a.png", "b.png"], [1, 2]), (["b.png", "a.png"], [2, 1])):
        params = MasksParams(segmenter="coco", weights=str(write_file(path, names)))
        write_masks(tmp_path / "dataset", tmp_path / "masks", store=tmp_path / "s.sqlite", params=params, runtime=HERE)
        found = dict(iterate_masks(tmp_path / "masks" / "masks.parquet"))
        assert [mask.area_px for [mask] in found.values()] == areas
