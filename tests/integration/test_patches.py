"""A device that holds an earlier model fetches what has changed: on real stores and a rough one."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from runtime.errors import Corrupt, Unavailable
from runtime.retry import instant
from storage.store.embedded import EmbeddedStore
from storage.transfer.byte_ranges import EarlierVersion, Range, length
from storage.transfer.files import Cancelled, Transfers, TransferSettings
from tests.integration.store_fixtures import (  # noqa: F401
    Answer,
    RoughStore,
    bucket_of,
    embedded_store,
    rough_store,
)

SIZE = 3_000_000
CHANGED: list[Range] = [(0, 1000), (700_000, 900_000), (2_500_000, 2_500_001)]
QUICK = TransferSettings(attempts=3, read_s=2.0, connect_s=2.0)


def renewed(old: bytes, changed: list[Range], seed: int) -> bytes:
    """The next version: other bytes in the ranges alone."""
    data = bytearray(old)
    for start, end in changed:
        data[start:end] = random.Random(seed + start).randbytes(end - start)
    return bytes(data)


OLD = random.Random(7).randbytes(SIZE)
NEW = renewed(OLD, CHANGED, 1)
SHA = hashlib.sha256(NEW).hexdigest()


@pytest.fixture
def rough(rough_store: RoughStore) -> RoughStore:  # noqa: F811
    rough_store.body = NEW
    return rough_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    found = tmp_path / "older.safetensors"
    found.write_bytes(OLD)
    return found


def get(
    store: RoughStore,
    path: Path,
    older: Path,
    changed: list[Range] | None = None,
    cancel: threading.Event | None = None,
) -> int:
    earlier = EarlierVersion(older, CHANGED if changed is None else changed)
    with instant():
        return Transfers(QUICK).download(
            store.url, path, sha256=SHA, size=SIZE, cancel=cancel, earlier=earlier
        )


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def test_a_real_store_sends_the_changed_ranges_alone(
    embedded_store: EmbeddedStore,  # noqa: F811
    path: Path,
    older: Path,
) -> None:
    store = bucket_of(embedded_store)
    store.put("k/model", NEW)
    url = store.presign_get("k/model", 60)
    earlier = EarlierVersion(older, CHANGED)
    moved = Transfers().download(url, path, sha256=SHA, size=SIZE, earlier=earlier)
    assert moved == length(CHANGED)
    assert path.read_bytes() == NEW
    assert older.read_bytes() == OLD


def test_a_device_that_skipped_versions_fetches_the_ranges_of_all_of_them(
    embedded_store: EmbeddedStore,  # noqa: F811
    path: Path,
    older: Path,
) -> None:
    store, later = bucket_of(embedded_store), [(899_000, 901_000), (SIZE - 5, SIZE)]
    latest = renewed(NEW, later, 2)
    store.put("k/latest", latest)
    changed = [(0, 1000), (700_000, 901_000), (2_500_000, 2_500_001), (SIZE - 5, SIZE)]
    moved = Transfers().download(
        store.presign_get("k/latest", 60),
        path,
        sha256=hashlib.sha256(latest).hexdigest(),
        size=SIZE,
        earlier=EarlierVersion(older, changed),
    )
    assert moved == length(changed)
    assert path.read_bytes() == latest


def test_the_wire_carries_what_changed_and_nothing_else(
    rough: RoughStore, path: Path, older: Path
) -> None:
    assert get(rough, path, older) == rough.sent == length(CHANGED)
    assert [seen.range for seen in rough.seen] == [
        "bytes=0-999",
        "bytes=700000-899999",
        "bytes=2500000-2500000",
    ]
    assert path.read_bytes() == NEW
    assert not part_of(path).exists()


def test_a_version_with_the_last_byte_changed_and_one_that_is_the_same(
    rough: RoughStore, path: Path, older: Path
) -> None:
    older.write_bytes(NEW[:-1] + bytes([NEW[-1] ^ 1]))
    assert get(rough, path, older, [(SIZE - 1, SIZE)]) == 1
    path.unlink()
    older.write_bytes(NEW)
    assert get(rough, path, older, []) == 0
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("seed", range(6))
def test_cuts_within_the_ranges_cost_no_byte_twice(
    rough: RoughStore, path: Path, older: Path, seed: int
) -> None:
    source = random.Random(seed)
    rough.answers = [Answer(cut_after=source.randrange(1, 90_000)) for _ in range(4)]
    assert get(rough, path, older) == length(CHANGED)
    assert path.read_bytes() == NEW


def test_another_process_goes_on_where_a_cut_left_off(
    rough: RoughStore, path: Path, older: Path
) -> None:
    rough.answers = [Answer(), Answer(cut_after=100_000), *[Answer(503)] * 3]
    with pytest.raises(Unavailable, match="503"):
        get(rough, path, older)
    have = part_of(path).stat().st_size
    assert 700_000 < have <= 800_000
    before = rough.sent
    assert get(rough, path, older) == rough.sent - before == 900_000 - have + 1
    assert path.read_bytes() == NEW


def test_a_process_that_was_killed_leaves_what_another_goes_on_from(
    rough: RoughStore, path: Path, older: Path
) -> None:
    rough.answers = [Answer(), Answer(block_bytes=5000, pause_s=0.05)]
    code = f"""
