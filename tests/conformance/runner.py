"""Runs the cases of a folder of conformance vectors against this project."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.errors import PipelineError
from tests.conformance import adapters_data, adapters_metrics, adapters_model, adapters_saliency, counterparts
from tests.conformance.answers import Deviating, Lacking, Skip, Translated, adapter_of, parse_function
from tests.conformance.compare import is_within, mismatch
from tests.conformance.vectors import Case, CaseEntry, FileEntry, IncompleteCaseError, read_cases, read_index

# importing them declares them
ADAPTERS = (adapters_data, adapters_metrics, adapters_model, adapters_saliency, counterparts)

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one case, or of a vector file that cannot be read.

    Attributes:
        where: file and case.
        outcome: skipped is a case of which nothing was compared.
        text: what fails, or the reason of a skip.
        num_cases: cases that the verdict is about.
        left_out: outputs that were not compared, and why; the case may have passed with the others.
        translated: outputs that agree once the inputs are translated, and how.
    """

    where: str
    outcome: Outcome
    text: str = ""
    num_cases: int = 1
    left_out: dict[str, str] = field(default_factory=dict)
    translated: dict[str, str] = field(default_factory=dict)


def run_folder(folder: Path, only: str | None = None) -> Iterator[Verdict]:
    """Run the cases of FOLDER, file by file; with ONLY, those that have this text in their file, function or name.

    Raises:
        PipelineError: there is no index, or ONLY selects nothing.
    """
    selected = [(entry, _selected(entry, only)) for entry in read_index(folder)]
    if not any(wanted for _, wanted in selected):
        raise PipelineError(f"{folder}: no case" + ("" if only is None else f" has {only!r} in file, function or name"))
    return (verdict for entry, wanted in selected for verdict in _run_file(folder, entry, wanted))


def _selected(entry: FileEntry, only: str | None) -> frozenset[str]:
    def is_meant(case: CaseEntry) -> bool:
        return only is None or any(only in text for text in (entry.file, case.function, case.id))

    return frozenset(case.id for case in entry.cases if is_meant(case))


def _run_file(folder: Path, entry: FileEntry, wanted: frozenset[str]) -> Iterator[Verdict]:
    if not wanted:
        return
    try:
        cases = read_cases(folder, entry, wanted)
    except PipelineError as error:
        yield Verdict(entry.file, "failed", str(error).removeprefix(f"{entry.file} "), num_cases=len(wanted))
        return
    for case in cases:
        yield run_case(case)


def run_case(case: Case) -> Verdict:
    """Run one case and compare."""
    where = f"{case.file} {case.name}"
    adapt = adapter_of(case.function)
    if adapt is None:
        return Verdict(where, "skipped", f"no adapter for {'/'.join(parse_function(case.function))}")
    try:
        answer = dict(adapt(case))
    except Skip as skip:
        return Verdict(where, "skipped", str(skip))
    except IncompleteCaseError as error:
        if case.raises is not None:
            return Verdict(where, "skipped", "the reference raises on inputs that have no counterpart here")
        return Verdict(where, "failed", str(error))
    except Exception as error:  # whatever an adapter meets is the outcome of its case, and the others go on
        if case.raises is not None and isinstance(error, PipelineError | ValueError):
            return Verdict(where, "passed")
        return Verdict(where, "failed", f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    if case.raises is not None and not case.expected:
        if any(_lacks_a_number(got) for got in answer.values()):
            return Verdict(where, "passed")
        return Verdict(where, "skipped", "the reference raises where this project has an answer, and none is intended")
    return _compared(where, case, answer)


def _lacks_a_number(got: Any) -> bool:
    """Whether an answer says that there is no number, in some place at least: None or NaN."""
    if isinstance(got, Lacking):
        return False
    value = got.value if isinstance(got, Deviating | Translated) else got
    return value is None or bool(np.isnan(np.asarray(value, dtype=np.float64)).any())


def _compared(where: str, case: Case, answer: dict[str, Any]) -> Verdict:
    wrong: list[str] = []
    left_out: dict[str, str] = {}
    translated: dict[str, str] = {}
    for name, want in case.expected.items():
        if name not in answer:
            wrong.append(f"{name}: the adapter gives no such output")
            continue
        got = answer[name]
        if isinstance(got, Lacking):
            left_out[name] = got.reason
            continue
        value = got.value if isinstance(got, Deviating | Translated) else got
        problem = mismatch(value, want, atol=case.atol, rtol=case.rtol)
        if problem is None:
            if isinstance(got, Translated):
                translated[name] = got.how
        elif isinstance(got, Deviating) and is_within(value, want, atol=got.atol):
            left_out[name] = got.reason
        elif case.advisory:
            left_out[name] = "advisory in the index"
        else:
            wrong.append(f"{name}: {problem}")
    if wrong:
        return Verdict(where, "failed", "; ".join(wrong))
    if len(left_out) == len(case.expected):
        reasons = "; ".join(dict.fromkeys(left_out.values()))
        return Verdict(where, "skipped", reasons or "the case has no output")
    return Verdict(where, "passed", left_out=left_out, translated=translated)
