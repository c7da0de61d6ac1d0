import pytest
import torch

from pipeline.data.bags import BagReader
from pipeline.errors import PipelineError
from pipeline.io import read_json, write_json
from pipeline.model.files import load_model
from pipeline.report.test_outputs import read_test_outputs
from pipeline.runtime import Runtime
from pipeline.training import embedding
from tests.small_run import CLASSES, NUM_PROTOTYPES, WITH_PLACES, make_run

CPU = Runtime(workers=1, device="cpu")
HEADS = ("protomask", "blackbox", *WITH_PLACES)


@pytest.fixture(scope="module", params=HEADS)
def run(request, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp(request.param), head=request.param)


@pytest.fixture(scope="module")
def test(run):
    return read_test_outputs(run / "models/final", run / "data/crops", runtime=CPU)


def views_of(reader, bag_idx):
    return torch.from_numpy(reader.views(bag_idx)).permute(0, 3, 1, 2).contiguous()


def test_scores_are_those_of_the_network_on_each_image_alone(run, test):
    network, _ = load_model(run / "models/final")
    reader = BagReader(run / "data/crops", "test", views=network.views)
    assert (test.reader.image_keys, test.class_names) == (reader.image_keys, CLASSES)
    for bag_idx in range(len(reader)):
        views = views_of(reader, bag_idx)
        with torch.no_grad():
            (logits,) = network.logits_of(network.encode(views), torch.tensor([len(views)]))
        torch.testing.assert_close(test.logits[bag_idx], logits, atol=1e-5, rtol=1e-5)


def test_rankings_are_probabilities_in_descending_order(test):
    rankings = test.rankings()
    assert len(rankings) == len(test.reader) == 6
    for ranking, logits in zip(rankings, test.logits, strict=True):
        probability = torch.exp(logits) / torch.exp(logits).sum()
        assert [label for label, _ in ranking] == sorted(range(3), key=lambda label: (-float(logits[label]), label))
        assert [share for _, share in ranking] == pytest.approx([float(probability[label]) for label, _ in ranking])


def test_the_true_class_is_ranked_even_where_it_is_not_probable(test, monkeypatch):
    monkeypatch.setattr("pipeline.report.test_outputs._NUM_RANKED", 1)
    rankings = test.rankings()
    for ranking, label in zip(rankings, test.reader.labels, strict=True):
        assert ranking[-1][0] == label
        assert len(ranking) == (1 if ranking[0][0] == label else 2)
    assert {len(ranking) for ranking in rankings} == {1, 2}


def test_only_a_black_box_has_no_prototypes(test):
    assert (test.output is None) == (test.class_weights is None) == (test.network.head == "blackbox")


def test_places_are_those_of_the_grid(test):
    if test.network.head in WITH_PLACES:
        assert test.grid == (3, 3)
    else:
        assert test.grid == (1, 1)


@pytest.mark.parametrize("head", ["protomask", *WITH_PLACES])
def test_the_reasons_for_a_class_add_up_to_its_score(head, tmp_path):
    run = make_run(tmp_path, head=head)
    test = read_test_outputs(run / "models/final", run / "data/crops", runtime=CPU)
    for bag_idx, label in enumerate(test.reader.labels):
        explanation = test.explanation(bag_idx, top=NUM_PROTOTYPES)
        for score in explanation.class_scores:
            total = sum(reason.similarity * reason.weight for reason in score.reasons)
            expected = torch.log(torch.tensor(total) ** 2 + 1) if test.network.head == "pipnet" else total
            assert float(test.logits[bag_idx, score.label]) == pytest.approx(float(expected), abs=1e-5)
            for reason in score.reasons:
                element = test.nearest_element(bag_idx, reason.prototype_idx)
                assert element == (reason.view_idx, -1 if reason.place_idx is None else reason.place_idx)
        assert explanation.class_scores[-1].label == label


def test_kept_features_are_not_computed_anew(run, tmp_path, monkeypatch):
    kept = Runtime(workers=1, device="cpu", cache=tmp_path)
    first = read_test_outputs(run / "models/final", run / "data/crops", runtime=kept)
    monkeypatch.setattr(embedding, "_encode", None)
    again = read_test_outputs(run / "models/final", run / "data/crops", runtime=kept)
    assert torch.equal(first.logits, again.logits)


def test_a_network_of_other_classes_is_refused(tmp_path):
    run = make_run(tmp_path)
    path = run / "models/final/model.json"
    write_json(path, read_json(path) | {"class_names": ["gull", "wren", "owl"]})
    with pytest.raises(PipelineError, match="knows other classes than the shards"):
        read_test_outputs(run / "models/final", run / "data/crops", runtime=CPU)
