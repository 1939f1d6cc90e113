"""The devices of the recorded data, and the task that they train."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rengo.site.device_process import DeviceSpec
from tests.old_data.counting import CountingDigits

HERE = Path(__file__).parent
TASK = f"{HERE / 'counting.py'}:{CountingDigits.__name__}"
TASK_NAME = CountingDigits.name
TRAINERS = ["t-1", "t-2", "t-3", "t-4"]
EVALUATORS = ["e-1", "e-2"]
DEVICES = [*TRAINERS, *EVALUATORS]


def spec_of(name: str) -> DeviceSpec:
    """Return how a device is started: all on the numpy engine, one as a Pi."""
    if name in EVALUATORS:
        return DeviceSpec(name, engine="numpy", role="evaluator")
    number, count = TRAINERS.index(name), len(TRAINERS)
    profile: Literal["cpu", "pi"] = "pi" if name == "t-4" else "cpu"
    return DeviceSpec(name, profile, "numpy", index=number, count=count)
