"""What DVC draws of an evaluation: CSV files that the ``plots:`` section of dvc.yaml names, one for each plot.

Numbers are rounded and rows have a fixed order, so equal content gives equal bytes. Where one file holds several lines
of a chart, its column ``series`` tells them apart. DVC draws that with the templates in ``.dvc/plots``, as its own
colour by revision alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from pipeline.io import new_file, new_folder
from pipeline.metrics.classification import predicted_labels, probabilities, reliability, roc_curves
from pipeline.metrics.contrastivity import usage
from pipeline.metrics.interface import Deletion

MAX_POINTS = 500
"""Test images, or the views of them, that a projection shows at most; t-SNE takes seconds for so many."""
_DECIMALS = 6
_ROC_STEPS = 100
_PERPLEXITY = 30.0  # scikit-learn's; less where points are few
_LEAST_POINTS = 4  # fewer have no neighbourhoods

Points = Float[np.ndarray, "point dim"]
Places = Float[np.ndarray, "point 2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """How a network with prototypes explains the test images.

    Attributes:
        top: the prototypes that explain each image, most similar first.
        features: the embedding of the view or place nearest to each of them.
        prototypes: all learned vectors, of the space of the features.
        prototype_labels: the class of each prototype, or the one whose score it moves most.
        deletion: views taken out and put in; None where that was not done.
    """

    top: Int[Tensor, "image rank"]
    features: Float[Tensor, "image rank dim"]
    prototypes: Float[Tensor, "prototype dim"]
    prototype_labels: Int[Tensor, " prototype"]
    deletion: Deletion | None


def write_plots(
    out: Path,
    *,
    labels: Int[Tensor, " image"],
    logits: Mapping[str, Float[Tensor, "image class"]],
    explained: Explained | None,
    class_names: Sequence[str],
    seed: int,
) -> None:
    """Write all plots into the folder OUT.

    Args:
        out: replaced as a whole.
        labels: true classes of the test images.
        logits: class scores of the networks to compare, by what they are called; the first is the one evaluated.
        explained: None for a black box, which has no plots of prototypes.
        class_names: in label order.
        seed: start of the projections.
    """
    of_image = labels.cpu().numpy()
    scores = {name: of_network.cpu().numpy() for name, of_network in logits.items()}
    with new_folder(out) as folder:
        write_confusion(folder / "confusion.csv", of_image, next(iter(scores.values())), class_names)
        write_reliability(folder / "reliability.csv", of_image, scores)
        write_roc(folder / "roc.csv", of_image, scores)
        if explained is not None:
            write_usage(folder / "usage.csv", explained, class_names)
            write_projection(folder / "projection.csv", explained, of_image, class_names, seed=seed)
            write_top_projection(folder / "top_projection.csv", explained, of_image, class_names, seed=seed)
            if explained.deletion is not None:
                write_deletion(folder / "deletion.csv", explained.deletion)


def write_confusion(
    path: Path, labels: Int[np.ndarray, " image"], logits: Float[np.ndarray, "image class"], class_names: Sequence[str]
) -> None:
    """Write the true and the predicted class of each image, by name: DVC counts them."""
    predicted = predicted_labels(logits)
    _write(path, {"actual": _names(class_names, labels), "predicted": _names(class_names, predicted)})


def write_reliability(
    path: Path, labels: Int[np.ndarray, " image"], logits: Mapping[str, Float[np.ndarray, "image class"]]
) -> None:
    """Write how often each network is right where it is how sure, bin by bin, and the share of images of the bin."""
    parts = []
    for series, of_network in logits.items():
        bins = reliability(probabilities(of_network).max(axis=1), predicted_labels(of_network) == labels)
        held = bins.share > 0
        columns = {"confidence": bins.confidence, "accuracy": bins.accuracy, "share": bins.share}
        parts.append(pd.DataFrame({name: values[held] for name, values in columns.items()} | {"series": series}))
    _write(path, pd.concat(parts))


def write_roc(
    path: Path, labels: Int[np.ndarray, " image"], logits: Mapping[str, Float[np.ndarray, "image class"]]
) -> None:
    """Write the mean over classes of the ROC curves of their probabilities, each class against all others.

    Every image counts once, so the area is the metric ROC AUC where all classes have equally many images.
    """
    parts = []
    for series, of_network in logits.items():
        false_positive, true_positive = macro_roc(labels, of_network)
        columns = {"false_positive_rate": false_positive, "true_positive_rate": true_positive, "series": series}
        parts.append(pd.DataFrame(columns))
    _write(path, pd.concat(parts))


def macro_roc(
    labels: Int[np.ndarray, " image"], logits: Float[np.ndarray, "image class"]
) -> tuple[Float[np.ndarray, " step"], Float[np.ndarray, " step"]]:
    """Average the ROC curves of all classes that have one: false and true positives, shares, from (0, 0) on."""
    steps = np.linspace(0, 1, _ROC_STEPS + 1)
    of_class = [
        np.interp(steps, curve.false_positive_frac, curve.true_positive_frac)
        for curve in roc_curves(probabilities(logits), labels)
        if np.isfinite(curve.false_positive_frac).all() and np.isfinite(curve.true_positive_frac).all()
    ]
    mean = np.mean(of_class, axis=0) if of_class else np.full(len(steps), np.nan)
    return np.concatenate([[0.0], steps]), np.concatenate([[0.0], mean])


def write_usage(path: Path, explained: Explained, class_names: Sequence[str]) -> None:
    """Write how many images each prototype explains, the most used first: few steep steps mean that few do it all."""
    counts = usage(explained.top, len(explained.prototypes)).cpu().numpy()
    order = np.argsort(-counts, kind="stable")
    labels = explained.prototype_labels.cpu().numpy()
    _write(
        path,
        {
            "rank": np.arange(1, len(order) + 1),
            "images": counts[order],
            "prototype_idx": order,
            "class_name": _names(class_names, labels[order]),
        },
    )


def write_projection(
    path: Path, explained: Explained, labels: Int[np.ndarray, " image"], class_names: Sequence[str], *, seed: int
) -> None:
    """Write a plane (t-SNE) in which prototypes and the embeddings of views that are like them lie near each other.

    The views are those nearest to the most similar prototype of each image, of images spread evenly over the test set.
    """
    chosen = _evenly(len(labels))
    prototypes = explained.prototypes.detach().cpu().double().numpy()
    views = explained.features[:, 0].detach().cpu().double().numpy()[chosen]
    places = project(np.concatenate([prototypes, views]), seed=seed)
    class_of_prototype = _names(class_names, explained.prototype_labels.cpu().numpy())
    _write(
        path,
        {
            "x": places[:, 0],
            "y": places[:, 1],
            "class_name": class_of_prototype + _names(class_names, labels[chosen]),
            "kind": ["prototype"] * len(prototypes) + ["view"] * len(views),
        },
    )


def write_top_projection(
    path: Path, explained: Explained, labels: Int[np.ndarray, " image"], class_names: Sequence[str], *, seed: int
) -> None:
    """Write a plane (t-SNE) in which images that the same prototypes explain lie near each other.

    What is projected is which prototypes are among the top ones of an image: 0 or 1 for each prototype (QuanProto).

    Deviation: the authors' code projects all images; we show at most ``MAX_POINTS``, spread evenly over the test set.
    """
    chosen = _evenly(len(labels))
    top = explained.top.cpu()[torch.from_numpy(chosen)]
    is_top = torch.zeros(len(top), len(explained.prototypes), dtype=torch.float64).scatter_(1, top, 1.0)
    places = project(is_top.numpy(), seed=seed)
    _write(
        path,
        {
            "x": places[:, 0],
            "y": places[:, 1],
            "class_name": _names(class_names, labels[chosen]),
            "kind": ["image"] * len(chosen),
        },
    )


def write_deletion(path: Path, deletion: Deletion) -> None:
    """Write the mean probability of the predicted class while views are taken out of bags, or put in."""
    curves = {
        "removed, most important first": deletion.removed,
        "removed at random": deletion.removed_at_random,
        "put in, most important first": deletion.inserted,
        "put in at random": deletion.inserted_at_random,
    }
    parts = []
    for series, of_images in curves.items():
        mean = of_images.double().mean(dim=0).cpu().numpy()
        share = np.linspace(0, 1, len(mean))
        parts.append(pd.DataFrame({"share_of_views": share, "probability": mean, "series": series}))
    _write(path, pd.concat(parts))


def project(points: Points, *, seed: int) -> Places:
    """Lay points out in a plane by t-SNE, so that near ones stay near; the same places on every run.

    Points that are all equal, or too few to have neighbourhoods, lie in a row.
    """
    num = len(points)
    if num < _LEAST_POINTS or (points == points[0]).all():
        return np.stack([np.arange(num, dtype=np.float64), np.zeros(num)], axis=1)
    if points.shape[1] == 1:
        points = np.pad(points, ((0, 0), (0, 1)))  # the start, by principal components, needs two
    tsne = TSNE(
        init="pca", learning_rate="auto", perplexity=min(_PERPLEXITY, (num - 1) / 3), random_state=seed, n_jobs=1
    )
    with threadpool_limits(1):  # sums of several threads differ from run to run
        places: np.ndarray = tsne.fit_transform(points).astype(np.float64)
    return places


def _evenly(num: int) -> Int[np.ndarray, " chosen"]:
    """Choose at most ``MAX_POINTS`` positions, spread evenly."""
    return np.arange(num) if num <= MAX_POINTS else np.linspace(0, num - 1, MAX_POINTS).round().astype(np.int64)


def _names(class_names: Sequence[str], labels: Int[np.ndarray, " item"]) -> list[str]:
    return [class_names[label] for label in labels]


def _write(path: Path, columns: Mapping[str, Sequence[object] | np.ndarray] | pd.DataFrame) -> None:
    frame = pd.DataFrame(columns)
    rounded = frame.round(_DECIMALS)
    numbers = rounded.select_dtypes("floating")
    rounded[numbers.columns] = numbers + 0.0  # no -0
    with new_file(path) as work:
        rounded.to_csv(work, index=False, lineterminator="\n")
