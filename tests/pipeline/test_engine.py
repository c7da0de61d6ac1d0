"""Map-like work: the same results in the same order, wherever it runs."""

import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest

from pipeline.engine import map_in_order
from pipeline.errors import PipelineError
from pipeline.runtime import Runtime

# more than these may not be drawn from the items before the first result is taken
BOUND_PER_WORKER = 16


def _square_slow_first(number: int) -> int:
    if number == 0:
        time.sleep(0.3)  # later items finish before the first one does
    return number * number


def _fail_at(number: int, *, bad: int) -> int:
    if number == bad:
        raise KeyError(f"item {number}")
    return number


def _fail_for_the_user(number: int) -> int:
    raise PipelineError(f"image {number} is damaged")


def _die_at(number: int, *, bad: int) -> int:
    if number == bad:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _process_id(_: int) -> int:
    return os.getpid()


class _Counting:
    """Counts for ever, and remembers how far it was asked."""

    def __init__(self) -> None:
        self.num_drawn = 0

    def __iter__(self) -> Iterator[int]:
        for number in itertools.count():
            self.num_drawn += 1
            yield number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_items(workers):
    results = map_in_order(_square_slow_first, range(40), runtime=Runtime(), workers=workers)
    assert list(results) == [number * number for number in range(40)]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_items_give_no_results(workers):
    assert list(map_in_order(_square_slow_first, [], runtime=Runtime(), workers=workers)) == []


def test_the_runtime_says_how_many_workers_and_an_argument_overrides_it():
    assert set(map_in_order(_process_id, range(4), runtime=Runtime(workers=1))) == {os.getpid()}
    assert os.getpid() not in set(map_in_order(_process_id, range(4), runtime=Runtime(workers=2)))
    assert set(map_in_order(_process_id, range(4), runtime=Runtime(workers=2), workers=1)) == {os.getpid()}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_function_raises_is_raised_here_after_the_results_before_it(workers):
    results = map_in_order(partial(_fail_at, bad=3), range(20), runtime=Runtime(), workers=workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="item 3"):
        next(results)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_for_the_user_keeps_its_kind_and_message(workers):
    with pytest.raises(PipelineError, match=r"^image 0 is damaged$"):
        list(map_in_order(_fail_for_the_user, range(3), runtime=Runtime(), workers=workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_items_are_drawn_only_a_few_ahead_of_the_results(workers):
    items = _Counting()
    results = map_in_order(_square_slow_first, items, runtime=Runtime(), workers=workers)
    for num_taken in range(1, 31):
        assert next(results) == (num_taken - 1) ** 2
        assert num_taken <= items.num_drawn <= num_taken + BOUND_PER_WORKER * workers


def test_a_worker_that_dies_is_an_error_that_names_the_way_out():
    with pytest.raises(PipelineError, match=r"a worker process died.*`workers: 1` in runtime.yaml"):
        list(map_in_order(partial(_die_at, bad=2), range(200), runtime=Runtime(), workers=2))


def test_a_worker_that_dies_while_items_are_being_handed_out_is_the_same_error():
    def slowly() -> Iterator[int]:
        for number in range(50):
            time.sleep(0.05)
            yield number

    with pytest.raises(PipelineError, match="a worker process died"):
        list(map_in_order(partial(_die_at, bad=0), slowly(), runtime=Runtime(), workers=2))


@pytest.fixture(scope="module")
def with_ray() -> Iterator[Runtime]:
    ray = pytest.importorskip("ray")
    yield Runtime(engine="ray")
    ray.shutdown()


def test_ray_gives_the_same_results_in_the_same_order(with_ray):
    results = map_in_order(partial(_fail_at, bad=-1), range(20), runtime=with_ray)  # stages hand partials over
    assert list(results) == list(range(20))
    assert list(map_in_order(_square_slow_first, range(20), runtime=with_ray)) == [n * n for n in range(20)]


def test_what_the_function_raises_on_ray_is_raised_here_as_it_was(with_ray):
    with pytest.raises(PipelineError, match=r"^image 0 is damaged$") as raised:
        list(map_in_order(_fail_for_the_user, range(3), runtime=with_ray))
    assert type(raised.value) is PipelineError


def test_a_ray_worker_that_dies_is_an_error_that_names_the_way_out(with_ray):
    with pytest.raises(PipelineError, match=r"a Ray worker died.*`engine: local`"):
        list(map_in_order(partial(_die_at, bad=2), range(5), runtime=with_ray))


def test_what_must_stay_in_this_process_does_so_with_ray_too():
    runtime = Runtime(engine="ray")
    assert set(map_in_order(_process_id, range(4), runtime=runtime, workers=1)) == {os.getpid()}


def test_ray_that_is_not_installed_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PipelineError, match=r"pip install 'protomask-pipeline\[ray\]'"):
        list(map_in_order(_square_slow_first, range(3), runtime=Runtime(engine="ray")))
