"""The conformance vectors, where they are at hand; and the runner itself, on a folder of vectors made here."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.conformance.__main__ import app, summary
from tests.conformance.answers import Deviating, Lacking, Translated, adapter_of, parse_function
from tests.conformance.compare import mismatch
from tests.conformance.runner import run_folder
from tests.conformance.vectors import read_index

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
LOCAL_SIZE = "modules/quanproto/metrics/compactness.py:4 local_explanation_size"
WITHOUT_COUNTERPART = "modules/quanproto/datasets/interfaces/dataset_interface.py:538 balance_classes"
WHY_WITHOUT = "no copies of images to balance classes: the loss is weighted"
SIMILARITY = np.array([[1.0, 0.5, 0.05], [2.0, 2.0, 2.0]], dtype=np.float32)  # at 0.1, 2 and 3 prototypes


def golden_files():
    if not (GOLDEN / "index.json").exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="needs ../shared/golden"))]
    return [pytest.param(entry.file, id=entry.file) for entry in read_index(GOLDEN)]


@pytest.mark.parametrize("file", golden_files())
def test_no_case_of_a_vector_file_fails(file):
    verdicts = list(run_folder(GOLDEN, file))
    assert [f"{verdict.where}: {verdict.text}" for verdict in verdicts if verdict.outcome == "failed"] == []
    if not any(verdict.outcome == "passed" for verdict in verdicts):
        pytest.skip("; ".join(summary(verdicts)[:-1]))


def test_each_function_of_the_vectors_has_an_adapter_or_a_reason():
    if not (GOLDEN / "index.json").exists():
        pytest.skip("needs ../shared/golden")
    functions = {case.function for entry in read_index(GOLDEN) for case in entry.cases}
    assert len(functions) > 50
    assert [function for function in sorted(functions) if adapter_of(function) is None] == []


# --- a folder of vectors made here


class Vectors:
    """Writes a folder of vectors case by case."""

    def __init__(self, folder):
        self.folder = folder
        self.files = {}

    def add(self, case, *, inputs, out=None, fix=None, file="made.npz", function=LOCAL_SIZE, **entry):
        entries, arrays = self.files.setdefault(file, ([], {}))
        described = {"id": case, "function": function, "atol": 1e-6, "rtol": 1e-5, **entry}
        for group, kind, named in (
            ("inputs", "in", inputs),
            ("outputs", "out", out or {}),
            ("intended", "fix", fix or {}),
        ):
            described[group] = {
                name: {"key": f"{case}.{kind}.{name}", "shape": list(np.shape(value))} for name, value in named.items()
            }
            arrays |= {f"{case}.{kind}.{name}": np.asarray(value) for name, value in named.items()}
        entries.append(described)

    def add_local_size(self, case, size, **more):
        out = None if size is None else {"out": np.asarray(size, dtype=np.float32)}
        self.add(case, inputs={"similarity_scores": SIMILARITY}, out=out, params={"threshold": 0.1}, **more)

    def write(self):
        for file, (_, arrays) in self.files.items():
            np.savez(self.folder / file, **arrays)
        files = [{"file": file, "title": file, "cases": entries} for file, (entries, _) in self.files.items()]
        (self.folder / "index.json").write_text(json.dumps({"set": "made", "files": files}))
        return self.folder


@pytest.fixture
def vectors(tmp_path):
    return Vectors(tmp_path)


def outcomes(vectors, only=None):
    return {verdict.where.split()[-1]: verdict.outcome for verdict in run_folder(vectors.write(), only)}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_failures_and_reasons_and_the_sum_and_ends_with_1(vectors):
    vectors.add_local_size("right", [2, 3])
    vectors.add_local_size("wrong", [2, 5])
    vectors.add_local_size("drawn", [2, 3], function=WITHOUT_COUNTERPART)
    result = run(vectors.write())
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "FAILED made.npz wrong: out: largest deviation 2 (1 of 2 values), tolerance 1e-06 + 1e-05 x |expected|",
        f"skipped, 1 case: {WHY_WITHOUT}",
        "1 passed, 1 failed, 1 skipped",
    ]


def test_the_command_ends_with_0_where_nothing_fails(vectors):
    vectors.add_local_size("right", [2, 3])
    result = run(vectors.write())
    assert (result.exit_code, result.stdout) == (0, "1 passed, 0 failed, 0 skipped\n")


def test_verbose_lists_each_skip_and_each_output_that_was_left_out(vectors):
    image = np.zeros((5, 6, 3), dtype=np.uint8)
    vectors.add(
        "box",
        function="modules/quanproto/augmentation/enums.py get_augmentation_pipeline('crop') -> somewhere",
        inputs={"img": image, "bbox": np.array([1, 1, 2, 3])},
        out={"crop": image[1:3, 1:2], "keypoints": np.zeros((0, 3))},
        fix={"crop": image[1:4, 1:3]},
    )
    vectors.add_local_size("pruned", [2, 3], function=WITHOUT_COUNTERPART)
    lines = run(vectors.write(), "--verbose").stdout.splitlines()
    assert lines[:2] == [
        "left out made.npz box keypoints: parts stay in pixels of the image and are not moved with a crop",
        f"skipped made.npz pruned: {WHY_WITHOUT}",
    ]
    assert lines[-1] == "1 passed, 0 failed, 1 skipped"


def test_the_intended_value_wins(vectors):
    vectors.add_local_size("intended", [9, 9], fix={"out": [2.0, 3.0]})
    vectors.add_local_size("not_intended", [2, 3], fix={"out": [9.0, 9.0]})
    assert outcomes(vectors) == {"intended": "passed", "not_intended": "failed"}


def test_an_advisory_case_does_not_fail(vectors):
    vectors.add_local_size("wrong", [2, 5], advisory=True)
    vectors.add_local_size("right", [2, 3], advisory=True)
    assert outcomes(vectors) == {"wrong": "skipped", "right": "passed"}


def test_where_the_reference_raises_a_named_error_passes_and_so_does_the_intended_value(vectors):
    segments = "modules/quanproto/segmentation/segmentation.py:9 generate_segment_masks"
    masks = np.zeros((2, 5, 6), dtype=bool)
    vectors.add("empty", function=segments, inputs={"masks": masks}, raises="TypeError: None")
    masks = masks.copy()
    masks[:, :4, :4] = masks[0, 4, 4] = True
    vectors.add("full", function=segments, inputs={"masks": masks}, raises="TypeError: None")
    vectors.add_local_size("meant", None, raises="RuntimeError: sizes", fix={"out": [2.0, 3.0]})
    vectors.add_local_size("not_meant", None, raises="RuntimeError: sizes", fix={"out": [2.0, 4.0]})
    assert outcomes(vectors) == {"empty": "passed", "full": "skipped", "meant": "passed", "not_meant": "failed"}


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ({"out": None}, "passed"),
        ({"out": np.array([2.0, np.nan])}, "passed"),
        ({"one": 1.0, "two": Translated(np.nan, "in other words")}, "passed"),
        ({"out": np.array([2.0, np.inf])}, "skipped"),
        ({"out": Lacking("none here")}, "skipped"),
        ({}, "skipped"),
    ],
)
def test_where_the_reference_raises_and_nothing_is_meant_an_answer_without_a_number_passes(
    vectors, monkeypatch, answer, outcome
):
    monkeypatch.setattr("tests.conformance.runner.adapter_of", lambda function: lambda case: answer)
    vectors.add("no_number", inputs={}, raises="ValueError: classes")
    assert outcomes(vectors) == {"no_number": outcome}


def test_an_error_that_the_reference_does_not_raise_fails_its_case_alone(vectors):
    segments = "modules/quanproto/segmentation/segmentation.py:9 generate_segment_masks"
    vectors.add("empty", function=segments, inputs={"masks": np.zeros((1, 5, 6), dtype=bool)}, out={"order": [0]})
    vectors.add_local_size("right", [2, 3])
    empty, right = run_folder(vectors.write())
    assert empty.outcome == "failed"
    assert empty.text == "raised EmptyMaskError: no foreground in a mask of shape (5, 6)"
    assert right.outcome == "passed"


def test_an_unknown_function_is_skipped_by_name(vectors):
    vectors.add_local_size("new", [2, 3], function="modules/quanproto/metrics/new.py:7 brightness")
    [verdict] = run_folder(vectors.write())
    assert (verdict.outcome, verdict.text) == ("skipped", "no adapter for metrics/new.py/brightness")


def test_a_case_without_a_param_that_its_function_needs_fails_by_name(vectors):
    vectors.add("bare", inputs={"similarity_scores": SIMILARITY}, out={"out": np.ones(2)})
    [verdict] = run_folder(vectors.write())
    assert (verdict.outcome, verdict.text) == ("failed", "the case gives no 'threshold'")


@pytest.mark.parametrize("damage", ["cut", "missing", "no_array", "flipped"])
def test_a_damaged_vector_file_is_one_line_and_fails_its_cases(vectors, damage):
    for case in ("one", "two"):
        vectors.add_local_size(case, [2, 3])
    vectors.add_local_size("three", [2, 3], file="whole.npz")
    folder = vectors.write()
    path = folder / "made.npz"
    stored = path.read_bytes()
    if damage == "cut":
        path.write_bytes(stored[: len(stored) // 2])
    elif damage == "missing":
        path.unlink()
    elif damage == "no_array":
        np.savez(path, other=np.ones(1))
    else:
        middle = stored.index(SIMILARITY.tobytes())
        path.write_bytes(stored[:middle] + bytes([stored[middle] ^ 1]) + stored[middle + 1 :])
    result = run(folder)
    failure, total = result.stdout.splitlines()
    assert result.exit_code == 1
    assert failure.startswith("FAILED made.npz: " + ("lacks the array" if damage == "no_array" else "cannot be read"))
    assert total == "1 passed, 2 failed, 0 skipped"


@pytest.mark.parametrize("content", [None, "{", '{"files": [{"file": "made.npz"}]}'])
def test_a_folder_without_an_index_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    result = run(tmp_path)
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "index.json" in result.stderr


def test_only_selects_by_file_function_and_case(vectors):
    vectors.add_local_size("one", [2, 3])
    vectors.add_local_size("two", [2, 3], file="other.npz")
    vectors.add_local_size("three", [2, 3], function=WITHOUT_COUNTERPART)
    assert list(outcomes(vectors, "two")) == ["two"]
    assert list(outcomes(vectors, "other.npz")) == ["two"]
    assert list(outcomes(vectors, "balance_classes")) == ["three"]
    assert list(outcomes(vectors, "local_explanation_size")) == ["one", "two"]
    nothing = run(vectors.folder, "--only", "four")
    assert nothing.exit_code == 1
    assert "no case has 'four'" in nothing.stderr


def test_functions_are_known_by_module_and_name_and_not_by_line():
    assert parse_function(LOCAL_SIZE) == ("metrics/compactness.py", "local_explanation_size")
    assert parse_function("modules/quanproto/a/b.py make('x') -> lib.Thing(n=0)") == ("a/b.py", "make")
    assert parse_function("modules/quanproto/a.py:12 reduce / :13 balance") == ("a.py", "reduce")
    assert adapter_of(LOCAL_SIZE.replace(":4", ":400")) is adapter_of(LOCAL_SIZE)
    assert adapter_of(LOCAL_SIZE.replace("compactness.py", "size.py")) is None


# --- answers and comparison


@pytest.fixture
def case(vectors, monkeypatch):
    """Run a case whose adapter gives a fixed answer; 2 is expected of every output, within 0.1."""

    def run_with(answer, names=("out",)):
        file = f"{len(vectors.files)}.npz"
        vectors.add("case", inputs={}, out={name: np.array([2.0]) for name in names}, file=file, atol=0.1, rtol=0)
        monkeypatch.setattr("tests.conformance.runner.adapter_of", lambda function: lambda case: answer)
        [verdict] = run_folder(vectors.write(), file)
        return verdict

    return run_with


def test_a_deviation_on_purpose_is_left_out_as_long_as_it_stays_within_its_bound(case):
    assert case({"out": Deviating([2.05], "on purpose", atol=1)}).outcome == "passed"
    left_out = case({"out": Deviating([2.9], "on purpose", atol=1)})
    assert (left_out.outcome, left_out.text) == ("skipped", "on purpose")
    assert case({"out": Deviating([3.1], "on purpose", atol=1)}).outcome == "failed"
    assert case({"out": Deviating([[9.0]], "on purpose", atol=1)}).outcome == "failed"
    assert case({"out": Deviating([[9.0]], "on purpose")}).outcome == "skipped"


def test_a_translated_output_has_no_bound_of_its_own_and_is_told(case):
    assert case({"out": Translated([2.05], "in other words")}).translated == {"out": "in other words"}
    assert case({"out": Translated([2.2], "in other words")}).outcome == "failed"


def test_a_case_passes_with_what_was_compared_and_names_what_was_not(case):
    verdict = case({"one": [2.0], "two": Lacking("none here")}, names=("one", "two"))
    assert (verdict.outcome, verdict.left_out) == ("passed", {"two": "none here"})
    assert case({"one": [3.0], "two": Lacking("none here")}, names=("one", "two")).outcome == "failed"
    assert case({"two": Lacking("none here")}, names=("two",)).outcome == "skipped"


def test_an_output_that_the_adapter_forgets_is_no_pass(case):
    assert case({}).outcome == "failed"
    assert case({"one": [2.0]}, names=("one", "two")).outcome == "failed"


def test_the_sum_counts_cases_and_names_each_reason_once(vectors):
    for name in ("a", "b"):
        vectors.add_local_size(name, [2, 3], function=WITHOUT_COUNTERPART)
    vectors.add_local_size("c", [2, 3])
    assert summary(run_folder(vectors.write())) == [
        f"skipped, 2 cases: {WHY_WITHOUT}",
        "1 passed, 0 failed, 2 skipped",
    ]


def test_floats_may_differ_by_the_tolerance_and_no_more():
    want = np.array([10.0, np.nan, np.inf])
    assert mismatch([10.19, np.nan, np.inf], want, atol=0.1, rtol=0.01) is None
    assert "largest deviation 0.21 (1 of 3 values)" in mismatch([10.21, np.nan, np.inf], want, atol=0.1, rtol=0.01)
    for got in ([10.0, 0.0, np.inf], [np.nan, np.nan, np.inf], [10.0, np.nan, -np.inf], [10.0, np.nan, 1e300]):
        assert "not finite" in mismatch(got, want, atol=0.1, rtol=0.01)


def test_integers_and_booleans_are_compared_exactly():
    assert mismatch(np.array([2.0]), np.array([2]), atol=5, rtol=5) is None
    assert "exact" in mismatch(np.array([3]), np.array([2]), atol=5, rtol=5)
    assert "exact" in mismatch(np.array([0.5]), np.array([True]), atol=5, rtol=5)


def test_shapes_must_agree():
    assert mismatch(np.ones((1, 3)), np.ones(3), atol=1, rtol=1) == "shape (1, 3) instead of (3,)"
    assert mismatch(np.ones((0, 2)), np.zeros((0, 2)), atol=0, rtol=0) is None


def test_no_number_agrees_with_nothing_finite():
    assert mismatch(None, np.array(np.inf), atol=0, rtol=0) is None
    assert mismatch(None, np.array(np.nan), atol=0, rtol=0) is None
    assert mismatch(None, np.array(1.0), atol=0, rtol=0) == "null instead of a number"
    assert "instead of numbers" in mismatch("word", np.array(1.0), atol=0, rtol=0)
