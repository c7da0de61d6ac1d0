"""What a measurement ran on, and how long it took there."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")

BF16_PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense, of the data sheets


def device_name() -> str:
    """Name the processor and how many cores this process may use."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cpu}, {cores} cores"


def timed(device: str, work: Callable[[], Result]) -> tuple[Result, float, int]:
    """Do WORK; its result, seconds, and the peak of memory in MiB (of the device; of the process on a CPU)."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak
    start = time.perf_counter()
    result = work()
    if on_gpu:
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() // 2**20
    seconds = time.perf_counter() - start
    if not on_gpu:
        status = Path("/proc/self/status").read_text()
        peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 2**10
    return result, seconds, peak
