"""What a registry holds of many versions: on the disk, and little of it in memory."""

from __future__ import annotations

import errno
import tracemalloc
from itertools import count

import pytest

from benchmarks.history import MadeUpStore
from storage.registry.index import VersionIndex
from storage.registry.registry import ModelRegistry
from storage.registry.scan import new_record
from storage.versions.version import Version
from tests.versions import KEY, PROJECT, manifest_of


def held_bytes(runs: int) -> tuple[int, int]:
    """Return what a registry holds that has read so many runs, and the most that reading took."""
    registry = ModelRegistry(MadeUpStore(runs, devices=20), PROJECT, KEY)
    tracemalloc.start()
    try:
        assert registry.rebuild() == []
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(registry.runs()) == runs
    assert registry.tasks() == ["digits"]
    return now, peak


def test_ten_times_as_many_runs_take_no_more_memory() -> None:
    """Seen before: 6.5 KB for each version that ever was, 11 MB here."""
    held_bytes(10)
    few, many = held_bytes(60), held_bytes(600)
    assert many[0] - few[0] < 500_000
    assert many[1] - few[1] < 1_000_000


def test_a_full_disk_is_told_as_one() -> None:
    index = VersionIndex()
    index._db.execute("PRAGMA max_page_count = 30")
    manifests = (manifest_of("r", number) for number in count(1))

    def fill() -> None:
        for manifest in manifests:
            index.put(Version(manifest, new_record(manifest)))

    with pytest.raises(OSError, match="full") as told:
        fill()
    assert told.value.errno == errno.ENOSPC
    index.close()


def test_names_are_data_in_every_query() -> None:
    """A quotation mark in a name ends no text of SQL."""
    index = VersionIndex()
    manifest = manifest_of("r", 1)
    version = Version(manifest, new_record(manifest))
    index.put(version)
    index.put(version)
    assert index.newest_first() == index.of_run("r") == [version]
    for name in ("' OR 1 = 1 --", "r' --", '"r"', "%", "_"):
        assert index.of_run(name) == index.holders(name) == index.in_production(name) == []
    index.remove(("r", 1))
    assert not index.has(("r", 1))
    index.close()
