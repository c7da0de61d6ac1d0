import re

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts import IMAGES, write_table
from pipeline.data import mask_progress
from pipeline.data.mask_progress import describe_progress
from pipeline.data.mask_store import MaskStore
from pipeline.data.segmentation import fingerprint, name_of, write_masks
from pipeline.errors import PipelineError
from pipeline.io import sha256_of
from pipeline.params import GridParams, MasksParams
from pipeline.runtime import Runtime

KEYS = ("a", "b", "c", "d")


def write_dataset(folder, keys=KEYS):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for key in keys:
        path = folder / "images" / f"{key}.png"
        Image.fromarray(np.full((9, 14, 3), ord(key), dtype=np.uint8)).save(path)
        row = {"image_key": key, "path": f"images/{key}.png", "sha256": sha256_of(path.read_bytes())}
        row |= {"width": 14, "height": 9, "label": 0, "class_name": "gull", "split": "train", "parts": []}
        rows.append(row)
    write_table(folder / "images.parquet", rows, IMAGES, class_names=["gull"], part_names=[])


class Project:
    def __init__(self, root):
        self.dataset, self.out, self.store = root / "dataset", root / "masks", root / "cache/masks.sqlite"
        self.weights = root / "weights.txt"
        self.weights.write_text("none")
        write_dataset(self.dataset)

    def params(self, rows=2):
        return MasksParams(segmenter="grid", weights=str(self.weights), grid=GridParams(rows=rows, columns=2))

    def segment(self, keys=KEYS, rows=2):
        write_dataset(self.dataset, keys)
        write_masks(self.dataset, self.out, store=self.store, params=self.params(rows), runtime=Runtime(workers=1))
        write_dataset(self.dataset)

    def lines(self, rows=2):
        return describe_progress(self.dataset, store=self.store, params=self.params(rows)).splitlines()


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_without_a_store_nothing_is_done_and_no_store_is_made(project):
    none, done, rest = project.lines()
    assert none == f"{project.store}: no store yet"
    assert "0 of 4 images done (0.0%), 0 masks so far" in done
    assert rest == "4 images left; no estimate yet"
    assert not project.store.parent.exists()


def test_a_part_that_is_done_is_counted_and_the_rest_estimated(project):
    project.segment(keys=KEYS[:3])
    done, rest = project.lines()
    assert done.startswith(f"grid, {project.weights} [{fingerprint(project.params())[:8]}]: ")
    assert done.endswith("3 of 4 images done (75.0%), 12 masks so far")
    assert re.fullmatch(
        r"about 1 s left at [\d.,]+ images/s, measured over the last 3 images under these settings", rest
    )


@pytest.mark.parametrize(
    ("seconds_per_image", "expected"),
    [
        (0.25, "about 1 s left at 4 images/s"),
        (0.02, "about 1 s left at 50 images/s"),
        (10.0, "about 20 s left at 0.1 images/s"),
        (29.8, "about 1 min left at 0.034 images/s"),
        (600.0, "about 20 min left at 0.0017 images/s"),
        (3900.0, "about 2 h 10 min left at 0.00026 images/s"),
        (90000.0, "about 50 h 0 min left at 1.1e-05 images/s"),
    ],
)
def test_the_estimate_is_the_images_left_over_the_rate_of_the_timed_ones(project, seconds_per_image, expected):
    with MaskStore(project.store) as store:
        settings = fingerprint(project.params())
        for key in KEYS[:2]:
            sha256 = sha256_of((project.dataset / f"images/{key}.png").read_bytes())
            store.put(sha256, settings, [], seconds=seconds_per_image)
    _, rest = project.lines()
    assert rest == f"{expected}, measured over the last 2 images under these settings"


def test_everything_done_leaves_nothing_and_rows_without_a_time_give_no_estimate(project):
    with MaskStore(project.store) as store:
        sha256 = sha256_of((project.dataset / "images/a.png").read_bytes())
        store.put(sha256, fingerprint(project.params()), [])
    assert project.lines()[1] == "3 images left; no estimate yet"
    project.segment()
    assert "4 of 4 images done (100.0%), 12 masks so far" in project.lines()[0]
    assert project.lines()[1] == "nothing left to segment"


def test_other_settings_are_named_and_counted_and_do_not_mix(project):
    project.segment(rows=3)
    project.segment(keys=KEYS[:2], rows=1)
    done, rest, *others = project.lines(rows=2)
    assert "0 of 4 images done" in done
    assert rest == "4 images left; no estimate yet"
    assert sorted(others) == sorted(
        f"also in {project.store}: {count} images under {name_of(project.params())}"
        f" [{fingerprint(project.params(rows))[:8]}]"
        for rows, count in ((3, 4), (1, 2))
    )
    done, *_ = project.lines(rows=1)
    assert "2 of 4 images done (50.0%), 4 masks so far" in done


def test_images_of_another_data_set_are_not_counted(project):
    project.segment()
    write_dataset(project.dataset, ("c", "x"))
    assert "1 of 2 images done (50.0%), 4 masks so far" in project.lines()[0]
    assert re.match(r"about .* measured over the last 4 images", project.lines()[1])


def test_equal_images_are_all_counted_and_left_only_once(project):
    project.segment(keys=("a",))
    for key in ("b", "c", "d"):
        (project.dataset / f"images/{key}.png").write_bytes((project.dataset / "images/a.png").read_bytes())
    table_of_equals(project)
    assert "4 of 4 images done (100.0%), 16 masks so far" in project.lines()[0]
    assert project.lines(rows=3)[1] == "1 images left; no estimate yet"


def table_of_equals(project):
    """Rewrite the table for the pictures as they are now."""
    sha256 = sha256_of((project.dataset / "images/a.png").read_bytes())
    common = {"sha256": sha256, "width": 14, "height": 9, "label": 0, "class_name": "gull", "split": "train"}
    rows = [{"image_key": key, "path": f"images/{key}.png", "parts": [], **common} for key in KEYS]
    write_table(project.dataset / "images.parquet", rows, IMAGES, class_names=["gull"], part_names=[])


@pytest.mark.parametrize("damaged", ["garbage", "cut short", "a folder"])
def test_a_store_that_cannot_be_read_is_said_to_be_so_and_left_as_it_is(project, damaged):
    project.segment()
    content = {"garbage": b"garbage" * 1000, "cut short": project.store.read_bytes()[:5000]}.get(damaged)
    project.store.unlink()
    project.store.mkdir() if content is None else project.store.write_bytes(content)
    before = sorted(project.store.parent.iterdir())
    problem, done, rest = project.lines()
    assert problem.startswith(f"{project.store}: cannot be read (")
    assert "0 of 4 images done" in done
    assert rest == "4 images left; no estimate yet"
    assert sorted(project.store.parent.iterdir()) == before
    assert content is None or project.store.read_bytes() == content


def test_the_process_at_work_is_named(project, monkeypatch):
    project.segment(keys=KEYS[:2])
    assert len(project.lines()) == 2
    monkeypatch.setattr(mask_progress, "holder_of", lambda store: "4711" if store == project.store else None)
    assert project.lines()[2] == f"process 4711 is at work on {project.store}"


def test_what_the_run_itself_would_miss_is_missed_here_too(project):
    project.weights.unlink()
    with pytest.raises(PipelineError, match=r"masks\.weights"):
        project.lines()
    project.weights.write_text("none")
    (project.dataset / "images.parquet").unlink()
    with pytest.raises(PipelineError, match=r"images\.parquet"):
        project.lines()
