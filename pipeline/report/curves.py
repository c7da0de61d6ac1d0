"""The page of training: curves, phases, projection and fine-tuning."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.data.datasets.interface import Split
from pipeline.params import Params
from pipeline.report.charts import LineChart, Series, line_chart, nice_ticks
from pipeline.report.inputs import (
    NetworkDescription,
    PhaseReport,
    TrainSummary,
    read_curve,
    read_finetune,
    read_projection,
    read_train_summary,
)
from pipeline.report.site import Site
from pipeline.report.splits import images_of, kept_epochs, part_of_test_images
from pipeline.report.tables import BLACKBOX, HEAD_TITLES

PHASE_TITLES = {"warmup": "warm-up", "joint": "joint"}
_TERM_TITLES = {
    "cross_entropy": "Cross entropy ↓",
    "classification": "Classification ↓: cross entropy",
    "cluster": "Cluster ↓: distance to the image's class",
    "separation": "Separation ↑: distance to other classes",
    "diversity": "Diversity ↓: 1 where prototypes coincide",
    "alignment": "Alignment ↓: 0 where two versions agree",
    "presence": "Presence ↓: low where prototypes occur",
    "orthogonality": "Orthogonality ↓: 0 where slots differ",
}


def epoch_chart(title: str, series: Iterable[Series], phases: Sequence[tuple[str, int]]) -> LineChart | None:
    """Lay out a chart over epochs, counted from 1; None where no series has a point.

    Args:
        title: what is shown, with its unit.
        series: the lines, the most important one first; dotted are the epochs whose state a phase ended with.
        phases: (name, epochs) of each phase, in the order in which they ran.
    """
    filled = [line for line in series if line.points]
    if not filled:
        return None
    last_epoch = max([sum(epochs for _, epochs in phases), *(int(line.points[-1][0]) for line in filled)])
    values = [value for line in filled for _, value in line.points]
    whole = [value for value in nice_ticks(0.0, float(last_epoch)) if value.is_integer() and value <= last_epoch]
    return line_chart(
        title,
        filled,
        summary=f"{title}, epochs 1 to {last_epoch}. " + " ".join(_in_words(line) for line in filled),
        x_title="epoch",
        x_range=(0.0, float(last_epoch)),
        x_marks=whole,
        y_marks=nice_ticks(min(values), max(values)),
        spans=[(name, float(epochs)) for name, epochs in phases],
        dots_title="kept" if any(line.dotted for line in filled) else "",
    )


def _in_words(line: Series) -> str:
    values = [value for _, value in line.points]
    return (
        f"{line.title}: {values[0]:.3g} at the first epoch, {values[-1]:.3g} at the last, "
        f"lowest {min(values):.3g}, highest {max(values):.3g}."
    )


def heads_by_role(head: str, summary: TrainSummary) -> dict[str, str]:
    """Name the heads of the networks in SUMMARY: the run's own, which is HEAD, and the black box beside it, if any."""
    return {role: kind for role, kind in {"network": head, BLACKBOX: BLACKBOX}.items() if role in summary}


def add_training_page(site: Site, results: Path, network: NetworkDescription, params: Params) -> None:
    """Write ``training.html``.

    Args:
        site: the report.
        results: what the stages from train to finetune reported.
        network: the one that was trained.
        params: of the run.

    Raises:
        PipelineError: a file is missing or damaged.
    """
    summary = read_train_summary(results / "train/summary.json")
    site.add_page(
        "training.html",
        "training.html.j2",
        network=network,
        in_sentence=in_sentence(network.head),
        kept_epochs=kept_epochs(params),
        part_of_test_images=part_of_test_images(params),
        validates_on_test=params.compat.validate_on_test,
        charts=training_charts(results / "train", summary, network.head),
        phases=[
            {"network": HEAD_TITLES[kind], "phase": phase_title, "report": summary[role][phase]}
            for role, kind in heads_by_role(network.head, summary).items()
            for phase, phase_title in PHASE_TITLES.items()
            if phase in summary[role]
        ],
        projection=read_projection(results / "project.json"),
        finetune=read_finetune(results / "finetune.json"),
    )


def training_charts(folder: Path, summary: TrainSummary, head: str) -> list[LineChart]:
    """Lay out the curves of a training run.

    Args:
        folder: ``results/train``: DVCLive's folders ``network`` and, where there is one, ``blackbox``.
        summary: its networks and phases.
        head: of the network.

    Raises:
        PipelineError: a curve is missing or damaged.
    """
    followed: tuple[Split, ...] = ("train", "val")
    heads = heads_by_role(head, summary)
    phases = _phases(summary["network"])
    accuracy = [
        Series(
            HEAD_TITLES[kind],
            [(epoch, 100 * value) for epoch, value in _read(folder, role, "val/accuracy")],
            _kept_epochs(summary[role]),
        )
        for role, kind in heads.items()
    ]
    charts = [epoch_chart("Validation accuracy, %", accuracy, phases)]
    for role, kind in heads.items():
        both = [Series(images_of(split), _read(folder, role, f"{split}/loss")) for split in followed]
        charts.append(epoch_chart(f"Loss of {in_sentence(kind)}", both, _phases(summary[role])))
    for term in _terms(folder):
        series = Series(images_of("train"), _read(folder, "network", f"train/{term}"))
        charts.append(epoch_chart(_TERM_TITLES.get(term, term), [series], phases))
    return [chart for chart in charts if chart is not None]


def in_sentence(head: str) -> str:
    """Name a network as it stands in a sentence."""
    return "the black box" if head == BLACKBOX else HEAD_TITLES[head]


def _terms(folder: Path) -> list[str]:
    """List the terms of the network's loss: those with a title in its order, then others by name."""
    found = {path.stem for path in _curve(folder, "network", "train/loss").parent.glob("*.tsv")} - {"loss"}
    return [*(term for term in _TERM_TITLES if term in found), *sorted(found - _TERM_TITLES.keys())]


def _curve(folder: Path, role: str, metric: str) -> Path:
    return folder / role / "plots/metrics" / f"{metric}.tsv"


def _read(folder: Path, role: str, metric: str) -> list[tuple[float, float]]:
    return [(float(epoch), value) for epoch, value in read_curve(_curve(folder, role, metric))]


def _phases(reports: dict[str, PhaseReport]) -> list[tuple[str, int]]:
    return [(title, reports[name].epochs) for name, title in PHASE_TITLES.items() if name in reports]


def _kept_epochs(reports: dict[str, PhaseReport]) -> list[float]:
    """The kept epoch of each phase, counted over the whole run; a phase that kept its start has none."""
    done = 0
    kept: list[float] = []
    for name in PHASE_TITLES:
        if name in reports:
            if reports[name].best_epoch:
                kept.append(float(done + reports[name].best_epoch))
            done += reports[name].epochs
    return kept
