"""Output completeness: whether what an explanation leaves out can change without a change of the explanation.

For each of the top prototypes, noise is added to the image outside the box around its salient pixels.

Deviation: each map is held against its own range and percentile; the authors' code takes those of all noised maps of a
batch (DEVIATIONS.md B12).
"""

from pipeline.metrics.change import change_metrics

METRICS = change_metrics(
    "completeness", "noised", lambda evidence: evidence.noised, "without and with noise outside the salient box"
)
