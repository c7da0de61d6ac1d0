import json

import numpy as np
import pytest
import torch

from pipeline.artifacts import WHOLE_IMAGE
from pipeline.errors import PipelineError
from pipeline.explain import Explainer, explain, explain_outputs
from pipeline.io import read_json, write_json
from pipeline.model.backbone import Backbone
from pipeline.model.blackbox import BlackBox
from pipeline.model.encoding import encode
from pipeline.model.files import save_model
from pipeline.params import CompatParams, CropsParams, MasksParams
from pipeline.training.embedding import outputs
from tests.explained_run import CLASSES, GRID, KEYS, RUNTIME, SUPERPIXEL, Run, blobs
from tests.small_networks import HEADS_WITH_PROTOTYPES


@pytest.mark.parametrize("head", HEADS_WITH_PROTOTYPES)
@pytest.mark.parametrize(
    ("masks", "changes", "compat"),
    [
        (SUPERPIXEL, {}, {}),
        (GRID, {"background": "mean", "whole_image": False, "order": "area"}, {"clipped_boxes": True}),
        (GRID, {"max_area_frac": 0.01, "square": True}, {"aliased_resizing": True}),
    ],
)
def test_a_picture_is_explained_as_it_would_be_within_the_data_set(head, masks, changes, compat, tmp_path):
    crops = CropsParams(size_px=32, **changes)
    run = Run(tmp_path, head, MasksParams.model_validate(masks), crops, CompatParams(**compat))
    explainer = Explainer(run.final, runtime=RUNTIME)
    for bag_idx, key in enumerate(run.reader.image_keys):
        found = explainer.explain(run.picture(key), top=4)
        rows, views = run.reader.rows(bag_idx), run.reader.views(bag_idx)
        assert [view.mask_idx for view in found.views] == [row.mask_idx for row in rows]
        assert [view.box for view in found.views] == [row.box for row in rows]
        assert np.array_equal(np.stack([view.pixels for view in found.views]), views)
        if any(row.mask_idx != WHOLE_IMAGE for row in rows):
            assert all(
                np.array_equal(view.mask, run.reader.mask(row)) for view, row in zip(found.views, rows, strict=True)
            )
        (encoded,) = encode(run.network, [torch.from_numpy(views).permute(0, 3, 1, 2)], "cpu")
        (expected,) = explain_outputs(
            outputs(run.network, encoded, [len(views)]),
            run.network.class_weights(),
            [None],
            elements_per_view=run.network.elements_per_view(encoded),
            top=4,
        )
        assert found.explanation == expected
        assert found.predicted == CLASSES[expected.predicted.label]


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, "protomask", MasksParams.model_validate(GRID), CropsParams(size_px=32))


def test_several_pictures_are_explained_one_by_one_and_an_array_as_its_file(run):
    found = explain([run.picture(key) for key in KEYS], model=run.final, top=2, runtime=RUNTIME)
    assert [one.path.stem for one in found] == list(KEYS)
    assert all(len(one.explanation.predicted.reasons) == 2 for one in found)
    alone = Explainer(run.final, runtime=RUNTIME).explain(blobs(1), top=2)
    assert alone.explanation == found[KEYS.index("three")].explanation
    assert alone.image.shape == (96, 112, 3)


def test_json_says_what_the_explanation_says(run):
    (found,) = explain([run.picture("one")], model=run.final, runtime=RUNTIME)
    entry = json.loads(json.dumps(found.as_json()))
    assert entry["predicted"] == entry["ranking"][0]["class_name"] == found.predicted
    assert (entry["width"], entry["height"], entry["num_masks"]) == (112, 96, 4)
    contributions = [reason["contribution"] for reason in entry["reasons"]]
    assert sum(contributions) + entry["rest"] == pytest.approx(entry["total"])
    for reason, own in zip(entry["reasons"], found.explanation.predicted.reasons, strict=True):
        assert reason["box"] == list(found.views[own.view_idx].box)
        assert reason["prototype_class"] == CLASSES[own.prototype_idx // 2]


def test_a_picture_without_views_is_explained_by_the_whole_image_or_refused(tmp_path):
    crops = CropsParams(size_px=32, max_area_frac=0.01, whole_image=False)
    run = Run(tmp_path, "protomask", MasksParams.model_validate(GRID), crops)
    found = Explainer(run.final, runtime=RUNTIME).explain(run.picture("one"))
    assert [view.mask_idx for view in found.views] == [WHOLE_IMAGE]
    description = read_json(run.final / "model.json")
    description["preparation"]["crops"]["empty_bag"] = "drop"
    write_json(run.final / "model.json", description)
    with pytest.raises(PipelineError, match=r"one\.png: no mask fits the limits that the model was trained with"):
        Explainer(run.final, runtime=RUNTIME).explain(run.picture("one"))


def changed(run, **changes):
    description = read_json(run.final / "model.json")
    description["preparation"]["segmentation"] |= changes
    write_json(run.final / "model.json", description)
    return run.final


def test_a_model_that_cannot_be_asked_says_why(run, tmp_path):
    with pytest.raises(PipelineError, match=r"its masks were read from masks\.json"):
        Explainer(changed(run, segmenter="coco", weights="masks.json", settings={}), runtime=RUNTIME)
    with pytest.raises(PipelineError, match="made by version 99 of `grid`, this is version 1"):
        Explainer(changed(run, segmenter="grid", version=99), runtime=RUNTIME)
    with pytest.raises(PipelineError, match=r"model\.json does not say how views are made \(`segmentation.segmenter`"):
        Explainer(changed(run, segmenter=None), runtime=RUNTIME)
    with pytest.raises(PipelineError, match=r"model\.json does not say how views are made \(`grid.rows`"):
        Explainer(changed(run, segmenter="grid", version=1, settings={"rows": 0}), runtime=RUNTIME)
    save_model(run.final, run.network, class_names=CLASSES, size_px=32)
    with pytest.raises(PipelineError, match=r"model\.json does not say how views are made"):
        Explainer(run.final, runtime=RUNTIME)
    blackbox = BlackBox(Backbone("test_efficientnet"), num_classes=3)
    save_model(tmp_path / "blackbox", blackbox, class_names=CLASSES, size_px=32)
    with pytest.raises(PipelineError, match="is a black box"):
        Explainer(tmp_path / "blackbox", runtime=RUNTIME)


def test_masks_of_unknown_origin_cannot_be_made_of_other_pictures(run):
    description = read_json(run.final / "model.json")
    description["preparation"]["segmentation"] = None
    write_json(run.final / "model.json", description)
    with pytest.raises(PipelineError, match="does not say what made the masks: run `dvc repro`"):
        Explainer(run.final, runtime=RUNTIME)


def test_weights_of_the_segmenter_may_lie_elsewhere(run, monkeypatch):
    asked = []

    def made(params, device, *, bgr):
        asked.append((params.weights, bgr))

    monkeypatch.setattr("pipeline.explain.pictures.make_segmenter", made)
    Explainer(changed(run, weights="gone.pth", bgr=True), weights="here.pth", runtime=RUNTIME)
    assert asked == [("here.pth", True)]


def test_a_missing_or_damaged_picture_is_named(run):
    explainer = Explainer(run.final, runtime=RUNTIME)
    with pytest.raises(PipelineError, match=r"nowhere\.jpg: this image does not exist"):
        explainer.explain(run.folder / "nowhere.jpg")
    (run.folder / "text.jpg").write_text("no picture")
    with pytest.raises(PipelineError, match=r"text\.jpg: cannot be decoded"):
        explainer.explain(run.folder / "text.jpg")
