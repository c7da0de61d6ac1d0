"""A comparison as one HTML file that needs nothing else."""

from pipeline.compare import wording
from pipeline.compare.differences import Comparison
from pipeline.compare.pictures import Pictures
from pipeline.compare.revisions import Missing
from pipeline.report.site import render_alone
from pipeline.report.thumbnails import BOX_RGB, OUTLINE_RGB


def render_page(comparison: Comparison, pictures: Pictures, *, most: int) -> str:
    """Render a comparison.

    Args:
        comparison: what to show.
        pictures: of the first prototypes and images.
        most: how many of each have a card; the others stand in tables.
    """
    return render_alone(
        "compare.html.j2",
        styles=("style.css", "gallery.css"),
        comparison=comparison,
        pictures=pictures,
        most=most,
        words=wording,
        tuple=tuple,
        is_missing=lambda part: isinstance(part, Missing),
        outline_rgb=OUTLINE_RGB,
        box_rgb=BOX_RGB,
    )
