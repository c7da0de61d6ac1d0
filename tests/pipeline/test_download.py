"""Downloads from a server in this process: nothing here needs the internet."""

import errno
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipeline import download
from pipeline.data.datasets.cub200 import Cub200
from pipeline.download import DATA_SETS, Archive, DataSet, app, fetch, get_checkpoint, get_data_set
from pipeline.errors import PipelineError
from pipeline.weights import CHECKPOINTS, Checkpoint, RemoteFile

ROOT = Path(__file__).parents[2]
CONTENT = np.random.default_rng(0).bytes(2**21 + 12345)  # eight and a bit of the pieces that are read at once
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = 2**20

Serve = Callable[[BaseHTTPRequestHandler, bytes], None]


class Server:
    """Serves bytes under a path, in a manner per path, and counts what it sent.

    Attributes:
        files: path to content and manner.
        requests: path and Range header of each request so far.
        sent: bytes of content that were sent so far.
    """

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, Serve]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.sent = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the name is http.server's
                outer.requests.append((self.path, self.headers.get("Range")))
                if self.path not in outer.files:
                    self.send_error(404)
                    return
                content, serve = outer.files[self.path]
                serve(self, content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def offer(self, name: str, content: bytes, serve: Serve | None = None) -> str:
        """Serve CONTENT, with ranges unless SERVE is given; returns the address."""
        self.files[f"/{name}"] = (content, serve or self.with_ranges)
        return f"http://127.0.0.1:{self._server.server_port}/{name}"

    def send(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, *, first: int, total: int) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(total - first))
        if status == 206:
            handler.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        handler.end_headers()
        self.sent += len(body)  # before the client can have it all and go on
        handler.wfile.write(body)

    def with_ranges(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if wanted is None:
            self.whole(handler, content)
        elif int(wanted[1]) >= len(content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            first = int(wanted[1])
            self.send(handler, 206, content[first:], first=first, total=len(content))

    def whole(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        """Answer with all of it, as a server without ranges does."""
        self.send(handler, 200, content, first=0, total=len(content))

    def of_its_own_choice(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        """Answer a range with another range."""
        if handler.headers.get("Range"):
            self.send(handler, 206, content[5:], first=5, total=len(content))
        else:
            self.whole(handler, content)

    def cut_once(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        """Cut the first connection after HALF of the bytes."""
        if sum(path == handler.path for path, _ in self.requests) == 1:
            self.send(handler, 200, content[:HALF], first=0, total=len(content))
            handler.wfile.flush()
            handler.connection.close()
        else:
            self.with_ranges(handler, content)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.fixture
def file(server: Server) -> RemoteFile:
    """A file whose sha256 is known, on a server with ranges."""
    return RemoteFile("net.pth", server.offer("net.pth", CONTENT), len(CONTENT), SHA256)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _error_of(call: Callable[[], object]) -> str:
    """Give the message of the PipelineError that CALL raises, which is one line."""
    with pytest.raises(PipelineError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _tar(path: Path, entries: dict[str, bytes]) -> bytes:
    """Write a .tgz with ENTRIES at PATH and give its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def _published(server: Server, name: str, content: bytes, serve: Serve | None = None) -> RemoteFile:
    return RemoteFile(name, server.offer(name, content, serve), len(content), hashlib.sha256(content).hexdigest())


# one file


def test_a_download_brings_the_bytes_under_the_final_name_and_nothing_else(server, file, tmp_path, capsys):
    target = tmp_path / "weights" / "net.pth"
    fetch(file, target)
    assert target.read_bytes() == CONTENT
    assert _names(target.parent) == ["net.pth"]
    assert server.requests == [("/net.pth", None)]
    assert capsys.readouterr().out == f"{target}: downloaded, its sha256 is right\n"


def test_a_partial_file_is_continued_where_it_ends(server, file, tmp_path):
    (tmp_path / "net.pth.part").write_bytes(CONTENT[:HALF])
    fetch(file, tmp_path / "net.pth")
    assert server.requests == [("/net.pth", f"bytes={HALF}-")]
    assert server.sent == len(CONTENT) - HALF
    assert (tmp_path / "net.pth").read_bytes() == CONTENT
    assert _names(tmp_path) == ["net.pth"]


def test_a_connection_that_is_cut_keeps_what_came_and_the_next_run_fetches_only_the_rest(server, tmp_path):
    file = _published(server, "net.pth", CONTENT, server.cut_once)
    target = tmp_path / "net.pth"
    message = _error_of(lambda: fetch(file, target))
    assert str(file.url) in message
    assert "run this again" in message
    assert str(target) in message  # where to place it by hand
    assert _names(tmp_path) == ["net.pth.part"]
    came = (tmp_path / "net.pth.part").read_bytes()
    assert CONTENT.startswith(came)
    assert HALF - 2**18 <= len(came) <= HALF
    fetch(file, target)
    assert server.requests[1:] == [("/net.pth", f"bytes={len(came)}-")]
    assert server.sent == HALF + len(CONTENT) - len(came)
    assert target.read_bytes() == CONTENT


def test_a_killed_download_leaves_a_partial_file_and_no_other_and_is_continued(server, tmp_path):
    release = threading.Event()

    def stall(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        server.send(handler, 200, content[:HALF], first=0, total=len(content))
        handler.wfile.flush()
        release.wait(30)

    file = _published(server, "net.pth", CONTENT, stall)
    code = (
        "from pathlib import Path; from pipeline.download import fetch; from pipeline.weights import RemoteFile\n"
        f"fetch(RemoteFile('net.pth', {file.url!r}, {len(CONTENT)}, {SHA256!r}), Path('net.pth'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    part = tmp_path / "net.pth.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size >= HALF) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    release.set()
    assert part.read_bytes() == CONTENT[:HALF]
    assert not (tmp_path / "net.pth").exists()

    server.offer("net.pth", CONTENT)
    fetch(file, tmp_path / "net.pth")
    assert server.requests[1:] == [("/net.pth", f"bytes={HALF}-")]
    assert (tmp_path / "net.pth").read_bytes() == CONTENT


def test_an_interruption_while_the_whole_file_is_checked_costs_no_second_download(server, file, tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pooch.core, "hash_matches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(file, tmp_path / "net.pth")
    assert _names(tmp_path) == ["net.pth.part"]
    fetch(file, tmp_path / "net.pth")
    assert len(server.requests) == 1
    assert (tmp_path / "net.pth").read_bytes() == CONTENT


def test_without_hard_links_a_download_works_all_the_same(file, tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(download, "link", refused)
    fetch(file, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == CONTENT
    assert _names(tmp_path) == ["net.pth"]


@pytest.mark.parametrize("manner", ["whole", "of_its_own_choice"])
def test_a_server_that_does_not_give_the_range_asked_for_sends_all_of_it_afresh(server, manner, tmp_path):
    file = _published(server, "net.pth", CONTENT, getattr(server, manner))
    (tmp_path / "net.pth.part").write_bytes(CONTENT[:HALF])
    fetch(file, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == CONTENT
    assert _names(tmp_path) == ["net.pth"]


def test_a_server_that_refuses_every_range_even_none_is_asked_twice_and_not_for_ever(server, tmp_path):
    def refuse(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        handler.send_error(416)

    file = _published(server, "net.pth", CONTENT, refuse)
    (tmp_path / "net.pth.part").write_bytes(CONTENT[:HALF])
    assert "the server answers 416" in _error_of(lambda: fetch(file, tmp_path / "net.pth"))
    assert [wanted for _, wanted in server.requests] == [f"bytes={HALF}-", None]
    assert (tmp_path / "net.pth.part").read_bytes() == CONTENT[:HALF]


@pytest.mark.parametrize("size_bytes", [len(CONTENT), None])
def test_a_partial_file_larger_than_the_whole_is_dropped(server, size_bytes, tmp_path):
    file = RemoteFile("net.pth", server.offer("net.pth", CONTENT), size_bytes, SHA256)
    (tmp_path / "net.pth.part").write_bytes(CONTENT + b"more")
    fetch(file, tmp_path / "net.pth")
    vain = [("/net.pth", f"bytes={len(CONTENT) + 4}-")] if size_bytes is None else []  # only the server can tell
    assert server.requests == [*vain, ("/net.pth", None)]
    assert (tmp_path / "net.pth").read_bytes() == CONTENT


def test_wrong_bytes_never_get_the_final_name_and_both_hashes_are_shown(server, tmp_path):
    wrong = CONTENT[::-1]
    file = RemoteFile("net.pth", server.offer("net.pth", wrong), len(CONTENT), SHA256)
    message = _error_of(lambda: fetch(file, tmp_path / "net.pth"))
    assert SHA256 in message
    assert hashlib.sha256(wrong).hexdigest() in message
    assert str(file.url) in message
    assert _names(tmp_path) == []  # or each later run would continue from the wrong bytes


def test_a_file_of_another_size_is_refused_before_it_comes(server, tmp_path):
    file = RemoteFile("net.pth", server.offer("net.pth", CONTENT[:1000]), len(CONTENT), SHA256)
    message = _error_of(lambda: fetch(file, tmp_path / "net.pth"))
    assert "offers 1,000 bytes" in message
    assert f"expected {len(CONTENT):,}" in message
    assert _names(tmp_path) == []


def test_a_right_file_placed_by_hand_is_accepted_without_asking_the_server(server, file, tmp_path, capsys):
    (tmp_path / "net.pth").write_bytes(CONTENT)
    fetch(file, tmp_path / "net.pth")
    assert server.requests == []
    assert capsys.readouterr().out == f"{tmp_path / 'net.pth'}: is there, its sha256 is right\n"


def test_a_wrong_file_placed_by_hand_is_left_alone_and_both_hashes_are_shown(server, file, tmp_path):
    (tmp_path / "net.pth").write_bytes(CONTENT[:-1])
    message = _error_of(lambda: fetch(file, tmp_path / "net.pth"))
    assert SHA256 in message
    assert hashlib.sha256(CONTENT[:-1]).hexdigest() in message
    assert "move it away" in message
    assert (tmp_path / "net.pth").read_bytes() == CONTENT[:-1]
    assert _names(tmp_path) == ["net.pth"]
    assert server.requests == []


def test_a_folder_in_the_files_place_is_an_error(file, tmp_path):
    (tmp_path / "net.pth").mkdir()
    assert "is a folder" in _error_of(lambda: fetch(file, tmp_path / "net.pth"))


# a file whose sha256 nobody published


def test_a_file_without_a_known_sha256_is_recorded_and_compared_from_then_on(server, tmp_path, capsys):
    file = RemoteFile("config.json", server.offer("config.json", b"{}"), None, None)
    target, record = tmp_path / "config.json", tmp_path / "config.json.sha256"
    fetch(file, target)
    found = hashlib.sha256(b"{}").hexdigest()
    assert record.read_text() == f"{found}  config.json\n"
    said = capsys.readouterr().out
    assert found in said
    assert "no sha256 is known" in said

    fetch(file, target)
    assert "is there, its sha256 is right" in capsys.readouterr().out
    target.write_bytes(b"[]")
    message = _error_of(lambda: fetch(file, target))
    assert found in message
    assert hashlib.sha256(b"[]").hexdigest() in message
    assert str(record) in message
    assert len(server.requests) == 1

    target.unlink()
    server.offer("config.json", b"{ }")
    message = _error_of(lambda: fetch(file, target))
    assert found in message
    assert hashlib.sha256(b"{ }").hexdigest() in message
    assert _names(tmp_path) == ["config.json.sha256"]


def test_a_partial_file_without_a_known_sha256_is_not_continued_because_nothing_would_tell_a_mixture(server, tmp_path):
    file = RemoteFile("net.bin", server.offer("net.bin", CONTENT), None, None)
    (tmp_path / "net.bin.part").write_bytes(b"of an older version")
    fetch(file, tmp_path / "net.bin")
    assert server.requests == [("/net.bin", None)]
    assert (tmp_path / "net.bin").read_bytes() == CONTENT


def test_a_damaged_record_is_an_error_that_names_it(server, tmp_path):
    file = RemoteFile("config.json", server.offer("config.json", b"{}"), None, None)
    (tmp_path / "config.json.sha256").write_text("yes\n")
    assert "config.json.sha256 holds no sha256" in _error_of(lambda: fetch(file, tmp_path / "config.json"))


# what goes wrong around it


def test_a_refusal_names_the_address_the_answer_and_the_way_out(server, tmp_path):
    url = server.offer("x", b"")
    file = RemoteFile("y", f"{url}-gone", 1, SHA256)
    message = _error_of(lambda: fetch(file, tmp_path / "y"))
    assert message.startswith(f"{url}-gone: the server answers 404")
    assert f"place the file by hand at {tmp_path / 'y'}" in message


def test_no_connection_is_one_line_and_keeps_the_partial_file(server, tmp_path):
    url = server.offer("net.pth", CONTENT)
    server.close()
    server.close = lambda: None  # type: ignore[method-assign]
    (tmp_path / "net.pth.part").write_bytes(CONTENT[:HALF])
    file = RemoteFile("net.pth", url, len(CONTENT), SHA256)
    message = _error_of(lambda: fetch(file, tmp_path / "net.pth"))
    assert message.startswith(f"{url}: the connection failed (Connection refused): ")
    assert "run this again to continue after 1.05 MB" in message
    assert (tmp_path / "net.pth.part").read_bytes() == CONTENT[:HALF]


def test_too_little_room_is_found_out_before_anything_comes(server, file, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    message = _error_of(lambda: fetch(file, tmp_path / "net.pth"))
    assert "2.11 MB to come, 1 MB free" in message
    assert _names(tmp_path) == []

    (tmp_path / "net.pth.part").write_bytes(CONTENT[: 2 * HALF])  # what is missing now fits
    fetch(file, tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == CONTENT


def test_a_disk_that_fills_up_is_one_line_and_keeps_the_partial_file(file, tmp_path):
    limited = (
        "import resource; from pathlib import Path; from pipeline.download import fetch\n"
        "from pipeline.errors import PipelineError; from pipeline.weights import RemoteFile\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({HALF}, {HALF}))\n"
        "try:\n"
        f"    fetch(RemoteFile('net.pth', {file.url!r}, {len(CONTENT)}, {SHA256!r}), Path('net.pth'))\n"
        "except PipelineError as error:\n"
        "    print('one line:', error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", limited], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("one line: net.pth: File too large: ")  # the limit stands in for a full disk
    assert done.stdout.count("\n") == 1
    assert (tmp_path / "net.pth.part").read_bytes() == CONTENT[:HALF]
    assert not (tmp_path / "net.pth").exists()


# data sets


@pytest.fixture
def cub_files() -> dict[str, bytes]:
    """Two pictures in the layout of CUB-200-2011."""
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(picture, "JPEG")
    texts = {
        "images.txt": "1 001.Gull/Gull_1.jpg\n2 002.Wren/Wren_1.jpg\n",
        "classes.txt": "1 001.Gull\n2 002.Wren\n",
        "image_class_labels.txt": "1 1\n2 2\n",
        "train_test_split.txt": "1 0\n2 1\n",
        "bounding_boxes.txt": "1 0 0 8 6\n2 0 0 8 6\n",
        "parts/parts.txt": "1 back\n",
        "parts/part_locs.txt": "1 1 2.5 3.0 1\n2 1 4.0 5.0 1\n",
    }
    pictures = {f"images/{name}": picture.getvalue() for name in ("001.Gull/Gull_1.jpg", "002.Wren/Wren_1.jpg")}
    return {name: text.encode() for name, text in texts.items()} | pictures


@pytest.fixture
def cub(server: Server, cub_files: dict[str, bytes], tmp_path: Path) -> DataSet:
    """As the registered data set, but of two pictures and on the server of the tests."""
    entries = {f"CUB_200_2011/{name}": content for name, content in cub_files.items()} | {"attributes.txt": b"a"}
    content = _tar(tmp_path / "served" / "CUB_200_2011.tgz", entries)
    registered = next(data_set for data_set in DATA_SETS if data_set.name == "cub200")
    archive = Archive(_published(server, "CUB_200_2011.tgz", content), inner=registered.archives[0].inner)
    return DataSet("cub200", "", registered.folder, (archive,), registered.holds, "")


@pytest.fixture
def segmentations(server: Server, tmp_path: Path) -> DataSet:
    picture = io.BytesIO()
    grey = np.zeros((6, 8), dtype=np.uint8)
    grey[2:4, 3:7] = 255
    Image.fromarray(grey).save(picture, "PNG")
    entries = {f"segmentations/{name}.png": picture.getvalue() for name in ("001.Gull/Gull_1", "002.Wren/Wren_1")}
    content = _tar(tmp_path / "served" / "segmentations.tgz", entries)
    registered = next(data_set for data_set in DATA_SETS if data_set.name == "cub200-segmentations")
    archive = Archive(_published(server, "segmentations.tgz", content), inner=registered.archives[0].inner)
    return DataSet("cub200-segmentations", "", registered.folder, (archive,), (), "", part_of="cub200")


def test_a_downloaded_data_set_is_what_its_reader_expects(cub, segmentations, cub_files, tmp_path):
    raw = tmp_path / "raw"
    get_data_set(cub, raw)
    folder = raw / "CUB_200_2011"
    assert {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    } == cub_files  # what lies outside the archive's folder is left out
    get_data_set(segmentations, raw)
    reader = Cub200(folder)
    records = reader.listing().records
    assert [record.image_key for record in records] == ["001-Gull-Gull_1", "002-Wren-Wren_1"]
    mask = reader.object_mask(records[0])
    assert mask is not None
    assert mask.sum() == mask[2:4, 3:7].sum() == 8


def test_a_data_set_that_is_there_is_neither_asked_for_nor_touched(cub, server, tmp_path, capsys):
    get_data_set(cub, tmp_path / "raw")
    own = tmp_path / "raw" / "CUB_200_2011" / "notes.txt"
    own.write_text("mine")
    num_requests = len(server.requests)
    capsys.readouterr()
    get_data_set(cub, tmp_path / "raw")
    assert len(server.requests) == num_requests
    assert own.read_text() == "mine"
    assert capsys.readouterr().out == f"{tmp_path / 'raw' / 'CUB_200_2011'}: is there\n"


def test_archives_that_are_there_are_unpacked_without_the_server(cub, server, tmp_path):
    archive = tmp_path / "raw" / "archives" / "cub200" / "CUB_200_2011.tgz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes((tmp_path / "served" / "CUB_200_2011.tgz").read_bytes())
    get_data_set(cub, tmp_path / "raw")
    assert server.requests == []
    assert (tmp_path / "raw" / "CUB_200_2011" / "images.txt").is_file()


def test_an_incomplete_folder_in_its_place_is_an_error_that_names_what_is_missing(cub, tmp_path):
    (tmp_path / "raw" / "CUB_200_2011" / "images").mkdir(parents=True)
    message = _error_of(lambda: get_data_set(cub, tmp_path / "raw"))
    assert "lacks images.txt" in message
    assert _names(tmp_path / "raw" / "CUB_200_2011") == ["images"]


def test_an_empty_folder_in_its_place_is_filled(cub, tmp_path):
    (tmp_path / "raw" / "CUB_200_2011").mkdir(parents=True)
    get_data_set(cub, tmp_path / "raw")
    assert (tmp_path / "raw" / "CUB_200_2011" / "images.txt").is_file()


def test_object_masks_without_their_data_set_are_an_error_with_the_command_for_both(segmentations, server, tmp_path):
    message = _error_of(lambda: get_data_set(segmentations, tmp_path / "raw"))
    assert "python -m pipeline.download cub200 cub200-segmentations" in message
    assert server.requests == []


def test_several_archives_and_single_files_go_into_one_folder(server, tmp_path):
    train = _tar(tmp_path / "served" / "train.tgz", {"train/1.jpg": b"1"})
    kit = _tar(tmp_path / "served" / "kit.tgz", {"./kit/meta.mat": b"m"})
    archives = (
        Archive(_published(server, "train.tgz", train)),
        Archive(_published(server, "kit.tgz", kit)),
        Archive(_published(server, "labels.mat", b"labels"), to="kit"),
    )
    get_data_set(DataSet("cars", "", "cars", archives, ("kit/labels.mat",), ""), tmp_path / "raw")
    folder = tmp_path / "raw" / "cars"
    assert {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == {
        "train/1.jpg": b"1",
        "kit/meta.mat": b"m",
        "kit/labels.mat": b"labels",
    }
    assert _names(folder) == ["kit", "train"]


def _hostile(kind: str, outside: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        info = tarfile.TarInfo("data/x")
        if kind == "parent":
            info.name = "data/../../../../evil.txt"
        elif kind == "link":
            info.type, info.linkname = tarfile.SYMTYPE, str(outside)
        elif kind == "device":
            info.type = tarfile.CHRTYPE
        tar.addfile(info)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["parent", "link", "device"])
def test_an_archive_that_reaches_outside_its_folder_is_refused_and_leaves_nothing(server, kind, tmp_path):
    archive = Archive(_published(server, "data.tgz", _hostile(kind, tmp_path / "secret")), inner="data")
    message = _error_of(lambda: get_data_set(DataSet("data", "", "data", (archive,), (), ""), tmp_path / "raw"))
    assert "data.tgz cannot be unpacked" in message
    assert _names(tmp_path / "raw") == ["archives"]
    assert _names(tmp_path) == ["raw"]


@pytest.mark.parametrize("damage", ["no tar", "cut", "bent"])
def test_an_archive_that_is_none_leaves_no_folder(server, damage, tmp_path):
    whole = _tar(
        tmp_path / "served" / "data.tgz",
        {"data/x": bytes(np.random.default_rng(0).integers(0, 9, 50_000, dtype=np.uint8))},
    )
    content = {
        "no tar": b"<html>moved</html>",
        "cut": whole[: len(whole) // 2],
        "bent": whole[:9000] + b"\xff" * 1000 + whole[10_000:],
    }[damage]
    archive = Archive(_published(server, "data.tgz", content), inner="data")
    message = _error_of(lambda: get_data_set(DataSet("data", "", "data", (archive,), (), ""), tmp_path / "raw"))
    assert "data.tgz" in message
    assert _names(tmp_path / "raw") == ["archives"]


@pytest.mark.parametrize(("inner", "named"), [("photos", "photos"), ("data", "labels.txt")])
def test_an_archive_with_other_content_leaves_no_folder(server, inner, named, tmp_path):
    content = _tar(tmp_path / "served" / "data.tgz", {"data/x": b"x"})
    data_set = DataSet(
        "data", "", "data", (Archive(_published(server, "data.tgz", content), inner),), ("labels.txt",), ""
    )
    message = _error_of(lambda: get_data_set(data_set, tmp_path / "raw"))
    assert named in message
    assert _names(tmp_path / "raw") == ["archives"]


def test_what_nobody_offers_any_more_says_where_it_goes_and_is_taken_from_there(tmp_path):
    content = _tar(tmp_path / "served" / "cars_train.tgz", {"cars_train/00001.jpg": b"car"})
    file = RemoteFile("cars_train.tgz", None, len(content), hashlib.sha256(content).hexdigest())
    data_set = DataSet("cars", "", "cars", (Archive(file),), ("cars_train",), "", by_hand="ask the museum")
    raw = tmp_path / "raw"
    message = _error_of(lambda: get_data_set(data_set, raw))
    assert str(raw / "archives" / "cars") in message
    assert message.endswith("ask the museum")

    (raw / "archives" / "cars").mkdir(parents=True)
    (raw / "archives" / "cars" / "cars_train.tgz").write_bytes(content[:-1])
    assert file.sha256 is not None
    assert file.sha256 in _error_of(lambda: get_data_set(data_set, raw))

    (raw / "archives" / "cars" / "cars_train.tgz").write_bytes(content)
    get_data_set(data_set, raw)
    assert (raw / "cars" / "cars_train" / "00001.jpg").read_bytes() == b"car"


# the command


def _run(*args: object, columns: int = 200):
    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": str(columns)})


@pytest.mark.parametrize("args", [(), ("--help",)])
def test_without_a_name_and_in_the_help_all_names_are_listed_with_size_place_and_licence(args):
    done = _run(*args)
    assert done.exit_code == 0
    rows = {line.split("│")[1].strip(): line for line in done.output.splitlines() if line.count("│") == 6}
    assert set(rows) == {item.name for item in (*CHECKPOINTS, *DATA_SETS)}
    assert "2.56 GB" in rows["sam-vit-h"]
    assert "weights/sam_vit_h_4b8939.pth" in rows["sam-vit-h"]
    assert "Apache-2.0" in rows["sam-vit-h"]
    assert "816 MB" in rows["dogs"]  # three archives
    assert "by hand" in rows["cars196"]
    assert ("Usage" in done.output) == bool(args)


def test_names_are_listed_in_full_on_a_narrow_terminal():
    done = _run(columns=90)
    assert all(f" {item.name} " in done.output for item in (*CHECKPOINTS, *DATA_SETS))


def test_an_unknown_name_is_one_line_that_lists_the_names(tmp_path):
    done = _run("sam-vit-b", "sam-vit-x", "--to", tmp_path)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: there is no download `sam-vit-x`; there are sam-vit-b, ")
    assert done.stderr.count("\n") == 1
    assert all(item.name in done.stderr for item in (*CHECKPOINTS, *DATA_SETS))
    assert _names(tmp_path) == []


def test_several_names_are_downloaded_in_an_order_that_works(cub, segmentations, file, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "CHECKPOINTS", (Checkpoint("net", "", (file,), "", folder="Net"),))
    monkeypatch.setattr(download, "DATA_SETS", (cub, segmentations))
    done = _run("cub200-segmentations", "net", "cub200", "net", "--to", tmp_path / "here")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "here" / "Net" / "net.pth").read_bytes() == CONTENT
    assert (tmp_path / "here" / "CUB_200_2011" / "segmentations" / "002.Wren" / "Wren_1.png").is_file()


def test_without_to_checkpoints_go_to_weights_and_data_sets_to_raw(cub, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "CHECKPOINTS", (Checkpoint("net", "", (file,), ""),))
    monkeypatch.setattr(download, "DATA_SETS", (cub,))
    assert _run("net", "cub200").exit_code == 0
    assert (tmp_path / "weights" / "net.pth").is_file()
    assert (tmp_path / "raw" / "CUB_200_2011" / "images.txt").is_file()


def test_a_failure_is_one_error_line_and_exit_1(server, tmp_path, monkeypatch):
    file = _published(server, "net.pth", CONTENT, server.cut_once)
    monkeypatch.setattr(download, "CHECKPOINTS", (Checkpoint("net", "", (file,), ""),))
    done = _run("net", "--to", tmp_path)
    assert done.exit_code == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert str(file.url) in errors[0]
    assert "Traceback" not in done.stderr


# what is registered


def test_every_archive_has_a_sha256_and_an_https_address_or_a_word_on_how_to_get_it():
    pairs = [(data_set, archive.file) for data_set in DATA_SETS for archive in data_set.archives]
    assert len(pairs) == 9
    for data_set, file in pairs:
        assert re.fullmatch("[0-9a-f]{64}", str(file.sha256))
        assert file.size_bytes
        if file.url is None:
            assert data_set.by_hand
        else:
            assert re.fullmatch(r"https://\S+/\S+", file.url)
    assert len({file.sha256 for _, file in pairs}) == len(pairs)


def test_names_of_checkpoints_and_data_sets_are_unique_and_parts_come_after_their_wholes():
    names = [item.name for item in (*CHECKPOINTS, *DATA_SETS)]
    assert len(set(names)) == len(names) == 12
    for data_set in DATA_SETS:
        if data_set.part_of:
            assert names.index(data_set.part_of) < names.index(data_set.name)


def test_the_data_sets_of_all_presets_can_be_had_where_the_presets_look_for_them():
    layers = [yaml.safe_load(path.read_text()) or {} for path in (ROOT / "presets").glob("*.yaml")]
    sources = {str(layer["dataset"]["source"]) for layer in layers if "source" in layer.get("dataset", {})}
    sources = {source for source in sources if source.startswith("raw/")}
    assert len(sources) == 3
    assert sources <= {f"raw/{data_set.folder}" for data_set in DATA_SETS}


def test_all_files_of_a_checkpoint_go_into_its_folder(server, tmp_path):
    files = tuple(_published(server, name, name.encode()) for name in ("config.json", "model.safetensors"))
    get_checkpoint(Checkpoint("direct", "", files, "", folder="Direct"), tmp_path)
    assert _names(tmp_path / "Direct") == ["config.json", "model.safetensors"]
