"""The machine's policy: an order that does not fit is declined with a reason; reports are few."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.wire.messages import DeviceHealth, ModelRef, Order, UploadRef
from fl_client.agent.resource_policy import Need
from iot.budgets import Clocks
from iot.health import Sensors
from iot.limits import Limiter
from iot.policy import MachinePolicy, is_within, used_bytes
from iot.profile import Budget
from iot.settings import HealthSettings

MIB = 1 << 20
GIB = 1 << 30
NOON = time.mktime((2026, 11, 24, 12, 0, 0, 0, 0, -1))


class Fixed(Sensors):
    """Sensors that tell what a test sets."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, root=folder)
        self.now = DeviceHealth(
            memory_available_bytes=4 * GIB, disk_free_bytes=8 * GIB, link="wlan0", metered=False
        )

    def read(self) -> DeviceHealth:
        return self.now

    def change(self, **values: Any) -> None:
        self.now = self.now.model_copy(update=values)


class Case:
    def __init__(self, folder: Path, **values: Any) -> None:
        budget = Budget.model_validate(values)
        self.sensors = Fixed(folder)
        self.boot_s, self.wall_s = 10.0, NOON
        self.between_orders_s = 1.0
        clocks = Clocks(lambda: self.boot_s, lambda: "boot", lambda: self.wall_s, lambda: False)
        self.policy = MachinePolicy(
            budget,
            HealthSettings(),
            folder,
            self.sensors,
            Limiter(budget, "d", root=folder),
            clocks,
        )

    def refusal(self, model_bytes: int = 1 * MIB, **need: int) -> str:
        order = Order(
            epoch=1,
            action="train",
            run_id="run",
            round=1,
            attempt=1,
            task="digits",
            algorithm="fedavg",
            algorithm_settings={},
            training={},
            seed=0,
            model=ModelRef(url="u", key="k", sha256="0" * 64, size_bytes=model_bytes),
            upload=UploadRef(url="u", key="k"),
            time_left_s=60.0,
        )
        self.boot_s += self.between_orders_s
        return self.policy.refusal(order, Need(**need))


Make = Callable[..., Case]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda **values: Case(tmp_path, **values)


def test_an_order_that_fits_is_taken(make: Make) -> None:
    case = make(memory="96MiB", data_per_day="10MiB", disk="1GiB", hours=["11:00-13:00"])
    assert case.refusal(download_bytes=MIB, upload_bytes=MIB, disk_bytes=3 * MIB) == ""


def test_orders_that_come_together_are_judged_by_one_look_and_the_data_that_are_left(
    make: Make,
) -> None:
    case = make(data_per_day="10MiB")
    case.between_orders_s = 0.0
    assert case.refusal(download_bytes=10 * MIB) == ""
    case.sensors.change(under_voltage=True)
    case.policy.count_bytes(MIB)
    assert "over the network" in case.refusal(download_bytes=10 * MIB)
    assert case.refusal(download_bytes=9 * MIB) == ""
    case.between_orders_s = 1.0
    assert "under-voltage" in case.refusal()


def test_a_machine_that_tells_nothing_takes_orders(make: Make) -> None:
    case = make(memory="96MiB", hours=["11:00-13:00"])
    case.sensors.now = DeviceHealth()
    assert case.refusal() == ""


@pytest.mark.parametrize(
    ("budget", "health", "reason"),
    [
        ({"memory": "43MiB"}, {}, "training takes 44.0 MiB of memory at least, the budget is 43.0"),
        ({}, {"memory_available_bytes": 40 * MIB}, "of memory at least, 40.0 MiB are free"),
        ({}, {"disk_free_bytes": 65 * MIB}, "3.0 MiB of disk are needed, 65.0 MiB are free"),
        ({"disk": "2MiB"}, {}, "the agent uses 0.0 MiB of its 2.0 MiB"),
        ({"data_per_day": "1.5MiB"}, {}, "2.0 MiB would go over the network, 1.5 MiB of today's"),
        ({"hours": ["22:00-06:00"]}, {}, "works at 22:00-06:00 only .here it is 12:00"),
        (
            {"hours": ["11:00-13:00"]},
            {"clock_synced": False},
            "works at 11:00-13:00 only, and its clock is not set yet",
        ),
        ({"metered": "decline"}, {"link": "wwan0", "metered": True}, "the link wwan0 is metered"),
        ({}, {"temperature_c": 101.0}, "at 101 °C: training rests from 100 °C until 90 °C"),
        ({}, {"battery_percent": 10, "on_battery": True}, "the battery has 10 %"),
        ({}, {"under_voltage": True}, "the power supply is too weak"),
        ({}, {"throttled": ["throttled"]}, "holds the processor back"),
    ],
)
def test_an_order_that_does_not_fit_is_declined_with_a_reason(
    make: Make, budget: dict[str, Any], health: dict[str, Any], reason: str
) -> None:
    case = make(**budget)
    case.sensors.change(**health)
    said = case.refusal(download_bytes=MIB, upload_bytes=MIB, disk_bytes=3 * MIB)
    assert re.search(reason, said), said


