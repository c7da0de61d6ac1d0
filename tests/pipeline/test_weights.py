"""Checkpoints: a well-formed list, and files that are what their names say."""

import hashlib
import re
from pathlib import Path

import pooch
import pytest
import yaml

from pipeline import weights
from pipeline.errors import PipelineError
from pipeline.weights import CHECKPOINTS, Checkpoint, RemoteFile, check_official, checkpoint_with, how_to_get

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A checkpoint of seven bytes, the only official one."""
    file = RemoteFile("tiny.pth", "https://example.org/tiny.pth", 7, hashlib.sha256(b"weights").hexdigest())
    checkpoint = Checkpoint("tiny", "a tiny one", (file,), "none")
    monkeypatch.setattr(weights, "CHECKPOINTS", (checkpoint,))
    return checkpoint


def test_every_file_has_an_https_address_and_a_whole_sha256_or_none():
    files = [file for checkpoint in CHECKPOINTS for file in checkpoint.files]
    assert len(files) == 10
    for file in files:
        assert file.url is not None
        assert re.fullmatch(r"https://\S+/\S+", file.url)
        assert file.url.endswith(f"/{file.name}")
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert (file.sha256 is None) == (file.size_bytes is None)


def test_names_and_places_are_unique_and_the_sha256_of_no_two_files_agree():
    files = [file for checkpoint in CHECKPOINTS for file in checkpoint.files]
    places = [(checkpoint.folder, file.name) for checkpoint in CHECKPOINTS for file in checkpoint.files]
    known = [file.sha256 for file in files if file.sha256]
    assert len({checkpoint.name for checkpoint in CHECKPOINTS}) == len(CHECKPOINTS) == 8
    assert len(set(places)) == len(places)
    assert len(set(known)) == len(known) == 7


def test_the_checkpoints_of_all_presets_can_be_downloaded_to_where_the_presets_look_for_them():
    offered = {f"weights/{checkpoint.folder or checkpoint.files[0].name}" for checkpoint in CHECKPOINTS}
    layers = [yaml.safe_load(path.read_text()) or {} for path in (ROOT / "presets").glob("*.yaml")]
    wanted = {str(layer["masks"]["weights"]) for layer in layers if "weights" in layer.get("masks", {})}
    wanted = {path for path in wanted if path.startswith("weights/")}
    assert len(wanted) >= 3
    assert wanted <= offered


@pytest.mark.parametrize("name", [checkpoint.name for checkpoint in CHECKPOINTS])
def test_how_to_get_a_checkpoint_is_the_command_that_downloads_it(name):
    assert how_to_get(name) == f"run `python -m pipeline.download {name}`"


def test_a_checkpoint_is_found_by_the_name_of_its_file():
    found = checkpoint_with("sam2.1_hiera_base_plus.pt")
    assert found is not None
    assert found.name == "sam2.1-hiera-base-plus"
    assert checkpoint_with("mine.pt") is None
    assert checkpoint_with("config.json") is None  # one of several files, and a name that many files have


def test_an_official_file_passes(tiny, tmp_path):
    path = tmp_path / "tiny.pth"
    path.write_bytes(b"weights")
    check_official(path)


def test_another_file_under_an_official_name_is_refused_with_both_hashes_and_the_way_out(tiny, tmp_path):
    path = tmp_path / "tiny.pth"
    path.write_bytes(b"weight")  # one byte was lost
    with pytest.raises(PipelineError) as caught:
        check_official(path)
    message = str(caught.value)
    assert str(path) in message
    assert hashlib.sha256(b"weight").hexdigest() in message
    assert hashlib.sha256(b"weights").hexdigest() in message
    assert "python -m pipeline.download tiny" in message
    assert "\n" not in message
    assert path.read_bytes() == b"weight"


def test_a_file_under_any_other_name_passes_unread(tiny, tmp_path):
    check_official(tmp_path / "mine.pth")  # does not even exist


def test_a_hash_that_is_known_already_is_not_computed_again(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(pooch, "file_hash", lambda *_, **__: pytest.fail("the file was read"))
    path = tmp_path / "tiny.pth"
    check_official(path, tiny.files[0].sha256)
    check_official(path, str(tiny.files[0].sha256).upper())
    with pytest.raises(PipelineError, match="0" * 64):
        check_official(path, "0" * 64)
