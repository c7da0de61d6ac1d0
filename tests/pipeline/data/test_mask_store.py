import logging
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.data import mask_store
from pipeline.data.boxes import Box
from pipeline.data.mask_store import MaskStore, WriteBehind, read_contents
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks.sqlite", "masks.sqlite.lock"]


def test_a_row_is_known_to_be_there_without_being_read_even_a_damaged_one(tmp_path, caplog):
    path = filled(tmp_path / "masks.sqlite", 2)
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE masks SET masks = X'00' WHERE image = 'image 1'")
    database.close()
    with caplog.at_level(logging.WARNING), MaskStore(path) as store:
        assert [store.has(f"image {number}", "settings") for number in range(3)] == [True, True, False]
        assert not store.has("image 0", "other settings")
        assert caplog.records == []
        assert store.get("image 1", "settings") is None


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


@pytest.mark.parametrize(
    "damage",
    [
        "garbage",
        "first half",
        "last page cut",
        "page overwritten",
        "header overwritten",
        "format unknown",
        "magic flipped",
    ],
)
def test_a_damaged_file_is_set_aside_with_a_warning_and_a_new_store_begins(tmp_path, caplog, damage):
    path = filled(tmp_path / "masks.sqlite", 20)
    content = path.read_bytes()
    assert len(content) > 10 * 4096
    damaged = {
        "garbage": b"this is no database" * 500,
        "first half": content[: len(content) // 2],
        "last page cut": content[:-4096],
        "format unknown": content[:47] + b"\x09" + content[48:],
        "magic flipped": b"T" + content[1:],
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


def test_no_flipped_bit_of_the_header_gives_other_masks_or_an_error(tmp_path, caplog):
    content = filled(tmp_path / "whole.sqlite", 3).read_bytes()
    set_aside = 0
    for bit in range(0, 800, 7):
        path = tmp_path / f"{bit}" / "masks.sqlite"
        path.parent.mkdir()
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(changed)
        present = found(path, 3)  # compares the masks
        aside = [other for other in path.parent.iterdir() if "damaged" in other.name]
        assert (present, len(aside)) in [([0, 1, 2], 0), ([], 1)]
        set_aside += len(aside)
    assert 20 < set_aside < 100
    assert len([record for record in caplog.records if "set aside" in record.getMessage()]) == set_aside


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
    for asked in (MaskStore.get, MaskStore.has):
        with pytest.raises(PipelineError, match=r"masks\.sqlite") as error, MaskStore(path) as store:
            asked(store, "image", "settings")
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
from pipeline.data import mask_store
from pipeline.data.mask_store import MaskStore, WriteBehind, read_contents
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


def killed_writer(folder):
    """Make a store whose process was killed, with its write-ahead log beside it; the images it had said it had put."""
    folder.mkdir()
    process = start_writer(folder / "masks.sqlite", 0, 1_000_000)
    begin(process)
    said = [process.stdout.readline() for _ in range(40)]
    process.kill()
    process.communicate()
    return len(said)


def test_a_damaged_write_ahead_log_costs_the_last_images_and_never_gives_other_masks(tmp_path, caplog):
    num_put = killed_writer(tmp_path / "killed")
    log = (tmp_path / "killed/masks.sqlite-wal").read_bytes()
    rng = np.random.default_rng(0)
    counts = []
    for attempt in range(30):
        folder = tmp_path / f"{attempt}"
        shutil.copytree(tmp_path / "killed", folder)
        damaged = bytearray(log)
        if attempt % 2:
            damaged = damaged[: int(rng.integers(len(log)))]
        else:
            damaged[int(rng.integers(len(log)))] ^= 1 << int(rng.integers(8))
        (folder / "masks.sqlite-wal").write_bytes(damaged)
        (folder / "masks.sqlite-shm").unlink(missing_ok=True)  # as after the machine went down
        kept = found(folder / "masks.sqlite", num_put)  # compares the masks
        assert kept == list(range(len(kept)))
        counts.append(len(kept))
        with MaskStore(folder / "masks.sqlite") as store:
            store.put("image 0", "settings", masks_of(0))
        assert 0 in found(folder / "masks.sqlite", num_put)
    assert len(set(counts)) > 5
    assert not [record for record in caplog.records if "computed anew" in record.getMessage()]


def fill_up(store):
    """Let the store's disk be full after a few more pages."""
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages + 12}")


def test_a_full_disk_is_one_line_and_keeps_the_store_valid_and_what_is_in_it(tmp_path):
    path = filled(tmp_path / "masks.sqlite", 5)
    with MaskStore(path) as store:
        fill_up(store)
        with pytest.raises(PipelineError, match="full") as error:  # noqa: PT012
            for number in range(5, 100):
                store.put(f"image {number}", "settings", masks_of(number))
        assert store.get("image 4", "settings") == masks_of(4)  # it can still be read
    assert str(path) in str(error.value)
    assert "make room" in str(error.value)
    assert "\n" not in str(error.value)
    assert number > 6
    assert found(path, 100) == list(range(number))
    assert not [other for other in tmp_path.iterdir() if "damaged" in other.name]
    assert set(read_contents(path, "settings").num_masks) == {f"image {i}" for i in range(number)}


def test_a_limit_on_the_size_of_files_is_one_line_too_and_leaves_the_store_valid(tmp_path):
    path = tmp_path / "masks.sqlite"
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n" + WRITER
    process = subprocess.run(
        [sys.executable, "-c", limited, path, "0", "1000"], cwd=ROOT, input="\n", capture_output=True, text=True
    )
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(f"pipeline.errors.PipelineError: {path}: masks cannot be stored")
    finished = [int(line) for line in process.stdout.splitlines()[1:]]
    assert len(finished) > 3
    assert found(path, 1000) == finished


class SlowStore(MaskStore):
    """Stands in for a store whose disk does nothing until it is allowed to."""

    def __init__(self, fail_at=None):
        self.allowed, self.put_images, self._fail_at = threading.Event(), [], fail_at

    def put(self, image, settings, masks, *, seconds):
        assert self.allowed.wait(10)
        if image == self._fail_at:
            raise PipelineError("disk full")
        self.put_images.append(image)


def test_puts_from_behind_are_all_there_in_order_at_the_end_of_the_block(tmp_path):
    with MaskStore(tmp_path / "masks.sqlite") as store:
        with WriteBehind(store) as behind:
            for number in range(50):
                behind.put(f"image {number}", "settings", masks_of(number), seconds=1.0)
        assert [store.get(f"image {number}", "settings") for number in range(50)] == [masks_of(i) for i in range(50)]
    assert read_contents(tmp_path / "masks.sqlite", "settings").timed_seconds == 50.0


def test_puts_from_behind_that_wait_are_kept_when_the_block_fails():
    store = SlowStore()
    with pytest.raises(RuntimeError, match="network"), WriteBehind(store) as behind:  # noqa: PT012
        for number in range(5):
            behind.put(str(number), "settings", [])
        store.allowed.set()
        raise RuntimeError("network")
    assert store.put_images == ["0", "1", "2", "3", "4"]


def test_only_a_few_images_wait_for_the_disk():
    store, taken = SlowStore(), []

    def produce():
        with WriteBehind(store) as behind:
            for number in range(30):
                behind.put(str(number), "settings", [])
                taken.append(number)

    producer = threading.Thread(target=produce)
    producer.start()
    producer.join(0.3)
    assert len(taken) == mask_store._WAITING_PUTS
    store.allowed.set()
    producer.join(10)
    assert len(taken) == len(store.put_images) == 30


@pytest.mark.parametrize("fail_at", ["0", "3", "29"])
def test_a_put_that_fails_behind_is_raised_within_a_few_images(fail_at):
    store = SlowStore(fail_at)
    store.allowed.set()
    with pytest.raises(PipelineError, match="disk full"), WriteBehind(store) as behind:  # noqa: PT012
        for number in range(30):
            behind.put(str(number), "settings", [])
    assert number <= int(fail_at) + mask_store._WAITING_PUTS


def test_the_contents_are_counted_per_settings_and_timed_over_the_last_images(tmp_path, monkeypatch):
    path = tmp_path / "masks.sqlite"
    assert read_contents(path, "settings") is None
    with MaskStore(path) as store:
        store.call("other", "grid, weights.pth")
        store.call("other", "the first name counts")
        store.put("a", "other", MASKS, seconds=100.0)
        store.put("a", "nameless", MASKS[:1])
        store.put("b", "nameless", [])
        store.put("a", "settings", MASKS, seconds=1.0)
        store.put("b", "settings", [], seconds=2.0)
        store.put("c", "settings", MASKS)
        store.put("a", "settings", MASKS[:1], seconds=4.0)
    contents = read_contents(path, "settings")
    assert contents.num_masks == {"a": 1, "b": 0, "c": 2}
    assert contents.other_settings == [("nameless", "", 2), ("other", "grid, weights.pth", 1)]
    assert (contents.timed_images, contents.timed_seconds) == (3, 7.0)
    monkeypatch.setattr(mask_store, "_TIMED_IMAGES", 2)
    assert read_contents(path, "settings").timed_seconds == 6.0
    assert read_contents(path, "unknown").num_masks == {}


def old_store(path):
    """A store as it was before timings were kept."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute(
        "CREATE TABLE masks (image TEXT, settings TEXT, masks BLOB NOT NULL, PRIMARY KEY (image, settings))"
        " WITHOUT ROWID"
    )
    with database:
        database.execute("INSERT INTO masks VALUES ('a', 'settings', ?)", (mask_store._pack(MASKS),))
        database.execute("INSERT INTO masks VALUES ('b', 'settings', X'00')")
    database.close()
    return path


def test_a_store_from_before_timings_were_kept_is_counted_and_goes_on(tmp_path):
    path = old_store(tmp_path / "masks.sqlite")
    assert read_contents(path, "settings").num_masks == {"a": 2, "b": None}
    assert read_contents(path, "settings").timed_images == 0
    with MaskStore(path) as store:
        assert store.get("a", "settings") == MASKS
        store.put("c", "settings", MASKS, seconds=1.0)
    assert read_contents(path, "settings").num_masks == {"a": 2, "b": None, "c": 2}
    assert read_contents(path, "settings").timed_images == 1


def test_reading_the_contents_changes_no_file(tmp_path):
    path = filled(tmp_path / "masks.sqlite", 5)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(read_contents(path, "settings").num_masks) == 5
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_contents_are_read_while_a_process_writes_and_after_it_was_killed(tmp_path):
    path = tmp_path / "masks.sqlite"
    with MaskStore(path) as store:
        for number in range(3):
            store.put(f"image {number}", "settings", masks_of(number))
            assert len(read_contents(path, "settings").num_masks) == number + 1
    num_put = killed_writer(tmp_path / "killed")
    assert len(read_contents(tmp_path / "killed/masks.sqlite", "settings").num_masks) >= num_put


def test_contents_of_a_damaged_file_are_an_error_and_the_file_stays(tmp_path):
    path = tmp_path / "masks.sqlite"
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(sqlite3.DatabaseError):
        read_contents(path, "settings")
    assert [file.name for file in tmp_path.iterdir()] == ["masks.sqlite"]


def test_a_flipped_bit_never_makes_the_contents_a_bug(tmp_path):
    content = filled(tmp_path / "whole.sqlite", 10).read_bytes()
    path = tmp_path / "masks.sqlite"
    rng = np.random.default_rng(0)
    num_read = 0
    for position in rng.integers(0, len(content), 300):
        changed = bytearray(content)
        changed[int(position)] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            read_contents(path, "settings")
            num_read += 1
        except sqlite3.DatabaseError:
            pass
    assert num_read > 100
