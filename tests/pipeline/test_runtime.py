"""runtime.yaml: the file, the environment over it, and what is refused."""

import contextlib
import os
from pathlib import Path

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.runtime import Runtime, keep_freed_memory, load_runtime, one_thread

SHIPPED = Path(__file__).parents[2] / "runtime.yaml"


@pytest.fixture(autouse=True)
def _no_overrides(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PROTOMASK_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def runtime_file(tmp_path):
    path = tmp_path / "runtime.yaml"
    path.write_text("device: cpu\nworkers: 3\nengine: ray\n", encoding="utf-8")
    return path


def test_the_shipped_file_says_the_defaults_and_keeps_a_cache():
    assert Runtime() == Runtime(device="auto", workers="auto", engine="local", cache=None, cache_gib=20)
    assert load_runtime(SHIPPED) == Runtime(cache=Path(".cache"))


def test_the_file_is_read(runtime_file):
    assert load_runtime(runtime_file) == Runtime(device="cpu", workers=3, engine="ray")


def test_one_thread_is_for_the_block_also_when_it_fails():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = []
    with contextlib.suppress(KeyError), one_thread():
        seen.append(torch.get_num_threads())
        raise KeyError
    assert seen == [1]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_a_missing_or_empty_file_means_the_defaults(tmp_path):
    assert load_runtime(tmp_path / "absent.yaml") == Runtime()
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_runtime(tmp_path / "empty.yaml") == Runtime()


def test_the_environment_wins_over_the_file(runtime_file, monkeypatch):
    monkeypatch.setenv("PROTOMASK_DEVICE", "cuda:1")
    monkeypatch.setenv("PROTOMASK_WORKERS", "5")
    monkeypatch.setenv("PROTOMASK_ENGINE", "local")
    assert load_runtime(runtime_file) == Runtime(device="cuda:1", workers=5, engine="local")
    monkeypatch.setenv("PROTOMASK_WORKERS", "auto")
    assert load_runtime(runtime_file).workers == "auto"


def test_the_log_level_in_the_environment_is_no_key_of_the_runtime(monkeypatch):
    monkeypatch.setenv("PROTOMASK_LOG", "DEBUG")
    assert load_runtime(SHIPPED) == Runtime(cache=Path(".cache"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("devise: cpu\n", "unknown key `devise`"),
        ("device: gpu\n", "`device`.*'gpu'"),
        ("device: cuda:x\n", "`device`.*'cuda:x'"),
        ("device: null\n", "`device`"),
        ("workers: many\n", "`workers.*'many'"),
        ("engine: dask\n", "`engine`.*'dask'"),
        ("device: [\n", "not valid YAML"),
        ("- cpu\n", "expected `key: value`"),
    ],
)
def test_a_mistake_in_the_file_is_one_line_that_names_the_key(tmp_path, text, said):
    path = tmp_path / "runtime.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PipelineError, match=said) as raised:
        load_runtime(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_mistake_in_the_environment_is_one_line_that_names_the_key(runtime_file, monkeypatch):
    monkeypatch.setenv("PROTOMASK_DEVICE", "tpu")
    with pytest.raises(PipelineError, match=r"PROTOMASK_.*`device`.*'tpu'") as raised:
        load_runtime(runtime_file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("workers", [0, -2])
def test_less_than_one_worker_means_one(workers):
    assert Runtime(workers=workers).num_workers == 1


def test_auto_takes_one_worker_per_core_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    assert Runtime().num_workers == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert Runtime().num_workers == 7
    assert Runtime(workers=2).num_workers == 2


def test_auto_takes_the_best_device_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Runtime().torch_device == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert Runtime().torch_device == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert Runtime().torch_device == "cpu"


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_named(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(PipelineError, match=f"'{device}'.*use `auto`"):
        _ = Runtime(device=device).torch_device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert Runtime(device=device).torch_device == device


def test_keeping_freed_memory_can_be_asked_for_more_than_once():
    keep_freed_memory()
    keep_freed_memory()
    assert torch.zeros(1 << 20).add(1).sum().item() == 1 << 20
