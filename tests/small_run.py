"""A finished run on a few pictures of noise: what stages before ``report`` leave, with a real, untrained network."""

import shutil
from io import BytesIO

import numpy as np
import torch
import yaml
from PIL import Image

from pipeline.artifacts import IMAGES, METRICS_DETAIL, PER_IMAGE, PROTOTYPES, WHOLE_IMAGE, write_table
from pipeline.data.bags import BagReader
from pipeline.data.boxes import Box, box_of_mask
from pipeline.data.masks import MaskTableWriter, StoredMask, encode_mask
from pipeline.data.shards import write_crops
from pipeline.evaluation.plots import Explained, write_plots
from pipeline.io import write_json
from pipeline.mask_report import mask_quality
from pipeline.metrics.registry import METRICS
from pipeline.model.backbone import Backbone
from pipeline.model.blackbox import BlackBox
from pipeline.model.files import load_model, save_model
from pipeline.model.heads import make
from pipeline.model.network import PrototypeNetwork
from pipeline.params import Params
from pipeline.report.tables import BLACKBOX, FULL_TITLES
from pipeline.runtime import Runtime

CLASSES = ("<b>gull</b> & co", "wren", "unseen")  # the last one has no training image
SIDE_PX = 48  # of the pictures
SIZE_PX = 96  # of the views: a grid of CELLS by CELLS places
CELLS = 3
SPLITS = ("train", "train", "val", "test", "test")  # of the images of each class
NUM_PROTOTYPES = 6
TOP = 2  # prototypes that explain an image
WITH_PLACES = ("protopnet", "pipnet", "protopool")
TERMS = {
    "protomask": ("cross_entropy", "cluster", "separation", "diversity"),
    "protopnet": ("cross_entropy", "cluster", "separation"),
    "pipnet": ("classification", "alignment", "presence"),
    "protopool": ("cross_entropy", "cluster", "separation", "orthogonality"),
    "blackbox": (),
}
_OWNED = {"dim": 8, "similarity_epsilon": 1e-4, "prototype_labels": [0, 0, 1, 1, 2, 2]}
SETTINGS = {
    "protomask": _OWNED | {"pooling": {"kind": "nearest", "k": 3, "temperature": 0.5}},
    "protopnet": _OWNED,
    "pipnet": {"num_prototypes": NUM_PROTOTYPES},
    "protopool": {"dim": 8, "similarity_epsilon": 1e-4, "num_prototypes": NUM_PROTOTYPES, "slots_per_class": 2},
    "blackbox": {},
}
LOCK = {
    "schema": "2.0",
    "stages": {
        "evaluate": {"cmd": "evaluate", "outs": [{"path": "results/metrics.json", "md5": "e" * 32}]},
        "dataset": {"cmd": "dataset", "outs": [{"path": "data/dataset", "md5": "d" * 32 + ".dir"}]},
        "report": {"cmd": "report", "outs": [{"path": "results/report", "md5": "a" * 32 + ".dir"}]},
    },
}


