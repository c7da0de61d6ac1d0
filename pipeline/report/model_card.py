"""The model card: what the network of a run is, what it is worth, and where its limits are; from the run alone.

The front matter follows Hugging Face's model cards (https://huggingface.co/docs/hub/model-cards), as far as a run knows
what stands there.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.data.catalogue import ImagesTable
from pipeline.data.datasets.interface import Split
from pipeline.download import DATA_SETS
from pipeline.io import new_file
from pipeline.metrics.registry import METRICS, metric
from pipeline.metrics.uncertainty import LEVEL
from pipeline.params import MasksParams, Params
from pipeline.report.inputs import NetworkDescription, ProjectionReport
from pipeline.report.mask_reports import CropsReport, MasksReport, checked_crops_report, checked_masks_report
from pipeline.report.price import PRICED, Price
from pipeline.report.provenance import Provenance
from pipeline.report.splits import SPLIT_TITLES, images_of, kept_epochs, part_of_test_images
from pipeline.report.tables import (
    ABSENT,
    BLACKBOX,
    HEAD_TITLES,
    INSENSITIVE,
    RANDOMISED,
    Detail,
    family_title,
    metric_title,
    render_detail,
    render_value,
)
from pipeline.report.view_cover import ViewCover
from pipeline.weights import CHECKPOINTS, checkpoint_with

MAIN_METRICS = {
    "compactness": "local_size",
    "contrastivity": "inter_prototype_distance",
    "continuity": "stability",
    "complexity": "object_overlap",
    "completeness": "similarity_change",
    "mask_consistency": "mask_consistency",
    "deletion": "removal_gain",
    "causal": "deletion_check",
}
"""The number of each family of explainability metrics that stands for it on the card."""

_CLASSIFICATION = "classification"
_HUB_METRICS = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "roc_auc")
_MANY_CLASSES = 60  # more are not listed
_FEW_CLASSES = 20
_FEW_IMAGES = 30  # of a class

_LEADS = {
    "protomask": "It names the class of an image by comparing the image's views, cut around segmentation masks, with "
    "prototypes: views of training images, which one can look at.",
    "protopnet": "It names the class of an image by comparing places of the image's feature grid with prototypes of "
    "each class: places of training images, which one can look at.",
    "pipnet": "It names the class of an image by how much each of its shared prototypes is present somewhere on the "
    "image's feature grid.",
    "protopool": "It names the class of an image by comparing places of the image's feature grid with prototypes that "
    "classes share: places of training images, which one can look at.",
    "blackbox": "It names the class of an image by a linear layer on the features of the whole image; it gives no "
    "reasons, and is what explainable networks are compared with.",
}


@dataclass(frozen=True, slots=True)
class _DataFacts:
    """What is known of a data set, whatever the run.

    Attributes:
        title: its name.
        what: a sentence or two.
        bias: how its images differ from the world.
        licence: of the images.
        imagenet: how it overlaps with ImageNet; None where it does not, or where that is not known.
    """

    title: str
    what: str
    bias: str
    licence: str
    imagenet: str | None = None


_LICENCES = {data_set.name: data_set.licence for data_set in DATA_SETS}
_DATA = {
    "synthetic": _DataFacts(
        title="synthetic birds",
        what="Birds drawn by this project, with exact masks and parts. Neighbouring species differ in one or two "
        "parts.",
        bias="The birds are drawings: one bird in every image, seen from the side, in clean surroundings. Numbers on "
        "them say little about photographs.",
        licence="drawn by the project's code, under its licence",
    ),
    "cub200": _DataFacts(
        title="CUB-200-2011",
        what="Photographs of birds (Caltech-UCSD Birds-200-2011), with boxes and parts.",
        bias="The photographs were collected on the web: mostly one bird, large and in good light, of species that "
        "people in North America photograph. Labels came from people who are not all experts, and some are wrong.",
        licence=_LICENCES["cub200"],
        imagenet="CUB-200-2011 overlaps with ImageNet: some of its photographs, test images included, are in ImageNet, "
        "too, as its authors warn.",
    ),
    "dogs": _DataFacts(
        title="Stanford Dogs",
        what="Photographs of 120 breeds of dogs, with boxes.",
        bias="The photographs were collected on the web; many show people, rooms and toys beside the dog.",
        licence=_LICENCES["dogs"],
        imagenet="Stanford Dogs is a subset of ImageNet: its breeds are classes of ImageNet, and its test images may "
        "be images that the backbone was trained on, with their breed as the label.",
    ),
    "cars196": _DataFacts(
        title="Stanford Cars",
        what="Photographs of 196 models of cars, with boxes.",
        bias="The photographs were collected on the web, many of them from advertisements, and show models up to 2012.",
        licence=_LICENCES["cars196"],
    ),
    "folder": _DataFacts(
        title="a folder of images",
        what="Images that somebody put into folders, one for each class.",
        bias="How the images were chosen is not known here; say so where the card is passed on.",
        licence="not known here: whoever passes the model on has to say it",
    ),
}

_SEGMENTERS = {
    "superpixel": "merging superpixels of similar colour, without a trained network",
    "grid": "a grid of equal rectangles, without looking at the image",
    "sam": "Segment Anything",
    "sam2": "Segment Anything 2",
    "slit": "the boundaries that DirectSAM finds (SLIT)",
    "coco": "masks that existed already, from a COCO file",
}
_WITHOUT_WEIGHTS = ("superpixel", "grid")
_BACKGROUNDS = {
    "original": "shows the surroundings of the mask as they are",
    "zero": "is black outside the mask",
    "mean": "has the mask's mean colour outside the mask",
}


def write_model_card(
    path: Path,
    *,
    network: NetworkDescription,
    images: ImagesTable,
    details: Sequence[Detail],
    params: Params,
    masks_report: Mapping[str, Any],
    crops_report: Mapping[str, Any],
    cover: ViewCover,
    price: Price | None,
    projection: ProjectionReport,
    provenance: Provenance,
) -> None:
    """Write the card.

    Args:
        path: ``results/MODEL_CARD.md``: links are from its folder.
        network: the one that was evaluated.
        images: the data set.
        details: all numbers of the metrics table.
        params: of the run.
        masks_report: the content of ``masks.json``.
        crops_report: the content of ``crops.json``.
        cover: how much of the images the views show.
        price: what the network costs against the black box; None without one beside it.
        projection: what became of the prototypes.
        provenance: where the numbers come from.

    Raises:
        PipelineError: a report was written by another version of the pipeline.
    """
    masks, crops = checked_masks_report(masks_report), checked_crops_report(crops_report)
    title = HEAD_TITLES[network.head]
    data = _DATA[params.dataset.name]
    by_row = {row: _of_row(details, row) for row in (network.head, BLACKBOX)}
    card = (
        _environment()
        .get_template("model_card.md.j2")
        .render(
            front_matter=front_matter(by_row[network.head], network, params),
            title=title,
            data=data,
            lead=_LEADS[network.head],
            params=params,
            classes=images.class_names,
            class_list=_class_list(images.class_names),
            network_lines=list(_network_lines(network, params, projection)),
            split_table=_split_table(images),
            view_lines=list(_view_lines(params, masks, crops, network.head)),
            training_lines=list(_training_lines(params, network.head)),
            num_test=max((detail.num_images for detail in by_row[network.head].values()), default=0),
            level=f"{100 * LEVEL:g}",
            classification_table=_classification(by_row, network.head),
            part_of_test_images=part_of_test_images(params),
            price=None if price is None else _price(price, by_row, network.head),
            explanation_table=_explanations(by_row[network.head], network.head),
            is_insensitive=any(
                detail.insensitive_to and detail.value is not None and _is_shown(detail)
                for by_metric in by_row.values()
                for detail in by_metric.values()
            ),
            insensitive=INSENSITIVE,
            checks=", or ".join(RANDOMISED.values()),
            limits=list(_limits(images, by_row[network.head], params, masks, cover, network.head)),
            licences=list(_licences(params, data)),
            revision=provenance.revision,
            versions=", ".join(
                f"{name} {version}" for name, version in provenance.versions.items() if version is not None
            ),
        )
    )
    with new_file(path) as work:
        work.write_text(card, encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=False,  # Markdown: texts of others pass `markdown_text` or `code`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = markdown_text
    return environment


def markdown_text(text: str) -> str:
    """Write TEXT so that Markdown shows it as it stands, in a line or in a cell of a table."""
    return re.sub(r"([\\`*_\[\]<>|~&#$!])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Write TEXT as code, in a line: between more backticks than it holds in a row."""
    line = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"{fence}{line}{fence}"


