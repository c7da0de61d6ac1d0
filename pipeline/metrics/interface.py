"""How a metric is declared."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number in the metrics table means.

    Attributes:
        key: its name in metrics.json, inside its family.
        family: classification, compactness, contrastivity, ...
        title: its name in rendered tables.
        unit: ``fraction`` (0..1; percent in rendered tables), ``count``, ``ratio`` or ``distance``.
        direction: which change is an improvement.
        formula: definition and source, one line.
    """

    key: str
    family: str
    title: str
    unit: Literal["fraction", "count", "ratio", "distance"]
    direction: Literal["higher", "lower", "neither"]
    formula: str
