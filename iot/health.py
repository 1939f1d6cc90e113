"""The machine's health, read from the kernel's and the firmware's files; None is unknown.

Every path is below ``root``, so that a test can supply its own files. Nothing here waits long or
raises: a sensor that is missing or does not answer is unknown.
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from broker.wire.messages import DeviceHealth

# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
_NOW = {1: "arm-capped", 2: "throttled", 3: "soft-temperature-limit"}
_UNDER_VOLTAGE = 0
_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
_VCGENCMD = "usr/bin/vcgencmd"
_VCGENCMD_S = 2.0
# eMMC reports wear in steps of 10 %; 11 is beyond its rated life
_WEAR_STEP = 10

Run = Callable[[Sequence[str]], str]


def run_command(argv: Sequence[str]) -> str:
    """Return what a command prints, "" when it fails or takes too long."""
    try:
        done = subprocess.run(
            argv, capture_output=True, timeout=_VCGENCMD_S, text=True, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout if done.returncode == 0 else ""


class Sensors:
    """Reads the machine below ``root``; ``folder`` is where the agent's files lie."""

    def __init__(
        self,
        folder: Path,
        *,
        root: Path = Path("/"),
        run: Run = run_command,
        metered_links: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._root = root
        self._run = run
        self._metered_links = metered_links

    def read(self) -> DeviceHealth:
        """Return all that is known now, without ``paused`` and ``data_left_bytes``."""
        bits = self.throttle_bits()
        link = self.link()
        percent, discharging = self._battery()
        return _plausible(
            temperature_c=self.temperature_c(),
            throttled=None
            if bits is None
            else [name for bit, name in _NOW.items() if bits >> bit & 1],
            under_voltage=self._under_voltage(bits),
            load=self._load(),
            memory_available_bytes=self.memory_available_bytes(),
            disk_free_bytes=self.disk_free_bytes(),
            disk_wear_percent=self._disk_wear_percent(),
            link=link,
            link_dbm=None if link is None else self._link_dbm(link),
            metered=None if link is None else self.is_metered(link),
            battery_percent=percent,
            on_battery=discharging,
            clock_synced=self.clock_synced(),
        )

    # --- processor ------------------------------------------------------------------------------

    def temperature_c(self) -> float | None:
        """Return the hottest of the processor's zones, or of all zones if none is named so."""
        named: dict[str, float] = {}
        for zone in sorted((self._root / "sys/class/thermal").glob("thermal_zone*")):
            value = _number(_text(zone / "temp"))
            # some zones report 0 or nonsense while their driver is suspended
            if value is not None and -40_000 < value < 150_000 and value != 0:
                named[f"{_text(zone / 'type')} {zone.name}"] = value / 1000
        own = [
            value
            for name, value in named.items()
            if name.lower().startswith(("cpu", "soc", "x86_pkg", "coretemp", "k10temp"))
        ]
        return max(own or named.values(), default=None)

    def throttle_bits(self) -> int | None:
        """Return the firmware's ``get_throttled`` bits; only a Raspberry Pi has them."""
        text = _text(self._root / _FIRMWARE)
        if not text and (self._root / _VCGENCMD).exists():
            output = self._run([str(self._root / _VCGENCMD), "get_throttled"])
            text = output.strip().partition("throttled=")[2]
        try:
            return int(text, 16)
        except ValueError:
            return None

    def _under_voltage(self, bits: int | None) -> bool | None:
        if bits is not None:
            return bool(bits >> _UNDER_VOLTAGE & 1)
        for hwmon in sorted((self._root / "sys/class/hwmon").glob("hwmon*")):
            if _text(hwmon / "name") == "rpi_volt":
                alarm = _number(_text(hwmon / "in0_lcrit_alarm"))
                return None if alarm is None else bool(alarm)
        return None

    def _load(self) -> float | None:
        first = _text(self._root / "proc/loadavg").partition(" ")[0]
        value = _number(first)
        return None if value is None else round(value / (os.cpu_count() or 1), 3)

    # --- memory and disk ------------------------------------------------------------------------

    def memory_available_bytes(self) -> int | None:
        """Return the bytes that a new process can use without swapping."""
        for line in _text(self._root / "proc/meminfo").splitlines():
            if line.startswith("MemAvailable:"):
                value = _number(line.split()[1])
                return None if value is None else int(value) * 1024
        return None

    def disk_free_bytes(self) -> int | None:
        """Return the bytes free on the disk of the agent's files."""
        try:
            found = os.statvfs(self._folder)
        except OSError:
            return None
        return found.f_bavail * found.f_frsize

    def _disk_wear_percent(self) -> int | None:
        """Return the higher of an eMMC's two estimates; sysfs has none for other media."""
        try:
            device = self._folder.stat().st_dev
        except OSError:
            return None
        block = self._root / f"sys/dev/block/{os.major(device)}:{os.minor(device)}"
        for folder in (block, block.resolve().parent):
            steps = [_hex(part) for part in _text(folder / "device/life_time").split()]
            if known := [step for step in steps if step]:
                return max(known) * _WEAR_STEP
        return None

    # --- link, battery, clock -------------------------------------------------------------------

    def link(self) -> str | None:
        """Return the interface of the default route with the least metric."""
        routes = []
        for line in _text(self._root / "proc/net/route").splitlines()[1:]:
            fields = line.split()
            if len(fields) >= 7 and fields[1] == "00000000":
                routes.append((_number(fields[6]) or 0.0, fields[0][:64]))
        return min(routes)[1] if routes else None

    def is_metered(self, link: str) -> bool:
        """Return whether the site has named this link as paid by the byte."""
        return any(fnmatch.fnmatchcase(link, pattern) for pattern in self._metered_links)

    def _link_dbm(self, link: str) -> float | None:
        for line in _text(self._root / "proc/net/wireless").splitlines():
            name, _, rest = line.partition(":")
            fields = rest.split()
            if name.strip() == link and len(fields) >= 3:
                value = _number(fields[2].rstrip("."))
                # drivers that do not report dBm count from 0 up
                return value if value is not None and value < 0 else None
        return None

    def _battery(self) -> tuple[int | None, bool | None]:
        """Return the lowest charge in percent, and whether a battery is discharging."""
        supplies = self._root / "sys/class/power_supply"
        if not supplies.is_dir():
            return None, None
        charges, discharging = [], False
        for supply in sorted(supplies.iterdir()):
            if _text(supply / "type") != "Battery" or _text(supply / "scope") == "Device":
                continue
            charge = _number(_text(supply / "capacity"))
            if charge is not None:
                charges.append(min(100, max(0, int(charge))))
            discharging = discharging or _text(supply / "status") == "Discharging"
        return min(charges, default=None), discharging

    def clock_synced(self) -> bool | None:
        """Return whether systemd-timesyncd has set the clock; None where it does not run.

        Read from its files, because a hardened service may not make the system call.
        """
        folder = self._root / "run/systemd/timesync"
        if not folder.is_dir():
            return None
        return (folder / "synchronized").exists()


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip("\0 \n")
    except OSError:
        return ""


def _plausible(**readings: Any) -> DeviceHealth:
    """Return the readings that a message can hold; a sensor that says anything else is unknown."""
    try:
        return DeviceHealth(**readings)
    except ValidationError as error:
        wrong = {each["loc"][0] for each in error.errors(include_input=False)}
        known = {name: each for name, each in readings.items() if name not in wrong}
        return DeviceHealth(**known)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # float() accepts "nan" and "inf"
    return value if abs(value) < 1e18 else None


def _hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0
