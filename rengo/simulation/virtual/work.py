"""What an order costs a device: how long each part takes, and what it draws. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rengo.simulation.virtual.fleet import Traits

Part: TypeAlias = Literal["download", "training", "upload", "answer"]


@dataclass(frozen=True)
class OrderSize:
    """What an order asks of a device.

    Attributes:
        examples: what the device computes with, each pass counted.
        steps: how many steps they are computed in.
        flops_per_example: of one example in one pass, backward passes included.
        bytes_down: the model with what comes with it.
        bytes_up: the update; 0 where only numbers are answered.
    """

    examples: int
    steps: int
    flops_per_example: float
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True)
class Phase:
    """One part of an order's work, done evenly over ``seconds``."""

    part: Part
    seconds: float
    joules: float = 0.0
    bytes_down: float = 0.0
    bytes_up: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What work has cost a device so far."""

    seconds: float = 0.0
    joules: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            self.joules + other.joules,
            self.bytes_down + other.bytes_down,
            self.bytes_up + other.bytes_up,
        )


def phases(size: OrderSize, traits: Traits, jitter: float = 1.0) -> tuple[Phase, ...]:
    """Return what a device does for an order, from its coming to the answer's arrival.

    Args:
        jitter: how much faster it trains this time than it usually does.
    """
    model, link = traits.model, traits.link
    train_s = training_s(size, traits, jitter)
    return (
        Phase(
            "download",
            size.bytes_down / (model.down_bytes_per_s * link),
            size.bytes_down * model.down_j_per_byte,
            bytes_down=size.bytes_down,
        ),
        Phase("training", train_s, train_s * model.train_w),
        Phase(
            "upload",
            size.bytes_up / (model.up_bytes_per_s * link),
            size.bytes_up * model.up_j_per_byte,
            bytes_up=size.bytes_up,
        ),
        Phase("answer", model.latency_s),
    )


def training_s(size: OrderSize, traits: Traits, jitter: float = 1.0) -> float:
    """Return how long a device computes for an order."""
    model, speed = traits.model, traits.speed * jitter
    if model.examples_per_s:
        return model.start_s + size.examples / (model.examples_per_s * speed)
    arithmetic_s = size.examples * size.flops_per_example / model.flops_per_s
    return model.start_s + (arithmetic_s + size.steps * model.step_s) / speed


def duration(work: Sequence[Phase]) -> float:
    """Return how long all of it takes."""
    return math.fsum(phase.seconds for phase in work)


def spent(work: Sequence[Phase], seconds: float) -> Cost:
    """Return what the first ``seconds`` of the work cost; all of it where it takes no longer."""
    joules = down = up = 0.0
    left = seconds
    for phase in work:
        share = 1.0 if left >= phase.seconds else left / phase.seconds
        joules += share * phase.joules
        down += share * phase.bytes_down
        up += share * phase.bytes_up
        if share < 1:
            break
        left -= phase.seconds
    else:
        return Cost(duration(work), joules, round(down), round(up))
    return Cost(seconds, joules, round(down), round(up))


def part_at(work: Sequence[Phase], seconds: float) -> Part:
    """Return what is being done after ``seconds``."""
    for phase in work:
        if seconds < phase.seconds:
            return phase.part
        seconds -= phase.seconds
    return work[-1].part


def empty_after(work: Sequence[Phase], charge_j: float, recharge_w: float) -> float | None:
    """Return after how long the work has emptied a battery, None where it lasts.

    Args:
        charge_j: what is in it at the beginning.
        recharge_w: what flows into it meanwhile.
    """
    passed = 0.0
    for phase in work:
        net_j = phase.joules - recharge_w * phase.seconds
        if net_j >= charge_j and net_j > 0:
            return passed + phase.seconds * charge_j / net_j
        charge_j -= net_j
        passed += phase.seconds
    return None
