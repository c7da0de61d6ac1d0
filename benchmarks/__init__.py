"""Measurements: each module prints one JSON line; ``results/`` keeps lines, named by benchmark and device."""
