"""The laws that every rule keeps; a new file in fl_server/aggregation/rules/ is found by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import algorithms
from algorithms.base import STATISTICS, UPDATE, Report
from fl_client.models.local_round import LocalRound, LocalUpdate
from fl_client.tasks.registry import load_task
from fl_client.training.participant import Participant
from fl_server.aggregation.arithmetic import single_updates
from fl_server.aggregation.arithmetic.combining import Combining
from fl_server.aggregation.arithmetic.in_memory import MemorySums
from fl_server.aggregation.arithmetic.server_half import Sums
from fl_server.aggregation.rules import RULES
from fl_server.aggregation.rules.base import count_of
from fl_server.aggregation.spool import MemoryBudget, Spool
from fl_server.aggregation.sums import RoundSums, UpdateParts
from runtime.errors import ConfigError
from storage.updates.info import Section
from storage.weights import Weights
from tests.contract.test_algorithms import Rows
from tests.in_process import InProcessRun

Floats = NDArray[np.float32]
SIZE = 9_001
NAMES = RULES.names()
ROBUST = [name for name in NAMES if name != "mean"]


def random(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def combined(
    name: str,
    updates: Sequence[Floats],
    folder: Path,
    *,
    order: Sequence[int] | None = None,
    memory: int = 1 << 30,
    block: int = SIZE,
    settings: dict[str, Any] | None = None,
) -> NDArray[np.float64]:
    """Return what the server makes of updates that arrive in an order, read by blocks."""
    combining = Combining(algorithms.load("fedavg"), RULES.load(name, settings))
    assert combining.needs_updates == (name != "mean")
    sums = RoundSums(len(updates), folder, kept_singly=combining.kept_singly)
    in_memory = MemorySums(len(updates), kept_singly=combining.kept_singly)
    for index in order or range(len(updates)):
        both = {UPDATE: updates[index], STATISTICS: updates[index][::-1]}
        spool = Spool(2 * SIZE, MemoryBudget(memory), folder)
        spool.append(np.concatenate(list(both.values())))
        sections = tuple(Section(each, SIZE) for each in both)
        sums.add(spool, UpdateParts(sections, f"d-{index:03}"), 1)
        in_memory.add([in_memory.keep(f"d-{index:03}", both)], [1])
    reports = [Report(f"d-{index:03}", 1) for index in range(len(updates))]
    whole = by_blocks(combining, sums, reports, UPDATE, block)
    assert (by_blocks(combining, sums, reports, STATISTICS, block) == whole[::-1]).all()
    assert (by_blocks(combining, in_memory, reports, UPDATE, block) == whole).all()
    sums.close()
    return whole


def by_blocks(
    combining: Combining, sums: Sums, reports: list[Report], name: str, block: int
) -> NDArray[np.float64]:
    if not combining.needs_updates:
        return sums.mean(name, 0, SIZE)
    combine, updates = combining.of_round(sums, reports), sums.singles(name)
    assert updates is not None
    starts = range(0, SIZE, block)
    found = [combine(updates, start, min(block, SIZE - start)) for start in starts]
    return np.concatenate(found)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_equal_updates_give_that_update(name: str, tmp_path: Path) -> None:
    update = random(1, SIZE)
    found = combined(name, [update] * 7, tmp_path)
    np.testing.assert_allclose(found, update, rtol=1e-12)


def test_neither_arrival_nor_disk_nor_blocks_change_a_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates = [1 + random(index, SIZE) for index in range(9)]
    plain = combined(name, updates, tmp_path)
    for order in (range(9)[::-1], (4, 2, 0, 8, 6, 1, 3, 7, 5)):
        assert (combined(name, updates, tmp_path, order=order) == plain).all()
    assert (combined(name, updates, tmp_path, memory=0) == plain).all()
    assert (combined(name, updates, tmp_path, block=1_000) == plain).all()
    assert (combined(name, updates, tmp_path, block=97) == plain).all()
    monkeypatch.setattr(single_updates, "_VALUES", 50)
    assert (combined(name, updates, tmp_path, memory=0) == plain).all()
    assert list(tmp_path.iterdir()) == []


def test_whose_an_update_is_does_not_matter(name: str, tmp_path: Path) -> None:
    updates = [1 + random(index, SIZE) for index in range(9)]
    plain = combined(name, updates, tmp_path)
    other = combined(name, [updates[index] for index in (4, 2, 0, 8, 6, 1, 3, 7, 5)], tmp_path)
    np.testing.assert_allclose(other, plain, rtol=1e-9, atol=1e-12)


def test_what_a_rule_is_given_stays_as_it_is(name: str, tmp_path: Path) -> None:
    updates = [random(index, SIZE) for index in range(7)]
    for update in updates:
        update.flags.writeable = False
    before = [update.tobytes() for update in updates]
    combined(name, updates, tmp_path)
    assert [update.tobytes() for update in updates] == before


def attacked(size: int, factor: float) -> list[Floats]:
    """Ten updates around one direction, of which two are turned round and made larger."""
    honest = [1 + random(index, size) for index in range(8)]
    return [*honest, *(-factor * (1 + random(index, size)) for index in (8, 9))]


@pytest.mark.parametrize("factor", [10.0, 1e30])
@pytest.mark.parametrize("name", ROBUST)
def test_a_fifth_of_attackers_does_not_turn_the_result(
    name: str, factor: float, tmp_path: Path
) -> None:
    found = combined(name, attacked(SIZE, factor), tmp_path)
    honest = np.mean(attacked(SIZE, factor)[:8], axis=0)
    # one honest update alone is at a distance of about sqrt(SIZE)
    assert np.linalg.norm(found - honest) < 1.1 * math.sqrt(SIZE)
    assert float(found.mean()) > 0.5


def test_the_mean_does_not_resist(tmp_path: Path) -> None:
    assert float(combined("mean", attacked(SIZE, 10.0), tmp_path).mean()) < -1


def test_a_round_with_the_rule_is_the_same_after_a_restart(name: str, tmp_path: Path) -> None:
    found = []
    for label, restarts in (("plain", False), ("restarted", True)):
        (tmp_path / label).mkdir()
        run = InProcessRun(tmp_path / label, Rows(), "fedavg", engines=["numpy"] * 7, rule=name)
        run.round()
        run.round(range(7)[::-1] if restarts else None, restarts=restarts)
        found.append([model.sha256 for model in run.models])
    assert found[0] == found[1]
    assert len({*found[0]}) == 3


def accuracy_under_attack(folder: Path, rule: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the honest devices' mean accuracy when two of ten send ten times the opposite."""
    train = Participant.train

    def attacking(self: Participant, weights: Weights, plan: LocalRound) -> LocalUpdate:
        update = train(self, weights, plan)
        if self.device.id not in {"d-8", "d-9"}:
            return update
        assert update.vector is not None
        return update._replace(vector=-10 * update.vector)

    folder.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(Participant, "train", attacking)
        run = InProcessRun(folder, load_task("digits"), "fedavg", engines=["numpy"] * 10, rule=rule)
        for _ in range(6):
            run.round()
        return float(np.mean([run.evaluate(index).metrics["accuracy"] for index in range(8)]))


