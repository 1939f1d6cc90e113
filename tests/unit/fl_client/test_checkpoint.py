"""The checkpoint's file: exact, bound to its order, of no use when damaged, and seldom written."""

from __future__ import annotations

import logging
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_client.training.checkpoint import FileCheckpoint, Pace

ORDER = {"run": "r", "round": 3, "training": {"learning_rate": 0.1}}
Arrays = dict[str, NDArray[Any]]


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def arrays(seed: int = 1) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "weights": rng.normal(size=(7, 3)).astype(np.float32),
        "transposed": rng.normal(size=(4, 5)).T,
        "place": rng.integers(-(2**62), 2**62, 5),
        "flags": np.array([True, False]),
        "scalar": np.float64(0.1) * np.ones(()),
        "none": np.zeros((0, 4), np.float32),
        "halves": np.array([math.nan, -0.0, math.inf], np.float16),
    }


def same(left: Arrays, right: Arrays) -> bool:
    return list(left) == list(right) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(left.values(), right.values(), strict=True)
    )


def checkpoint(path: Path, order: object = None, clock: Clock | None = None) -> FileCheckpoint:
    return FileCheckpoint(path, order or ORDER, Pace(60.0, 1 << 20), clock or Clock())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r-3-1.ckpt"


def test_what_was_saved_last_comes_back_byte_for_byte(path: Path) -> None:
    first = checkpoint(path)
    assert first.load() is None
    first.save(arrays(1))
    first.save(arrays(2))
    found = checkpoint(path).load()
    assert found is not None
    assert same(found, arrays(2))
    found["weights"] += 1  # it is the caller's own
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("field", ["run", "round", "training"])
def test_another_orders_is_not_gone_on_from(field: str, path: Path) -> None:
    checkpoint(path).save(arrays())
    other = {**ORDER, field: {"learning_rate": 0.2}}
    assert checkpoint(path, other).load() is None
    assert not path.exists()


def test_no_damage_goes_unseen(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    checkpoint(path).save(arrays())
    whole, rng = path.read_bytes(), random.Random(5)
    damaged = [whole[:length] for length in rng.sample(range(len(whole)), 40)]
    damaged += [whole + b"x", bytes(len(whole)), b""]
    for place in rng.sample(range(len(whole)), 120):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    for data in damaged:
        path.write_bytes(data)
        assert checkpoint(path).load() is None
        assert not path.exists()
    assert caplog.text.count("training begins anew") == len(damaged)


def test_it_is_not_due_before_its_time(path: Path) -> None:
    clock = Clock()
    made = checkpoint(path, clock=clock)
    assert not made.due()
    clock.now_s += 59.9
    assert not made.due()
    clock.now_s += 0.2
    assert made.due()
    made.save(arrays())
    assert not made.due()


def test_a_round_keeps_to_its_budget_and_a_long_one_is_saved_to_the_end(path: Path) -> None:
    clock, size = Clock(), 100_000
    state = {"w": np.zeros(size // 4, np.float32)}
    made, saves, at_stake = checkpoint(path, clock=clock), 0, 0.0
    last_s = begun_s = clock.now_s
    while clock.now_s < begun_s + 12 * 60:
        clock.now_s += 1
        if made.due():
            made.save(state)
            saves, last_s = saves + 1, clock.now_s
        at_stake = max(at_stake, clock.now_s - last_s)
    assert saves * size <= 1 << 20
    assert 5 <= saves <= 10
    assert at_stake <= 6 * 60


def test_a_restart_does_not_renew_the_budget(path: Path) -> None:
    clock = Clock()
    written = 0
    for _ in range(40):
        made = checkpoint(path, clock=clock)
        made.load()
        clock.now_s += 3600
        if made.due():
            made.save({"w": np.zeros(25_000, np.float32)})
            written += 100_000
    assert 400_000 <= written <= 1 << 20


def test_what_is_larger_than_the_budget_is_not_written(path: Path) -> None:
    made = checkpoint(path)
    made.save({"w": np.zeros(1 << 19, np.float32)})
    assert not path.exists()
    assert not made.due()


def test_a_budget_of_nothing_is_never_due(path: Path) -> None:
    clock = Clock()
    made = FileCheckpoint(path, ORDER, Pace(0.0, 0), clock)
    clock.now_s += 1e9
    assert not made.due()


def test_a_disk_that_fails_costs_the_checkpoint_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = checkpoint(tmp_path / "missing" / "r.ckpt")
    made.save(arrays())
    assert "no checkpoint" in caplog.text


def test_what_is_not_numbers_is_refused(path: Path) -> None:
    with pytest.raises(TypeError, match="'text'"):
        checkpoint(path).save({"text": np.array(["x"], object)})


def test_discard_leaves_nothing(path: Path) -> None:
    made = checkpoint(path)
    made.discard()
    made.save(arrays())
    made.discard()
    assert list(path.parent.iterdir()) == []
