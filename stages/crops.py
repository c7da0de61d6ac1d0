"""DVC stage ``crops``: cut one view per chosen mask and pack the views of each image into webdataset shards."""

from pathlib import Path

from pipeline.cli import command_line
from pipeline.data.shards import write_crops
from pipeline.io import write_json
from pipeline.params import load_params
from pipeline.runtime import load_runtime


def main(
    dataset: Path,
    masks: Path,
    crops: Path,
    report: Path,
    params: Path = Path("params.yaml"),
    runtime: Path = Path("runtime.yaml"),
) -> None:
    """Choose masks, cut their views, and write them as shards.

    Reads the images of DATASET (data/dataset) and the masks of MASKS (data/masks). Writes CROPS (data/crops):
    {split}-00000.tar and so on, which any webdataset reader opens, and views.parquet; and the counts to REPORT.
    Section `crops` of params.yaml says which masks become views and what a view looks like; compat.clipped_boxes and
    compat.aliased_resizing cut and resize as the authors' code does. Minutes, no GPU.
    """
    loaded = load_params(params)
    summary = write_crops(
        dataset, masks, crops, params=loaded.crops, runtime=load_runtime(runtime), compat=loaded.compat
    )
    write_json(report, summary)


app = command_line(main)

if __name__ == "__main__":
    app()
