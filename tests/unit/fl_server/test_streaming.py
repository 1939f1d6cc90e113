"""A run's byte work on a store in memory, against plain numpy."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from algorithms.base import BLOCK, UPDATE, Algorithm, Blocks, Flat, Mean, Scalars
from algorithms.fedavg import FedAvg
from fl_server.aggregation import sums
from fl_server.aggregation.aggregator import AggregatedRun, Refused, RunAggregator, SubmittedUpdate
from fl_server.aggregation.arithmetic.exact import BlockSum, Float32s
from fl_server.aggregation.base_models import BaseLost
from fl_server.aggregation.model_cache import ModelCache
from fl_server.aggregation.spool import MemoryBudget
from fl_server.rounds.model import Model, Update
from runtime.errors import Corrupt, Unavailable
from storage.store.memory import MemoryStore
from storage.updates.info import UpdateInfo
from storage.updates.stream import write_update
from storage.versions.keys import RunKeys
from storage.weights import Weights, read_safetensors, write_safetensors

KEYS = RunKeys("default", "run-1")
SIZE = BLOCK + 300
SHAPE = {"0.weight": (BLOCK // 4, 4), "0.bias": (300,)}


def vector(seed: int, size: int = SIZE) -> Float32s:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def weights(seed: int = 0) -> Weights:
    arrays: dict[str, Any] = {}
    flat, position = vector(seed), 0
    for name, shape in SHAPE.items():
        count = int(np.prod(shape))
        arrays[name] = flat[position : position + count].reshape(shape)
        position += count
    arrays["steps"] = np.array([7], np.int64)
    return Weights.from_arrays(arrays)


@dataclass(frozen=True)
class Momentum(Algorithm):
    """FedAvgM: a server that remembers, so that there is state to survive."""

    beta: float = 0.9

    def init(self, weights: Flat, start: int, seed: int) -> dict[str, Flat]:
        return {"momentum": np.zeros(len(weights), np.float32)}

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        momentum = (self.beta * state["momentum"] + mean.vectors[UPDATE]).astype(np.float32)
        return (weights + momentum).astype(np.float32), {"momentum": momentum}


@dataclass
class KeepLatest:
    """Retains the latest few versions."""

    keep: int
    left: frozenset[int] = frozenset()

    def retained(self, latest: int) -> Collection[int]:
        return range(max(0, latest + 1 - self.keep), latest + 1)

    def forget_others(self, retained: Collection[int]) -> None:
        self.left = frozenset(retained)

    def unchanged(self) -> AbstractContextManager[None]:
        return nullcontext()


class Bench:
    """One run with its store; ``restart`` forgets all that a process holds."""

    def __init__(self, folder: Path, algorithm: Algorithm | None = None, keep: int = 2) -> None:
        self.folder = folder
        self.algorithm = algorithm or FedAvg()
        self.keep = keep
        self.store: MemoryStore = MemoryStore()
        self.budget = MemoryBudget(1 << 30)
        self.lives = 0
        self.cohort = 4
        data = io.BytesIO()
        write_safetensors(weights(), data)
        self.model = self.put_model(0, data.getvalue())
        self.restart()

    def restart(self) -> None:
        self.lives += 1
        self.run = RunAggregator(
            AggregatedRun(KEYS, self.algorithm, 0, self.cohort),
            KeepLatest(self.keep),
            self.store,
            ModelCache(self.folder / str(self.lives), self.store),
            self.budget,
        )

    def put_model(self, version: int, data: bytes) -> Model:
        self.store.put(KEYS.version(version), data)
        digest = hashlib.sha256(data).hexdigest()
        return Model(version, KEYS.version(version), digest, len(data))

    def submit(
        self,
        name: str,
        delta: Float32s | None = None,
        *,
        examples: int = 10,
        place: tuple[int, int] | None = None,
        **changes: Any,
    ) -> SubmittedUpdate:
        round_number, attempt = place or (self.model.version + 1, 1)
        info: dict[str, Any] = {
            "run_id": KEYS.run_id,
            "round": round_number,
            "attempt": attempt,
            "device_id": name,
            "base_sha256": self.model.sha256,
            "layout_hash": weights().layout.hash,
            "kind": "delta",
            "num_examples": examples,
        }
        out = io.BytesIO()
        written = write_update(
            out,
            UpdateInfo(**{**info, **changes}),
            vector(hash_of(name)) if delta is None else delta,
            chunk_params=100_000,
        )
        key = KEYS.update(round_number, attempt, name)
        self.store.put(key, out.getvalue())
        update = Update(key, written.size_bytes, written.header_sha256, examples)
        return SubmittedUpdate(name, round_number, attempt, update)

    def fold(self, *submissions: SubmittedUpdate) -> None:
        for each in submissions:
            self.run.verify(each, self.model)
            self.run.fold(each, self.model)

    def aggregate(self, *submissions: SubmittedUpdate) -> Model:
        key = (submissions[0].round, submissions[0].attempt)
        included = tuple(sorted(each.device_id for each in submissions))
        return self.run.aggregate(key, included, self.model)

    def weights_of(self, model: Model) -> Weights:
        path = self.folder / "look.safetensors"
        with self.store.open(model.key) as stream:
            data = stream.read(1 << 30)
        assert hashlib.sha256(data).hexdigest() == model.sha256
        assert len(data) == model.size_bytes
        path.write_bytes(data)
        return read_safetensors(path)

    def keys(self) -> list[str]:
        return [info.key.removeprefix(KEYS.prefix) for info in self.store.list("")]


def hash_of(name: str) -> int:
    return sum(name.encode())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def mean_of(parts: list[tuple[Float32s, int]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    total = sum(weight for _, weight in parts)
    added = np.add.reduce([part.astype(np.float64) * weight for part, weight in parts])
    mean: np.ndarray[Any, np.dtype[np.float64]] = added / total
    return mean


def test_the_next_version_is_the_weighted_mean_on_top(bench: Bench) -> None:
    a, b = bench.submit("a", examples=10), bench.submit("b", examples=30)
    bench.fold(a, b)
    model = bench.aggregate(a, b)
    found = bench.weights_of(model)
    mean = mean_of([(vector(hash_of("a")), 10), (vector(hash_of("b")), 30)])
    expected = vector(0).astype(np.float64) + mean
    assert (model.version, model.key) == (1, KEYS.version(1))
    np.testing.assert_allclose(found.vector, expected, rtol=1e-6, atol=1e-8)
    assert found.layout == weights().layout
    assert found.arrays()["steps"].tolist() == [7], "what is not trained goes along"


def test_equal_updates_give_that_update(bench: Bench) -> None:
    delta = np.full(SIZE, 0.5, np.float32)
    submissions = [bench.submit(name, delta, examples=3) for name in "abc"]
    bench.fold(*submissions)
    found = bench.weights_of(bench.aggregate(*submissions))
    assert np.array_equal(found.vector, vector(0) + np.float32(0.5))


def test_order_restart_and_refetch_change_no_bit(tmp_path: Path) -> None:
    straight, crooked = Bench(tmp_path / "s"), Bench(tmp_path / "c")
    names = ["a", "b", "c"]
    first = [straight.submit(name) for name in names]
    straight.fold(*first)
    one = straight.aggregate(*first)
    second = [crooked.submit(name) for name in names]
    for each in second:
        crooked.run.verify(each, crooked.model)
    crooked.run.fold(second[2], crooked.model)
    crooked.run.fold(second[0], crooked.model)
    crooked.restart()
    for index in (1, 0, 2):  # as the journal brings them after a restart: no spool is left
        crooked.run.fold(second[index], crooked.model)
    assert crooked.aggregate(*second).sha256 == one.sha256


def test_sums_and_spools_in_files_give_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name, limit, memory in (("memory", 1 << 22, 1 << 30), ("file", 10, 0)):
        monkeypatch.setattr(sums, "MEMORY_SUMS_MAX", limit)
        bench = Bench(tmp_path / name)
        bench.budget = MemoryBudget(memory)
        bench.restart()
        submissions = [bench.submit(device) for device in "abc"]
        bench.fold(*submissions)
        found.append(bench.aggregate(*submissions).sha256)
        bench.run.sweep_run(bench.model)
    assert found[0] == found[1]


@pytest.mark.parametrize("examples", [1, 1_500_000, 1 << 40])
def test_no_finite_value_and_no_number_of_examples_is_refused(bench: Bench, examples: int) -> None:
    delta = vector(1)
    delta[7:16] = [1024.5, -2000.0, 8100.0, 1e12, -1e12, 3e38, -3e38, 1e-30, 1e-45]
    a, b = bench.submit("a", delta, examples=examples), bench.submit("b", delta, examples=1 << 40)
    bench.fold(a, b)
    found = bench.weights_of(bench.aggregate(a, b))
    assert np.array_equal(found.vector, (vector(0).astype(np.float64) + delta).astype(np.float32))
    bench.run.forget((1, 1))


def test_a_second_fold_counts_once(bench: Bench) -> None:
    a, b = bench.submit("a"), bench.submit("b")
    bench.fold(a, b)
    bench.run.fold(a, bench.model)
    mean = mean_of([(vector(hash_of("a")), 1), (vector(hash_of("b")), 1)])
    found = bench.weights_of(bench.aggregate(a, b))
    np.testing.assert_allclose(found.vector, vector(0) + mean, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run_id": "run-2"}, "run_id"),
        ({"round": 9}, "round"),
        ({"attempt": 9}, "attempt"),
        ({"device_id": "b"}, "device_id"),
        ({"base_sha256": "0" * 64}, "base_sha256"),
        ({"layout_hash": "0" * 64}, "layout_hash"),
        ({"kind": "weights"}, "kind"),
        ({"num_examples": 11}, "num_examples differs"),
        ({"delta": vector(0, SIZE - 1)}, "parameters, the layout has"),
    ],
)
def test_an_update_that_answers_something_else_is_refused(
    changes: dict[str, Any], said: str, bench: Bench
) -> None:
    submission = bench.submit("a", **changes)
    with pytest.raises(Refused, match=said):
        bench.run.verify(submission, bench.model)
    assert bench.budget.take(1 << 30), "a refused update gives its memory back"


def forged(bench: Bench, submission: SubmittedUpdate, last: float) -> SubmittedUpdate:
    """Return the submission with another last value, every hash of it right."""
    with bench.store.open(submission.update.key) as stream:
        data = stream.read(1 << 30)
    length = int.from_bytes(data[4:8], "big")
    header, body = msgpack.unpackb(data[8 : 8 + length]), bytearray(data[8 + length :])
    body[-4:] = np.float32(last).tobytes()
    final = header["chunks"][-1]
    final["sha256"] = hashlib.sha256(body[-final["size"] :]).hexdigest()
    text = msgpack.packb(header)
    start = data[:4] + len(text).to_bytes(4, "big") + text
    bench.store.put(submission.update.key, start + bytes(body))
    digest = hashlib.sha256(start).hexdigest()
    return replace(submission, update=replace(submission.update, header_sha256=digest))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float, bench: Bench) -> None:
    submission = bench.submit("a", np.full(SIZE, 0.25, np.float32))
    bench.run.verify(forged(bench, submission, 0.5), bench.model)
    with pytest.raises(Refused, match=f"parameter {SIZE - 1} is not finite"):
        bench.run.verify(forged(bench, submission, bad), bench.model)


@pytest.mark.parametrize("at", [0, 5, 100, 300_000, -1])
def test_one_flipped_bit_is_refused_and_names_the_key(at: int, bench: Bench) -> None:
    submission = bench.submit("a")
    with bench.store.open(submission.update.key) as stream:
        data = bytearray(stream.read(1 << 30))
    data[at] ^= 0x10
    bench.store.put(submission.update.key, bytes(data))
    with pytest.raises(Refused, match=r"a\.upd"):
        bench.run.verify(submission, bench.model)


@pytest.mark.parametrize("cut", [0, 3, 50, 500_000, -1])
def test_a_truncated_update_is_refused(cut: int, bench: Bench) -> None:
    submission = bench.submit("a")
    with bench.store.open(submission.update.key) as stream:
        data = stream.read(1 << 30)
    bench.store.put(submission.update.key, data[:cut])
    with pytest.raises(Refused, match="cut off"):
        bench.run.verify(submission, bench.model)
    bench.store.put(submission.update.key, data + b"\0")
    with pytest.raises(Refused, match="bytes follow"):
        bench.run.verify(submission, bench.model)


def test_an_object_that_is_not_there_is_refused(bench: Bench) -> None:
    submission = bench.submit("a")
    bench.store.delete([submission.update.key])
    with pytest.raises(Refused, match="no object at"):
        bench.run.verify(submission, bench.model)


def test_a_size_beyond_the_model_is_refused_before_a_byte_is_read(bench: Bench) -> None:
    submission = bench.submit("a")
    huge = Update(submission.update.key, 1 << 40, submission.update.header_sha256, 10)
    with pytest.raises(Refused, match="at most"):
        bench.run.verify(SubmittedUpdate("a", 1, 1, huge), bench.model)


def test_what_was_verified_is_what_is_added(bench: Bench) -> None:
    """An object that is replaced between verification and addition does not count."""
    a = bench.submit("a", np.full(SIZE, 0.25, np.float32))
    bench.run.verify(a, bench.model)
    bench.store.put(a.update.key, b"something else")
    bench.run.fold(a, bench.model)
    found = bench.weights_of(bench.aggregate(a))
    assert np.array_equal(found.vector, vector(0) + np.float32(0.25))


def test_an_accepted_update_that_changed_before_a_refetch_is_refused(bench: Bench) -> None:
    a = bench.submit("a")
    bench.run.verify(a, bench.model)
    bench.restart()
    bench.store.put(a.update.key, b"something else")
    with pytest.raises(Refused, match=r"a\.upd"):
        bench.run.fold(a, bench.model)


def test_only_exactly_the_included_make_a_model(bench: Bench) -> None:
    a, b = bench.submit("a"), bench.submit("b")
    with pytest.raises(Corrupt, match=r"folded \[\], to include \['a'\]"):
        bench.aggregate(a)
    bench.fold(a, b)
    with pytest.raises(Corrupt, match=r"folded \['a', 'b'\], to include \['a'\]"):
        bench.aggregate(a)
    with pytest.raises(Corrupt, match="to include"):
        bench.run.aggregate((1, 2), ("a", "b"), bench.model)


def fails_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the addition of a block fail, once."""
    add, calls = BlockSum.add, iter(range(1, 1 << 20))

    def added(*arguments: Any) -> None:
        if next(calls) == call:
            raise OSError(28, "No space left on device")
        add(*arguments)

    monkeypatch.setattr(BlockSum, "add", added)


