import pytest

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


def prototype(idx, label, source, weight):
    row = {"prototype_idx": idx, "label": label, "class_name": f"class {label}", "weight": weight}
    if source is None:
        return row
    image_key, view_idx, *place = source
    return row | {
        "image_key": image_key,
        "view_idx": view_idx,
        "place_idx": place[0] if place else None,
        "mask_idx": view_idx,
        "box": [0, 0, 4, 4],
        "distance_before": 0.25 + idx,
        "distance_after": 0.0,
    }


def write_prototypes(folder, sources, weights=(1.0, 1.0, 1.0, 1.0)):
    described = zip(TWO_EACH, sources, weights, strict=True)
    rows = [prototype(idx, label, source, weight) for idx, (label, source, weight) in enumerate(described)]
    write_table(folder / "prototypes.parquet", rows, PROTOTYPES)


def usage_of(tmp_path, rows, head="protomask"):
    write_table(tmp_path / "per_image.parquet", [row | {"values": []} for row in rows], PER_IMAGE)
    return count_usage(tmp_path / "per_image.parquet", head, TWO_EACH)


def cards_of(tmp_path, sources, *weights, top=(2, 0)):
    write_prototypes(tmp_path, sources, *weights)
    usage = usage_of(tmp_path, [prediction(1, list(top))])
    return make_cards(usage, read_prototypes(tmp_path, "protomask"))


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


def test_usage_is_that_of_the_head_of_the_run(tmp_path):
    rows = [prediction(0, [0], row="pipnet"), prediction(0, [1], row="protomask")]
    assert usage_of(tmp_path, rows, "pipnet").of_prototype == {0: Usage(1, 1)}


@pytest.mark.parametrize("rows", [[prediction(0, None, row="blackbox")], [prediction(0, None)], [prediction(0, [4])]])
def test_predictions_of_another_network_are_refused(tmp_path, rows):
    with pytest.raises(PipelineError, match=r"per_image\.parquet"):
        usage_of(tmp_path, rows)


def test_cards_know_their_weight_usage_and_who_shares_their_view(tmp_path):
    cards = cards_of(tmp_path, [("a", 0), ("a", 1), ("b", 0), ("b", 0)], [1.5, 0.75, -0.25, 0.5])
    assert [card.weight for card in cards] == [1.5, 0.75, -0.25, 0.5]
    assert [card.usage.num_images for card in cards] == [1, 0, 1, 0]
    assert [card.same_view_as for card in cards] == [(), (), (3,), (2,)]
    assert [card.source.distance for card in cards] == [0.25, 1.25, 2.25, 3.25]


def test_two_places_of_a_view_are_two_sources(tmp_path):
    cards = cards_of(tmp_path, [("a", 2, 0), ("a", 2, 7), ("b", 2, 7), ("a", 2, 7)])
    assert [card.same_view_as for card in cards] == [(), (3,), (), (1,)]
    assert [card.source.place_idx for card in cards] == [0, 7, 7, 7]


def test_a_prototype_without_a_source_shares_no_view(tmp_path):
    cards = cards_of(tmp_path, [("a", 0), ("a", 1), None, None])
    assert [card.source is None for card in cards] == [False, False, True, True]
    assert [card.same_view_as for card in cards] == [()] * 4


def test_only_a_black_box_has_no_prototypes(tmp_path):
    write_table(tmp_path / "prototypes.parquet", [], PROTOTYPES)
    assert read_prototypes(tmp_path, "blackbox") == []
    with pytest.raises(PipelineError, match="has no prototype"):
        read_prototypes(tmp_path, "pipnet")
