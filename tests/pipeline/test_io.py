"""Files and folders are old or new, whatever happens in between."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline import io
from pipeline.errors import PipelineError
from pipeline.io import new_file, new_folder, progress, read_json, sha256_of, write_json

ROOT = Path(__file__).parents[2]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _killed_in_the_middle(tmp_path: Path, block: str) -> None:
    """Run BLOCK in a process of its own that is killed where the block calls ``die()``."""
    code = textwrap.dedent(
        """
        import os, signal
        from pathlib import Path
        from pipeline.io import new_file, new_folder

        def die():
            os.kill(os.getpid(), signal.SIGKILL)

        target = Path("target")
        """
    ) + textwrap.dedent(block)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_a_new_folder_takes_its_name_when_the_block_succeeds(tmp_path):
    target = tmp_path / "above" / "out"
    with new_folder(target) as work:
        (work / "a.txt").write_text("new")
        assert not target.exists()
        assert work.parent == target.parent  # the same file system, so that the rename is one step
    assert (target / "a.txt").read_text() == "new"
    assert _names(target.parent) == ["out"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_new_folder_replaces_the_whole_of_an_old_one(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(io.sys, "platform", "darwin")
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with new_folder(target) as work:
        (work / "new.txt").write_text("new")
        assert _names(target) == ["old.txt"]
    assert _names(target) == ["new.txt"]
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_the_old_one_whole_and_no_litter(tmp_path, error):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old")

    def fail() -> None:
        with new_folder(target) as work:
            (work / "half.txt").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert _names(target) == ["old.txt"]
    assert (target / "old.txt").read_text() == "old"
    assert _names(tmp_path) == ["out"]


def test_a_folder_that_fails_for_the_first_time_leaves_nothing(tmp_path):
    def fail() -> None:
        with new_folder(tmp_path / "out") as work:
            (work / "half.txt").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert _names(tmp_path) == []


def test_a_folder_is_readable_by_others_as_a_shared_cache_needs(tmp_path):
    with new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_a_folder_does_not_take_the_place_of_a_file(tmp_path):
    target = tmp_path / "out"
    target.write_text("a file")
    with pytest.raises(PipelineError, match="out is a file"), new_folder(target):
        pytest.fail("the block must not run")
    assert target.read_text() == "a file"


def test_a_kill_in_the_middle_of_a_folder_leaves_the_old_one_whole(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a.txt").write_text("old")
    _killed_in_the_middle(
        tmp_path,
        """
        with new_folder(target) as work:
            (work / "a.txt").write_text("half")
            die()
        """,
    )
    assert _names(tmp_path / "target") == ["a.txt"]
    assert (tmp_path / "target" / "a.txt").read_text() == "old"
    with new_folder(tmp_path / "target") as work:  # what the kill left behind is in nobody's way
        (work / "a.txt").write_text("new")
    assert (tmp_path / "target" / "a.txt").read_text() == "new"


def test_a_kill_in_the_middle_of_a_file_leaves_the_old_one_whole(tmp_path):
    (tmp_path / "target").write_text("old")
    _killed_in_the_middle(
        tmp_path,
        """
        with new_file(target) as work:
            work.write_text("half")
            die()
        """,
    )
    assert (tmp_path / "target").read_text() == "old"
    with new_file(tmp_path / "target") as work:
        work.write_text("new")
    assert (tmp_path / "target").read_text() == "new"


def test_a_new_file_replaces_the_old_one_when_the_block_succeeds(tmp_path):
    target = tmp_path / "above" / "out.txt"
    for content in ("first", "second"):
        with new_file(target) as work:
            work.write_text(content)
            assert not target.exists() or target.read_text() == "first"
        assert target.read_text() == content
    assert _names(target.parent) == ["out.txt"]
    assert target.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_file_that_fails_leaves_the_old_one_whole_and_no_litter(tmp_path, error):
    target = tmp_path / "out.txt"
    target.write_text("old")

    def fail() -> None:
        with new_file(target) as work:
            work.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert _names(tmp_path) == ["out.txt"]


def test_equal_content_gives_equal_bytes_of_json(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": {"d": "é", "c": True}})
    write_json(tmp_path / "b.json", {"a": {"c": True, "d": "é"}, "b": [1, 2.5, None]})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == (
        '{\n  "a": {\n    "c": true,\n    "d": "é"\n  },\n  "b": [\n    1,\n    2.5,\n    null\n  ]\n}\n'
    )
    assert read_json(tmp_path / "a.json") == {"a": {"c": True, "d": "é"}, "b": [1, 2.5, None]}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_know_is_refused_and_the_old_file_stays(tmp_path, number):
    path = tmp_path / "metrics.json"
    write_json(path, {"accuracy": 0.5})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"accuracy": number})
    assert path.read_bytes() == before
    assert _names(tmp_path) == ["metrics.json"]


@pytest.mark.parametrize("content", [b'{"a": ', b"", b"\xff\xfe"])
def test_damaged_json_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "metrics.json"
    path.write_bytes(content)
    with pytest.raises(PipelineError, match="is damaged") as raised:
        read_json(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_json_is_named(tmp_path):
    with pytest.raises(PipelineError, match=r"metrics.json does not exist: .*dvc repro"):
        read_json(tmp_path / "metrics.json")


def test_sha256_is_that_of_the_standard():
    assert sha256_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_progress_passes_every_item_on_in_order_and_only_as_asked(capsys):
    drawn = []

    def items():
        for number in range(5):
            drawn.append(number)
            yield number

    passed = progress(items(), what="counting", total=5)
    assert drawn == []
    assert next(passed) == 0
    assert drawn == [0]
    assert list(passed) == [1, 2, 3, 4]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "counting" in captured.err