from pathlib import Path
from storage.transfer.byte_ranges import EarlierVersion
from storage.transfer.files import Transfers
Transfers().download(
    {rough.url!r}, Path({str(path)!r}), sha256={SHA!r}, size={SIZE},
    earlier=EarlierVersion(Path({str(older)!r}), {CHANGED}),
)
"""
    child = subprocess.Popen([sys.executable, "-c", code])
    while rough.sent < 50_000:
        assert child.poll() is None
        time.sleep(0.001)
    child.kill()
    child.wait()
    assert not path.exists()
    assert get(rough, path, older) <= length(CHANGED)
    assert path.read_bytes() == NEW


def test_the_rest_is_fetched_when_the_older_file_has_gone_since(
    rough: RoughStore, path: Path, older: Path
) -> None:
    rough.answers = [Answer(), Answer(cut_after=100_000), *[Answer(503)] * 3]
    with pytest.raises(Unavailable):
        get(rough, path, older)
    have = part_of(path).stat().st_size
    older.unlink()
    assert get(rough, path, older) == SIZE - have
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("where", [1000, 650_000, SIZE - 1])
def test_a_damaged_older_file_costs_the_whole_and_never_a_wrong_model(
    rough: RoughStore, path: Path, older: Path, where: int
) -> None:
    older.write_bytes(OLD[:where] + bytes([OLD[where] ^ 1]) + OLD[where + 1 :])
    assert get(rough, path, older) == length(CHANGED) + SIZE
    assert path.read_bytes() == NEW
    assert rough.seen[-1].range is None


def test_a_damaged_older_file_and_a_cut_in_the_whole_that_follows(
    rough: RoughStore, path: Path, older: Path
) -> None:
    older.write_bytes(bytes(SIZE))
    rough.answers = [Answer(), Answer(), Answer(), Answer(cut_after=1_000_000)]
    get(rough, path, older)
    assert path.read_bytes() == NEW


@pytest.mark.parametrize("size", [0, 650_000, 2_600_000])
def test_an_older_file_that_is_cut_off_serves_as_far_as_it_goes(
    rough: RoughStore, path: Path, older: Path, size: int
) -> None:
    os.truncate(older, size)
    assert get(rough, path, older) >= SIZE - size
    assert path.read_bytes() == NEW


@pytest.mark.parametrize(
    "changed",
    [[(0, SIZE + 1)], [(5, 5)], [(900, 800)], [(500, 900), (0, 400)], [(-1, 5)]],
    ids=["beyond", "empty", "backwards", "unordered", "negative"],
)
def test_ranges_that_make_no_sense_are_not_followed(
    rough: RoughStore, path: Path, older: Path, changed: list[Range]
) -> None:
    assert get(rough, path, older, changed) == SIZE
    assert path.read_bytes() == NEW


def test_ranges_that_leave_out_a_change_cost_the_whole(
    rough: RoughStore, path: Path, older: Path
) -> None:
    assert get(rough, path, older, CHANGED[:2]) == length(CHANGED[:2]) + SIZE
    assert path.read_bytes() == NEW


def test_a_store_without_ranges_sends_the_whole_once(
    rough: RoughStore, path: Path, older: Path
) -> None:
    rough.answers = [Answer(ignore_range=True)]
    assert get(rough, path, older) == SIZE
    assert path.read_bytes() == NEW


def test_a_store_that_loses_its_ranges_on_the_way_sends_the_whole(
    rough: RoughStore, path: Path, older: Path
) -> None:
    rough.answers = [Answer(), Answer(ignore_range=True)]
    assert get(rough, path, older) == 1000 + SIZE
    assert path.read_bytes() == NEW


def test_what_is_wrong_in_the_store_is_corrupt_whatever_is_here(
    rough: RoughStore, path: Path, older: Path
) -> None:
    rough.body = bytes(SIZE)
    with pytest.raises(Corrupt, match="does not have the sha256"):
        get(rough, path, older)
    assert not path.exists()
    assert part_of(path).stat().st_size == 0


def test_a_cancelled_one_keeps_what_came(rough: RoughStore, path: Path, older: Path) -> None:
    rough.answers = [Answer(), Answer(block_bytes=10_000, pause_s=0.02)]
    cancel = threading.Event()

    def give_up() -> None:
        while rough.sent < 40_000:
            time.sleep(0.001)
        cancel.set()

    watcher = threading.Thread(target=give_up)
    watcher.start()
    with pytest.raises(Cancelled):
        get(rough, path, older, cancel=cancel)
    watcher.join()
    have = part_of(path).stat().st_size
    assert 700_000 < have < 900_000
    assert get(rough, path, older) == 900_000 - have + 1
    assert path.read_bytes() == NEW
