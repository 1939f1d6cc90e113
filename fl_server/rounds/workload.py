"""Fits each device's order to its speed, so that a cohort finishes at about the same time. Pure.

Nothing here reads a clock: what devices measured comes in with their results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, TypeAlias

from runtime.bounds import MAX_SECONDS, MAX_SIZE, SHORTEST_STEP_S

WidthOf: TypeAlias = Callable[[str, int], float]
"""How much of the model a device trains in a round, by its id and the round's number."""

PROBE_STEPS = 8
_NEWEST_SHARE = 0.5
_DEADLINE_SHARE = 0.8


@dataclass(frozen=True)
class OrderWork:
    """What of a round's training one device is asked for.

    Attributes:
        max_steps: 0 leaves it to the run's definition, as of ``micro_batch``.
        width: how much of the model it trains; 1 is the whole.
    """

    max_steps: int = 0
    micro_batch: int = 0
    width: float = 1.0

    def overrides(self) -> dict[str, Any]:
        """Return the training settings that the order has instead of the definition's."""
        settings = {"max_steps": self.max_steps, "micro_batch": self.micro_batch}
        return {name: value for name, value in settings.items() if value}


@dataclass(frozen=True)
class Speed:
    """What a device was measured at with one task.

    Attributes:
        step_s: seconds for a step.
        fixed_s: what a round costs beside its steps: transfers, loading, writing.
        full_steps: what the epochs give on its data.
        micro_batch: what it cut its batches into last, 0 for none.
    """

    step_s: float
    fixed_s: float
    full_steps: int
    micro_batch: int = 0

    @property
    def is_plausible(self) -> bool:
        """Whether a computer may have been so fast or so slow: nothing else is reckoned with."""
        return (
            SHORTEST_STEP_S <= self.step_s <= MAX_SECONDS
            and 0 <= self.fixed_s <= 2 * MAX_SECONDS
            and 1 <= self.full_steps <= MAX_SIZE
            and 0 <= self.micro_batch <= MAX_SIZE
        )

    def seconds(self, steps: int) -> float:
        """Return how long a round of so many steps is expected to take."""
        return self.fixed_s + steps * self.step_s

    def followed_by(self, newer: Speed) -> Speed:
        """Return the smoothed speed after another measurement."""
        return Speed(
            _smoothed(self.step_s, newer.step_s),
            _smoothed(self.fixed_s, newer.fixed_s),
            newer.full_steps,
            newer.micro_batch,
        )


@dataclass(frozen=True)
class FitRule:
    """How a run's orders are fitted.

    Attributes:
        target_s: when a device shall be done; None: when half of the cohort would be, each with
            all its epochs.
        deadline_s: of the round; the target is well before it.
        max_steps: the definition's own, 0 for none.
        known: speeds from earlier runs of the task, as they were when the run was submitted. What
            batches were cut into comes from there alone: within a run a device remembers it.
    """

    target_s: float | None
    deadline_s: float
    max_steps: int = 0
    known: Mapping[str, Speed] = field(default_factory=dict)


def measured(usage: Mapping[str, float]) -> Speed | None:
    """Return the speed by a usage, None where no steps are counted or it cannot be true."""
    steps, steps_s = int(usage.get("steps", 0)), usage.get("steps_s", 0.0)
    if steps < 1:
        return None
    fixed_s = max(0.0, usage.get("train_s", 0.0) - steps_s) + usage.get("transfer_s", 0.0)
    full_steps, micro_batch = int(usage.get("full_steps", 0)), int(usage.get("micro_batch", 0))
    speed = Speed(steps_s / steps, fixed_s, full_steps, micro_batch)
    return speed if speed.is_plausible else None


def known_speeds(runs: Iterable[Mapping[str, Speed]]) -> dict[str, Speed]:
    """Return each device's speed in the last of these runs that it took part in."""
    known: dict[str, Speed] = {}
    for speeds in runs:
        known |= {name: speed for name, speed in speeds.items() if speed.is_plausible}
    return known


def fit(cohort: Iterable[str], speeds: Mapping[str, Speed], rule: FitRule) -> dict[str, OrderWork]:
    """Return the work of each device.

    A device that was never measured gets a few steps as a probe. Everybody else gets the steps
    that it is expected to do until the target, at least one, and never more than its epochs give.
    A speed that cannot be true, which a journal of an earlier version may hold, is as none.
    """
    cohort = list(cohort)
    found = {name: speeds[name] for name in cohort if name in speeds and speeds[name].is_plausible}
    target_s = _target_s(found.values(), rule)
    work = {}
    for device_id in cohort:
        speed, earlier = found.get(device_id), rule.known.get(device_id)
        if speed is None:
            work[device_id] = OrderWork(_least(PROBE_STEPS, rule.max_steps))
            continue
        full = _least(speed.full_steps, rule.max_steps)
        steps = _steps_within(target_s, speed, full)
        # 0 where all its steps fit: its data may have grown since
        micro_batch = earlier.micro_batch if earlier and earlier.is_plausible else 0
        work[device_id] = OrderWork(0 if steps == full else steps, micro_batch)
    return work


def whole_model(device_id: str, round_number: int) -> float:
    """Return the width of a device in a run without parts."""
    del device_id, round_number
    return 1.0


def with_widths(work: Mapping[str, OrderWork], widths: Mapping[str, float]) -> dict[str, OrderWork]:
    """Return the work of a round's devices with how much of the model each trains."""
    narrow = {
        name: replace(work.get(name, OrderWork()), width=width)
        for name, width in widths.items()
        if width < 1
    }
    return {**work, **narrow}


def _target_s(speeds: Iterable[Speed], rule: FitRule) -> float:
    latest_s = rule.deadline_s * _DEADLINE_SHARE
    if rule.target_s is not None:
        return min(rule.target_s, latest_s)
    whole_s = [speed.seconds(_least(speed.full_steps, rule.max_steps)) for speed in speeds]
    return min(median(whole_s), latest_s) if whole_s else latest_s


def _steps_within(target_s: float, speed: Speed, full: int) -> int:
    fitting = (target_s - speed.fixed_s) / speed.step_s
    # a quotient may fall just short of a whole number: median devices keep their last step
    return max(1, min(full, math.floor(min(fitting, full) + 1e-6)))


def _least(steps: int, most: int) -> int:
    return min(steps, most) if most else steps


def _smoothed(before: float, now: float) -> float:
    return before + _NEWEST_SHARE * (now - before)
