import io
import re
import shutil
import tarfile

import numpy as np
import pytest
import simplejpeg
import torch

from pipeline.artifacts import METRICS_DETAIL, PER_IMAGE, VIEWS, read_table, write_table
from pipeline.data.bags import BagReader
from pipeline.errors import PipelineError
from pipeline.evaluation import explanations
from pipeline.evaluation import run as evaluation_run
from pipeline.evaluation.run import evaluate
from pipeline.io import read_json
from pipeline.metrics.registry import METRICS
from pipeline.model.backbone import Backbone
from pipeline.model.blackbox import BlackBox
from pipeline.model.files import load_model, save_model
from pipeline.model.protomask import ProtoMask
from pipeline.params import DatasetParams, EvaluateParams, Params
from pipeline.runtime import Runtime
from pipeline.training import embedding
from tests.plain_dataset import write_dataset

CPU = Runtime(device="cpu")
SIDE_PX = 32
LENGTHS = [3, 1, 2, 4, 2, 1, 3, 2, 1, 5, 2]
LABELS = [0, 1, 2, 1, 0, 0, 1, 1, 2, 1, 0]
CLASS_NAMES = ["Gull", "Wren", "Robin", "Auk"]  # no image is an auk
ROWS = ["protomask", "protomask_projected", "protomask_trained"]
PART_NAMES = ["beak", "wing", "tail"]


def write_crops(folder, order=None):
    """Test bags of noise, whole images outside their bags; ORDER says in which order they lie in the shard."""
    folder.mkdir()
    rows = []
    with tarfile.open(folder / "test-00000.tar", "w") as tar:
        for bag_idx in range(len(LENGTHS)) if order is None else order:
            rng = np.random.default_rng(bag_idx)
            for view_idx in range(LENGTHS[bag_idx] + 1):
                is_whole = view_idx == LENGTHS[bag_idx]
                pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
                content = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), 95, "RGB", "444")
                member = tarfile.TarInfo(f"image-{bag_idx:02d}.{view_idx:02d}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                rows.append(
                    {
                        "image_key": f"image-{bag_idx:02d}",
                        "view_idx": view_idx,
                        "split": "test",
                        "label": LABELS[bag_idx],
                        "mask_idx": -1 if is_whole else view_idx,
                        "mask_box": [view_idx, 2, 9 + view_idx, 20],
                        "box": [view_idx, 0, 12 + view_idx, 24],
                        "area_px": 81,
                        "shard": "test-00000.tar",
                        "jpeg_offset": member.name,
                        "jpeg_size": len(content),
                        "mask_offset": None,
                        "mask_size": None,
                        "in_bag": not is_whole,
                    }
                )
    with tarfile.open(folder / "test-00000.tar") as tar:
        offsets = {member.name: member.offset_data for member in tar}
    rows = [{**row, "jpeg_offset": offsets[row["jpeg_offset"]]} for row in rows]
    rows.sort(key=lambda row: (row["split"], row["image_key"], row["view_idx"]))
    write_table(folder / "views.parquet", rows, VIEWS, class_names=CLASS_NAMES, size_px=SIDE_PX)
    dataset, masks = folder.parent / "dataset", folder.parent / "masks"
    write_dataset(dataset, masks, folder, side_px=SIDE_PX, part_names=PART_NAMES, object_masks=True)


def write_models(folder, per_class=2, negative=False):
    """Three states of one network that share the embedding, and a black box, all at random."""
    torch.manual_seed(0)
    labels = torch.arange(len(CLASS_NAMES)).repeat_interleave(per_class)
    backbone = Backbone("test_efficientnet")
    network = ProtoMask(backbone, dim=6, prototype_labels=labels, num_classes=len(CLASS_NAMES), epsilon=1e-4)
    torch.nn.init.normal_(network.add_on.weight)
    torch.nn.init.zeros_(network.add_on.bias)
    saved = {"class_names": CLASS_NAMES, "size_px": SIDE_PX}
    save_model(folder / "trained", network, **saved)
    torch.nn.init.uniform_(network.prototypes)
    save_model(folder / "projected", network, **saved)
    torch.nn.init.normal_(network.last_layer.weight)
    if negative:
        network.last_layer.weight.data.abs_().neg_()
    save_model(folder / "final", network, **saved)
    blackbox = BlackBox(backbone, num_classes=len(CLASS_NAMES))
    torch.nn.init.normal_(blackbox.classifier.weight)
    save_model(folder / "trained" / "blackbox", blackbox, **saved)
    return folder


