import json
import re
from collections import Counter
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.catalogue import ImageRow, ImagesTable, load_images
from pipeline.errors import PipelineError
from pipeline.report.mask_reports import Histogram, checked_crops_report, checked_masks_report
from pipeline.report.masks_page import (
    add_masks_page,
    area_bars,
    choose_images,
    fate_bars,
    figure_lines,
    overlap,
    strips,
)
from pipeline.report.site import Site
from pipeline.report.view_cover import ViewCover, read_view_cover
from pipeline.runtime import Runtime
from tests.small_run import CLASSES, make_run


def table(**num_per_split):
    rows = [
        ImageRow(
            f"{split}_{label}_{number}", Path("a.png"), "", 9, 9, label, f"class {label}", split, None, (), None, None
        )
        for split, num in num_per_split.items()
        for label in range(4)
        for number in range(num)
    ]
    return ImagesTable(
        tuple(f"class {label}" for label in range(4)), (), tuple(sorted(rows, key=lambda r: r.image_key))
    )


def spread(**changes):
    names = ("min", "q05", "q25", "median", "q75", "q95", "max", "mean")
    return dict.fromkeys(names, 0.5) | changes


def quality(**changes):
    content = {
        "num_images": 10,
        "num_masks": 40,
        "masks_per_image": spread(max=8.0, median=4.0, mean=4.0),
        "area_frac": spread(mean=0.25),
        "area_histogram": {"edges": [0.0, 0.01, 0.1, 1.0], "num_masks": [0, 10, 30]},
        "box_fill": spread(),
        "covered_frac": spread(mean=0.8),
        "object_iou": None,
        "parts": None,
    }
    return content | changes


def masks_report(**changes):
    qualities = {"all": quality(), "mask_consistency": None} | changes
    return {"num_masks": 40, "images_without_masks": 0, "quality": qualities}


def crops_report(num_in=10, num_out=4, **dropped):
    masks = {"num_in": num_in, "num_out": num_out, "dropped": dropped}
    content = {"num_in": 5, "num_out": 5, "dropped": {}, "num_views": 9, "whole_image_instead_of_masks": 0}
    return content | {"masks": masks}


def typed(content=None):
    return checked_masks_report(content or masks_report()).quality


