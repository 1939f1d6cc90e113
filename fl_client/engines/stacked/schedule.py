"""Which clients of a group take part in each step, and with how many examples.

Every client goes through its own examples in its own order, as it does on an engine. Clients are
sorted by their steps, so those that still train are always the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Sizes: TypeAlias = NDArray[np.int64]

STEP_S = 50e-6
"""What a step costs beside its arithmetic, in seconds: some calls of numpy."""


@dataclass(frozen=True)
class StackedStep:
    """One step of a group.

    Attributes:
        active: how many clients take part, the first ones.
        width: the number of examples of the largest batch.
        sizes: the number of examples of each active client's batch.
        starts: where in its order each one's batch begins.
        start: where all of them begin; None where they differ.
        share: how much each example counts in its client's mean, 0 beyond the client's batch;
            [active, width], or one number where all batches are of one size.
        begins: the clients that begin an epoch.
    """

    active: int
    width: int
    sizes: Sizes
    starts: Sizes
    start: int | None
    share: Array | np.float32
    begins: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """The steps of a group of clients, sorted by their number of steps, most first.

    Attributes:
        counts: the number of examples of each client.
        totals: its number of steps.
        last_epoch: how much each step counts in the mean loss that a client reports, which is that
            of its last whole epoch, [steps, clients].
    """

    counts: tuple[int, ...]
    totals: tuple[int, ...]
    steps: tuple[StackedStep, ...]
    last_epoch: Array

    @cached_property
    def rows(self) -> int:
        """The number of examples that are computed, those that fill up a batch included."""
        return sum(step.active * step.width for step in self.steps)

    @cached_property
    def filled(self) -> int:
        """The number of examples that only fill up batches."""
        return self.rows - sum(int(step.sizes.sum()) for step in self.steps)


@lru_cache(maxsize=256)
def schedule_of(counts: tuple[int, ...], totals: tuple[int, ...], batch_size: int) -> Schedule:
    """Return the schedule of clients with so many examples and steps each.

    Args:
        totals: in falling order.
    """
    examples, ends = np.array(counts), np.array(totals)
    per_epoch = -(-examples // batch_size)
    numbers = np.arange(totals[0])[:, np.newaxis]
    starts = numbers % per_epoch * batch_size
    sizes = np.where(numbers < ends, np.minimum(batch_size, examples - starts), 0)
    steps = tuple(
        _step(starts[number], sizes[number], int((ends > number).sum()))
        for number in range(totals[0])
    )
    return Schedule(counts, totals, steps, _last_epoch(sizes, examples, per_epoch, ends))


def _step(starts: Sizes, sizes: Sizes, active: int) -> StackedStep:
    starts, sizes = starts[:active], sizes[:active]
    width = int(sizes.max())
    start = int(starts[0]) if (starts == starts[0]).all() else None
    begins = tuple(int(number) for number in np.flatnonzero(starts == 0))
    return StackedStep(active, width, sizes, starts, start, shares_of(sizes, width), begins)


def shares_of(sizes: Sizes, width: int) -> Array | np.float32:
    """Return how much each example of batches counts in its client's mean.

    Args:
        sizes: of each client's batch.
        width: of the array that holds them.
    """
    if (sizes == width).all():
        return np.float32(1 / width)
    is_own = np.arange(width) < sizes[:, np.newaxis]
    return (is_own / sizes[:, np.newaxis]).astype(np.float32)


def _last_epoch(sizes: Sizes, examples: Sizes, per_epoch: Sizes, ends: Sizes) -> Array:
    numbers = np.arange(len(sizes))[:, np.newaxis]
    whole = ends // per_epoch
    # of an epoch that was ended early, the examples so far
    first = np.where(whole > 0, (whole - 1) * per_epoch, 0)
    last = np.where(whole > 0, whole * per_epoch, ends)
    counted = np.where((numbers >= first) & (numbers < last), sizes, 0)
    found: Array = counted / counted.sum(0)
    return found


def groups(
    counts: Sequence[int], totals: Sequence[int], batch_size: int, example_s: float
) -> list[list[int]]:
    """Return the numbers of the clients that are trained together, each group sorted.

    A group is divided where the examples that fill up its smaller batches would cost more than
    the calls for another group.

    Args:
        example_s: what one example costs in a step, in seconds.
    """
    order = sorted(range(len(counts)), key=lambda each: (-totals[each], -counts[each]))

    def schedule(part: list[int]) -> Schedule:
        chosen = ([counts[each] for each in part], [totals[each] for each in part])
        return schedule_of(tuple(chosen[0]), tuple(chosen[1]), batch_size)

    def cost(part: list[int]) -> float:
        found = schedule(part)
        return len(found.steps) * STEP_S + found.rows * example_s

    def divided(part: list[int]) -> list[list[int]]:
        if len(part) < 2 or schedule(part).filled * example_s < STEP_S:
            return [part]
        one, other = part[: len(part) // 2], part[len(part) // 2 :]
        if cost(one) + cost(other) >= cost(part):
            return [part]
        return [*divided(one), *divided(other)]

    return divided(order)