def test_half_an_update_in_the_sum_never_becomes_a_model(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = bench.submit("a"), bench.submit("b")
    bench.fold(a)
    bench.run.verify(b, bench.model)
    fails_at(2, monkeypatch)  # the second block of the update
    with pytest.raises(OSError, match="No space"):
        bench.run.fold(b, bench.model)
    with pytest.raises(Corrupt, match="to include"):
        bench.aggregate(a, b)
    bench.run.fold(b, bench.model)
    with pytest.raises(Corrupt, match=r"folded \['b'\]"):
        bench.aggregate(a, b)
    bench.run.fold(a, bench.model)
    mean = mean_of([(vector(hash_of("a")), 1), (vector(hash_of("b")), 1)])
    found = bench.weights_of(bench.aggregate(a, b))
    np.testing.assert_allclose(found.vector, vector(0) + mean, rtol=1e-6, atol=1e-7)


class Flaky(MemoryStore):
    """A store that breaks within the body of an update."""

    broken = True

    def open(self, key: str, start: int = 0, end: int | None = None) -> Any:
        stream = super().open(key, start, end)
        if not self.broken or not key.endswith(".upd"):
            return stream
        return Cut(stream)


class Cut:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = 700_000

    def __enter__(self) -> Cut:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def read(self, size: int) -> bytes:
        data: bytes = self._stream.read(min(size, 100_000))
        self._left -= len(data)
        if self._left < 0:
            raise Unavailable("the connection broke")
        return data


def test_a_store_that_breaks_costs_time_only(bench: Bench) -> None:
    flaky = Flaky()
    flaky._objects = bench.store._objects
    bench.store = flaky
    bench.restart()
    a = bench.submit("a", np.full(SIZE, 0.5, np.float32))
    for _ in range(3):
        with pytest.raises(Unavailable):
            bench.run.verify(a, bench.model)
    flaky.broken = False
    bench.fold(a)
    found = bench.weights_of(bench.aggregate(a))
    assert np.array_equal(found.vector, vector(0) + np.float32(0.5))


def test_a_base_that_is_gone_or_damaged_is_no_devices_fault(bench: Bench) -> None:
    a = bench.submit("a")
    bench.store.put(bench.model.key, b"damaged")
    with pytest.raises(Corrupt, match="expected") as caught:
        bench.run.verify(a, bench.model)
    assert not isinstance(caught.value, Refused)
    bench.store.delete([bench.model.key])
    with pytest.raises(BaseLost):
        bench.run.verify(a, bench.model)


def three_rounds(bench: Bench, *, restarts: bool) -> list[Model]:
    models = []
    for number in range(3):
        submissions = [
            bench.submit(name, vector(100 * number + index)) for index, name in enumerate("abc")
        ]
        if restarts:
            bench.restart()
        bench.fold(*submissions)
        bench.model = bench.aggregate(*submissions)
        models.append(bench.model)
        bench.run.sweep((submissions[0].round, 1), bench.model)
    return models


def test_a_server_that_remembers_does_so_over_restarts(tmp_path: Path) -> None:
    steady = Bench(tmp_path / "steady", Momentum())
    restarted = Bench(tmp_path / "restarted", Momentum())
    one = three_rounds(steady, restarts=False)
    two = three_rounds(restarted, restarts=True)
    assert [(m.sha256, m.state_sha256) for m in one] == [(m.sha256, m.state_sha256) for m in two]
    assert one[0].state_key == KEYS.state(1)
    momentum = np.zeros(SIZE)
    expected = vector(0).astype(np.float64)
    for number in range(3):
        mean = mean_of([(vector(100 * number + index), 1) for index in range(3)])
        momentum = 0.9 * momentum + mean
        expected = expected + momentum
    np.testing.assert_allclose(steady.weights_of(one[-1]).vector, expected, rtol=1e-4, atol=1e-5)


def test_a_server_state_that_is_damaged_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Momentum())
    a = bench.submit("a")
    bench.fold(a)
    bench.model = bench.aggregate(a)
    bench.store.put(bench.model.state_key, b"damaged")
    bench.restart()
    b = bench.submit("b")
    bench.fold(b)
    with pytest.raises(Corrupt, match="state/000001"):
        bench.aggregate(b)