def test_what_is_promised_counts_as_spent(make: Make) -> None:
    case = make(data_per_day="10MiB")
    assert case.refusal(download_bytes=5 * MIB, promised_bytes=5 * MIB) == ""
    assert case.refusal(download_bytes=5 * MIB, promised_bytes=5 * MIB + 1)
    case.policy.count_bytes(6 * MIB)
    assert case.refusal(download_bytes=5 * MIB)
    case.boot_s += 25 * 3600
    assert case.refusal(download_bytes=5 * MIB) == ""


def test_the_hours_of_a_day() -> None:
    assert is_within("22:00-06:00", 22 * 60)
    assert is_within("22:00-06:00", 0)
    assert not is_within("22:00-06:00", 6 * 60)
    assert is_within("08:30-17:00", 8 * 60 + 30)
    assert not is_within("08:30-17:00", 17 * 60)


def test_reports_come_at_first_on_news_and_at_long_last(make: Make) -> None:
    case = make()
    told = []
    for second in range(0, 2000, 5):
        if second == 200:
            case.sensors.change(temperature_c=50.0)
        if case.policy.poll(float(second)) is not None:
            told.append(second)
    assert told[:2] == [0, 200]
    assert told[2:] == [1100], "the longest silence is 900 s"


def test_a_figure_that_jumps_about_is_told_once_a_minute(make: Make) -> None:
    case = make()
    told = 0
    for second in range(0, 600, 5):
        case.sensors.change(temperature_c=40.0 if second % 40 else 60.0)
        told += case.policy.poll(float(second)) is not None
    assert told <= 11


def test_a_pause_is_told_at_once_and_its_end_too(make: Make) -> None:
    case = make(pause_at_c=75, resume_at_c=65)
    assert case.policy.poll(0.0) is not None
    case.sensors.change(temperature_c=76.0)
    hot = case.policy.poll(20.0)
    assert hot is not None
    assert hot.paused
    assert case.policy.left_s(20.0) == 5.0, "a paused device measures more often"
    assert case.policy.poll(25.0) is None
    case.sensors.change(temperature_c=64.0)
    cool = case.policy.poll(30.0)
    assert cool is not None
    assert not cool.paused


def test_it_looks_only_when_that_is_due(make: Make) -> None:
    case = make()
    case.policy.poll(100.0)
    case.sensors.change(under_voltage=True)
    assert case.policy.poll(119.0) is None
    assert case.policy.left_s(119.0) == 1.0


def test_the_day_survives_the_process(make: Make) -> None:
    case = make(data_per_day="10MiB")
    case.policy.count_bytes(9 * MIB)
    case.policy.close()
    again = make(data_per_day="10MiB")
    assert again.policy.status()["health"]["data_left_bytes"] == MIB


def test_threads_go_to_the_training_process(make: Make) -> None:
    assert make(threads=3).policy.environment()["OMP_NUM_THREADS"] == "3"


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("/dev/zero")
    assert used_bytes(tmp_path) == 5


def test_a_model_for_use_is_fetched_within_the_budgets_at_any_hour(make: Make) -> None:
    case = make(data_per_day="10MiB", hours=["22:00-06:00"], metered="decline")
    assert case.policy.download_refusal(10 * MIB) == ""
    assert "over the network" in case.policy.download_refusal(10 * MIB + 1)
    case.sensors.change(link="wwan0", metered=True)
    assert "is metered" in case.policy.download_refusal(1)