def make_page(folder, run, **changes):
    folder.mkdir()
    site = Site(folder, title="ProtoMask", dataset_name="synthetic")
    arguments = {
        "images": load_images(run / "data/dataset"),
        "masks": run / "data/masks/masks.parquet",
        "crops": run / "data/crops",
        "masks_report": json.loads((run / "results/masks.json").read_text()),
        "crops_report": json.loads((run / "results/crops.json").read_text()),
        "cover": read_view_cover(run / "data/crops/views.parquet", load_images(run / "data/dataset").rows),
        "background": "original",
        "num_images": 7,
        "thumbnail_px": 64,
        "seed": 0,
        "runtime": Runtime(workers=1),
    }
    add_masks_page(site, **(arguments | changes))
    return (folder / "masks.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("masks_page") / "run")


def test_images_are_drawn_evenly_from_splits_and_their_classes():
    chosen = choose_images(table(train=9, val=2, test=5), 24, seed=3)
    assert Counter(row.split for row in chosen) == {"train": 8, "val": 8, "test": 8}
    for split in ("train", "val", "test"):
        assert Counter(row.label for row in chosen if row.split == split) == dict.fromkeys(range(4), 2)
    assert [row.split for row in chosen] == ["train"] * 8 + ["val"] * 8 + ["test"] * 8
    assert chosen == choose_images(table(train=9, val=2, test=5), 24, seed=3)
    assert chosen != choose_images(table(train=9, val=2, test=5), 24, seed=4)


def test_what_a_small_split_lacks_the_others_make_up_for():
    chosen = choose_images(table(train=9, val=1, test=5), 24, seed=0)
    assert Counter(row.split for row in chosen) == {"train": 10, "val": 4, "test": 10}
    assert len(choose_images(table(train=1, test=1), 24, seed=0)) == 8
    assert Counter(row.split for row in choose_images(table(train=9, test=9), 9, seed=0)) == {"train": 4, "test": 5}


def test_the_fates_of_the_masks_add_up_to_all_of_them():
    report = checked_crops_report(crops_report(10, 4, over_max_views=3, too_small=2, burnt_down=1))
    bars = fate_bars(report)
    assert [(bar.title, bar.num) for bar in bars] == [
        ("became a view", 4),
        ("too small", 2),
        ("beyond the number of views", 3),
        ("burnt down", 1),  # a reason that nobody has put into words
    ]
    assert sum(bar.num for bar in bars) == report.masks.num_in
    assert sum(bar.frac for bar in bars) == pytest.approx(1)
    assert [bar.length for bar in bars] == [1.0, 0.5, 0.75, 0.25]


def test_counts_that_do_not_add_up_are_refused():
    with pytest.raises(PipelineError, match=r"crops\.json: 10 masks came in, but 4 chosen and 5 dropped"):
        checked_crops_report(crops_report(10, 4, too_small=5))


def test_a_report_of_another_version_is_refused():
    with pytest.raises(PipelineError, match=r"masks\.json was written by another version .*run `dvc repro masks`"):
        checked_masks_report({"num_masks": 3})


def test_bars_of_areas_begin_and_end_where_there_are_masks():
    histogram = typed().all.area_histogram
    assert [(bar.title, bar.num, bar.frac) for bar in area_bars(histogram)] == [
        ("1 to 10 %", 10, 0.25),
        ("10 to 100 %", 30, 0.75),
    ]
    nothing = Histogram(edges=[0.0, 0.5, 1.0], num_masks=[0, 0])
    assert area_bars(nothing) == []
    inner = Histogram(edges=[0.0, 0.2, 0.4, 0.6, 1.0], num_masks=[0, 1, 0, 1])
    assert [bar.num for bar in area_bars(inner)] == [1, 0, 1]


def test_overlap_is_the_area_of_all_masks_over_the_covered_area():
    assert overlap(typed().all) == pytest.approx(40 * 0.25 / (10 * 0.8))
    for absent in ({"area_frac": None}, {"covered_frac": None}, {"covered_frac": spread(mean=0.0)}):
        assert overlap(typed(masks_report(all=quality(**absent))).all) is None


def test_strips_lie_on_scales_from_zero_to_all_or_to_the_largest_count():
    cover = ViewCover(np.array([0.0, 0.25, 0.5, 0.75, 1.0]), num_whole=3)
    laid_out = {strip.title: strip for strip in strips(typed().all, cover)}
    per_image = laid_out["Masks per image"]
    assert (per_image.median, per_image.scale, per_image.at[2]) == ("4", "8", 50.0)
    of_views = laid_out["Share in the box of a view"]
    assert (of_views.median, of_views.mean, of_views.scale) == ("50.0 %", "50.0 %", "100 %")
    assert of_views.at == (5.0, 25.0, 50.0, 75.0, 95.0)
    assert "cannot be a reason. Of 3 images the whole is a view, too" in of_views.explanation
    covered = laid_out["Share in a mask"]
    assert (covered.median, covered.mean, covered.scale, covered.at) == ("50.0 %", "80.0 %", "100 %", (50.0,) * 5)
    assert "IoU with the object" not in laid_out


def test_figures_stand_in_a_column_for_all_images_and_one_for_each_split_that_there_is():
    iou = spread() | {"num_images": 4, "share_at_least": {"0.5": 0.75, "0.9": 0.0}}
    parts = {"num_visible": 1200, "in_a_mask": 0.987, "in_a_box": 1.0}
    everything = masks_report(all=quality(object_iou=iou, parts=parts), test=quality(num_images=4))
    columns, lines = figure_lines(typed(everything))
    assert columns == ["All images", "Test images"]
    assert {line.title: line.cells for line in lines} == {
        "Images": ("10", "4"),
        "Masks": ("40", "40"),
        "Masks on a covered pixel": ("1.2", "3.1"),
        "Objects found at IoU 0.5": ("75.0 %", "–"),
        "Objects found at IoU 0.9": ("0 %", "–"),
        "Visible parts": ("1,200", "–"),
        "Parts in a mask": ("98.7 %", "–"),
        "Parts in a box": ("100 %", "–"),
    }
    _, without = figure_lines(typed())
    assert [line.title for line in without] == ["Images", "Masks", "Masks on a covered pixel"]


def test_the_page_shows_masks_and_views_of_every_drawn_image(tmp_path, run):
    page = make_page(tmp_path / "site", run)
    assert page.count('class="sheet"') == 7
    shown = re.findall(r'<img src="([^"]+)"[^>]*loading="lazy"[^>]*alt="([^"]+)"', page)
    assert len(shown) == page.count("<img") == 7 * 5  # all masks, the chosen ones, two views and the whole image
    for source, _ in shown:
        assert (tmp_path / "site" / source).is_file()
    assert page.count("<dt>Masks</dt><dd>2</dd>") == 7
    covered = 100 * (16 * 16 + 10 * 40) / 48**2
    assert page.count(f"<dt>Share of the image in one of all masks</dt><dd>{covered:.1f} %</dd>") == 7
    assert page.count("<dt>Views</dt><dd>3</dd>") == 7


def test_the_page_sets_what_views_show_apart_from_what_masks_cover(tmp_path, run):
    words = " ".join(make_page(tmp_path / "one", run).split())
    in_boxes = 100 * (20 * 20 + 47 * 12) / 48**2  # of the masks, with padding
    in_masks = 100 * (16 * 16 + 10 * 40) / 48**2
    assert (
        f"The boxes of the views cover {in_boxes:.1f} % of an image, in the mean of the 13 images that have views; all "
        f"masks of an image cover {in_masks:.1f} %."
    ) in words
    assert "the whole image is a view, too, and shows everything." in words
    assert "A view shows all that lies in its box" in words
    only_masks = make_page(tmp_path / "other", run, background="zero")
    assert "a view shows only the mask (crops.background)" in only_masks


def test_names_are_text_and_what_the_data_set_lacks_is_said(tmp_path, run):
    page = make_page(tmp_path / "site", run)
    assert "<b>gull" not in page
    assert escape(CLASSES[0]) in page
    assert "IoU with the object: none of these images has an object mask." in page
    assert "parts: none of these images has a visible part." in page
    assert not re.search(r"https?://", page)


def test_the_same_page_comes_out_twice_and_with_workers(tmp_path, run, monkeypatch):
    make_page(tmp_path / "one", run)
    monkeypatch.setattr("pipeline.report.masks_page._MANY_IMAGES", 1)
    make_page(tmp_path / "other", run, runtime=Runtime(workers=2))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) > 10
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_an_image_that_was_dropped_has_masks_and_no_view(tmp_path, run):
    images = load_images(run / "data/dataset")
    dropped = replace(images.rows[0], image_key="a_new")  # no shard knows it
    page = make_page(tmp_path / "site", run, images=replace(images, rows=(dropped,)))
    assert "No view: the image was dropped" in page
    assert "<dt>Views</dt><dd>0</dd>" in page


def test_without_the_whole_image_all_views_are_of_masks(tmp_path):
    run = make_run(tmp_path / "run", head="protopnet", whole_image=False)
    page = make_page(tmp_path / "site", run)
    assert page.count("<dt>Views</dt><dd>2</dd>") == 7
    assert "The whole image as a view" not in page
