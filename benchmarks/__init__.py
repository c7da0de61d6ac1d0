"""Measurements: each module prints one JSON line; ``results/`` keeps lines, named by benchmark and device."""

import pipeline  # noqa: F401  # before torch: sets how OpenMP's threads wait