def make_run(folder, *, head="protomask", baseline=True, whole_image=True):
    """Write data/, models/, results/, params.yaml, runtime.yaml and dvc.lock of a run into FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    write_params(folder)
    (folder / "runtime.yaml").write_text("workers: 1\ndevice: cpu\n")
    (folder / "dvc.lock").write_text(yaml.safe_dump(LOCK, sort_keys=False))
    make_images(folder)
    make_crops(folder, whole_image=whole_image)
    make_network(folder, head)
    make_results(folder, head=head, baseline=baseline)
    return folder


def remake(folder, head):
    """Turn the run in FOLDER into that of another HEAD; the whole image is no view of its bags, but beside them."""
    make_crops(folder, whole_image=False)
    make_network(folder, head)
    make_results(folder, head=head)


def params():
    """Give the content of params.yaml."""
    content = Params().model_dump(mode="json")
    content["crops"]["size_px"] = SIZE_PX
    content["evaluate"]["top_prototypes"] = TOP
    content["report"]["thumbnail_px"] = 64
    return content


def write_params(folder, **sections):
    """Write params.yaml; SECTIONS are changes of its sections."""
    content = params()
    for section, changes in sections.items():
        content[section] |= changes
    (folder / "params.yaml").write_text(yaml.safe_dump(content))


def make_images(folder):
    """Write the data set and its masks: in every image a square and a bar."""
    rows, masks = [], {}
    for label, class_name in enumerate(CLASSES):
        for number, split in enumerate(SPLITS):
            if class_name == "unseen" and split == "train":
                continue
            key = f"c{label}_{number}"
            pixels = np.random.default_rng((label, number)).integers(0, 255, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
            buffer = BytesIO()
            Image.fromarray(pixels).save(buffer, format="PNG")
            path = folder / f"data/dataset/images/{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
            rows.append(
                {
                    "image_key": key,
                    "path": f"images/{key}.png",
                    "sha256": "0" * 64,
                    "width": SIDE_PX,
                    "height": SIDE_PX,
                    "label": label,
                    "class_name": class_name,
                    "split": split,
                    "parts": [],
                }
            )
            square, bar = np.zeros((2, SIDE_PX, SIDE_PX), dtype=bool)
            square[4:20, 6:22] = True
            bar[30:40, 5:45] = True
            masks[key] = [
                StoredMask(encode_mask(mask), box_of_mask(mask), int(mask.sum()), score)
                for score, mask in ((0.9, square), (0.8, bar))
            ]
    write_table(folder / "data/dataset/images.parquet", rows, IMAGES, class_names=list(CLASSES), part_names=[])
    (folder / "data/masks").mkdir()
    with MaskTableWriter(folder / "data/masks/masks.parquet") as writer:
        for key in sorted(masks):
            writer.add(key, masks[key])


def make_crops(folder, **changes):
    """Cut the views; CHANGES are params of the section crops. Also writes results/crops.json."""
    content = params()
    content["crops"] |= changes
    shutil.rmtree(folder / "data/crops", ignore_errors=True)
    report = write_crops(
        folder / "data/dataset",
        folder / "data/masks",
        folder / "data/crops",
        params=Params.model_validate(content).crops,
        runtime=Runtime(workers=1),
    )
    write_json(folder / "results/crops.json", report)


def make_network(folder, head):
    """Write an untrained network and a black box, the same ones whenever HEAD is the same, and the prototypes."""
    torch.manual_seed(0)
    backbone = Backbone("test_efficientnet")
    network = make(head, backbone, len(CLASSES), SETTINGS[head])
    reader = BagReader(folder / "data/crops", "test", views=network.views)
    saved = {"class_names": list(CLASSES), "size_px": SIZE_PX, "preparation": reader.preparation}
    save_model(folder / "models/final", network, **saved)
    save_model(folder / "models/trained/blackbox", BlackBox(backbone, num_classes=len(CLASSES)), **saved)
    if head == BLACKBOX:
        write_prototypes(folder, [])
    elif head in WITH_PLACES:
        make_places(folder)
    else:
        make_prototypes(folder)


def write_prototypes(folder, rows):
    """Write prototypes.parquet."""
    write_table(folder / "models/final/prototypes.parquet", rows, PROTOTYPES)


def prototype(idx):
    """Describe a prototype without a source."""
    label = idx // 2
    return {"prototype_idx": idx, "label": label, "class_name": CLASSES[label], "weight": 6 * label + idx}


def make_prototypes(folder):
    """Two prototypes a class: 0 is a mask, 1 the whole image, 2 and 3 the same view, 4 and 5 without a source.

    Where the whole image is no view, 1 is a mask, too.
    """
    training = BagReader(folder / "data/crops", "train")
    rows = []
    for idx in range(NUM_PROTOTYPES):
        row = prototype(idx)
        if row["label"] < 2:
            bag_idx = training.image_keys.index(f"c{row['label']}_0")
            view = training.rows(bag_idx)[-1 if idx == 1 else 0]
            row |= {"image_key": view.image_key, "view_idx": view.view_idx, "mask_idx": view.mask_idx}
            row |= {"box": list(view.box), "distance_before": 0.5 + idx, "distance_after": 0.0}
        rows.append(row)
    write_prototypes(folder, rows)


def box_of_cell(place_idx):
    """Give the box of a place of the whole image."""
    side_px = SIDE_PX // CELLS
    row, column = divmod(place_idx, CELLS)
    return Box(column * side_px, row * side_px, (column + 1) * side_px, (row + 1) * side_px)


def make_places(folder):
    """Places as prototypes: 0 in the middle, 1 at a corner, 2 and 3 the same, 4 shown by another class's, 5 by none."""
    training = BagReader(folder / "data/crops", "train", views="whole")
    rows = []
    for idx, place_idx in enumerate((4, 0, 5, 5, 8)):
        (view,) = training.rows(training.image_keys.index(f"c{(0, 0, 1, 1, 0)[idx]}_0"))
        source = {"image_key": view.image_key, "view_idx": view.view_idx, "mask_idx": view.mask_idx}
        source |= {"place_idx": place_idx, "box": list(box_of_cell(place_idx))}
        rows.append(prototype(idx) | source | {"distance_before": 0.5 + idx, "distance_after": 0.5 + idx})
    assert {row["mask_idx"] for row in rows} == {WHOLE_IMAGE}
    write_prototypes(folder, [*rows, prototype(5)])


