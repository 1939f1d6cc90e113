"""What a device may use: presets for known boards, of which a site can override any value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ByteSize, ConfigDict, Field, model_validator

from runtime.errors import ConfigError

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_MODEL = Path("proc/device-tree/model")


def _window(text: str) -> str:
    if _HOURS.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not of the form 22:00-06:00")
    return text


HourWindow = Annotated[str, AfterValidator(_window)]
Bytes = Annotated[ByteSize, Field(ge=0)]
Celsius = Annotated[float, Field(ge=20, le=130)]
Percent = Annotated[int, Field(ge=0, le=100)]


class Budget(BaseModel):
    """What training may use of the machine; None is no limit. Sizes may be written as 96MiB.

    Attributes:
        memory: bytes that the training process may hold.
        cpu_share: of one core; 0.25 is a quarter of one, 2 is two.
        threads: of the training process; with more than one, sums have no fixed order.
        nice: the training process's nice value, up to 19.
        data_per_day: bytes over the network within any 24 hours, up and down together.
        disk: the most bytes in the agent's folder.
        disk_free: bytes that must stay free on its disk.
        pause_at_c: training pauses from this temperature on ...
        resume_at_c: ... until it has fallen to this one.
        battery_percent: on battery, training pauses below it until the charge is 10 above it.
        hours: when orders are accepted, in local time, as 22:00-06:00; empty is always.
        metered: whether orders are accepted over a link that is paid by the byte.
        metered_links: the names of such links, with * and ?.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory: Bytes | None = None
    cpu_share: Annotated[float, Field(gt=0, le=1024)] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    nice: Annotated[int, Field(ge=0, le=19)] = 0
    data_per_day: Bytes | None = None
    disk: Bytes | None = None
    disk_free: Bytes = ByteSize(64 << 20)
    pause_at_c: Celsius = 100.0
    resume_at_c: Celsius = 90.0
    battery_percent: Percent = 20
    hours: list[HourWindow] = []
    metered: Literal["use", "decline"] = "use"
    metered_links: list[str] = ["wwan*", "ppp*"]

    @model_validator(mode="after")
    def _resumes_below(self) -> Budget:
        if self.resume_at_c >= self.pause_at_c:
            raise ValueError(
                f"resume_at_c {self.resume_at_c:g} is not below pause_at_c {self.pause_at_c:g}"
            )
        return self


def _pi(memory_mib: int, disk_gib: int) -> Budget:
    return Budget(
        memory=ByteSize(memory_mib << 20),
        nice=10,
        disk=ByteSize(disk_gib << 30),
        disk_free=ByteSize(256 << 20),
        pause_at_c=75.0,
        resume_at_c=65.0,
    )


PRESETS: dict[str, Budget] = {
    "pi-zero2": _pi(160, 1),
    "pi3": _pi(400, 2),
    "pi4": _pi(1024, 4),
    "pi5": _pi(2048, 8),
    "cpu": Budget(nice=5),
    "gpu": Budget(),
}
_BOARDS = {
    "Raspberry Pi Zero 2": "pi-zero2",
    "Raspberry Pi 3": "pi3",
    "Raspberry Pi 4": "pi4",
    "Raspberry Pi 400": "pi4",
    "Raspberry Pi 5": "pi5",
}


def preset_of(profile: str, root: Path = Path("/")) -> str:
    """Return the preset's name; the profile ``pi`` follows from the board's model.

    Raises:
        ConfigError: there is no such profile.
    """
    if profile in PRESETS:
        return profile
    if profile != "pi":
        raise ConfigError(f"no profile {profile!r}; there are: pi, {', '.join(PRESETS)}")
    path = root / _MODEL
    name = path.read_text(errors="replace").strip("\0 \n") if path.exists() else ""
    found = [board for board in _BOARDS if name.startswith(board)]
    return _BOARDS[max(found, key=len)] if found else "pi3"


def budget_of(profile: str, own: Budget, root: Path = Path("/")) -> Budget:
    """Return the preset of a profile, overridden by what the site has set.

    Raises:
        ConfigError: there is no such profile, or the values contradict each other.
    """
    preset = PRESETS[preset_of(profile, root)]
    values = {**preset.model_dump(), **own.model_dump(exclude_unset=True)}
    try:
        return Budget.model_validate(values)
    except ValueError as error:
        raise ConfigError(f"budget with profile {profile}: {_first_line(error)}") from error


def _first_line(error: ValueError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.startswith("  ")]
    return lines[0].partition(" [type=")[0] if lines else str(error)
