"""Updates of several vectors and scalars: each name has its own mean, over those that sent it."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from algorithms.base import (
    BLOCK,
    STATISTICS,
    UPDATE,
    Algorithm,
    Blocks,
    Flat,
    Mean,
    Report,
    Scalars,
)
from fl_server.aggregation.aggregator import Refused, SubmittedUpdate
from fl_server.aggregation.sums import MEMORY_SUMS_MAX
from fl_server.rounds.model import Update
from storage.updates.info import Section, UpdateInfo
from storage.updates.stream import write_update
from tests.unit.fl_server.test_streaming import KEYS, Bench, vector, weights

SIZE = weights().layout.size


@dataclass(frozen=True)
class Named(Algorithm):
    """Sends a second vector and a scalar, and keeps what it was told."""

    @property
    def sends(self) -> tuple[str, ...]:
        return (UPDATE, "second")

    @property
    def reports(self) -> tuple[str, ...]:
        return ("loss",)

    def init(self, weights: Flat, start: int, seed: int) -> dict[str, Flat]:
        return {"kept": np.full(len(weights), start // BLOCK + seed, np.float32)}

    def weight(self, report: Report, scalars: Scalars) -> float:
        return report.scalars["loss"] + scalars.get("rounds", 0.0)

    def measure(self, weights: Flat, mean: Mean, state: Blocks) -> dict[str, float]:
        return {"ones": float(len(weights)), "kept": float(state["kept"].sum())}

    def advance(
        self, mean: Mean, reports: Sequence[Report], scalars: Scalars, measured: Scalars
    ) -> Scalars:
        told = {f"loss of {each.device_id}": each.scalars["loss"] for each in reports}
        means = {f"mean {name}": value for name, value in mean.scalars.items()}
        rounds = scalars.get("rounds", 0.0) + 1
        shares = {"updates": mean.updates, "population": mean.population}
        return {**told, **means, **measured, **shares, "rounds": rounds}

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        kept = state["kept"] + mean.vectors["second"]
        return weights + mean.vectors[UPDATE], {"kept": kept}


def submit(
    bench: Bench, name: str, vectors: Mapping[str, Flat], loss: float | None = 1.0
) -> SubmittedUpdate:
    arrays = {each: np.asarray(array, np.float32) for each, array in vectors.items()}
    if loss is not None:
        arrays["loss"] = np.array([loss], np.float32)
    number = bench.model.version + 1
    info = UpdateInfo(
        run_id=KEYS.run_id,
        round=number,
        attempt=1,
        device_id=name,
        base_sha256=bench.model.sha256,
        layout_hash=weights().layout.hash,
        kind="delta",
        num_examples=10,
        sections=tuple(Section(each, array.size) for each, array in arrays.items()),
    )
    out, key = io.BytesIO(), KEYS.update(number, 1, name)
    written = write_update(out, info, *arrays.values())
    bench.store.put(key, out.getvalue())
    update = Update(key, written.size_bytes, written.header_sha256, 10)
    return SubmittedUpdate(name, number, 1, update)


@pytest.mark.parametrize("in_memory", [True, False])
def test_each_name_has_the_mean_of_those_that_sent_it(
    tmp_path: Path, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = MEMORY_SUMS_MAX if in_memory else 1
    monkeypatch.setattr("fl_server.aggregation.sums.MEMORY_SUMS_MAX", most)
    bench = Bench(tmp_path, Named())
    one, two, extra = vector(1), vector(2), vector(3)
    a = submit(bench, "a", {UPDATE: one, "second": extra}, 1.0)
    b = submit(bench, "b", {UPDATE: two}, 3.0)
    free = bench.budget._left
    bench.fold(b, a)
    before = bench.weights_of(bench.model).vector
    model = bench.run.aggregate((1, 1), ("a", "b"), bench.model, population=5)
    after = bench.weights_of(model).vector
    wide = (1.0 * one.astype(np.float64) + 3.0 * two.astype(np.float64)) / 4.0
    np.testing.assert_array_equal(after, (before + wide).astype(np.float32))
    scalars = dict(model.scalars)
    assert {name: scalars[name] for name in ("loss of a", "loss of b", "mean loss")} == {
        "loss of a": 1.0,
        "loss of b": 3.0,
        "mean loss": (1.0 * 1.0 + 3.0 * 3.0) / 4.0,
    }
    assert (scalars["updates"], scalars["population"]) == (2, 5)
    blocks = np.arange(SIZE) // BLOCK
    assert (scalars["ones"], scalars["kept"]) == (SIZE, blocks.sum())
    assert model.state is not None
    data = bench.store.open(model.state.key).__enter__().read(1 << 30)
    kept = np.frombuffer(data[-4 * SIZE :], "<f4")
    np.testing.assert_array_equal(kept, (blocks + extra).astype(np.float32))
    bench.run.forget(None)
    bench.run._close_round()
    assert bench.budget._left == free


def test_what_the_server_keeps_serves_the_next_round_also_after_a_restart(tmp_path: Path) -> None:
    found = []
    for restarts in (False, True):
        folder = tmp_path / str(restarts)
        folder.mkdir()
        bench = Bench(folder, Named())
        for number in range(3):
            if restarts:
                bench.restart()
            sent = submit(bench, "a", {UPDATE: vector(number), "second": vector(9)}, 2.0)
            bench.fold(sent)
            bench.model = bench.aggregate(sent)
        found.append(bench.model)
    assert found[0] == found[1]
    assert dict(found[0].scalars)["rounds"] == 3


def test_statistics_are_added_as_their_plain_mean(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Named())
    a = submit(bench, "a", {UPDATE: vector(1), STATISTICS: vector(2)}, 1.0)
    b = submit(bench, "b", {UPDATE: vector(1)}, 3.0)
    bench.fold(a, b)
    before = bench.weights_of(bench.model).vector
    after = bench.weights_of(bench.aggregate(a, b)).vector
    expected = (before + vector(1).astype(np.float64)) + vector(2)
    np.testing.assert_allclose(after, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "loss", "said"),
    [
        ({UPDATE: vector(1), "third": vector(1)}, 1.0, "a section 'third'"),
        ({UPDATE: vector(1)[:-1]}, 1.0, f"a section 'update' of {SIZE - 1} values"),
        ({UPDATE: vector(1), "loss": np.zeros(2)}, None, "a section 'loss' of 2 values"),
        ({UPDATE: vector(1)}, -1.0, "its weight would be -1"),
        ({UPDATE: vector(1)}, None, "it has no 'loss'"),
    ],
)
def test_what_no_client_of_the_algorithm_sends_is_refused(
    tmp_path: Path, vectors: dict[str, Flat], loss: float | None, said: str
) -> None:
    bench = Bench(tmp_path, Named())
    sent = submit(bench, "a", vectors, loss)
    with pytest.raises(Refused, match=said):
        bench.fold(sent)
    good = submit(bench, "b", {UPDATE: vector(1)}, 1.0)
    bench.fold(good)
    assert bench.aggregate(good).version == 1
