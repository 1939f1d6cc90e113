"""Fits each device's order to its speed, so that a cohort finishes at about the same time. Pure.

Nothing here reads a clock: what devices measured comes in with their results.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

PROBE_STEPS = 8
_NEWEST_SHARE = 0.5
_DEADLINE_SHARE = 0.8


@dataclass(frozen=True)
class OrderWork:
    """What of a round's training one device is asked for; 0 leaves it to the run's definition.

    Whatever else is fitted to a device (a slice of the model's width, a codec) becomes a field here
    and an override of the order.
    """

    max_steps: int = 0
    micro_batch: int = 0

    def overrides(self) -> dict[str, Any]:
        """Return the training settings that the order has instead of the definition's."""
        return {name: value for name, value in vars(self).items() if value}


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
    """Return the speed by a result's usage, None when its training counts no steps."""
    steps, steps_s = int(usage.get("steps", 0)), usage.get("steps_s", 0.0)
    full_steps = int(usage.get("full_steps", 0))
    if steps < 1 or full_steps < 1 or not 0 < steps_s < math.inf:
        return None
    fixed_s = max(0.0, usage.get("train_s", 0.0) - steps_s) + usage.get("transfer_s", 0.0)
    if not math.isfinite(fixed_s):
        return None
    return Speed(steps_s / steps, fixed_s, full_steps, int(usage.get("micro_batch", 0)))


def known_speeds(runs: Iterable[Mapping[str, Speed]]) -> dict[str, Speed]:
    """Return each device's speed in the last of these runs that it took part in."""
    known: dict[str, Speed] = {}
    for speeds in runs:
        known.update(speeds)
    return known


def fit(cohort: Iterable[str], speeds: Mapping[str, Speed], rule: FitRule) -> dict[str, OrderWork]:
    """Return the work of each device.

    A device that was never measured gets a few steps as a probe. Everybody else gets the steps
    that it is expected to do until the target, at least one, and never more than its epochs give.
    """
    cohort = list(cohort)
    found = {device_id: speeds[device_id] for device_id in cohort if device_id in speeds}
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
        micro_batch = 0 if earlier is None else earlier.micro_batch
        work[device_id] = OrderWork(0 if steps == full else steps, micro_batch)
    return work


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
