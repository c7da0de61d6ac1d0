import csv

import numpy as np
import pytest
import torch
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_info, threadpool_limits

from pipeline.evaluation import plots
from pipeline.evaluation.plots import Explained, macro_roc, project, write_plots
from pipeline.metrics.interface import Deletion

CLASSES = ["gull, grey", "tern", "wren"]
NUM_IMAGES = 24
FILES = {
    "confusion.csv",
    "deletion.csv",
    "projection.csv",
    "reliability.csv",
    "roc.csv",
    "top_projection.csv",
    "usage.csv",
}


def labels():
    return torch.arange(NUM_IMAGES) % 3


def logits(seed=0):
    noise = torch.randn(NUM_IMAGES, 3, generator=torch.Generator().manual_seed(seed))
    return noise + torch.nn.functional.one_hot(labels(), 3)


def deletion():
    generator = torch.Generator().manual_seed(1)
    return Deletion(
        **{
            name: torch.rand(5, 11, generator=generator)
            for name in ("removed", "inserted", "removed_at_random", "inserted_at_random")
        }
    )


def explained(**changes):
    generator = torch.Generator().manual_seed(2)
    content = {
        "top": torch.stack([torch.randperm(6, generator=generator)[:2] for _ in range(NUM_IMAGES)]),
        "features": torch.rand(NUM_IMAGES, 2, 4, generator=generator),
        "prototypes": torch.rand(6, 4, generator=generator),
        "prototype_labels": torch.arange(6) // 2,
        "deletion": deletion(),
    }
    return Explained(**(content | changes))


def written(folder, **changes):
    content = {
        "labels": labels(),
        "logits": {"ProtoMask": logits(), "Black box": logits(1)},
        "explained": explained(),
        "class_names": CLASSES,
        "seed": 0,
    }
    write_plots(folder, **(content | changes))
    return {path.name: list(csv.DictReader(path.open(newline=""))) for path in folder.iterdir()}


def column(rows, name, **where):
    chosen = [row for row in rows if all(row[key] == value for key, value in where.items())]
    return [float(row[name]) for row in chosen]


def test_equal_content_gives_equal_bytes_and_older_files_vanish(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "older.csv").write_text("")
        written(tmp_path / name)
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "other"))
    assert one == other
    assert set(one) == FILES


def test_a_black_box_has_no_plots_of_prototypes(tmp_path):
    assert set(written(tmp_path / "plots", explained=None)) == {"confusion.csv", "reliability.csv", "roc.csv"}
    assert "deletion.csv" not in written(tmp_path / "plots", explained=explained(deletion=None))


def test_the_confusion_names_both_classes_of_each_image_for_the_first_network(tmp_path):
    rows = written(tmp_path / "plots")["confusion.csv"]
    predicted = logits().argmax(dim=1).tolist()
    assert [(row["actual"], row["predicted"]) for row in rows] == [
        (CLASSES[label], CLASSES[guess]) for label, guess in zip(labels().tolist(), predicted, strict=True)
    ]


def test_reliability_leaves_out_empty_bins_and_its_mean_is_the_accuracy(tmp_path):
    rows = written(tmp_path / "plots")["reliability.csv"]
    assert {row["series"] for row in rows} == {"ProtoMask", "Black box"}
    for name, scores in (("ProtoMask", logits()), ("Black box", logits(1))):
        share, accuracy, confidence = (
            np.array(column(rows, key, series=name)) for key in ("share", "accuracy", "confidence")
        )
        assert (share > 0).all()
        assert share.sum() == pytest.approx(1, abs=1e-5)
        assert (share * accuracy).sum() == pytest.approx(
            float((scores.argmax(dim=1) == labels()).double().mean()), abs=1e-5
        )
        assert (share * confidence).sum() == pytest.approx(float(scores.softmax(dim=1).amax(dim=1).mean()), abs=1e-5)


def plain_roc(is_class, score, at):
    """True positives where at most AT of the others are above the threshold, straight between thresholds."""
    points = [(0.0, 0.0)]
    for threshold in sorted(set(score), reverse=True):
        found = [s >= threshold for s in score]
        hits = sum(f and c for f, c in zip(found, is_class, strict=True)) / sum(is_class)
        false = sum(f and not c for f, c in zip(found, is_class, strict=True)) / (len(is_class) - sum(is_class))
        points.append((false, hits))
    best = max(hits for false, hits in points if false == max(f for f, _ in points if f <= at))
    last = max(false for false, _ in points if false <= at)
    if last == at:
        return best
    beyond = min((false, hits) for false, hits in points if false > at)
    return best + (at - last) / (beyond[0] - last) * (beyond[1] - best)


def test_the_roc_curve_is_the_mean_over_classes(tmp_path):
    rows = written(tmp_path / "plots")["roc.csv"]
    rates = column(rows, "false_positive_rate", series="Black box")
    hits = column(rows, "true_positive_rate", series="Black box")
    assert (rates[0], hits[0]) == (0, 0)
    assert (rates[-1], hits[-1]) == (1, 1)
    probability = logits(1).softmax(dim=1).double()
    for place in (1, 20, 37, 80):
        expected = np.mean(
            [plain_roc((labels() == c).tolist(), probability[:, c].tolist(), rates[place]) for c in range(3)]
        )
        assert hits[place] == pytest.approx(expected, abs=2e-6)


