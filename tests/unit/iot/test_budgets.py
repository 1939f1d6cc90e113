"""The data of a day: counted within any 24 hours, kept with few writes, whatever the clock says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iot import budgets
from iot.budgets import Clocks, DataBudget

HOUR = 3600.0
LIMIT = 100_000_000


@dataclass
class Machine:
    """A machine whose clocks a test sets; its disk outlives its starts."""

    path: Path
    boot_s: float = 50.0
    boot: int = 1
    wall_s: float = 1.8e9
    synced: bool = True
    opened: list[DataBudget] = field(default_factory=list)

    def start(self) -> DataBudget:
        clocks = Clocks(
            lambda: self.boot_s,
            lambda: f"boot-{self.boot}",
            lambda: self.wall_s,
            lambda: self.synced,
        )
        self.opened.append(DataBudget(self.path, LIMIT, clocks))
        return self.opened[-1]

    def run_for(self, seconds: float) -> None:
        self.boot_s += seconds
        self.wall_s += seconds

    def off_for(self, seconds: float) -> None:
        self.boot_s, self.boot = 5.0, self.boot + 1
        self.wall_s += seconds


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "data.json")


def test_what_was_spent_comes_back_after_a_day_and_not_before(machine: Machine) -> None:
    day = machine.start()
    day.spend(60_000_000)
    machine.run_for(10 * HOUR)
    day.spend(30_000_000)
    assert day.left_bytes() == 10_000_000
    machine.run_for(13.9 * HOUR)
    assert day.left_bytes() == 10_000_000
    machine.run_for(1.2 * HOUR)
    assert day.left_bytes() == 70_000_000


def test_what_was_spent_late_in_an_hour_stays_for_a_whole_day(machine: Machine) -> None:
    day = machine.start()
    machine.run_for(0.9 * HOUR)
    day.spend(60_000_000)
    machine.run_for(23.9 * HOUR)
    assert day.left_bytes() == 40_000_000
    machine.run_for(0.2 * HOUR)
    assert day.left_bytes() == LIMIT


@pytest.mark.parametrize("years", [-60, -3, 3, 60])
def test_a_clock_that_jumps_neither_frees_nor_costs(machine: Machine, years: int) -> None:
    day = machine.start()
    day.spend(60_000_000)
    machine.wall_s += years * 365 * 24 * HOUR
    assert day.left_bytes() == 40_000_000
    day.close()
    again = machine.start()
    assert again.left_bytes() == 40_000_000, "within one boot, the machine's own clock counts"
    machine.run_for(25 * HOUR)
    assert again.left_bytes() == LIMIT


def test_a_clock_that_stands_still_holds_nothing_up(machine: Machine) -> None:
    day = machine.start()
    day.spend(60_000_000)
    machine.boot_s += 25 * HOUR
    assert day.left_bytes() == LIMIT


def test_time_off_counts_where_the_clock_is_known_to_be_right(machine: Machine) -> None:
    day = machine.start()
    day.spend(60_000_000)
    day.close()
    machine.off_for(25 * HOUR)
    assert machine.start().left_bytes() == LIMIT


def test_time_off_counts_once_the_clock_is_set_and_for_what_was_before_alone(
    machine: Machine,
) -> None:
    day = machine.start()
    day.spend(60_000_000)
    day.close()
    machine.off_for(0)  # no clock chip: it starts where it stopped
    machine.synced = False
    again = machine.start()
    assert again.left_bytes() == 40_000_000
    again.spend(10_000_000)
    assert again.left_bytes() == 30_000_000
    machine.run_for(60)
    machine.wall_s += 25 * HOUR
    machine.synced = True
    assert again.left_bytes() == 90_000_000
    machine.run_for(23 * HOUR)
    assert again.left_bytes() == 90_000_000


def test_a_wrong_clock_never_frees_data_at_a_start(machine: Machine) -> None:
    day = machine.start()
    day.spend(60_000_000)
    day.close()
    machine.off_for(60)
    machine.synced = False
    machine.wall_s += 30 * 365 * 24 * HOUR
    assert machine.start().left_bytes() == 40_000_000


def test_a_clock_that_was_wrong_when_the_machine_went_off_frees_nothing(machine: Machine) -> None:
    machine.synced, machine.wall_s = False, 60.0
    day = machine.start()
    day.spend(60_000_000)
    day.close()
    machine.off_for(60)
    machine.synced, machine.wall_s = True, 1.8e9
    assert machine.start().left_bytes() == 40_000_000


def test_a_crash_costs_a_little_and_gives_nothing(machine: Machine) -> None:
    day = machine.start()
    for _ in range(50):
        day.spend(1_000_000)
    left = machine.start().left_bytes()
    assert 40_000_000 <= left <= 50_000_000


def test_a_day_of_small_messages_is_few_writes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []
    whole = budgets.atomic_write
    monkeypatch.setattr(
        budgets, "atomic_write", lambda path, data: (writes.append(data), whole(path, data))
    )
    day = machine.start()
    for _ in range(24 * 60):
        day.spend(LIMIT // (24 * 60))
        machine.run_for(60)
    assert len(writes) <= 25 + budgets._AHEAD


@pytest.mark.parametrize("damage", [b"", b"\0" * 300, b"{", b'{"slots": [1]}', b"\xff\xfe"])
def test_a_damaged_file_begins_the_day_anew(machine: Machine, damage: bytes) -> None:
    machine.start().spend(5)
    machine.path.write_bytes(damage)
    day = machine.start()
    assert day.left_bytes() == LIMIT
    day.spend(7)
    assert day.left_bytes() == LIMIT - 7


def test_a_disk_that_is_full_costs_the_record_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(budgets, "atomic_write", full)
    day = machine.start()
    day.spend(60_000_000)
    assert day.left_bytes() == 40_000_000


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("spend"), st.integers(0, 40_000_000)),
            st.tuples(st.just("run"), st.floats(0, 30 * HOUR)),
            st.tuples(st.just("off"), st.floats(0, 30 * HOUR)),
            st.tuples(st.just("crash"), st.just(0)),
            st.tuples(st.just("jump"), st.floats(-1e9, 1e9)),
            st.tuples(st.just("sync"), st.booleans()),
        ),
        max_size=25,
    )
)
def test_never_more_is_left_than_a_true_clock_would_say(
    steps: list[tuple[str, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The clock may jump as long as nobody says that it is right."""
    machine = Machine(tmp_path_factory.mktemp("day") / "data.json", synced=False)
    day, true_s, error_s = machine.start(), 0.0, 0.0
    spent: list[tuple[float, float]] = []
    for what, value in steps:
        match what:
            case "spend":
                day.spend(int(value))
                spent.append((true_s, int(value)))
            case "run":
                true_s += value
                machine.run_for(value)
            case "off" | "crash":
                if what == "off":
                    day.close()
                true_s += value
                machine.off_for(value)
                day = machine.start()
            case "jump":
                error_s += value
                machine.wall_s += value
                machine.synced = False
            case "sync":
                machine.synced = bool(value)
                if machine.synced:
                    machine.wall_s -= error_s
                    error_s = 0.0
        within = sum(count for at, count in spent if at > true_s - 24 * HOUR)
        assert day.left_bytes() <= max(0, LIMIT - within)
