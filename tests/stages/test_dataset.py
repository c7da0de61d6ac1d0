import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import savemat
from typer.testing import CliRunner

from pipeline.data.catalogue import load_images
from pipeline.io import read_json
from pipeline.params import Params
from stages.dataset import app

SHARED = Path(__file__).parents[3] / "shared" / "data"

WIDTH, HEIGHT = 24, 16
NUM_PER_CLASS = 5  # 3 train, 2 test
CLASSES = ("001.Gull", "002.Wren")


def write_picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)


def write_text(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def images():
    """(id, class number, number in the class, is training image) of every image of the small data sets."""
    pairs = [(number, i) for number in (1, 2) for i in range(NUM_PER_CLASS)]
    return [(image_id, number, i, i < 3) for image_id, (number, i) in enumerate(pairs, start=1)]


def make_cub200(source):
    names = {image_id: f"{CLASSES[number - 1]}/img_{i}.jpg" for image_id, number, i, _ in images()}
    write_text(source / "images.txt", (f"{image_id} {name}" for image_id, name in names.items()))
    write_text(source / "classes.txt", (f"{number} {name}" for number, name in enumerate(CLASSES, start=1)))
    write_text(source / "image_class_labels.txt", (f"{image_id} {number}" for image_id, number, *_ in images()))
    write_text(source / "train_test_split.txt", (f"{image_id} {train:d}" for image_id, _, _, train in images()))
    write_text(source / "bounding_boxes.txt", (f"{image_id} 2.0 3.0 10.0 8.0" for image_id in names))
    write_text(source / "parts/parts.txt", ["1 beak", "2 tail"])
    write_text(source / "parts/part_locs.txt", (f"{image_id} 1 5.0 6.0 1" for image_id in names))
    for image_id, name in names.items():
        write_picture(source / "images" / name, image_id)
        mask = source / "segmentations" / name.replace(".jpg", ".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8) * 255).save(mask)


def make_dogs(source):
    for split, is_train in (("train", True), ("test", False)):
        chosen = [(f"n{number}-dog/n{number}_{i}.jpg", number) for _, number, i, train in images() if train == is_train]
        (source / "lists").mkdir(parents=True, exist_ok=True)
        content = {
            "file_list": np.array([[name] for name, _ in chosen], dtype=object),
            "labels": [n for _, n in chosen],
        }
        savemat(source / f"lists/{split}_list.mat", content)
        for seed, (name, _) in enumerate(chosen):
            write_picture(source / "Images" / name, (is_train, seed))
            box = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
            xml = f"<annotation><object><bndbox>{box}</bndbox></object></annotation>"
            write_text(source / "Annotation" / name.removesuffix(".jpg"), [xml])


def make_cars196(source):
    (source / "devkit").mkdir(parents=True)
    savemat(source / "devkit/cars_meta.mat", {"class_names": np.array([["Audi", "BMW"]], dtype=object)})
    fields = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for split, is_train in (("train", True), ("test", False)):
        chosen = [number for _, number, _, train in images() if train == is_train]
        rows = np.zeros((1, len(chosen)), dtype=fields)
        for i, number in enumerate(chosen):
            rows[0, i] = (1, 1, 9, 9, number, f"{i:05}.jpg")
            write_picture(source / f"cars_{split}/{i:05}.jpg", (is_train, i))
        labelled = "_withlabels" if split == "test" else ""
        savemat(source / f"devkit/cars_{split}_annos{labelled}.mat", {"annotations": rows})


def make_folder(source):
    for image_id, number, i, train in images():
        write_picture(source / ("train" if train else "test") / CLASSES[number - 1] / f"img {i}.JPG", image_id)


MAKERS = {"cub200": make_cub200, "dogs": make_dogs, "cars196": make_cars196, "folder": make_folder}


def run(folder, name, source, out="data/dataset", workers=1, **dataset_params):
    """Run the stage; its folder and report lie below FOLDER."""
    content = Params().model_dump(mode="json")
    content["dataset"].update(name=name, source=str(source), **dataset_params)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    (folder / "runtime.yaml").write_text(f"workers: {workers}\n")
    options = ["--params", str(folder / "params.yaml"), "--runtime", str(folder / "runtime.yaml")]
    return CliRunner().invoke(app, [str(folder / out), str(folder / "results/dataset.json"), *options])


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", MAKERS)
def test_each_data_set_is_collected_with_the_same_bytes_in_every_run(tmp_path, name):
    MAKERS[name](tmp_path / "source")
    for folder in ("one", "two"):
        result = run(tmp_path / folder, name, tmp_path / "source")
        assert result.exit_code == 0, result.output
    files = files_of(tmp_path / "one")
    assert files == files_of(tmp_path / "two")
    report = read_json(tmp_path / "one/results/dataset.json")
    assert (report["num_in"], report["num_out"], report["num_classes"]) == (10, 10, 2)
    assert report["num_per_split"] == {"train": 4, "val": 2, "test": 4}
    table = load_images(tmp_path / "one/data/dataset")
    num_masks = 10 if name == "cub200" else 0
    assert sum(row.object_mask is not None for row in table.rows) == num_masks
    assert len(files) == 10 + num_masks + 4  # images.parquet, the report, params.yaml and runtime.yaml
    assert {(row.width, row.height) for row in table.rows} == {(WIDTH, HEIGHT)}


def test_chosen_classes_are_numbered_from_0(tmp_path):
    make_cub200(tmp_path / "source")
    text = (tmp_path / "source/classes.txt").read_text()
    (tmp_path / "source/classes.txt").write_text(text + "3 003.Auk\n")
    labels = (tmp_path / "source/image_class_labels.txt").read_text()
    # images 1-5 change from gull to auk
    changed = "".join(f"{i} 3\n" for i in range(1, 6)) + "".join(labels.splitlines(keepends=True)[5:])
    (tmp_path / "source/image_class_labels.txt").write_text(changed)
    result = run(tmp_path, "cub200", tmp_path / "source", classes=["003.Auk", "002.Wren"])
    assert result.exit_code == 0, result.output
    table = load_images(tmp_path / "data/dataset")
    assert table.class_names == ("002.Wren", "003.Auk")
    assert {(row.label, row.class_name) for row in table.rows} == {(0, "002.Wren"), (1, "003.Auk")}


# Each of these gives a function that damages the folder it is called with.


def append(name, line):
    return lambda source: write_text(source / name, [*(source / name).read_text().splitlines(), line])


def drop(name, start):
    def damage(source):
        lines = (source / name).read_text().splitlines()
        kept = [line for line in lines if not line.startswith(start)]
        assert len(kept) == len(lines) - 1
        write_text(source / name, kept)

    return damage


def swap(name, start, line):
    return lambda source: (drop(name, start)(source), append(name, line)(source))


def cut_short(name, num_bytes):
    return lambda source: (source / name).write_bytes((source / name).read_bytes()[:num_bytes])


def remove(name):
    return lambda source: shutil.rmtree(source / name) if (source / name).is_dir() else (source / name).unlink()


def keep_only(folder, num):
    return lambda source: [remove(path)(source) for path in sorted((source / folder).iterdir())[num:]]


def rename(name, new_name):
    return lambda source: (source / name).rename(source / new_name)


def swap_mask(name, size):
    return lambda source: Image.new("L", size, 255).save(source / name)


GULL_MASK = "segmentations/001.Gull/img_0.png"
PARAMS_AND_RUNTIME = ["params.yaml", "runtime.yaml"]
TEST_LABELS = "devkit/cars_test_annos_withlabels.mat"
DAMAGES = [
    ("cub200", remove("."), "images.txt does not exist: unpack CUB_200_2011.tgz"),
    ("cub200", remove("images"), "images is not there"),
    ("cub200", remove("parts/part_locs.txt"), "parts/part_locs.txt does not exist"),
    ("cub200", remove("images/001.Gull"), "images/001.Gull/img_0.jpg is listed, but: No such file"),
    ("cub200", remove("images/002.Wren/img_3.jpg"), "images/002.Wren/img_3.jpg is listed, but: No such file"),
    ("cub200", cut_short("images/002.Wren/img_3.jpg", 700), "images/002.Wren/img_3.jpg: cannot be decoded"),
    ("cub200", cut_short("images/002.Wren/img_3.jpg", -1), "images/002.Wren/img_3.jpg: cannot be decoded"),
    ("cub200", cut_short("images/002.Wren/img_3.jpg", 0), "images/002.Wren/img_3.jpg: cannot be decoded"),
    ("cub200", drop("image_class_labels.txt", "4 "), "image_class_labels.txt: no line for image 4"),
    ("cub200", drop("train_test_split.txt", "4 "), "train_test_split.txt: no line for image 4"),
    ("cub200", append("image_class_labels.txt", "11 1"), "image_class_labels.txt: a line for image 11"),
    ("cub200", append("images.txt", "3 001.Gull/x.jpg"), "images.txt line 11: id 3 is listed twice"),
    ("cub200", append("bounding_boxes.txt", "1 2 3 4 x"), "bounding_boxes.txt line 11 (`1 2 3 4 x`): `x` is no number"),
    ("cub200", drop("classes.txt", "2 "), "image_class_labels.txt: image 6 has class 2, unknown to classes.txt"),
    ("cub200", swap("bounding_boxes.txt", "4 ", "4 24 0 5 5"), "img_3.jpg: the object's box (24, 0, 29, 5)"),
    ("cub200", swap_mask(GULL_MASK, (24, 15)), "001.Gull/img_0.jpg: its object mask is 24 x 15 pixels"),
    ("cub200", remove(GULL_MASK), f"{GULL_MASK} does not exist"),
    ("cub200", cut_short(GULL_MASK, 50), f"{GULL_MASK} cannot be decoded"),
    ("dogs", remove("."), "Images is not there or is no folder: unpack images.tar"),
    ("dogs", remove("Annotation"), "Annotation is not there"),
    ("dogs", remove("lists"), "lists/train_list.mat does not exist"),
    ("dogs", cut_short("lists/test_list.mat", 150), "lists/test_list.mat cannot be read"),
    ("dogs", remove("Annotation/n1-dog/n1_0"), "Annotation/n1-dog/n1_0 does not exist"),
    ("dogs", cut_short("Annotation/n1-dog/n1_0", 20), "Annotation/n1-dog/n1_0 cannot be read"),
    ("dogs", cut_short("Images/n1-dog/n1_0.jpg", 700), "Images/n1-dog/n1_0.jpg: cannot be decoded"),
    ("cars196", remove("devkit"), "devkit/cars_meta.mat does not exist"),
    ("cars196", remove(TEST_LABELS), f"{TEST_LABELS} does not exist: cars_test_annos.mat of the devkit has no labels"),
    ("cars196", remove("cars_test"), "cars_test is not there"),
    ("cars196", cut_short("devkit/cars_train_annos.mat", 150), "devkit/cars_train_annos.mat cannot be read"),
    ("cars196", remove("cars_train/00002.jpg"), "cars_train/00002.jpg is listed, but: No such file"),
    ("folder", remove("."), "source is not there or is no folder"),
    ("folder", keep_only(".", 0), "source holds no class folder"),
    ("folder", keep_only("train", 0), "train holds no class folder"),
    ("folder", keep_only("train/001.Gull", 0), "train/001.Gull holds no picture"),
    ("folder", keep_only("train/001.Gull", 1), "class `001.Gull` has 1 training and 2 test images"),
    ("folder", remove("test/001.Gull"), "class `001.Gull` has 3 training and 0 test images"),
    ("folder", rename("test/001.Gull", "005.Kite"), "005.Kite lies beside the split folder train"),
    ("folder", cut_short("train/001.Gull/img 0.JPG", 700), "train/001.Gull/img 0.JPG: cannot be decoded"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES)
def test_a_damaged_source_stops_with_one_line_and_leaves_everything_as_it_was(tmp_path, name, damage, message):
    MAKERS[name](tmp_path / "source")
    damage(tmp_path / "source")
    result = run(tmp_path / "new", name, tmp_path / "source")
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if "error:" in line]
    assert message in line
    assert "Traceback" not in result.output
    assert sorted(path.name for path in (tmp_path / "new").rglob("*") if path.is_file()) == PARAMS_AND_RUNTIME

    older = tmp_path / "older/data/dataset"
    write_text(older / "images.parquet", ["older"])
    assert run(tmp_path / "older", name, tmp_path / "source").exit_code == 1
    assert files_of(older) == {"images.parquet": b"older\n"}
    assert list(older.parent.iterdir()) == [older]


def test_an_unknown_class_is_named(tmp_path):
    make_folder(tmp_path / "source")
    result = run(tmp_path, "folder", tmp_path / "source", classes=["001.Gull", "002.Wern"])
    assert result.exit_code == 1
    assert "error: params.yaml: dataset.classes names `002.Wern`" in result.output
    assert not (tmp_path / "data/dataset").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CUB_200_2011", "stanford_cars"])
def test_real_photographs_give_the_same_bytes_in_every_run(tmp_path, name):
    source = SHARED / name
    if not source.is_dir():
        pytest.skip(f"shared/data/{name} does not lie beside the repository")
    kind, num_images, num_classes, num_test = {
        "CUB_200_2011": ("cub200", 1115, 20, 515),
        "stanford_cars": ("cars196", 481, 12, 200),
    }[name]
    for folder, workers in (("one", 1), ("two", 2)):
        result = run(tmp_path / folder, kind, source, workers=workers)
        assert result.exit_code == 0, result.output
    report = read_json(tmp_path / "one/results/dataset.json")
    assert report == read_json(tmp_path / "two/results/dataset.json")
    assert (report["num_in"], report["num_out"], report["num_classes"]) == (num_images, num_images, num_classes)
    assert report["num_per_split"]["test"] == num_test
    assert report["num_object_boxes"] == num_images
    files = files_of(tmp_path / "one/data")
    assert len(files) == num_images + 1
    assert files == files_of(tmp_path / "two/data")
