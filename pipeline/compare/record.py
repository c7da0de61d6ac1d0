"""A comparison as JSON-like values, for programs."""

from dataclasses import fields, is_dataclass
from typing import Any

from pipeline.compare.differences import Comparison
from pipeline.compare.image_differences import ClassChange
from pipeline.compare.metric_differences import MetricChange
from pipeline.compare.revisions import Missing
from pipeline.data.boxes import Box
from pipeline.metrics.interface import Metric


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Give all of a comparison; what is missing is ``{"missing": reason}``, fractions are 0..1."""
    content: dict[str, Any] = _plain(comparison)
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, Missing):
        return {"missing": value.reason}
    if isinstance(value, Metric):
        return {name: getattr(value, name) for name in ("family", "key", "unit", "direction")}
    if isinstance(value, Box):
        return list(value)
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    if not is_dataclass(value):
        return value
    content = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, MetricChange):
        return {**content.pop("declared"), **content, "verdict": value.verdict}
    if isinstance(value, ClassChange):
        return {**content, "difference": value.difference, "is_significant": value.is_significant}
    return content
