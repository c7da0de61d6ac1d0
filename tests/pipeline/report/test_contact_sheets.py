from itertools import pairwise

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline.artifacts import PER_IMAGE, write_table
from pipeline.data.catalogue import load_images
from pipeline.errors import PipelineError
from pipeline.report import contact_sheets
from pipeline.report.contact_sheets import (
    NUM_TILES,
    WIDTH_PX,
    Tile,
    write_mistakes_sheet,
    write_prototypes_sheet,
    write_sheet,
    write_sheets,
)
from pipeline.report.shown import ShownPrototype
from pipeline.report.site import Picture
from tests.small_run import CLASSES, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("sheets") / "run")


@pytest.fixture
def laid_out(monkeypatch):
    """What is written on the sheets, instead of the sheets."""
    found = []

    def keep(path, title, tiles, *, columns, instead=""):
        found.append((path.name, title, [tile.lines for tile in tiles], instead if not tiles else ""))

    monkeypatch.setattr(contact_sheets, "write_sheet", keep)
    return found


def read(path):
    return simplejpeg.decode_jpeg(path.read_bytes(), "RGB")


def prototypes_of(folder, *class_names):
    """A prototype for each name, with a picture of one colour; None has no picture."""
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (32, 24), (200, 30, 30)).save(folder / "a.jpg")
    shown = Picture("a.jpg", 32, 24)
    return [
        ShownPrototype(idx, name or "sourceless", *([shown, shown, "key"] if name else [None, None, None]))
        for idx, name in enumerate(class_names)
    ]


def per_image(path, *rows, head="protomask"):
    content = [
        {"row": head, "image_key": key, "label": label, "predicted": predicted, "confidence": confidence}
        | {"label_probability": 0.1, "values": []}
        for key, label, predicted, confidence in rows
    ]
    write_table(path, content, PER_IMAGE)
    return path


def sheets_of(folder, run, **changes):
    folder.mkdir()
    arguments = {
        "images": load_images(run / "data/dataset"),
        "masks": run / "data/masks/masks.parquet",
        "crops": run / "data/crops",
        "per_image": run / "results/per_image.parquet",
        "head": "protomask",
        "prototypes": prototypes_of(folder / "site", *CLASSES),
        "site_folder": folder / "site",
    }
    write_sheets(folder, **(arguments | changes))
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.jpg"))}


def test_all_three_sheets_come_out_the_same_twice_and_equally_wide(tmp_path, run):
    one, other = sheets_of(tmp_path / "one", run), sheets_of(tmp_path / "other", run)
    assert list(one) == ["masks.jpg", "mistakes.jpg", "prototypes.jpg"]
    assert one == other
    for content in one.values():
        assert simplejpeg.decode_jpeg_header(content)[1] == WIDTH_PX
        assert len(content) < 2**20


def test_a_black_box_has_a_sheet_that_says_why_it_shows_no_prototype(tmp_path, run, laid_out):
    sheets_of(tmp_path / "sheets", run, prototypes=[])
    (found,) = [entry for entry in laid_out if entry[0] == "prototypes.jpg"]
    assert found[2:] == ([], "This network has no prototypes: it is a black box.")
    write_prototypes_sheet(tmp_path / "a.jpg", prototypes_of(tmp_path / "site", None, None), tmp_path / "site")
    assert laid_out[-1][2:] == ([], "No prototype has a picture.")