def test_a_sweep_keeps_the_retained_versions_and_what_may_still_count(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Momentum(), keep=2)
    three_rounds(bench, restarts=False)
    late = bench.submit("late", place=(3, 1))
    early = bench.submit("d", place=(4, 1))
    bench.store.put(KEYS.version(9), b"of an aggregation that was not committed")
    other = RunKeys("default", "run-10").version(0)
    bench.store.put(other, b"another run's")
    assert bench.run.sweep((3, 1), bench.model) == 2
    assert sorted(bench.keys()) == sorted(
        [
            "global/000002.safetensors",
            "global/000003.safetensors",
            "state/000002.safetensors",
            "state/000003.safetensors",
            early.update.key.removeprefix(KEYS.prefix),
            other,
        ]
    )
    assert late.update.key not in set(bench.keys())


def test_the_end_leaves_nothing_but_the_retained_versions(tmp_path: Path) -> None:
    bench = Bench(tmp_path, keep=3)
    three_rounds(bench, restarts=False)
    bench.submit("d", place=(4, 1))
    bench.store.put(f"{KEYS.prefix}stray", b"?")
    spooled = bench.submit("e", place=(4, 1))
    bench.run.verify(spooled, bench.model)
    assert bench.run.sweep_run(bench.model) == 3
    assert bench.keys() == [f"global/00000{version}.safetensors" for version in (1, 2, 3)]
    assert bench.budget.take(1 << 30), "no spool is left"
    assert bench.run.sweep_run(bench.model) == 0


def test_the_same_round_may_be_aggregated_again_to_the_same_bits(bench: Bench) -> None:
    """After a crash between the put and the journal, the next life does it once more."""
    a, b = bench.submit("a"), bench.submit("b")
    bench.fold(a, b)
    one = bench.aggregate(a, b)
    bench.restart()
    bench.run.fold(b, bench.model)
    bench.run.fold(a, bench.model)
    assert bench.aggregate(a, b) == one


def test_no_temporary_file_is_left(bench: Bench) -> None:
    a = bench.submit("a")
    bench.fold(a)
    bench.aggregate(a)
    names = [path.name for path in (bench.folder / "1").iterdir()]
    assert all(name.endswith(".safetensors") for name in names), names
    assert len(names) == 2