def test_the_roc_curve_leaves_out_classes_without_images():
    of_image = np.array([0, 0, 1, 1])
    scores = np.array([[2.0, 1, 0], [1, 0, 5], [0, 1, 0], [0, 2, 1]])
    rates, hits = macro_roc(of_image, scores)
    probability = torch.from_numpy(scores).softmax(dim=1)
    for place in (1, 50, 80):
        expected = [
            plain_roc((of_image == c).tolist(), probability[:, c].tolist(), float(rates[place])) for c in range(2)
        ]
        assert hits[place] == pytest.approx(np.mean(expected), abs=1e-9)


def test_usage_counts_the_images_of_each_prototype_most_used_first(tmp_path):
    top = torch.tensor([[0, 2], [2, 3], [2, 0], [5, 2]])
    few = {
        "labels": torch.tensor([0, 1, 2, 0]),
        "logits": {"ProtoMask": logits()[:4]},
        "explained": explained(top=top, features=explained().features[:4]),
    }
    rows = written(tmp_path / "plots", **few)["usage.csv"]
    assert [(row["rank"], row["images"], row["prototype_idx"], row["class_name"]) for row in rows] == [
        ("1", "4", "2", "tern"),
        ("2", "2", "0", CLASSES[0]),
        ("3", "1", "3", "tern"),
        ("4", "1", "5", "wren"),
        ("5", "0", "1", CLASSES[0]),
        ("6", "0", "4", "wren"),
    ]


def test_deletion_is_the_mean_over_images_of_each_curve(tmp_path):
    rows = written(tmp_path / "plots")["deletion.csv"]
    for series, curves in (
        ("removed, most important first", deletion().removed),
        ("removed at random", deletion().removed_at_random),
        ("put in, most important first", deletion().inserted),
        ("put in at random", deletion().inserted_at_random),
    ):
        found = column(rows, "probability", series=series)
        assert found == pytest.approx([sum(curves[:, step].tolist()) / 5 for step in range(11)], abs=1e-6)
        assert column(rows, "share_of_views", series=series) == pytest.approx([step / 10 for step in range(11)])
    assert len(rows) == 4 * 11


def test_the_projection_shows_every_prototype_and_the_nearest_view_of_each_image(tmp_path):
    rows = written(tmp_path / "plots")["projection.csv"]
    assert [row["kind"] for row in rows] == ["prototype"] * 6 + ["view"] * NUM_IMAGES
    owners = [CLASSES[idx // 2] for idx in range(6)]
    assert [row["class_name"] for row in rows] == owners + [CLASSES[label] for label in labels().tolist()]


def test_large_test_sets_are_shown_in_part_evenly(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "MAX_POINTS", 8)
    files = written(tmp_path / "plots")
    assert sum(row["kind"] == "view" for row in files["projection.csv"]) == 8
    chosen = np.linspace(0, NUM_IMAGES - 1, 8).round().astype(int)
    assert [row["class_name"] for row in files["top_projection.csv"]] == [CLASSES[idx % 3] for idx in chosen]


def clusters(num=12, dim=5):
    rng = np.random.default_rng(0)
    return np.concatenate([10.0 * idx + rng.normal(size=(num, dim)) for idx in range(3)])


def neighbours(places, num=12):
    """The groups of each point and of the point nearest to it, of groups of NUM points each."""
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return {(idx // num, nearest // num) for idx, nearest in enumerate(distance.argmin(axis=1).tolist())}


def test_near_points_stay_near():
    places = project(clusters(), seed=0)
    assert neighbours(places) == {(0, 0), (1, 1), (2, 2)}


def test_places_do_not_hang_on_threads(monkeypatch):
    class Recorded(TSNE):
        def fit_transform(self, points):
            used.update(library["num_threads"] for library in threadpool_info())
            return super().fit_transform(points)

    used = set()
    with threadpool_limits(2):
        expected = project(clusters(), seed=0)
        monkeypatch.setattr(plots, "TSNE", Recorded)
        assert np.array_equal(project(clusters(), seed=0), expected)
    assert used == {1}


@pytest.mark.parametrize("num", [1, 3, 4, 5])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_few_points_and_short_vectors_have_places_of_their_own(num, dim):
    places = project(np.random.default_rng(0).normal(size=(num, dim)), seed=0)
    assert places.shape == (num, 2)
    assert np.isfinite(places).all()
    assert len(np.unique(places, axis=0)) == num


def test_equal_points_have_finite_places():
    assert np.isfinite(project(np.ones((9, 4)), seed=0)).all()


def test_the_top_projection_brings_images_with_the_same_prototypes_together(tmp_path):
    top = torch.tensor([[0, 1]] * 12 + [[4, 5]] * 12)
    rows = written(tmp_path / "plots", explained=explained(top=top))["top_projection.csv"]
    places = np.array([(float(row["x"]), float(row["y"])) for row in rows])
    assert neighbours(places) == {(0, 0), (1, 1)}