def run(crops, models, out, **settings):
    quick = {"map_side_px": 32, "sample_images": 4, "bootstrap_draws": 50, "saliency": ("mask", "view"), **settings}
    params = Params(evaluate=EvaluateParams(**quick), dataset=DatasetParams(name="folder"))
    return evaluate(
        crops.parent / "dataset",
        crops.parent / "masks",
        crops,
        models / "trained",
        models / "projected",
        models / "final",
        out,
        params=params,
        runtime=CPU,
    )


def without(folder, name):
    (folder / name / "model.json").unlink()
    (folder / name / "model.safetensors").unlink()
    (folder / name).rmdir()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small only wait for each other's threads."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "crops"
    write_crops(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def results(tmp_path_factory, crops, models):
    out = tmp_path_factory.mktemp("results")
    run(crops, models, out, top_prototypes=3)
    return out


def rows_of(results, row):
    return [entry for entry in read_table(results / "per_image.parquet", PER_IMAGE).to_pylist() if entry["row"] == row]


def similarities_of(crops, folder):
    """Similarity and nearest view of every image and prototype, bag by bag through the whole network."""
    network, _ = load_model(folder)
    reader = BagReader(crops, "test")
    similarity, view, logits = [], [], []
    for bag_idx in range(len(reader)):
        pixels = torch.from_numpy(reader.views(bag_idx)).permute(0, 3, 1, 2)
        with torch.no_grad():
            output = network(pixels, torch.tensor([len(pixels)]))
        similarity.append(output.similarity[0].numpy())
        view.append(output.element[0].numpy())
        logits.append(output.logits[0].numpy())
    return np.stack(similarity), np.stack(view), np.stack(logits)


def test_there_is_a_row_per_state_with_its_families_and_every_declared_metric(results):
    metrics = read_json(results / "metrics.json")
    assert sorted(metrics) == sorted([*ROWS, "protomask_view", "blackbox"])
    declared = {row: set() for row in ("protomask", "protomask_view", "protomask_projected")}
    for metric in METRICS:
        declared["protomask"].add((metric.family, metric.key))
        if "maps" in metric.needs:
            declared["protomask_view"].add((metric.family, metric.key))
        if set(metric.needs) <= {"prototypes"}:
            declared["protomask_projected"].add((metric.family, metric.key))
    declared["protomask_trained"] = declared["protomask_projected"]
    assert all(len(names) > 10 for names in declared.values())
    for row, names in declared.items():
        assert {(family, key) for family, scores in metrics[row].items() for key in scores} == names
    assert list(metrics["blackbox"]) == ["classification"]
    assert metrics["blackbox"]["classification"].keys() == metrics["protomask"]["classification"].keys()


def test_the_metrics_are_returned_as_they_are_written(tmp_path, crops, models):
    assert run(crops, models, tmp_path) == read_json(tmp_path / "metrics.json")


def test_fractions_are_between_0_and_1_and_not_percent(results):
    metrics = read_json(results / "metrics.json")
    fractions = [metric for metric in METRICS if metric.unit == "fraction"]
    values = [metrics["protomask"][metric.family][metric.key] for metric in fractions]
    values = [value for value in values if value is not None]
    assert len(values) > 25
    assert all(0 <= value <= 1 for value in values)
    assert any(value > 0 for value in values)


@pytest.mark.parametrize("row", [*ROWS, "blackbox"])
def test_accuracies_follow_from_the_rows_per_image(results, row):
    entries = rows_of(results, row)
    assert [entry["image_key"] for entry in entries] == [f"image-{idx:02d}" for idx in range(len(LENGTHS))]
    assert [entry["label"] for entry in entries] == LABELS
    hit = np.array([entry["predicted"] == entry["label"] for entry in entries])
    scores = read_json(results / "metrics.json")[row]["classification"]
    assert scores["accuracy"] == pytest.approx(hit.mean(), abs=1e-6)
    # the class without an image does not enter
    balanced = np.mean([hit[np.array(LABELS) == label].mean() for label in range(3)])
    assert scores["balanced_accuracy"] == pytest.approx(balanced, abs=1e-6)


@pytest.mark.parametrize(
    ("row", "state"), [("protomask", "final"), ("protomask_projected", "projected"), ("protomask_trained", "trained")]
)
def test_the_rows_per_image_are_what_the_network_says_of_each_bag_alone(crops, models, results, row, state):
    similarity, view, logits = similarities_of(crops, models / state)
    for idx, entry in enumerate(rows_of(results, row)):
        probability = np.exp(logits[idx] - logits[idx].max())
        probability /= probability.sum()
        assert entry["predicted"] == logits[idx].argmax()
        assert entry["confidence"] == pytest.approx(probability.max(), rel=1e-3)
        assert entry["label_probability"] == pytest.approx(probability[LABELS[idx]], rel=1e-3)
        ranked = np.argsort(-similarity[idx])[:3]
        assert entry["top_prototypes"] == ranked.tolist()
        assert entry["top_similarities"] == pytest.approx(similarity[idx][ranked].tolist(), rel=1e-3)
        assert entry["top_views"] == view[idx][ranked].tolist()
        assert max(entry["top_views"]) < LENGTHS[idx]


def test_a_black_box_sees_the_whole_image_and_has_no_prototypes(crops, models, results):
    network, _ = load_model(models / "trained" / "blackbox")
    reader = BagReader(crops, "test", views="whole")
    for idx, entry in enumerate(rows_of(results, "blackbox")):
        with torch.no_grad():
            encoded = network.encode(torch.from_numpy(reader.views(idx)).permute(0, 3, 1, 2))
            logits = network.logits_of(encoded, torch.tensor([1]))[0]
        assert entry["predicted"] == logits.argmax().item()
        assert entry["confidence"] == pytest.approx(torch.softmax(logits, 0).max().item(), rel=1e-3)
        assert entry["top_prototypes"] is entry["top_similarities"] is entry["top_views"] is None


def test_compactness_and_contrastivity_are_those_of_plain_loops(crops, models, results):
    similarity, _, _ = similarities_of(crops, models / "final")
    network, _ = load_model(models / "final")
    weight, prototypes = network.last_layer.weight.detach().numpy(), network.prototypes.detach().numpy()
    scores = read_json(results / "metrics.json")["protomask"]
    local = [sum(value > 0.1 * max(row) for value in row) for row in similarity]
    assert scores["compactness"] == pytest.approx(
        {
            "global_size": sum(any(w > 1e-3 for w in column) for column in weight.T),
            "sparsity": np.mean(np.abs(weight) <= 1e-3),
            "negative_positive_ratio": (weight < -1e-3).sum() / (weight > 1e-3).sum(),
            "local_size": np.mean(local),
        },
        abs=1e-6,
    )
    unit = prototypes / np.linalg.norm(prototypes, axis=1, keepdims=True)
    top = [np.argsort(-row)[:3] for row in similarity]
    intra = [np.mean([1 - unit[a] @ unit[b] for a in ranks for b in ranks if a != b]) for ranks in top]
    inter = [
        np.mean(
            [
                1 - unit[a] @ unit[b]
                for i, one in enumerate(top)
                for j, other in enumerate(top)
                if LABELS[i] == label and LABELS[j] != label
                for a in one
                for b in other
            ]
        )
        for label in range(3)
    ]
    assert scores["contrastivity"]["intra_prototype_distance"] == pytest.approx(np.mean(intra), abs=1e-5)
    assert scores["contrastivity"]["inter_prototype_distance"] == pytest.approx(np.mean(inter), abs=1e-5)


@pytest.mark.parametrize(("images", "views"), [(1, 1), (3, 5), (11, 64)])
def test_how_many_images_go_through_at_once_does_not_matter(
    tmp_path, crops, models, results, monkeypatch, images, views
):
    monkeypatch.setattr(embedding, "_IMAGES_PER_BATCH", images)
    monkeypatch.setattr(embedding, "VIEWS_PER_STEP", {"cpu": views})
    metrics = run(crops, models, tmp_path, top_prototypes=3)
    expected = read_json(results / "metrics.json")
    for row, families in expected.items():
        for family, scores in families.items():
            assert metrics[row][family] == pytest.approx(scores, abs=1e-5)


def test_where_bags_lie_in_the_shards_does_not_matter(tmp_path, models, results):
    write_crops(tmp_path / "crops", order=reversed(range(len(LENGTHS))))
    run(tmp_path / "crops", models, tmp_path / "results", top_prototypes=3)
    for name in ("metrics.json", "per_image.parquet"):
        assert (tmp_path / "results" / name).read_bytes() == (results / name).read_bytes()


def test_a_second_run_gives_the_same_bytes(tmp_path, crops, models, results):
    run(crops, models, tmp_path, top_prototypes=3)
    names = sorted(path.name for path in results.iterdir())
    tables = ["table.csv", "table.md", "table.tex"]
    assert names == ["metrics.json", "metrics_detail.parquet", "per_image.parquet", "plots", *tables]
    files = sorted(path.relative_to(results) for path in results.rglob("*") if path.is_file())
    assert len(files) > 10
    assert all((tmp_path / name).read_bytes() == (results / name).read_bytes() for name in files)


def test_what_cannot_be_had_is_null(tmp_path, crops):
    models = write_models(tmp_path / "models", per_class=1, negative=True)
    metrics = run(crops, models, tmp_path / "results", top_prototypes=1)
    # no positive weight to divide by; a single prototype has no other to be compared with
    assert metrics["protomask"]["compactness"]["negative_positive_ratio"] is None
    assert metrics["protomask"]["contrastivity"]["intra_prototype_distance"] is None
    assert metrics["protomask"]["contrastivity"]["inter_prototype_distance"] is not None
    assert metrics["protomask_trained"]["compactness"]["negative_positive_ratio"] == 0
    assert read_json(tmp_path / "results" / "metrics.json") == metrics
    assert "–" in (tmp_path / "results" / "table.md").read_text(encoding="utf-8")


def test_more_top_prototypes_and_classes_than_there_are_take_all(tmp_path, crops, models):
    metrics = run(crops, models, tmp_path, top_prototypes=99, top_classes=99)
    assert metrics["protomask"]["classification"]["topk_accuracy"] == 1.0
    assert all(len(entry["top_prototypes"]) == 8 for entry in rows_of(tmp_path, "protomask"))


def test_without_a_black_box_there_is_no_row_for_it(tmp_path, crops):
    models = write_models(tmp_path / "models")
    without(models / "trained", "blackbox")
    metrics = run(crops, models, tmp_path / "results")
    assert sorted(metrics) == sorted([*ROWS, "protomask_view"])
    assert "Black box" not in (tmp_path / "results" / "table.md").read_text(encoding="utf-8")


def test_the_tables_hold_the_numbers_of_metrics_json(results):
    metrics = read_json(results / "metrics.json")
    rows = ["protomask", "protomask_projected", "protomask_trained", "blackbox"]
    accuracies = [f"{100 * metrics[row]['classification']['accuracy']:.2f}" for row in rows]
    for name, separator in (("table.md", "|"), ("table.tex", "&")):
        line = next(line for line in (results / name).read_text(encoding="utf-8").splitlines() if "Accuracy " in line)
        cells = [cell.strip(r"\ ") for cell in line.strip("|").split(separator)]
        found = [re.search(r"\d+\.\d\d", cell)[0] for cell in cells[1:]]
        assert found == accuracies


def details_of(results):
    rows = read_table(results / "metrics_detail.parquet", METRICS_DETAIL).to_pylist()
    return {(row["row"], row["family"], row["metric"]): row for row in rows}


def test_the_details_have_every_number_with_its_interval_or_a_reason(results):
    metrics = read_json(results / "metrics.json")
    details = details_of(results)
    assert {(row, family, key) for row in metrics for family in metrics[row] for key in metrics[row][family]} == set(
        details
    )
    num_intervals = 0
    for (row, family, key), detail in details.items():
        value = metrics[row][family][key]
        assert (value is None) == (detail["value"] is None) == (detail["reason"] is not None)
        if value is not None:
            assert value == pytest.approx(detail["value"], abs=1e-6)
        if detail["low"] is not None:
            num_intervals += 1
            assert detail["low"] - 1e-9 <= detail["value"] <= detail["high"] + 1e-9
    assert num_intervals > 60
    assert details["protomask", "compactness", "global_size"]["num_images"] == 0


def test_what_the_network_is_run_again_for_is_asked_of_the_sample_and_the_rest_of_all_images(results):
    details = details_of(results)
    assert details["protomask", "complexity", "object_overlap"]["num_images"] == len(LENGTHS)
    assert details["protomask", "continuity", "similarity_change"]["num_images"] == 4
    assert details["protomask", "deletion", "removed"]["num_images"] == 4
    assert "synthetic" in details["protomask", "causal", "single_deletion"]["reason"]


def test_means_over_images_follow_from_the_values_per_image(results):
    details = details_of(results)
    for row in ("protomask", "protomask_view", "protomask_trained"):
        by_key = {}
        for entry in rows_of(results, row):
            for key, value in entry["values"]:
                by_key.setdefault(key, []).append(value)
        assert len(by_key) >= 5
        for key, values in by_key.items():
            detail = details[(row, *key.split("."))]
            assert len(values) == detail["num_images"]
            if detail["value"] is not None:
                assert np.mean(values) == pytest.approx(detail["value"])


def test_a_data_set_without_parts_and_object_masks_has_reasons_in_their_place(tmp_path, models):
    write_crops(tmp_path / "crops")
    shutil.rmtree(tmp_path / "dataset")
    shutil.rmtree(tmp_path / "masks")
    write_dataset(tmp_path / "dataset", tmp_path / "masks", tmp_path / "crops", side_px=SIDE_PX)
    metrics = run(tmp_path / "crops", models, tmp_path / "results")
    details = details_of(tmp_path / "results")
    for family, key, what in (
        ("complexity", "object_overlap", "object masks"),
        ("complexity", "consistency", "part locations"),
        ("continuity", "stability", "part locations"),
        ("mask_consistency", "mask_consistency", "part locations"),
    ):
        assert metrics["protomask"][family][key] is None
        assert what in details["protomask", family, key]["reason"]
    assert metrics["protomask"]["contrastivity"]["saliency_location_change"] is not None


def test_saliency_that_the_head_does_not_have_is_one_line_that_names_the_key(tmp_path, crops, models):
    with pytest.raises(PipelineError, match=r"evaluate\.saliency .*places to enlarge"):
        run(crops, models, tmp_path, saliency=("upsample",))


@pytest.mark.parametrize(("sampled", "others"), [(1, 1), (3, 5)])
def test_how_many_images_are_explained_at_once_does_not_matter(
    tmp_path, crops, models, results, monkeypatch, sampled, others
):
    monkeypatch.setattr(explanations, "_SAMPLED_PER_BATCH", sampled)
    monkeypatch.setattr(explanations, "_PER_BATCH", others)
    metrics = run(crops, models, tmp_path, top_prototypes=3)
    expected = read_json(results / "metrics.json")
    for row, families in expected.items():
        for family, scores in families.items():
            assert metrics[row][family] == pytest.approx(scores, abs=1e-5)


def test_whole_images_that_are_views_of_their_bags_are_not_encoded_again(tmp_path, models, results, monkeypatch):
    write_crops(tmp_path / "crops")
    table = read_table(tmp_path / "crops" / "views.parquet", VIEWS)
    rows = [{**row, "in_bag": True} for row in table.to_pylist()]
    write_table(tmp_path / "crops" / "views.parquet", rows, VIEWS, class_names=CLASS_NAMES, size_px=SIDE_PX)
    encoded = []
    plain = evaluation_run.encoded_views

    def counted(network, reader, **settings):
        encoded.append(sum(reader.lengths))
        return plain(network, reader, **settings)

    monkeypatch.setattr(evaluation_run, "encoded_views", counted)
    run(tmp_path / "crops", models, tmp_path / "results", top_prototypes=3)
    assert encoded == [sum(LENGTHS) + len(LENGTHS)]
    for entry, expected in zip(rows_of(tmp_path / "results", "blackbox"), rows_of(results, "blackbox"), strict=True):
        assert entry["predicted"] == expected["predicted"]
        assert entry["confidence"] == pytest.approx(expected["confidence"], rel=1e-4)
