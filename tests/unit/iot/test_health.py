"""What a machine tells of itself, from a made-up /proc and /sys; and the guards over it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.wire.messages import DeviceHealth
from iot.guards import Guards, Hysteresis, is_worth_reporting
from iot.health import Sensors, run_command
from iot.profile import Budget, budget_of


class Board:
    """A machine below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "data"
        self.folder.mkdir()
        self.said = ""
        self.asked: list[Sequence[str]] = []

    def has(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def sensors(self, *links: str) -> Sensors:
        def run(argv: Sequence[str]) -> str:
            self.asked.append(argv)
            return self.said

        return Sensors(self.folder, root=self.root, run=run, metered_links=links)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_a_machine_that_tells_nothing_is_unknown(board: Board) -> None:
    told = board.sensors().read().model_dump(exclude_defaults=True)
    assert told.keys() == {"disk_free_bytes"}


def test_a_raspberry_pi(board: Board) -> None:
    board.has("sys/class/thermal/thermal_zone0/temp", "61230\n")
    board.has("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    board.has("usr/bin/vcgencmd", "")
    board.said = "throttled=0x50005\n"
    board.has("proc/loadavg", f"{os.cpu_count()}.0 0.5 0.1 1/99 7\n")
    board.has("proc/meminfo", "MemTotal: 949328 kB\nMemAvailable: 512000 kB\n")
    board.has(
        "proc/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\n"
        "eth0\t0000A8C0\t0\t1\t0\t0\t0\n"
        "wwan0\t00000000\t1\t3\t0\t0\t700\n"
        "wlan0\t00000000\t1\t3\t0\t0\t600\n",
    )
    board.has(
        "proc/net/wireless", "Inter-| sta\n face | tus\n wlan0: 0000   54.  -56.  -256  0 0\n"
    )
    board.has("run/systemd/timesync/synchronized", "")
    told = board.sensors().read()
    assert told.temperature_c == 61.23
    assert told.under_voltage is True
    assert told.throttled == ["throttled"]
    assert told.load == 1.0
    assert told.memory_available_bytes == 512000 * 1024
    assert (told.link, told.link_dbm, told.metered) == ("wlan0", -56.0, False)
    assert told.clock_synced is True
    assert told.on_battery is None


def test_a_signal_without_a_unit_is_unknown(board: Board) -> None:
    board.has("proc/net/route", "a\nwlan0\t00000000\t1\t3\t0\t0\t0\n")
    board.has("proc/net/wireless", "a\nb\n wlan0: 0000   54.  160.  0.  0 0\n")
    told = board.sensors().read()
    assert (told.link, told.link_dbm) == ("wlan0", None)


@pytest.mark.parametrize(
    ("bits", "names", "under_voltage"),
    [
        (0x0, [], False),
        (0x1, [], True),
        (0x2, ["arm-capped"], False),
        (0xE, ["arm-capped", "throttled", "soft-temperature-limit"], False),
        (0xF0000, [], False),
    ],
)
def test_the_firmwares_bits(board: Board, bits: int, names: list[str], under_voltage: bool) -> None:
    board.has("sys/devices/platform/soc/soc:firmware/get_throttled", f"{bits:x}\n")
    told = board.sensors().read()
    assert (told.throttled, told.under_voltage) == (names, under_voltage)
    assert not board.asked, "what the kernel tells needs no program"


@pytest.mark.parametrize("said", ["", "error=1\n", "throttled=\n", "VCHI initialization failed\n"])
def test_a_firmware_that_does_not_answer_is_unknown(board: Board, said: str) -> None:
    board.has("usr/bin/vcgencmd", "")
    board.said = said
    told = board.sensors().read()
    assert (told.throttled, told.under_voltage) == (None, None)


def test_under_voltage_by_the_kernels_own_monitor(board: Board) -> None:
    board.has("sys/class/hwmon/hwmon1/name", "rpi_volt\n")
    board.has("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n")
    assert board.sensors().read().under_voltage is True


def test_the_processors_own_zone_goes_before_others(board: Board) -> None:
    for number, (kind, temp) in enumerate(
        [("acpitz", "97000"), ("x86_pkg_temp", "55000"), ("cpu-1", "48000"), ("soc", "-274000")]
    ):
        board.has(f"sys/class/thermal/thermal_zone{number}/type", kind)
        board.has(f"sys/class/thermal/thermal_zone{number}/temp", temp)
    assert board.sensors().temperature_c() == 55.0


def test_the_wear_of_an_emmc(board: Board) -> None:
    device = board.folder.stat().st_dev
    block = f"sys/dev/block/{os.major(device)}:{os.minor(device)}"
    board.has(f"{block}/device/life_time", "0x01 0x03\n")
    assert board.sensors().read().disk_wear_percent == 30


def test_a_battery_and_a_metered_link(board: Board) -> None:
    supplies = "sys/class/power_supply"
    board.has(f"{supplies}/AC/type", "Mains\n")
    board.has(f"{supplies}/BAT0/type", "Battery\n")
    board.has(f"{supplies}/BAT0/capacity", "37\n")
    board.has(f"{supplies}/BAT0/status", "Discharging\n")
    board.has(f"{supplies}/mouse/type", "Battery\n")
    board.has(f"{supplies}/mouse/scope", "Device\n")
    board.has(f"{supplies}/mouse/capacity", "2\n")
    route = "a\nppp0\t00000000\t1\t3\t0\t0\t0\n"
    board.has("proc/net/route", route)
    told = board.sensors("wwan*", "ppp*").read()
    assert (told.battery_percent, told.on_battery) == (37, True)
    assert (told.link, told.metered) == ("ppp0", True)


@given(text=st.text(max_size=200))
def test_nonsense_in_a_file_is_unknown_and_fits_the_message(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    board = Board(tmp_path_factory.mktemp("board"))
    for path in (
        "sys/class/thermal/thermal_zone0/temp",
        "sys/devices/platform/soc/soc:firmware/get_throttled",
        "proc/loadavg",
        "proc/meminfo",
        "proc/net/route",
        "proc/net/wireless",
        "sys/class/power_supply/BAT0/capacity",
    ):
        board.has(path, text)
    board.has("sys/class/power_supply/BAT0/type", "Battery")
    board.sensors().read()


def test_a_program_that_fails_or_is_missing_says_nothing() -> None:
    assert run_command(["false"]) == ""
    assert run_command(["/no/such/program"]) == ""
    assert run_command(["echo", "throttled=0x0"]) == "throttled=0x0\n"


# --- guards ---------------------------------------------------------------------------------------


def test_heat_stops_training_once_and_lets_it_go_on_once() -> None:
    guards = Guards(budget_of("pi4", Budget()))
    course = [60.0, 74.9, 75.0, 74.0, 70.0, None, 65.1, 65.0, 70.0, 74.9]
    rests = [bool(guards.update(DeviceHealth(temperature_c=at))) for at in course]
    assert rests == [False, False, True, True, True, True, True, False, False, False]


def test_a_low_battery_stops_training_until_it_is_charged_or_at_the_charger() -> None:
    guards = Guards(Budget(battery_percent=20))

    def rests(percent: int | None, on_battery: bool | None) -> bool:
        return bool(guards.update(DeviceHealth(battery_percent=percent, on_battery=on_battery)))

    course = [(21, True), (20, True), (19, True), (22, True), (29, True), (30, True), (20, True)]
    assert [rests(*at) for at in course] == [False, False, True, True, True, False, False]
    assert rests(10, True)
    assert not rests(10, False)


def test_a_machine_without_sensors_never_rests() -> None:
    assert Guards(Budget()).update(DeviceHealth()) == ""


@given(figures=st.lists(st.floats(0, 120)), shut=st.floats(50, 100), gap=st.floats(0.1, 30))
def test_a_guard_changes_its_mind_only_beyond_the_gap(
    figures: list[float], shut: float, gap: float
) -> None:
    guard, last = Hysteresis(shut, shut - gap), None
    for figure in figures:
        before = guard.closed
        if guard.update(figure) != before:
            assert last is None or abs(figure - last) >= gap or guard.closed
            last = figure
            assert figure >= shut if guard.closed else figure <= shut - gap


def test_small_changes_are_no_news() -> None:
    before = DeviceHealth(temperature_c=50.0, memory_available_bytes=1000, load=0.1)
    assert is_worth_reporting(None, before)
    assert not is_worth_reporting(
        before, before.model_copy(update={"temperature_c": 54.9, "load": 3.0})
    )
    assert not is_worth_reporting(before, before.model_copy(update={"memory_available_bytes": 600}))
    for change in (
        {"temperature_c": 55.0},
        {"temperature_c": None},
        {"memory_available_bytes": 400},
        {"under_voltage": True},
        {"clock_synced": False},
        {"paused": "hot"},
    ):
        assert is_worth_reporting(before, before.model_copy(update=change)), change
