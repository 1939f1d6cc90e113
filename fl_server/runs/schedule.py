"""The learning rate of a round, by a run's schedule. Pure."""

from __future__ import annotations

import math
from typing import Any

from fl_server.runs.definition import RunDefinition, ScheduleSection

# a rate of 0 trains nothing, and devices refuse it
_LEAST = 1e-9


def factor(schedule: ScheduleSection, round_number: int, rounds: int) -> float:
    """Return what the learning rate is multiplied by in a round.

    Args:
        round_number: from 1.
        rounds: of the run.
    """
    warmup = schedule.warmup_rounds
    if round_number <= warmup:
        return round_number / (warmup + 1)
    done = round_number - 1 - warmup
    match schedule.name:
        case "step":
            found = _decay(schedule) ** (done // schedule.every)
        case "exponential":
            found = _decay(schedule) ** done
        case "cosine":
            half_wave = math.pi * done / (rounds - warmup)
            found = schedule.least + (1 - schedule.least) * (1 + math.cos(half_wave)) / 2
        case _:
            found = 1.0
    return max(found, schedule.least, _LEAST)


def training_of(definition: RunDefinition, round_number: int) -> dict[str, Any]:
    """Return the training settings of a round: the definition's, with its learning rate."""
    training = dict(definition.training)
    if not definition.schedule.is_constant:
        after = definition.schedule.after
        share = factor(definition.schedule, after + round_number, after + definition.rounds)
        training["learning_rate"] = float(training["learning_rate"]) * share
    return training


def _decay(schedule: ScheduleSection) -> float:
    assert schedule.decay is not None
    return schedule.decay