def front_matter(own: Mapping[tuple[str, str], Detail], network: NetworkDescription, params: Params) -> str:
    """Write the YAML at the top of the card.

    Data sets have no key ``datasets``, which names those of the Hub; and the licence is ``other``, for code,
    weights and images have different ones.
    """
    found = [own[_CLASSIFICATION, key] for key in _HUB_METRICS if (_CLASSIFICATION, key) in own]
    found = [detail for detail in found if detail.value is not None]
    title, data = HEAD_TITLES[network.head], _DATA[params.dataset.name]
    tags = ["image-classification", network.head]
    if network.head != BLACKBOX:
        tags += ["interpretability", "prototypes"]
    content: dict[str, Any] = {
        "license": "other",
        "library_name": "protomask-pipeline",
        "pipeline_tag": "image-classification",
        "tags": tags,
        "metrics": [detail.metric for detail in found],
    }
    if found:
        content["model-index"] = [
            {
                "name": f"{title} on {data.title}",
                "results": [
                    {
                        "task": {"type": "image-classification", "name": "Image classification"},
                        "dataset": {"type": params.dataset.name, "name": data.title, "split": "test"},
                        "metrics": [
                            {"type": detail.metric, "name": detail.declared.title, "value": _rounded(detail.value)}
                            for detail in found
                        ],
                    }
                ],
            }
        ]
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def _rounded(value: float | None) -> float:
    assert value is not None
    return round(value, 6)


