import logging
import signal
import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.boxes import Box
from pipeline.data.mask_store import MaskStore
from pipeline.data.masks import StoredMask
from pipeline.errors import PipelineError

ROOT = Path(__file__).parents[3]

MASKS = [
    StoredMask(b"05d0R3", Box(1, 2, 30, 40), 400, 0.75, 0.9375),
    StoredMask(b"<>{}`\\", Box(0, 0, 1, 1), 1, -1.5),
]


def masks_of(number):
    """Masks that cannot be mistaken for those of another number; incompressible, so that they fill pages."""
    rle = np.random.default_rng(number).integers(48, 112, 2000, dtype=np.uint8).tobytes()
    return [StoredMask(rle, Box(0, 0, 1, 1), number, 1.0)]


def filled(path, count):
    with MaskStore(path) as store:
        for number in range(count):
            store.put(f"image {number}", "settings", masks_of(number))
    return path


def found(path, count):
    """Which of the images the store has; each with the right masks."""
    with MaskStore(path) as store:
        kept = {number: store.get(f"image {number}", "settings") for number in range(count)}
    present = {number: masks for number, masks in kept.items() if masks is not None}
    assert all(masks == masks_of(number) for number, masks in present.items())
    return list(present)


def test_what_was_put_is_there_after_reopening(tmp_path):
    path = tmp_path / "folder" / "that is new" / "masks.sqlite"
    with MaskStore(path) as store:
        store.put("image", "settings", MASKS)
        assert store.get("image", "settings") == MASKS
    with MaskStore(path) as store:
        assert store.get("image", "settings") == MASKS
        assert isinstance(store.get("image", "settings")[0].box, Box)


def test_rows_go_through_a_write_ahead_log_that_is_empty_once_the_store_is_closed(tmp_path):
    with MaskStore(tmp_path / "masks.sqlite") as store:
        store.put("image", "settings", MASKS)
        assert (tmp_path / "masks.sqlite-wal").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == ["masks.sqlite"]


def test_an_image_without_masks_is_finished_and_not_absent(tmp_path):
    with MaskStore(tmp_path / "masks.sqlite") as store:
        store.put("image", "settings", [])
    with MaskStore(tmp_path / "masks.sqlite") as store:
        assert store.get("image", "settings") == []


def test_other_settings_or_another_image_are_not_found(tmp_path):
    with MaskStore(tmp_path / "masks.sqlite") as store:
        store.put("image", "settings", MASKS)
        assert store.get("image", "other settings") is None
        assert store.get("other image", "settings") is None
        assert store.get("settings", "image") is None


def test_the_same_image_with_two_settings_has_two_rows_and_the_last_put_of_each_counts(tmp_path):
    with MaskStore(tmp_path / "masks.sqlite") as store:
        store.put("image", "old settings", MASKS)
        store.put("image", "new settings", MASKS[:1])
        store.put("image", "new settings", MASKS[1:])
        assert store.get("image", "old settings") == MASKS
        assert store.get("image", "new settings") == MASKS[1:]


@pytest.mark.parametrize("damage", ["garbage", "first half", "page overwritten", "header overwritten"])
def test_a_damaged_file_is_set_aside_with_a_warning_and_a_new_store_begins(tmp_path, caplog, damage):
    path = filled(tmp_path / "masks.sqlite", 20)
    content = path.read_bytes()
    assert len(content) > 10 * 4096
    damaged = {
        "garbage": b"this is no database" * 500,
        "first half": content[: len(content) // 2],
        "page overwritten": content[:4096] + b"\xaa" * 4096 + content[8192:],
        "header overwritten": b"\0" * 100 + content[100:],
    }[damage]
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING), MaskStore(path) as store:
        assert [store.get(f"image {number}", "settings") for number in range(20)] == [None] * 20
        store.put("image 0", "settings", masks_of(0))
    aside = [other for other in tmp_path.iterdir() if "damaged" in other.name]
    assert [other.read_bytes() for other in aside] == [damaged]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage()
    assert str(aside[0]) in record.getMessage()
    assert found(path, 20) == [0]


def test_a_second_damaged_file_does_not_replace_the_first(tmp_path):
    path = tmp_path / "masks.sqlite"
    for content in (b"first " * 1000, b"second " * 1000):
        path.write_bytes(content)
        MaskStore(path).__exit__(None, None, None)
    aside = {other.read_bytes() for other in tmp_path.iterdir() if "damaged" in other.name}
    assert aside == {b"first " * 1000, b"second " * 1000}