def test_a_run_learns_although_a_fifth_of_its_devices_attack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {
        rule: accuracy_under_attack(tmp_path / rule, rule, monkeypatch)
        for rule in ("mean", "trimmed_mean", "multi_krum")
    }
    print(f"\naccuracy under attack: {found}")
    assert found["mean"] < 0.35
    assert min(found["trimmed_mean"], found["multi_krum"]) > 0.6


# --- each by arithmetic of its own --------------------------------------------------------------


def by_hand(name: str, updates: list[Floats]) -> NDArray[np.float64]:
    columns = np.array(updates, np.float64).T
    count = len(updates)
    wrong = math.ceil(0.2 * count)
    if name == "median":
        return np.array([np.median(column) for column in columns])
    if name == "trimmed_mean":
        return np.array([np.mean(sorted(each)[wrong : count - wrong]) for each in columns])
    rows = columns.T
    scores = []
    for one in rows:
        distances = sorted(float(((one - other) ** 2).sum()) for other in rows)
        scores.append(sum(distances[1 : count - wrong - 1]))
    kept = 1 if name == "krum" else count - wrong
    return np.asarray(np.mean(rows[np.argsort(scores)[:kept]], axis=0))


@pytest.mark.parametrize("count", [7, 10])
@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_it_is_what_its_paper_says(name: str, count: int, tmp_path: Path) -> None:
    updates = [(1 + index) * random(index, SIZE) for index in range(count)]
    found = combined(name, updates, tmp_path)
    np.testing.assert_allclose(found, by_hand(name, updates), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["krum", "multi_krum"])
