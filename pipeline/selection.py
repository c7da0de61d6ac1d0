"""What a command's options choose by names with commas, such as ``--metrics f1,compactness``."""

import difflib
from collections.abc import Iterable

from pipeline.errors import PipelineError
from pipeline.metrics.interface import Metric
from pipeline.metrics.registry import METRICS


def chosen_metrics(names: str | None) -> tuple[Metric, ...]:
    """Find the declared metrics that NAMES lists with commas: keys, ``family.key`` or whole families; None is all.

    Raises:
        PipelineError: a name fits none.
    """
    if names is None:
        return METRICS
    known = {name for declared in METRICS for name in _names_of(declared)}
    wanted = listed_names(names, known, "--metrics")
    return tuple(declared for declared in METRICS if wanted & _names_of(declared))


def listed_names(text: str, known: Iterable[str], option: str) -> set[str]:
    """Read the names in TEXT, which commas part.

    Args:
        text: what the user wrote.
        known: names that there are.
        option: where it was written, such as ``--rows``.

    Raises:
        PipelineError: a name is not known, or there is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.4) or sorted(known)
            raise PipelineError(f"{option} {name}: there is no such name; near: {', '.join(near)}")
    if not names:
        raise PipelineError(f"{option}: names no {option.strip('-')}")
    return set(names)


def _names_of(declared: Metric) -> set[str]:
    return {declared.key, declared.family, f"{declared.family}.{declared.key}"}