def make_results(folder, *, head="protomask", baseline=True, phases=("warmup", "joint")):
    """Write what all stages report but crops; what is said of single images and the plots are the network's own."""
    results = folder / "results"
    crops_report = (results / "crops.json").read_bytes()
    shutil.rmtree(results)
    results.mkdir()
    (results / "crops.json").write_bytes(crops_report)
    num_images = len(CLASSES) * len(SPLITS) - SPLITS.count("train")
    counts = {"num_in": num_images, "num_out": num_images, "dropped": {}}
    write_json(results / "dataset.json", counts | {"num_classes": len(CLASSES)})
    masks = {"num_masks": 2 * num_images, "images_without_masks": 0}
    masks["masks_per_image"] = {"min": 2, "median": 2.0, "max": 2}
    masks["quality"] = mask_quality(folder / "data/dataset", folder / "data/masks", Runtime(workers=1))
    write_json(results / "masks.json", counts | masks)
    write_details(results, head, baseline)
    write_training(results, head, baseline, phases)
    has_prototypes = head != BLACKBOX
    write_json(
        results / "project.json",
        {
            "num_prototypes": 6 * has_prototypes,
            "num_projected": 4 * has_prototypes,
            "num_distinct_views": 3 * has_prototypes,
            "distance_before": {"mean": 2.0, "max": 3.5} if has_prototypes else None,
            "val_accuracy": {"before": 0.75, "after": 0.5} if has_prototypes else None,
            "prune": None,
        },
    )
    tuned = {"epochs": 10, "best_epoch": 7, "val_accuracy": 0.625}
    write_json(results / "finetune.json", tuned if has_prototypes else {"epochs": 0, "best_epoch": 0})
    write_test_images(folder, head, baseline)


def write_details(results, head, baseline):
    """Write metrics_detail.parquet: numbers that are made up."""
    rows = [head] if head == BLACKBOX else [head, f"{head}_projected", f"{head}_trained", *[BLACKBOX] * baseline]
    details = []
    for row in rows:
        declared = [metric for metric in METRICS if row != "blackbox" or metric.family == "classification"]
        for number, metric in enumerate(declared):
            value = (number + len(row)) / 80
            numbers = {"value": value, "low": value - 0.01, "high": value + 0.01, "num_images": 6}
            details.append({"row": row, "family": metric.family, "metric": metric.key} | numbers)
    if head != BLACKBOX:
        details[0]["insensitive_to"] = ["prototypes"]
        details[1]["num_images"] = 4
        nothing = {"value": None, "low": None, "high": None, "num_images": 0}
        details[len(METRICS) - 1] |= nothing | {"reason": "the data set has no <parts>"}
    write_table(results / "metrics_detail.parquet", details, METRICS_DETAIL)


def write_training(results, head, baseline, phases):
    """Write the curves of training and their summary."""
    roles = ["network", *[BLACKBOX] * (baseline and head != BLACKBOX)]
    write_json(
        results / "train/summary.json",
        {role: {phase: {"epochs": 2, "best_epoch": 1, "val_accuracy": 0.5} for phase in phases} for role in roles},
    )
    for role in roles:
        terms = TERMS[head] if role == "network" else ()
        for name in ("val/accuracy", "val/loss", "train/loss", *(f"train/{term}" for term in terms)):
            path = results / f"train/{role}/plots/metrics/{name}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = "".join(f"{step}\t{0.5 + 0.1 * step}\n" for step in range(2 * len(phases)))
            path.write_text(f"step\t{path.stem}\n{values}")


def write_test_images(folder, head, baseline):
    """Write per_image.parquet and the plots, from what the network says of the test images."""
    network, _ = load_model(folder / "models/final")
    reader = BagReader(folder / "data/crops", "test", views=network.views)
    views = torch.from_numpy(np.concatenate([reader.views(idx) for idx in range(len(reader))]))
    views = views.permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(reader.labels)
    rows = [
        {"row": head, "image_key": key, "label": label, "values": []}
        for key, label in zip(reader.image_keys, reader.labels, strict=True)
    ]
    explained = None
    with torch.no_grad():
        encoded = network.encode(views)
        logits = network.logits_of(encoded, torch.tensor(reader.lengths))
        if isinstance(network, PrototypeNetwork):
            features = network.features_of(encoded)
            output = network.classify(features, torch.tensor(reader.lengths) * network.elements_per_view(encoded))
            similarity, top = output.similarity.sort(dim=1, descending=True, stable=True)
            element = output.element.gather(1, top[:, :TOP])
            explained = Explained(
                top=top[:, :TOP],
                features=features[element],
                prototypes=torch.eye(NUM_PROTOTYPES) if head == "pipnet" else network.prototypes,
                prototype_labels=network.prototype_classes(),
                deletion=None,
            )
            for row, similarities, prototypes in zip(rows, similarity.tolist(), top.tolist(), strict=True):
                row |= {"top_prototypes": prototypes[:TOP], "top_similarities": similarities[:TOP]}
                row |= {"top_views": [0] * TOP}
    probabilities = logits.softmax(dim=1)
    for row, of_classes in zip(rows, probabilities.tolist(), strict=True):
        row |= {"predicted": int(np.argmax(of_classes)), "confidence": max(of_classes)}
        row |= {"label_probability": of_classes[row["label"]]}
    write_table(folder / "results/per_image.parquet", rows, PER_IMAGE)
    of_networks = {FULL_TITLES[head]: logits}
    if baseline and head != BLACKBOX:
        of_networks[FULL_TITLES[BLACKBOX]] = logits.flip(1)
    write_plots(
        folder / "results/plots",
        labels=labels,
        logits=of_networks,
        explained=explained,
        class_names=CLASSES,
        seed=0,
    )
