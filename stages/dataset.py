"""DVC stage ``dataset``: check every picture of the source, cut the validation images, list the result."""

from pathlib import Path

from pipeline.cli import command_line
from pipeline.data.collect import write_dataset
from pipeline.data.datasets.registry import open_dataset
from pipeline.io import write_json
from pipeline.params import load_params
from pipeline.runtime import load_runtime


def main(out: Path, report: Path, params: Path = Path("params.yaml"), runtime: Path = Path("runtime.yaml")) -> None:
    """Write the images of `dataset.source` and their list to the folder OUT, and the counts to REPORT.

    `dataset.name` in PARAMS says how the source is read. Each picture is decoded once, so a damaged one stops here and
    not hours later, and then stored byte for byte in `OUT/images`. `OUT/images.parquet` has one row per image: key,
    size, class, split, and the object's box, parts and masks where the source has them.

    Where the source has no validation images, `dataset.val_frac` of each class's training images become such, or one
    fold of `dataset.folds`. The draw hangs on `seed` alone, so the same params give the same bytes.
    """
    all_params = load_params(params)
    dataset = open_dataset(all_params.dataset, all_params.seed)
    summary = write_dataset(
        dataset,
        out,
        params=all_params.dataset,
        seed=all_params.seed,
        runtime=load_runtime(runtime),
        compat=all_params.compat,
    )
    write_json(report, summary)


app = command_line(main)

if __name__ == "__main__":
    app()