def _of_row(details: Sequence[Detail], row: str) -> dict[tuple[str, str], Detail]:
    return {(detail.family, detail.metric): detail for detail in details if detail.row == row}


def _network_lines(network: NetworkDescription, params: Params, projection: ProjectionReport) -> Iterator[str]:
    if not params.model.pretrained:
        start = "from random weights"
    elif params.model.weights is not None:
        start = f"from the weights in {code(Path(params.model.weights).name)}"
    else:
        start = "pretrained on ImageNet"
    yield f"Head: {HEAD_TITLES[network.head]}."
    yield f"Backbone: {code(network.backbone)} of timm, {start}; views of {params.crops.size_px} px."
    if network.head == BLACKBOX:
        return
    dim = f", vectors of length {network.settings.dim}" if network.settings.dim else ""
    yield (
        f"Prototypes: {projection.num_prototypes}{dim}; {projection.num_projected} of them are shown by a training "
        "image. [Look at them](report/prototypes.html)."
    )
    if projection.prune is not None:
        yield f"Pruned: {projection.prune.num_pruned}; {projection.prune.num_kept} stay."
    yield (
        "A reason reads: this looks like that, with the picture of the prototype beside the part of the image. Beside "
        f"its picture, a prototype says how many test images have it among their {params.evaluate.top_prototypes} most "
        "similar ones, for how many predictions it is a reason, and which prototypes are the same."
    )


def _split_table(images: ImagesTable) -> str:
    rows = []
    for split, title in SPLIT_TITLES.items():
        labels = Counter(row.label for row in images.rows if row.split == split)
        per_class = [labels[label] for label in range(len(images.class_names))]
        spread = _from_to(min(per_class), max(per_class)) if labels else ABSENT
        rows.append((title, f"{sum(per_class):,}", spread))
    rows.append(("all", f"{len(images.rows):,}", ""))
    return _table(("Split", "Images", "Of each class"), rows, num_text_columns=1)


