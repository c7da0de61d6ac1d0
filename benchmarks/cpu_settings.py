"""What the two CPU settings are worth: freed memory kept (runtime.keep_freed_memory), waiting threads that sleep.

    python -m benchmarks.cpu_settings

Embeds the same batch with the default backbone in a fresh process per contender, on a quiet machine and beside one
busy process, and prints images/s and the ratios to the defaults as one JSON line.
"""

import json
import os
import subprocess
import sys

from benchmarks.device import device_name

_IMAGES, _REPEATS = 32, 6

_CHILD = f"""
import sys, time
import pipeline
from pipeline.runtime import keep_freed_memory
if "keep" in sys.argv:
    keep_freed_memory()
import torch
from pipeline.model.backbone import Backbone
backbone = Backbone("tf_efficientnet_lite0").eval()
views = torch.zeros({_IMAGES}, 3, 224, 224, dtype=torch.uint8)
with torch.inference_mode():
    backbone(views)
    start = time.perf_counter()
    for _ in range({_REPEATS}):
        backbone(views)
print({_IMAGES} * {_REPEATS} / (time.perf_counter() - start))
"""


def images_per_s(*, keep_memory: bool, sleep: bool) -> float:
    """Measure one contender in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, *(["keep"] if keep_memory else [])],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE" if sleep else "ACTIVE"},
        check=True,
        capture_output=True,
        text=True,
    )
    return round(float(done.stdout), 1)


def main() -> None:
    """Measure all contenders and print the line."""
    result: dict[str, object] = {"benchmark": "cpu_settings", "device": device_name(), "unit": "images/s at 224 px"}
    for situation in ("quiet", "beside_a_busy_process"):
        neighbour = None
        if situation != "quiet":
            neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        try:
            speeds = {
                "defaults": images_per_s(keep_memory=False, sleep=False),
                "keep_memory": images_per_s(keep_memory=True, sleep=False),
                "sleep": images_per_s(keep_memory=False, sleep=True),
                "both": images_per_s(keep_memory=True, sleep=True),
            }
        finally:
            if neighbour is not None:
                neighbour.kill()
                neighbour.wait()
        result[situation] = speeds | {"ratio": round(speeds["both"] / speeds["defaults"], 2)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