def test_which_updates_are_nearest_depends_on_how_many_neighbours_count(
    name: str, tmp_path: Path
) -> None:
    # few coordinates of one size: one neighbour more or less gives another choice in some draw
    for draw in range(20):
        few = (random(100 * draw + index, 3) for index in range(10))
        updates = [np.pad(each, (0, SIZE - 3)) for each in few]
        found = combined(name, updates, tmp_path)
        np.testing.assert_allclose(found, by_hand(name, updates), rtol=1e-9, atol=1e-12)


def test_the_directions_to_the_updates_cancel_at_the_geometric_median(tmp_path: Path) -> None:
    updates = [(1 + index) * random(index, SIZE) for index in range(7)]
    found = combined("geometric_median", updates, tmp_path, settings={"iterations": 1000})
    pulls = [(each - found) / np.linalg.norm(each - found) for each in updates]
    assert np.linalg.norm(np.sum(pulls, axis=0)) < 1e-6
    assert np.linalg.norm(found - np.mean(updates, axis=0)) > 1


def test_where_most_updates_are_one_point_the_geometric_median_is_there(tmp_path: Path) -> None:
    point, other = random(1, SIZE), random(2, SIZE)
    found = combined("geometric_median", [point, other, point, point], tmp_path)
    np.testing.assert_allclose(found, point, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("mean", {}, 1),
        ("median", {}, 1),
        ("trimmed_mean", {}, 3),
        ("trimmed_mean", {"share": 0.4}, 9),
        ("trimmed_mean", {"share": 0.0}, 1),
        ("krum", {}, 7),
        ("multi_krum", {"share": 0.3}, 9),
        ("geometric_median", {}, 1),
    ],
)
def test_a_rule_tells_how_few_updates_are_too_few(
    name: str, settings: dict[str, Any], least: int
) -> None:
    assert RULES.load(name, settings).least_updates == least


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.45])
def test_of_as_many_and_of_more_updates_enough_are_left(share: float, tmp_path: Path) -> None:
    for name, spare in (("trimmed_mean", 1), ("krum", 3)):
        least = RULES.load(name, {"share": share}).least_updates
        left = [count - 2 * count_of(share, count) for count in range(least - 1, 200)]
        assert all(each >= spare for each in left[1:])
        assert left[0] < spare


def test_a_share_is_rounded_up() -> None:
    assert [count_of(0.2, count) for count in (1, 5, 6, 10, 11)] == [1, 1, 2, 2, 3]
    assert count_of(0.29, 100) == 29


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("kurm", {}, r"no rule 'kurm'; did you mean 'krum'\? \(there are: geometric_median, krum"),
    ("base", {}, "no rule 'base'"),
    ("krum", {"shares": 0.1}, "rule krum has no setting 'shares'; did you mean 'share'"),
    ("krum", {"share": 0.5}, r"rule krum, setting share: must be .* below 0.5 \(got 0.5\)"),
]


@pytest.mark.parametrize(("name", "settings", "said"), WRONG)
def test_a_name_or_a_setting_that_is_wrong_is_told_with_the_right_one(
    name: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        RULES.load(name, settings)
