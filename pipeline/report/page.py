"""The report: a site of pages in a folder that needs nothing else, a model card, and contact sheets."""

import logging
from pathlib import Path

from pipeline.artifacts import VIEWS_TABLE
from pipeline.data.catalogue import load_images
from pipeline.io import new_file, new_folder, read_json
from pipeline.params import Params
from pipeline.report import inputs
from pipeline.report.contact_sheets import write_sheets
from pipeline.report.curves import add_training_page
from pipeline.report.figures import add_metrics_page
from pipeline.report.gallery import add_prototypes_page
from pipeline.report.image_pages import add_image_pages
from pipeline.report.masks_page import add_masks_page
from pipeline.report.model_card import write_model_card
from pipeline.report.overview import add_overview
from pipeline.report.price import find_price
from pipeline.report.provenance import read_provenance
from pipeline.report.site import Site
from pipeline.report.tables import HEAD_TITLES
from pipeline.report.test_outputs import read_test_outputs
from pipeline.report.test_pictures import draw_test_images
from pipeline.report.view_cover import read_view_cover
from pipeline.runtime import Runtime

_log = logging.getLogger(__name__)

PAGE = "index.html"


def write_report(
    dataset: Path,
    masks: Path,
    crops: Path,
    final: Path,
    results: Path,
    out: Path,
    card: Path,
    pictures: Path,
    *,
    lock: Path,
    params: Params,
    runtime: Runtime,
) -> Path:
    """Write the pages and their pictures into OUT, the model card and the contact sheets.

    Args:
        dataset: folder with ``images.parquet``.
        masks: folder with ``masks.parquet``.
        crops: folder with shards.
        final: the finished network, of any head, with ``prototypes.parquet``.
        results: what the stages from dataset to evaluate reported.
        out: replaced as a whole when everything is written.
        card: the model card, likewise.
        pictures: the folder of contact sheets, likewise.
        lock: ``dvc.lock``, in the folder of params.yaml and dvc.yaml; need not exist.
        params: all sections are shown.
        runtime: device, workers, cache.

    Returns:
        The first page.

    Raises:
        PipelineError: an input is missing, damaged or does not fit the others.
    """
    images = load_images(dataset)
    masks_table = masks / "masks.parquet"
    network = inputs.read_network(final / "model.json")
    details = inputs.read_details(results / "metrics_detail.parquet", network.head)
    masks_report, crops_report = read_json(results / "masks.json"), read_json(results / "crops.json")
    views = crops / VIEWS_TABLE
    cover = read_view_cover(views, images.rows)
    price = find_price(
        details,
        results / "per_image.parquet",
        network.head,
        num_draws=params.evaluate.bootstrap_draws,
        seed=params.seed,
    )
    provenance = read_provenance(lock)
    test = read_test_outputs(final, crops, runtime=runtime)
    top, thumbnail_px = params.evaluate.top_prototypes, params.report.thumbnail_px
    with new_folder(out) as folder, new_folder(pictures) as sheets, new_file(card) as card_file:
        site = Site(folder, title=HEAD_TITLES[network.head], dataset_name=params.dataset.name)
        shown = draw_test_images(
            site, test, images=images, masks=masks_table, top=top, thumbnail_px=thumbnail_px, runtime=runtime
        )
        cards = add_prototypes_page(
            site,
            final,
            test=test,
            pictures=shown,
            images=images,
            crops=crops,
            splits=("train", "val") if params.compat.validate_on_test else ("train",),
            top=top,
            thumbnail_px=thumbnail_px,
            runtime=runtime,
        )
        add_image_pages(site, cards, test=test, pictures=shown)
        add_masks_page(
            site,
            images=images,
            masks=masks_table,
            crops=crops,
            masks_report=masks_report,
            crops_report=crops_report,
            cover=cover,
            background=params.crops.background,
            num_images=params.report.sheet_images,
            thumbnail_px=thumbnail_px,
            seed=params.seed,
            runtime=runtime,
        )
        add_training_page(site, results, network, params)
        add_metrics_page(
            site,
            plots=results / "plots",
            details=details,
            class_names=images.class_names,
            head=network.head,
            top=top,
        )
        add_overview(
            site,
            images=images,
            views=views,
            network=network,
            details=details,
            price=price,
            cards=cards,
            num_test=len(test.reader),
            provenance=provenance,
            params=params,
        )
        write_model_card(
            card_file,
            network=network,
            images=images,
            details=details,
            params=params,
            masks_report=masks_report,
            crops_report=crops_report,
            cover=cover,
            price=price,
            projection=inputs.read_projection(results / "project.json"),
            provenance=provenance,
        )
        write_sheets(
            sheets,
            images=images,
            masks=masks_table,
            crops=crops,
            per_image=results / "per_image.parquet",
            head=network.head,
            prototypes=[prototype.shown for prototype in cards],
            site_folder=folder,
        )
    _log.info("report of %d test images and %d prototypes: %s", len(shown), len(cards), out / PAGE)
    return out / PAGE
