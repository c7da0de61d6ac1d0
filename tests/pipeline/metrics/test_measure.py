import numpy as np
import torch

from pipeline.metrics.interface import Evidence, Look, Metric
from pipeline.metrics.measure import INFINITE, UNDEFINED, Batch, measure
from pipeline.metrics.statistics import MeanOverClasses


def evidence(logits, absent=None):
    logits = torch.tensor(logits)
    nothing = torch.zeros(len(logits), 1)
    look = Look(logits=logits, similarity=nothing, elements=nothing[:, None], centre=torch.zeros(len(logits), 1, 2))
    return Evidence(labels=torch.zeros(len(logits), dtype=torch.long), look=look, absent=absent or {})


def declared(key, of_image=None, of_set=None, needs=()):
    return Metric(
        key=key,
        family="family",
        title=key,
        unit="ratio",
        direction="higher",
        formula="",
        needs=needs,
        of_image=of_image,
        of_set=of_set,
    )


FIRST = declared("first", of_image=lambda seen: seen.look.logits[:, 0])
COSTLY = declared("costly", of_image=lambda seen: seen.look.logits[:, 1], needs=("changed",))
SET = declared(
    "set", of_set=lambda seen: MeanOverClasses(seen.look.logits[:, 0].numpy(), seen.labels.numpy()), needs=("parts",)
)
LOGITS = [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [6.0, 60.0]]


def batches(*parts, absent=None):
    return [Batch(np.array(part), evidence([LOGITS[idx] for idx in part], absent)) for part in parts]


def test_values_are_put_in_the_order_of_positions_and_averaged_over_images_not_batches():
    for parts in ([[0, 1, 2, 3]], [[3], [0, 2], [1]], [[2, 1, 0], [3]]):
        [measured] = measure([FIRST], batches(*parts), lambda: evidence(LOGITS))
        assert measured.value == 3.0
        assert measured.statistic.values.tolist() == [1.0, 2.0, 3.0, 6.0]


def test_images_whose_batch_lacks_something_do_not_count():
    asked = [*batches([1, 3]), *batches([0, 2], absent={"changed": "too dear"})]
    [measured] = measure([COSTLY], asked, lambda: evidence(LOGITS))
    assert (measured.value, measured.statistic.num_images, measured.reason) == (40.0, 2, None)
    np.testing.assert_array_equal(measured.statistic.values, [np.nan, 20.0, np.nan, 60.0])


def test_what_no_batch_has_is_no_value_with_the_reason():
    [costly, of_set] = measure(
        [COSTLY, SET],
        batches([0, 1], [2, 3], absent={"changed": "too dear"}),
        lambda: evidence(LOGITS, {"parts": "no parts"}),
    )
    assert (costly.value, costly.statistic, costly.reason) == (None, None, "too dear")
    assert (of_set.value, of_set.statistic, of_set.reason) == (None, None, "no parts")


def test_zero_over_zero_everywhere_and_infinity_are_no_values_and_say_so():
    undefined = declared("undefined", of_image=lambda seen: seen.look.logits[:, 0] * torch.nan)
    infinite = declared("infinite", of_image=lambda seen: 1 / (seen.look.logits[:, 0] - 2))
    measured = measure([undefined, infinite], batches([0, 1, 2, 3]), lambda: evidence(LOGITS))
    assert [(one.value, one.reason) for one in measured] == [(None, UNDEFINED), (None, INFINITE)]


def test_a_metric_of_the_set_gets_all_images_at_once():
    [measured] = measure([SET], batches([2], [0, 1, 3]), lambda: evidence(LOGITS))
    assert (measured.value, measured.statistic.num_images) == (3.0, 4)