def _from_to(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _class_list(names: Sequence[str]) -> str:
    shown = [markdown_text(name) for name in names[:_MANY_CLASSES]]
    if len(names) > len(shown):
        shown.append(f"and {len(names) - len(shown)} more, listed in `model.json`")
    return ", ".join(shown)


def _view_lines(params: Params, masks: MasksReport, crops: CropsReport, head: str) -> Iterator[str]:
    if head != "protomask":
        yield "This network looks at the whole image, as one view; masks take no part in it."
    settings = params.crops
    yield f"Masks: {_SEGMENTERS[params.masks.segmenter]}; {code(_weights_name(params.masks))}."
    covered = masks.quality.all.covered_frac
    median = f"; all masks of an image cover {100 * covered.median:.1f} % of it in the median" if covered else ""
    yield f"They are {masks.num_masks:,} in {masks.quality.all.num_images:,} images{median}."
    if crops.num_in != crops.num_out:
        yield f"{crops.num_in - crops.num_out:,} images without a mask to choose were left out."
    if head != "protomask":
        return
    by = "score of the segmenter" if settings.order == "score" else "area"
    whole = ", and the whole image as one more" if settings.whole_image else ""
    yield f"At most {settings.max_views} masks of an image become views, the largest {by} first{whole}."
    yield (
        f"A view is the box around a mask, grown by {100 * settings.padding_frac:g} % on every side, brought to "
        f"{settings.size_px} x {settings.size_px} px; it {_BACKGROUNDS[settings.background]}."
    )
    dropped = sum(crops.masks.dropped.values())
    yield (
        f"Of {crops.masks.num_in:,} masks, {crops.masks.num_out:,} became views and {dropped:,} were passed over; "
        f"there are {crops.num_views:,} views of {crops.num_out:,} images. [Look at them](report/masks.html)."
    )


def _weights_name(masks: MasksParams) -> str:
    return Path(masks.weights).name


def _training_lines(params: Params, head: str) -> Iterator[str]:
    train = params.train
    backbone = "all of it" if train.joint.trainable_layers == "all" else "its last layers"
    phases = (
        (train.warmup.epochs, "with a frozen backbone"),
        (train.joint.epochs, f"in which {backbone} learned, too"),
        (0 if head == BLACKBOX else params.finetune.epochs, "of the last layer alone"),
    )
    epochs = ", then ".join(f"{num} epochs {how}" for num, how in phases if num) or "no epoch"
    yield f"Phases: {epochs}. {kept_epochs(params)}"
    on = [name for name, value in params.compat.model_dump().items() if value]
    if on:
        switches = ", ".join(code(f"compat.{name}") for name in on)
        yield f"Departures from the method that published code has: {switches}."
    yield f"Random draws start from seed {params.seed}. All params are in [the report](report/index.html)."


def _classification(by_row: Mapping[str, Mapping[tuple[str, str], Detail]], head: str) -> str:
    columns = list(dict.fromkeys(row for row in (head, BLACKBOX) if by_row[row]))
    rows = []
    for declared in METRICS:
        name = declared.family, declared.key
        found = [by_row[row].get(name) for row in columns]
        if declared.family == _CLASSIFICATION and any(found):
            rows.append((metric_title(declared), *map(_number, found)))
    return _table(("Metric", *(HEAD_TITLES[row] for row in columns)), rows, num_text_columns=1)


def _number(detail: Detail | None) -> str:
    if detail is not None and detail.value is None and detail.reason:
        return f"{ABSENT} ({markdown_text(detail.reason)})"
    return render_detail(detail)


def _price(price: Price, by_row: Mapping[str, Mapping[tuple[str, str], Detail]], head: str) -> str:
    """Say in words what the network costs against the black box that was trained beside it."""
    points = render_value(PRICED, abs(price.own - price.blackbox))
    more = f"{points} percentage points {'above' if price.own > price.blackbox else 'below'}"
    where = more if points.strip("0.") else "level with"
    own, other = (_number(by_row[row].get((PRICED.family, PRICED.key))) for row in (head, BLACKBOX))
    sentence = (
        f"in {PRICED.title.lower()}, {HEAD_TITLES[head]} is {where} the black box, which has the same backbone: "
        f"{own} % and {other} %."
    )
    if price.bounds is None:
        return sentence
    return f"{sentence} {price.in_words}."


def _explanations(own: Mapping[tuple[str, str], Detail], head: str) -> str | None:
    """Lay out the main number of each family; None for a black box."""
    if head == BLACKBOX:
        return None
    rows = []
    for family in dict.fromkeys(declared.family for declared in METRICS if declared.family != _CLASSIFICATION):
        declared = metric(family, MAIN_METRICS[family])
        detail = own.get((family, declared.key))
        num_images = str(detail.num_images) if detail is not None and detail.num_images else ABSENT
        value = "not asked of this network" if detail is None else _number(detail)
        rows.append((family_title(family), markdown_text(metric_title(declared)), value, num_images))
    return _table(("Family", "Metric", "Value", "Test images"), rows, num_text_columns=2)


def _is_shown(detail: Detail) -> bool:
    return detail.metric == MAIN_METRICS.get(detail.family, detail.metric)


def _limits(
    images: ImagesTable,
    own: Mapping[tuple[str, str], Detail],
    params: Params,
    masks: MasksReport,
    cover: ViewCover,
    head: str,
) -> Iterator[str]:
    data = _DATA[params.dataset.name]
    yield f"{data.bias}"
    if params.model.pretrained:
        yield (
            "The backbone was pretrained on ImageNet, so it has seen many photographs before this data set."
            if params.model.weights is None
            else "What the backbone's weights were trained on is not known here; it may include test images."
        )
        if data.imagenet is not None:
            yield f"**{data.imagenet}** With a backbone that was pretrained on ImageNet, accuracies are too good."
    if len(images.class_names) < _FEW_CLASSES:
        yield f"There are only {len(images.class_names)} classes; with more, accuracies are lower."
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        counts = Counter(row.label for row in images.rows if row.split == split)
        least = min(counts[label] for label in range(len(images.class_names)))
        if least < _FEW_IMAGES:
            what = f"only {least} {images_of(split)}" if least else f"no {SPLIT_TITLES[split]} image"
            yield f"Of some classes there are {what}: numbers of single classes are rough."
    seeds = "`python -m pipeline.table --seeds 4` runs four"
    yield f"All numbers are of seed {params.seed}; another one gives others: {seeds}."
    num_test = max((detail.num_images for detail in own.values()), default=0)
    fewer = sorted({detail.num_images for detail in own.values() if 0 < detail.num_images < num_test})
    if fewer:
        yield (
            f"Some numbers about explanations come from {_from_to(fewer[0], fewer[-1])} of {num_test} test images "
            "(`evaluate.sample_images`, or images for which a metric has a value), so their intervals are wide."
        )
    if head == "protomask":
        yield _mask_limit(masks, cover, params)
    if head != BLACKBOX:
        yield (
            "A prototype that looks alike to the network need not look alike to people, and a reason that people like "
            "need not be what the score hangs on: the families deletion and causal measure that."
        )


def _mask_limit(masks: MasksReport, cover: ViewCover, params: Params) -> str:
    quality = masks.quality.all
    apart = ", the whole image left aside" if cover.num_whole else ""
    known = [f"{100 * (1 - cover.mean_frac):.1f} % of an image's pixels lie in the box of no view{apart}"]
    if quality.covered_frac is not None:
        known.append(f"{100 * (1 - quality.covered_frac.mean):.1f} % lie in none of all masks")
    if quality.parts is not None:
        known.append(f"{100 * (1 - quality.parts.in_a_mask):.1f} % of the visible parts lie in no mask")
    if quality.object_iou is not None:
        known.append(f"the best mask of an image has an IoU of {100 * quality.object_iou.mean:.1f} % with the object")
    too = f"; {cover.of_whole_images}" if cover.num_whole else ""
    only = "" if params.crops.background == "original" else " Of its box, a view shows only the mask."
    return (
        f"The segmenter may miss what matters, and what no view shows cannot be a reason{too}.{only} "
        f"In the mean, {'; '.join(known)}."
    )


def _licences(params: Params, data: _DataFacts) -> Iterator[str]:
    yield "Code: MIT."
    yield f"Images ({markdown_text(data.title)}): {markdown_text(data.licence)}."
    if params.masks.segmenter not in _WITHOUT_WEIGHTS:
        yield f"Masks ({code(_weights_name(params.masks))}): {_licence_of_masks(params.masks)}."
    if not params.model.pretrained:
        yield "Backbone: trained here, from random weights."
    elif params.model.weights is not None:
        yield f"Weights of the backbone ({code(Path(params.model.weights).name)}): not known here."
    else:
        yield (
            f"Weights of the backbone ({code(params.model.backbone)}): as timm states for them; they were learned from "
            "ImageNet, whose images are for non-commercial research and education."
        )
    yield "The trained network and the pictures of its prototypes come from all of these: the strictest one counts."


def _licence_of_masks(masks: MasksParams) -> str:
    name = _weights_name(masks)
    found = checkpoint_with(name) or next((one for one in CHECKPOINTS if one.folder == name), None)
    return "not known here" if found is None else found.licence


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, num_text_columns: int) -> str:
    """Write a table; the columns after the first ones stand to the right."""
    rule = ["---" if column < num_text_columns else "---:" for column in range(len(header))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *rows))
