import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.data import store_lock
from pipeline.data.store_lock import holder_of, only_process

ROOT = Path(__file__).parents[3]

HOLDER = """
import logging, sys
from pathlib import Path
from pipeline.data.store_lock import only_process

logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
with only_process(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def start():
    """Starts processes that hold the lock until they get a line."""
    running = []

    def starting(store):
        command = [sys.executable, "-c", HOLDER, store]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return running[-1]

    yield starting
    for process in running:
        process.kill()
        process.communicate()


def test_a_second_process_waits_with_one_line_that_names_the_first(tmp_path, start):
    store = tmp_path / "masks.sqlite"
    first = start(store)
    assert first.stdout.readline() == "mine\n"
    second = start(store)
    line = second.stdout.readline()
    assert str(store) in line
    assert f"waiting for process {first.pid} " in line
    assert holder_of(store) == str(first.pid)
    first.communicate("\n")
    assert second.stdout.readline() == "mine\n"
    assert holder_of(store) == str(second.pid)


def test_a_killed_process_lets_go(tmp_path, start):
    first = start(tmp_path / "masks.sqlite")
    assert first.stdout.readline() == "mine\n"
    second = start(tmp_path / "masks.sqlite")
    assert "waiting" in second.stdout.readline()
    first.send_signal(signal.SIGKILL)
    assert second.stdout.readline() == "mine\n"
    second.communicate("\n")
    assert second.returncode == 0
    assert holder_of(tmp_path / "masks.sqlite") is None


def test_a_waiting_process_can_be_interrupted(tmp_path, start):
    first = start(tmp_path / "masks.sqlite")
    assert first.stdout.readline() == "mine\n"
    second = start(tmp_path / "masks.sqlite")
    assert "waiting" in second.stdout.readline()
    second.send_signal(signal.SIGINT)
    output, errors = second.communicate(timeout=10)
    assert second.returncode != 0
    assert "mine" not in output
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert holder_of(tmp_path / "masks.sqlite") == str(first.pid)


def test_two_blocks_of_one_process_exclude_each_other(tmp_path):
    store, second_ran = tmp_path / "masks.sqlite", threading.Event()

    def second():
        with only_process(store):
            second_ran.set()

    with only_process(store):
        assert holder_of(store) == str(os.getpid())
        thread = threading.Thread(target=second)
        thread.start()
        assert not second_ran.wait(0.2)
    assert second_ran.wait(10)
    thread.join()


def test_a_store_that_nobody_opened_has_no_holder_and_asking_makes_no_file(tmp_path):
    assert holder_of(tmp_path / "masks.sqlite") is None
    assert list(tmp_path.iterdir()) == []


def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("missing", ["of this file system", "of this operating system"])
def test_without_locks_a_warning_says_so_and_the_block_runs(tmp_path, monkeypatch, caplog, missing):
    if missing == "of this file system":
        monkeypatch.setattr(store_lock.fcntl, "flock", no_locks)
    else:
        monkeypatch.setattr(store_lock, "fcntl", None)
    with caplog.at_level(logging.WARNING), only_process(tmp_path / "masks.sqlite"):
        (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(tmp_path / "masks.sqlite") in record.getMessage()
    assert holder_of(tmp_path / "masks.sqlite") is None
