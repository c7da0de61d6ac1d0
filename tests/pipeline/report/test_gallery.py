import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.artifacts import PER_IMAGE, PROTOTYPES, write_table
from pipeline.errors import PipelineError
from pipeline.report.gallery import Usage, count_usage, make_cards, read_prototypes

TWO_EACH = [0, 0, 1, 1]


def prediction(label, top, row="protomask"):
    found = None if top is None else [1.0] * len(top)
    views = None if top is None else [0] * len(top)
    return {
        "row": row,
        "image_key": f"{row}{label}{top}",
        "label": label,
        "predicted": label,
        "confidence": 0.5,
        "label_probability": 0.5,
        "top_prototypes": top,
        "top_similarities": found,
        "top_views": views,
    }


def prototype(idx, label, source):
    row = {"prototype_idx": idx, "label": label, "class_name": f"class {label}"}
    if source is None:
        return row
    image_key, view_idx = source
    return row | {
        "image_key": image_key,
        "view_idx": view_idx,
        "mask_idx": view_idx,
        "box": [0, 0, 4, 4],
        "distance_before": 0.25 + idx,
        "distance_after": 0.0,
    }


def write_network(folder, sources, weights):
    rows = [prototype(idx, label, source) for idx, (label, source) in enumerate(zip(TWO_EACH, sources, strict=True))]
    write_table(folder / "prototypes.parquet", rows, PROTOTYPES)
    save_file({"last_layer.weight": np.asarray(weights, dtype=np.float32)}, folder / "model.safetensors")


def usage_of(tmp_path, rows):
    write_table(tmp_path / "per_image.parquet", rows, PER_IMAGE)
    return count_usage(tmp_path / "per_image.parquet", TWO_EACH)


def test_usage_counts_the_test_images_of_the_finished_network(tmp_path):
    usage = usage_of(
        tmp_path,
        [
            prediction(0, [0, 2]),
            prediction(0, [0, 1]),
            prediction(1, [2, 0]),
            prediction(1, [3, 3], row="protomask_trained"),
            prediction(1, None, row="blackbox"),
        ],
    )
    assert (usage.top, usage.num_images) == (2, 3)
    assert usage.of_prototype == {0: Usage(3, 2), 1: Usage(1, 1), 2: Usage(2, 1)}


@pytest.mark.parametrize("rows", [[prediction(0, None, row="blackbox")], [prediction(0, None)], [prediction(0, [4])]])
def test_predictions_of_another_network_are_refused(tmp_path, rows):
    with pytest.raises(PipelineError, match=r"per_image\.parquet"):
        usage_of(tmp_path, rows)


def test_cards_know_own_weight_usage_and_who_shares_their_view(tmp_path):
    weights = [[1.5, 0.9, -0.1, 0.0], [0.2, 0.3, 1.25, 0.75]]
    write_network(tmp_path, [("a", 0), ("a", 1), ("b", 0), ("b", 0)], weights)
    usage = usage_of(tmp_path, [prediction(1, [2, 0])])
    cards = make_cards(tmp_path, usage, read_prototypes(tmp_path))
    assert [round(card.weight, 6) for card in cards] == [1.5, 0.9, 1.25, 0.75]
    assert [card.usage.num_images for card in cards] == [1, 0, 1, 0]
    assert [card.same_view_as for card in cards] == [(), (), (3,), (2,)]
    assert [card.source.distance for card in cards] == [0.25, 1.25, 2.25, 3.25]


def test_a_prototype_without_a_source_shares_no_view(tmp_path):
    write_network(tmp_path, [("a", 0), ("a", 1), None, None], np.ones((2, 4)))
    cards = make_cards(tmp_path, usage_of(tmp_path, [prediction(1, [2])]), read_prototypes(tmp_path))
    assert [card.source is None for card in cards] == [False, False, True, True]
    assert [card.same_view_as for card in cards] == [()] * 4


@pytest.mark.parametrize("weights", [np.ones((2, 5)), np.ones((1, 4))])
def test_a_network_with_other_prototypes_than_the_table_is_refused(tmp_path, weights):
    write_network(tmp_path, [("a", 0)] * 4, weights)
    usage = usage_of(tmp_path, [prediction(0, [0])])
    with pytest.raises(PipelineError, match="do not fit each other"):
        make_cards(tmp_path, usage, read_prototypes(tmp_path))