BLOBS = {
    "not compressed": b"garbage",
    "no JSON": zlib.compress(b"masks"),
    "no list": zlib.compress(b"5"),
    "too few columns": zlib.compress(b'[["0", [0, 0, 1, 1]]]'),
    "a number for a code": zlib.compress(b"[[7, [0, 0, 1, 1], 1, 0.5, null]]"),
    "three corners": zlib.compress(b'[["0", [0, 0, 1], 1, 0.5, null]]'),
    "cut short": zlib.compress(b'[["0", [0, 0, 1, 1], 1, 0.5, null]]')[:-3],
    "text": "masks",
    "a number": 5,
}


@pytest.mark.parametrize("blob", BLOBS.values(), ids=BLOBS)
def test_a_row_that_does_not_unpack_counts_as_absent_and_can_be_put_again(tmp_path, caplog, blob):
    path = filled(tmp_path / "masks.sqlite", 3)
    database = sqlite3.connect(path)
    with database:
        assert database.execute("UPDATE masks SET masks = ? WHERE image = 'image 1'", (blob,)).rowcount == 1
    database.close()
    with caplog.at_level(logging.WARNING):
        assert found(path, 3) == [0, 2]
    assert len(caplog.records) == 1
    with MaskStore(path) as store:
        store.put("image 1", "settings", masks_of(1))
    assert found(path, 3) == [0, 1, 2]


def test_a_flipped_bit_never_gives_other_masks(tmp_path):
    content = filled(tmp_path / "whole.sqlite", 10).read_bytes()
    rng = np.random.default_rng(0)
    lost = 0
    for attempt in range(40):
        path = tmp_path / f"{attempt}" / "masks.sqlite"
        path.parent.mkdir()
        changed = bytearray(content)
        changed[int(rng.integers(100, len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        lost += len(found(path, 10)) < 10  # `found` compares the masks
    assert 5 < lost < 40


def test_a_blob_that_claims_to_be_text_counts_as_absent(tmp_path):
    path = filled(tmp_path / "masks.sqlite", 2)
    database = sqlite3.connect(path)
    with database:  # a cast keeps the bytes, which are no UTF-8
        database.execute("UPDATE masks SET masks = CAST(X'78FFFE' AS TEXT) WHERE image = 'image 0'")
    database.close()
    assert found(path, 2) == [1]


def test_a_database_of_something_else_is_one_line_that_names_the_file(tmp_path):
    path = tmp_path / "masks.sqlite"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE masks (name TEXT)")
    database.close()
    with pytest.raises(PipelineError, match=r"masks\.sqlite") as error, MaskStore(path) as store:
        store.get("image", "settings")
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_one_line_that_names_the_file(tmp_path):
    (tmp_path / "file").write_text("a regular file")
    path = tmp_path / "file" / "masks.sqlite"
    with pytest.raises(PipelineError) as error:
        MaskStore(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_in_place_of_the_file_is_one_line_that_names_it(tmp_path):
    (tmp_path / "masks.sqlite").mkdir()
    with pytest.raises(PipelineError, match=r"masks\.sqlite") as error:
        MaskStore(tmp_path / "masks.sqlite")
    assert "\n" not in str(error.value)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from pipeline.data.boxes import Box
from pipeline.data.mask_store import MaskStore
from pipeline.data.masks import StoredMask

path, start, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
with MaskStore(path) as store:
    for number in range(start, stop):
        rle = np.random.default_rng(number).integers(48, 112, 2000, dtype=np.uint8).tobytes()
        store.put(f"image {number}", "settings", [StoredMask(rle, Box(0, 0, 1, 1), number, 1.0)])
        print(number, flush=True)
"""


def start_writer(path, start, stop):
    """Start a process that puts images, and wait until it is about to open the store."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, path, str(start), str(stop)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def begin(process):
    process.stdin.write("\n")
    process.stdin.flush()


def test_a_process_killed_in_the_middle_of_its_puts_loses_nothing_it_had_put(tmp_path):
    path = tmp_path / "masks.sqlite"
    process = start_writer(path, 0, 1_000_000)
    begin(process)
    said = [process.stdout.readline() for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    assert process.wait() == -signal.SIGKILL
    finished = [int(line) for line in said if line.endswith("\n")]
    assert len(finished) >= 50
    kept = found(path, len(finished) + 2)
    assert kept[: len(finished)] == finished
    assert len(kept) <= len(finished) + 1  # the one it had put, but not yet told of
    assert not [other for other in tmp_path.iterdir() if "damaged" in other.name]


def test_two_processes_that_write_at_once_both_succeed(tmp_path):
    path = tmp_path / "masks.sqlite"
    processes = [start_writer(path, 0, 60), start_writer(path, 60, 120)]
    for process in processes:
        begin(process)
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert found(path, 120) == list(range(120))