def test_every_class_shows_its_first_prototypes_that_have_a_picture(tmp_path, laid_out):
    prototypes = prototypes_of(tmp_path / "site", *["wren"] * 20, None, *["<b>gull</b>"] * 5)
    write_prototypes_sheet(tmp_path / "a.jpg", prototypes, tmp_path / "site")
    ((_, _, lines, _),) = laid_out
    wrens = [("wren", f"prototype {idx}") for idx in range(NUM_TILES // 2)]
    assert lines == wrens + [("<b>gull</b>", f"prototype {idx}") for idx in range(21, 26)]


def test_of_many_classes_some_are_shown_from_the_first_on(tmp_path, laid_out):
    prototypes = prototypes_of(tmp_path / "site", *[f"class {idx // 2}" for idx in range(400)])
    write_prototypes_sheet(tmp_path / "a.jpg", prototypes, tmp_path / "site")
    ((_, title, lines, _),) = laid_out
    assert title == f"A prototype of {NUM_TILES} of 200 classes"
    assert len(set(lines)) == NUM_TILES
    labels = [int(name.split()[1]) for name, _ in lines]
    assert labels[0] == 0
    assert {b - a for a, b in pairwise(labels)} <= {8, 9}


def test_mistakes_come_by_confidence_with_both_classes(tmp_path, run, laid_out):
    rows = [("c0_3", 0, 1, 0.5), ("c1_3", 1, 1, 0.99), ("c1_4", 1, 0, 0.875), ("c0_4", 0, 2, 0.5)]
    table = per_image(tmp_path / "a.parquet", *rows)
    write_mistakes_sheet(tmp_path / "a.jpg", load_images(run / "data/dataset"), table, "protomask")
    assert laid_out == [
        (
            "a.jpg",
            "Most confident mistakes: 3 of 3, among 4 test images",
            [
                (CLASSES[0], "predicted, 88 %", CLASSES[1], "true class"),
                (CLASSES[1], "predicted, 50 %", CLASSES[0], "true class"),
                (CLASSES[2], "predicted, 50 %", CLASSES[0], "true class"),
            ],
            "",
        )
    ]


def test_without_a_mistake_the_sheet_says_so(tmp_path, run, laid_out):
    table = per_image(tmp_path / "a.parquet", ("c0_3", 0, 0, 0.5))
    write_mistakes_sheet(tmp_path / "a.jpg", load_images(run / "data/dataset"), table, "protomask")
    assert laid_out[0][2:] == ([], "The network made no mistake.")


def test_a_table_of_another_network_or_data_set_is_refused(tmp_path, run):
    images = load_images(run / "data/dataset")
    table = per_image(tmp_path / "a.parquet", ("c9_9", 0, 1, 0.5))
    with pytest.raises(PipelineError, match=r"a\.parquet names c9_9, which is no image"):
        write_mistakes_sheet(tmp_path / "a.jpg", images, table, "protomask")
    with pytest.raises(PipelineError, match=r"a\.parquet has no row `pipnet`"):
        write_mistakes_sheet(tmp_path / "a.jpg", images, table, "pipnet")


def test_tiles_stand_in_rows_with_their_pictures_beside_each_other(tmp_path):
    red, blue = (np.full((30, 40, 3), colour, dtype=np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    write_sheet(tmp_path / "a.jpg", "Title", [Tile((red, blue), ("name",))] * 3, columns=2)
    sheet = read(tmp_path / "a.jpg").astype(int)
    is_red = (sheet[..., 0] > 200) & (sheet[..., 1:] < 60).all(axis=2)
    is_blue = (sheet[..., 2] > 200) & (sheet[..., :2] < 60).all(axis=2)
    side = np.flatnonzero(is_red.any(axis=0)).size / 2  # two columns
    assert is_red.sum() == pytest.approx(3 * side * 0.75 * side, rel=0.03)
    assert is_blue.sum() == pytest.approx(is_red.sum(), rel=0.01)
    assert np.flatnonzero(is_blue[: sheet.shape[0] // 2].any(axis=0))[0] > np.flatnonzero(is_red.any(axis=0))[0]
    rows = np.flatnonzero(np.diff(np.concatenate([[False], is_red.any(axis=1)]).astype(int)) == 1)
    assert len(rows) == 2


def test_what_is_said_instead_of_tiles_stands_on_the_sheet(tmp_path):
    write_sheet(tmp_path / "a.jpg", "Title", [], columns=4, instead="There is none.")
    write_sheet(tmp_path / "b.jpg", "Title", [], columns=4, instead="")
    assert (read(tmp_path / "a.jpg") < 100).sum() > (read(tmp_path / "b.jpg") < 100).sum() > 0
