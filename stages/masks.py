"""DVC stage ``masks``: split every image into masks, once; nothing finished is ever computed again."""

from pathlib import Path

from pipeline.cli import command_line
from pipeline.data.segmentation import write_masks
from pipeline.io import write_json
from pipeline.params import load_params
from pipeline.runtime import load_runtime


def main(
    dataset: Path,
    masks: Path,
    report: Path,
    store: Path = Path(".cache/masks.sqlite"),
    params: Path = Path("params.yaml"),
    runtime: Path = Path("runtime.yaml"),
) -> None:
    """Segment the images of DATASET.

    Reads DATASET (data/dataset). Writes MASKS (data/masks): masks.parquet, a row per mask, all of them; and the
    counts to REPORT. Section `masks` of params.yaml names the segmenter. Each finished image is kept in STORE at
    once, so a stopped run goes on where it was, and images added later are the only ones segmented.
    """
    summary = write_masks(dataset, masks, store=store, params=load_params(params).masks, runtime=load_runtime(runtime))
    write_json(report, summary)


app = command_line(main)

if __name__ == "__main__":
    app()
