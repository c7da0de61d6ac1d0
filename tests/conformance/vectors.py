"""Folders of conformance vectors: ``index.json`` and the ``.npz`` files that it describes.

A vector file holds arrays under ``CASE.KIND.NAME``; the kind is ``in`` for what a function is given, ``out`` for what
the reference made of it, ``fix`` for what was meant where that is something else. What was meant is what counts.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import PipelineError
from pipeline.validation import first_problem


class IncompleteCaseError(Exception):
    """A case lacks an input or a param that its function needs."""


class Given(dict[str, Any]):
    """What a case gives; what it does not give is named."""

    def __missing__(self, name: str) -> Any:
        raise IncompleteCaseError(f"the case gives no {name!r}")


class _Array(BaseModel):
    model_config = ConfigDict(extra="ignore")
    key: str


class CaseEntry(BaseModel):
    """A case as the index describes it; what is only there for people is passed over."""

    model_config = ConfigDict(extra="ignore")
    id: str
    function: str
    inputs: dict[str, _Array]
    outputs: dict[str, _Array]
    intended: dict[str, _Array] | None = None
    params: dict[str, Any] | None = None
    atol: float
    rtol: float
    raises: str | None = None
    advisory: bool | None = None


class FileEntry(BaseModel):
    """A vector file as the index describes it."""

    model_config = ConfigDict(extra="ignore")
    file: str
    cases: list[CaseEntry]


class _Index(BaseModel):
    model_config = ConfigDict(extra="ignore")
    files: list[FileEntry]


@dataclass(frozen=True, slots=True)
class Case:
    """One call of one function of the reference.

    Attributes:
        file: name of the vector file.
        name: the case's id in it.
        function: module and function of the reference, as the index writes them.
        inputs: arrays by name.
        params: settings by name; groups of settings are of the same kind.
        expected: what a correct implementation gives, by output; the intended value where there is one.
        intended: the outputs for which the reference itself gave something else.
        atol: largest deviation that passes, beside ``rtol``.
        rtol: the same, relative to the expected value.
        raises: the reference's exception, where it raised one.
        advisory: deviations do not count, they hang on the order of ties or on rounding.
    """

    file: str
    name: str
    function: str
    inputs: Given
    params: Given
    expected: Mapping[str, np.ndarray]
    intended: frozenset[str]
    atol: float
    rtol: float
    raises: str | None
    advisory: bool

    def batches(self, name: str) -> list[np.ndarray]:
        """Collect the inputs ``NAME_0``, ``NAME_1``, ... in the order of their numbers.

        Raises:
            IncompleteCaseError: there is none.
        """
        numbered = {int(found[1]): key for key in self.inputs if (found := re.fullmatch(rf"{name}_(\d+)", key))}
        if not numbered:
            raise IncompleteCaseError(f"the case gives no '{name}_0'")
        return [self.inputs[numbered[number]] for number in sorted(numbered)]


def read_index(folder: Path) -> list[FileEntry]:
    """Read which vector files FOLDER has, and their cases.

    Raises:
        PipelineError: there is no index, or it is not of this format.
    """
    path = folder / "index.json"
    try:
        return _Index.model_validate(json.loads(path.read_text(encoding="utf-8"))).files
    except FileNotFoundError:
        raise PipelineError(f"{path} does not exist: name a folder of conformance vectors") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PipelineError(
            f"{path} cannot be read ({_one_line(error)}): name a folder of conformance vectors"
        ) from None
    except ValidationError as error:
        raise PipelineError(f"{path} is no index of conformance vectors: {first_problem(error)}") from None


def read_cases(folder: Path, entry: FileEntry, wanted: frozenset[str]) -> Iterator[Case]:
    """Read the WANTED cases (ids) of one vector file, whole, before the first is given.

    Raises:
        PipelineError: the file is missing or damaged, or lacks an array that the index names.
    """
    path = folder / entry.file
    try:
        with np.load(path) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise PipelineError(f"{entry.file} cannot be read ({_one_line(error)})") from None
    try:
        cases = [_case(entry.file, case, arrays) for case in entry.cases if case.id in wanted]
    except KeyError as error:
        raise PipelineError(f"{entry.file} lacks the array {error} of the index") from None
    return iter(cases)


def _case(file: str, entry: CaseEntry, arrays: Mapping[str, np.ndarray]) -> Case:
    intended = entry.intended or {}
    return Case(
        file=file,
        name=entry.id,
        function=entry.function,
        inputs=Given({name: arrays[array.key] for name, array in entry.inputs.items()}),
        params=_given(entry.params or {}),
        expected={name: arrays[array.key] for name, array in (entry.outputs | intended).items()},
        intended=frozenset(intended),
        atol=entry.atol,
        rtol=entry.rtol,
        raises=entry.raises,
        advisory=bool(entry.advisory),
    )


def _given(params: Mapping[str, Any]) -> Given:
    return Given({key: _given(value) if isinstance(value, dict) else value for key, value in params.items()})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
