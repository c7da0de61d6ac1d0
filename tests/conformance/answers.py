"""What an adapter answers, and which adapter belongs to which function of the reference.

An adapter takes a case, calls functions of this project, and gives their results under the names of the index. It
brings conventions into line (inclusive corners, padding, percent, copies in place of weights) and computes nothing
that is to be tested. It looks at inputs and params of its case only, never at the case's name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.conformance.vectors import Case

ROOT = "modules/quanproto/"


class Skip(Exception):
    """A case that cannot be compared; the message is the reason, the same for all cases of a kind."""


@dataclass(frozen=True, slots=True)
class Lacking:
    """An output that this project does not have."""

    reason: str


@dataclass(frozen=True, slots=True)
class Deviating:
    """A result that differs from the reference on purpose, or that rounding decides.

    Where it agrees with what is expected after all, it passes.

    Attributes:
        reason: why, with the entry of DEVIATIONS.md.
        atol: it may differ by this much and no more.
    """

    value: Any
    reason: str
    atol: float = float("inf")


@dataclass(frozen=True, slots=True)
class Translated:
    """A result for inputs that were first brought to where the reference and this project mean the same.

    Attributes:
        how: what was done, with the entry of DEVIATIONS.md.
    """

    value: Any
    how: str


Answer = Mapping[str, Any]
"""Output to array, number, None (no number), :class:`Lacking`, :class:`Deviating` or :class:`Translated`."""

Adapter = Callable[[Case], Answer]

_adapters: dict[tuple[str, str], Adapter] = {}


def adapter(module: str, *names: str) -> Callable[[Adapter], Adapter]:
    """Declare an adapter for the functions NAMES of the reference's MODULE (path below its package)."""

    def declare(function: Adapter) -> Adapter:
        for name in names:
            assert (module, name) not in _adapters
            _adapters[module, name] = function
        return function

    return declare


def without_counterpart(reason: str, module: str, *names: str) -> None:
    """Declare that this project has no counterpart of the functions NAMES of the reference's MODULE."""

    def skip(case: Case) -> Answer:
        raise Skip(reason)

    adapter(module, *names)(skip)


def parse_function(function: str) -> tuple[str, str]:
    """Split what the index calls a function into module and name; line numbers and explanations are passed over."""
    module, _, name = function.partition(" ")
    return module.split(":")[0].removeprefix(ROOT), name.split(" ")[0].split("(")[0]


def adapter_of(function: str) -> Adapter | None:
    """Find the adapter of a function, as the index writes it."""
    return _adapters.get(parse_function(function))
