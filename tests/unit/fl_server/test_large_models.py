"""Large models: the same bits by other ways, no parts left behind, uploads that go on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from broker.wire.messages import MAX_MESSAGE_BYTES, MAX_PARTS
from fl_server.aggregation import sums
from fl_server.aggregation.aggregator import SubmittedUpdate
from fl_server.aggregation.spool import MemoryBudget
from fl_server.dataplane.uploads import Uploads
from fl_server.rounds.facts import RoundStarted
from runtime.errors import Unavailable
from storage.store.memory import MemoryStore
from storage.store.objects import Part
from storage.transfer.multipart import MultipartTarget, PartSizes, UploadedParts
from storage.versions.keys import RunKeys
from tests.messages import wire
from tests.unit.fl_server.test_run import order_of, run_of
from tests.unit.fl_server.test_streaming import Bench

DEVICES = "abcdefghi"
SMALL_PARTS = PartSizes(large_bytes=1, part_bytes=100_000, written_bytes=60_000)
KEYS = RunKeys("default", "run-1")


def aggregated(bench: Bench) -> str:
    bench.cohort = len(DEVICES)
    bench.restart()
    submissions = [bench.submit(device) for device in DEVICES]
    bench.fold(*submissions)
    return finished(bench, submissions)


def finished(bench: Bench, submissions: list[SubmittedUpdate]) -> str:
    model = bench.aggregate(*submissions)
    bench.weights_of(model)  # the object has the sha256 that the model names
    bench.run.sweep((1, 1), model)
    return model.sha256


@pytest.mark.parametrize("waiting", [1, 2, 4, 100])
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_a_large_sum_has_the_bits_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int, memory: int
) -> None:
    small = aggregated(Bench(tmp_path / "small"))
    monkeypatch.setattr(sums, "MEMORY_SUMS_MAX", 10)
    monkeypatch.setattr(sums, "WAITING_MAX", waiting)
    bench = Bench(tmp_path / "large")
    bench.budget = MemoryBudget(memory)
    assert aggregated(bench) == small


def test_a_large_sum_gives_back_what_its_spools_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "MEMORY_SUMS_MAX", 10)
    bench = Bench(tmp_path)
    aggregated(bench)
    assert bench.budget.take(1 << 30)


class Failing(MemoryStore):
    """A store in which the parts of versions fail as often as it is told."""

    def __init__(self) -> None:
        super().__init__(sizes=SMALL_PARTS)
        self.failures = 0
        self.numbers: list[int] = []

    def put_part(self, key: str, upload_id: str, number: int, data: Part) -> str:
        self.numbers.append(number)
        if self.failures and number == 3:
            self.failures -= 1
            raise Unavailable("the connection broke")
        return super().put_part(key, upload_id, number, data)


def in_parts(folder: Path) -> tuple[Bench, Failing]:
    bench = Bench(folder)
    store = Failing()
    store._objects = bench.store._objects
    bench.store = store
    bench.restart()
    return bench, store


def test_a_large_version_goes_out_in_parts(tmp_path: Path) -> None:
    whole = aggregated(Bench(tmp_path / "whole"))
    bench, store = in_parts(tmp_path / "parts")
    assert aggregated(bench) == whole
    size = bench.model.size_bytes
    assert sorted(store.numbers) == list(range(1, size // SMALL_PARTS.written_bytes + 2))
    assert list(store.uploads("")) == []


def test_a_version_whose_parts_fail_leaves_none_and_is_made_again(tmp_path: Path) -> None:
    whole = aggregated(Bench(tmp_path / "whole"))
    bench, store = in_parts(tmp_path / "parts")
    store.failures = 1
    with pytest.raises(Unavailable):
        aggregated(bench)
    assert list(store.uploads("")) == []
    assert list(store.list(KEYS.version(1))) == []
    submissions = [bench.submit(device) for device in DEVICES]
    assert finished(bench, submissions) == whole
    assert list(store.uploads("")) == []


# --- uploads ------------------------------------------------------------------------------------


def key_of(round_number: int, attempt: int = 1, device: str = "d-1") -> str:
    return KEYS.update(round_number, attempt, device)


def test_the_same_upload_is_given_again_while_it_lives() -> None:
    store = MemoryStore(sizes=SMALL_PARTS)
    uploads = Uploads(store)
    first = uploads.parts_for(key_of(1), 1_000_000)
    assert (first.part_bytes, len(first.urls)) == (100_000, 10)
    assert uploads.parts_for(key_of(1), 1_000_000).upload_id == first.upload_id
    store.abort_upload(key_of(1), first.upload_id)
    again = uploads.parts_for(key_of(1), 1_000_000)
    assert again.upload_id != first.upload_id
    assert len(list(store.uploads(""))) == 1


@pytest.mark.parametrize("size", [1, 100_000, 100_001, 399 * 100_000, 10**9, 10**11])
def test_the_parts_hold_the_file_and_are_not_too_many(size: int) -> None:
    parts = Uploads(MemoryStore(sizes=SMALL_PARTS)).parts_for(key_of(1), size)
    assert len(parts.urls) <= MAX_PARTS
    assert len(parts.urls) * parts.part_bytes >= size
    assert (len(parts.urls) - 1) * parts.part_bytes < size


class LongUrls(MemoryStore):
    """A store whose URLs are as long as a message lets them be."""

    def presign_part(self, key: str, upload_id: str, number: int, expires_s: int) -> str:
        return super().presign_part(key, upload_id, number, expires_s).ljust(4000, "x")


def test_an_order_with_long_urls_fits_into_a_message() -> None:
    run = run_of(RoundStarted(1, 1, ("d-1",), 1))
    store = LongUrls(sizes=PartSizes())
    parts = Uploads(store).parts_for(key_of(1), 10**10)
    order = order_of(run)
    assert order.upload is not None
    order = order.model_copy(update={"upload": order.upload.model_copy(update={"parts": parts})})
    assert len(wire(order)) < MAX_MESSAGE_BYTES
    assert order.upload is not None
    assert order.upload.parts == parts


def test_spent_rounds_leave_no_upload_and_the_open_one_keeps_its_own() -> None:
    store = MemoryStore(sizes=SMALL_PARTS)
    Uploads(store).parts_for(key_of(1, device="of-a-former-process"), 500_000)
    uploads = Uploads(store)
    for place in ((1, 1), (2, 1), (2, 2), (3, 1)):
        uploads.parts_for(key_of(*place), 500_000)
    other = Uploads(store).parts_for(
        "projects/default/runs/other/updates/000001/001/d-1.upd", 500_000
    )
    uploads.abort_spent(KEYS, 2, 1)
    left = {upload.key: upload.id for upload in store.uploads("")}
    assert set(left) == {key_of(2, 2), key_of(3, 1), *(key for key in left if "/other/" in key)}
    assert other.upload_id in left.values()
    uploads.abort_spent(KEYS, 3, 1)
    assert [upload.id for upload in store.uploads("")] == [other.upload_id]


def test_an_upload_that_was_completed_is_forgotten_and_its_object_stays() -> None:
    store = MemoryStore(sizes=SMALL_PARTS)
    uploads = Uploads(store)
    parts = uploads.parts_for(key_of(1), 100_000)
    etag = store.put_part(key_of(1), parts.upload_id, 1, b"update")
    store.complete_upload(key_of(1), parts.upload_id, [etag])
    uploads.abort_spent(KEYS, 1, 1)
    assert [info.key for info in store.list("")] == [key_of(1)]


def test_a_run_that_nobody_submitted_leaves_no_upload_of_any_process() -> None:
    store = MemoryStore(sizes=SMALL_PARTS)
    Uploads(store).parts_for(KEYS.version(0), 500_000)
    other = Uploads(store).parts_for(RunKeys("default", "run-10").version(0), 500_000)
    Uploads(store).abort_all(KEYS)
    assert [upload.id for upload in store.uploads("")] == [other.upload_id]


# --- what has arrived ---------------------------------------------------------------------------


def place_of(upload_id: str = "u-1", part_bytes: int = 10) -> MultipartTarget:
    return MultipartTarget(upload_id, part_bytes, ["url"] * 5, "complete")


def followed(path: Path, **changes: Any) -> UploadedParts:
    arrived = UploadedParts(path)
    arrived.load(place_of(**changes))
    return arrived


def test_what_has_arrived_is_known_to_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "u.parts"
    first = followed(path)
    for number, etag in ((2, "e-2"), (1, "e-1"), (3, "e 3")):
        first.add(number, etag)
    second = followed(path)
    assert second.etags == {1: "e-1", 2: "e-2", 3: "e 3"}
    second.add(5, "e-5")
    assert followed(path).etags == {1: "e-1", 2: "e-2", 3: "e 3", 5: "e-5"}


def test_what_arrives_after_the_file_was_removed_leaves_none(tmp_path: Path) -> None:
    path = tmp_path / "u.parts"
    arrived = followed(path)
    arrived.add(1, "e-1")
    path.unlink()
    arrived.add(2, "e-2")
    arrived.mark_completing()
    assert arrived.etags == {1: "e-1", 2: "e-2"}
    assert not path.exists()


@pytest.mark.parametrize("line", ["e-2", "2", "0 e-2", "-1 e-2", "2x e-2"])
def test_a_damaged_line_is_not_believed(tmp_path: Path, line: str) -> None:
    path = tmp_path / "u.parts"
    followed(path).add(1, "e-1")
    with path.open("a") as file:
        file.write(f"{line}\n")
    assert followed(path).etags == {}


@pytest.mark.parametrize("changes", [{"upload_id": "u-2"}, {"part_bytes": 11}])
def test_another_upload_begins_from_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "u.parts"
    followed(path).add(1, "e-1")
    other = followed(path, **changes)
    assert other.etags == {}
    other.add(1, "f-1")
    assert followed(path, **changes).etags == {1: "f-1"}
    assert followed(path).etags == {}
    other.load(place_of())
    assert other.etags == {}


def test_that_an_upload_was_to_be_completed_is_known_to_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "u.parts"
    first = followed(path)
    first.add(1, "e-1")
    assert not followed(path).completing
    first.mark_completing()
    first.mark_completing()
    second = followed(path)
    assert (second.etags, second.completing) == ({1: "e-1"}, True)
    second.clear()
    assert (second.etags, second.completing, path.exists()) == ({}, False, False)


def test_fresh_urls_of_the_same_upload_change_nothing(tmp_path: Path) -> None:
    arrived = followed(tmp_path / "u.parts")
    arrived.add(1, "e-1")
    (tmp_path / "u.parts").unlink()
    arrived.load(place_of())
    assert arrived.etags == {1: "e-1"}


def test_a_file_that_a_power_cut_left_is_never_believed_too_much(tmp_path: Path) -> None:
    path = tmp_path / "u.parts"
    arrived = followed(path)
    for number in (1, 2):
        arrived.add(number, f"e-{number}")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        left = followed(path)
        assert left.etags in ({}, {1: "e-1"})
        known = {**left.etags, 9: "e-9"}
        left.add(9, "e-9")
        assert followed(path).etags == known
    path.write_bytes(os.urandom(100))
    assert followed(path).etags == {}
