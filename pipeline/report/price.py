"""What a network costs against the black box beside it: a difference on the same test images, with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts import PER_IMAGE, read_table
from pipeline.metrics.interface import Metric
from pipeline.metrics.registry import metric
from pipeline.metrics.statistics import MeanOverClasses
from pipeline.metrics.uncertainty import LEVEL, Bootstrap, Interval
from pipeline.report.tables import BLACKBOX, Detail, render_value

PRICED = metric("classification", "balanced_accuracy")
"""What is compared."""

_AGREEING = 1e-6  # numbers that differ by no more are the same
_MINUS = "−"


@dataclass(frozen=True, slots=True)
class Price:
    """The balanced accuracy of a network and of the black box, 0..1.

    Attributes:
        own: of the network.
        blackbox: of the black box.
        interval: of their difference, from resamples of test images that both share; None where the predictions for
            single images do not give the same numbers.
    """

    own: float
    blackbox: float
    interval: Interval | None

    @property
    def difference(self) -> str:
        """The network less the black box, rendered: percentage points, with a sign."""
        return signed(PRICED, self.own - self.blackbox)

    @property
    def rendered_blackbox(self) -> str:
        """The black box's accuracy, rendered: percent."""
        return render_value(PRICED, self.blackbox)

    @property
    def bounds(self) -> str | None:
        """The interval, rendered; None where there is none."""
        if self.interval is None:
            return None
        return f"[{signed(PRICED, self.interval.low)}, {signed(PRICED, self.interval.high)}]"

    @property
    def in_words(self) -> str:
        """Say how sure the difference is, at the start of a sentence; only where there is an interval."""
        clear = "" if self.is_clear else ": no clear difference"
        return f"{100 * LEVEL:g} % interval of the difference {self.bounds}{clear}"

    @property
    def is_clear(self) -> bool:
        """Whether there is an interval and it leaves 0 out."""
        return self.interval is not None and (self.interval.low > 0 or self.interval.high < 0)


def signed(declared: Metric, difference: float) -> str:
    """Write a difference of two values of a metric as they are written, with its sign: points, of those in percent."""
    size = render_value(declared, abs(difference))
    return size if not size.strip("0.") else f"{'+' if difference > 0 else _MINUS}{size}"


def find_price(details: Sequence[Detail], per_image: Path, head: str, *, num_draws: int, seed: int) -> Price | None:
    """Compare a network with the black box that was trained beside it.

    Args:
        details: all numbers of the metrics table.
        per_image: ``per_image.parquet``.
        head: of the network.
        num_draws: resamples behind the interval.
        seed: of the resamples.

    Returns:
        None for a black box, and where there is none beside the network.

    Raises:
        PipelineError: PER_IMAGE is missing or damaged.
    """
    values = {detail.row: detail.value for detail in details if detail.declared == PRICED}
    own, other = values.get(head), values.get(BLACKBOX)
    if head == BLACKBOX or own is None or other is None:
        return None
    return Price(own, other, _interval(per_image, head, own, other, num_draws=num_draws, seed=seed))


def _interval(per_image: Path, head: str, own: float, other: float, *, num_draws: int, seed: int) -> Interval | None:
    table = read_table(per_image, PER_IMAGE)
    before, after = (_predictions(table, row) for row in (BLACKBOX, head))
    same = all(before[name].equals(after[name]) for name in ("image_key", "label"))
    if not same or not after.num_rows:
        return None
    before_mean, after_mean = _balanced_accuracy(before), _balanced_accuracy(after)
    num = after.num_rows
    if max(abs(before_mean.value(num) - other), abs(after_mean.value(num) - own)) > _AGREEING:
        return None
    found = Bootstrap(num, num_draws=num_draws, seed=seed).difference(before_mean, after_mean)
    return None if found is None else found.interval


def _predictions(table: pa.Table, row: str) -> pa.Table:
    return table.filter(pc.equal(table["row"], row)).select(["image_key", "label", "predicted"]).combine_chunks()


def _balanced_accuracy(predictions: pa.Table) -> MeanOverClasses:
    labels, predicted = predictions["label"].to_numpy(), predictions["predicted"].to_numpy()
    return MeanOverClasses((predicted == labels).astype(np.float64), labels)
