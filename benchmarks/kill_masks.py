"""The ``masks`` stage killed again and again: what the store loses, and whether the outs come out the same.

    python -m benchmarks.kill_masks --dataset data/dataset --kills 10

Runs the stage once undisturbed and once more with SIGKILL at random moments, each with a store of its own in a
temporary folder, and compares the outs byte for byte. Images are counted in the stage's log twice: as they are taken
in hand, before their masks are computed, and when their masks are there, before they are on the disk. Prints one JSON
line.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from benchmarks.device import device_name
from pipeline.data.mask_store import read_contents
from pipeline.data.segmentation import fingerprint
from pipeline.params import load_params

_ROOT = Path(__file__).resolve().parent.parent
_POLL_S = 0.002


@dataclass
class Stage:
    """The stage with a store and outs of its own under HOME."""

    home: Path
    dataset: Path
    params: Path
    runtime: Path

    def start(self, log: Path) -> "subprocess.Popen[bytes]":
        """Start it; what it logs is appended to LOG as it happens."""
        self.home.mkdir(exist_ok=True)
        outs = [self.home / "masks", self.home / "masks.json", "--store", self.home / "masks.sqlite"]
        settings = ["--params", self.params.resolve(), "--runtime", self.runtime.resolve()]
        command = [sys.executable, "-m", "stages.masks", self.dataset.resolve(), *outs, *settings]
        with log.open("ab") as stream:
            environment = {**os.environ, "PROTOMASK_LOG": "DEBUG"}
            return subprocess.Popen(command, cwd=_ROOT, env=environment, stderr=stream, start_new_session=True)

    def finish(self, log: Path) -> None:
        """Run it to its end."""
        if self.start(log).wait():
            raise SystemExit(f"the stage failed:\n{log.read_text()[-2000:]}")

    @property
    def num_stored(self) -> int:
        """Images in the store."""
        contents = read_contents(self.home / "masks.sqlite", fingerprint(load_params(self.params).masks))
        return 0 if contents is None else len(contents.num_masks)

    @property
    def outs(self) -> tuple[bytes, bytes]:
        """The bytes of the table and of the report."""
        return (self.home / "masks/masks.parquet").read_bytes(), (self.home / "masks.json").read_bytes()


def main(
    dataset: Path = Path("data/dataset"),
    params: Path = Path("params.yaml"),
    runtime: Path = Path("runtime.yaml"),
    kills: int = 10,
    seed: int = 0,
) -> None:
    """Measure and print the line."""
    with tempfile.TemporaryDirectory() as home:
        line = measure(Path(home), dataset=dataset, params=params, runtime=runtime, kills=kills, seed=seed)
    print(json.dumps({"benchmark": "kill_masks", "device": device_name(), **line}))


def measure(home: Path, *, dataset: Path, params: Path, runtime: Path, kills: int, seed: int) -> dict[str, Any]:
    """Run both in HOME and compare them.

    Returns:
        ``taken_twice`` counts images that were taken in hand again because a kill had lost them, ``most_lost`` those
        of one kill, ``segmented_twice`` those whose masks had been there; ``identical`` says whether the outs agree.
    """
    undisturbed = Stage(home / "undisturbed", dataset, params, runtime)
    killed = Stage(home / "killed", dataset, params, runtime)
    start = time.perf_counter()
    undisturbed.finish(home / "undisturbed.log")
    seconds = time.perf_counter() - start
    num_images = _num_taken(home / "undisturbed.log")

    rng = np.random.default_rng(seed)
    lost = []
    for i, cut in enumerate(sorted(rng.integers(0, num_images, kills).tolist())):
        before, log = killed.num_stored, home / f"killed-{i}.log"
        process = killed.start(log)
        _wait_until_taken(process, log, max(1, cut - before))
        time.sleep(rng.uniform(0, 2 * seconds / num_images))
        process.kill()
        if process.wait() != -signal.SIGKILL:
            raise SystemExit(f"the stage ended before it was killed:\n{log.read_text()[-2000:]}")
        _end_workers(process)
        lost.append(_num_taken(log) - (killed.num_stored - before))
    killed.finish(home / "killed-last.log")
    num_taken = sum(_num_taken(log) for log in home.glob("killed-*.log"))
    return {
        "segmenter": load_params(params).masks.segmenter,
        "images": num_images,
        "kills": kills,
        "seed": seed,
        "seconds_undisturbed": round(seconds, 1),
        "taken_twice": num_taken - num_images,
        "most_lost": max(lost, default=0),
        "segmented_twice": sum(_num_segmented(log) for log in home.glob("killed-*.log")) - num_images,
        "identical": undisturbed.outs == killed.outs,
    }


def _wait_until_taken(process: "subprocess.Popen[bytes]", log: Path, count: int) -> None:
    while process.poll() is None and _num_taken(log) < count:
        time.sleep(_POLL_S)


def _num_taken(log: Path) -> int:
    return log.read_bytes().count(b": segmenting ")


def _num_segmented(log: Path) -> int:
    return log.read_bytes().count(b": segmented ")


def _end_workers(process: "subprocess.Popen[bytes]") -> None:
    """End what the killed process left behind: it was the leader of a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    typer.run(main)
