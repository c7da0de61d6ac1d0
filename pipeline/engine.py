"""Where map-like work runs: in processes of this machine, or on a Ray cluster. Results come in the order of items."""

import collections
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pipeline.errors import PipelineError
from pipeline.runtime import Runtime

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD_PER_WORKER = 4  # items in flight: enough to keep workers busy, few enough to bound memory


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, runtime: Runtime, workers: int | None = None
) -> Iterator[Result]:
    """Apply FUNCTION to each of ITEMS and yield the results in the order of ITEMS.

    At most a few items per worker are in flight, whatever the length of ITEMS. What FUNCTION raises is raised here.

    Args:
        function: picklable (a module-level function or a ``functools.partial`` of one).
        items: picklable; read as they are needed.
        runtime: says which engine, and how many workers where ``workers`` is not given.
        workers: 1 runs everything in this process; for functions that hold a GPU.
    """
    num_workers = runtime.num_workers if workers is None else workers
    if runtime.engine == "ray" and workers != 1:
        return _on_ray(function, items)
    if num_workers == 1:
        return map(function, items)
    return _in_processes(function, items, num_workers)


def _in_processes(function: Callable[[Item], Result], items: Iterable[Item], num_workers: int) -> Iterator[Result]:
    # spawn: forking a process that already runs torch's or OpenMP's threads can hang
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_end_with_parent) as pool:
            yield from _through(pool, function, items, ahead=_AHEAD_PER_WORKER * num_workers)
    except BrokenProcessPool:
        raise PipelineError(
            "a worker process died, most likely for lack of memory: set `workers: 1` in runtime.yaml and try again"
        ) from None


def _end_with_parent() -> None:
    """Let a worker end when its parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int | None = None
) -> Iterator[Result]:
    """As :func:`map_in_order`, in threads of this process: for reading and decoding beside a network.

    Args:
        function: called in another thread; lets go of Python's lock while it works, or nothing is won.
        items: read as they are needed, in the caller's thread.
        threads: how many calls at once.
        ahead: at most this many results wait (or are worked on) before they are asked for; two per thread if None.
    """
    with ThreadPoolExecutor(threads) as pool:
        yield from _through(pool, function, items, ahead=2 * threads if ahead is None else ahead)


def _through(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int
) -> Iterator[Result]:
    waiting = iter(items)
    try:
        running = collections.deque(pool.submit(function, item) for item in itertools.islice(waiting, ahead))
        while running:
            result = running.popleft().result()
            for item in itertools.islice(waiting, 1):
                running.append(pool.submit(function, item))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _on_ray(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    try:
        import ray
    except ImportError:
        raise PipelineError("runtime.yaml: engine is 'ray': pip install 'protomask-pipeline[ray]'") from None
    if not ray.is_initialized():
        # an error is raised here once; Ray would print those of the other items in flight as well
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        ray.init(log_to_driver=False, include_dashboard=False)
    remote: Any = ray.remote(_apply)
    shared = ray.put(function)  # sent once to each machine, whatever it holds
    waiting = iter(items)
    ahead = _AHEAD_PER_WORKER * max(1, int(ray.cluster_resources().get("CPU", 1)))
    running = collections.deque(remote.remote(shared, item) for item in itertools.islice(waiting, ahead))
    while running:
        try:
            result: Result = ray.get(running.popleft())
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
            raise PipelineError(
                "a Ray worker died, most likely for lack of memory: give the cluster more, or set `engine: local`"
            ) from None
        for item in itertools.islice(waiting, 1):
            running.append(remote.remote(shared, item))
        yield result


def _apply(function: Callable[[Item], Result], item: Item) -> Result:
    """Call FUNCTION; Ray takes functions only, and no ``functools.partial``."""
    return function(item)
