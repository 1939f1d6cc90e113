"""What is read off runs, and what is claimed of it. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from benchmarks.tables.setting import Outcome

Values: TypeAlias = Mapping[str, Sequence[float]]
"""A quantity by variant: a value for each seed, NaN where it was not reached."""


class Quantity(Protocol):
    """A number that is read off a run."""

    @property
    def title(self) -> str:
        """What a table's column is called."""
        ...

    @property
    def digits(self) -> int:
        """How many decimals are shown."""
        ...

    def of(self, outcome: Outcome) -> float:
        """Return the number, NaN where the run does not have it."""
        ...


@dataclass(frozen=True)
class RoundsTo:
    """The first measured round whose accuracy is at least ``target``."""

    target: float
    digits: int = 0

    @property
    def title(self) -> str:
        """As ``rounds to 97%``."""
        return f"rounds to {self.target:.0%}"

    def of(self, outcome: Outcome) -> float:
        """Return the round."""
        reached = (n for n, found in outcome.curve.items() if found["accuracy"] >= self.target)
        return float(min(reached, default=math.nan))


@dataclass(frozen=True)
class Last:
    """A metric's mean over the last versions that were measured.

    Attributes:
        over: of so many versions.
        scale: what it is multiplied by: 100 shows percent.
        otherwise: the metric of a run that has none of this name, as of personal models.
    """

    metric: str = "accuracy"
    title: str = "accuracy, %"
    over: int = 1
    scale: float = 100.0
    digits: int = 1
    otherwise: str = ""

    def of(self, outcome: Outcome) -> float:
        """Return the mean, NaN where training diverged."""
        rows = [outcome.curve[number] for number in sorted(outcome.curve)[-self.over :]]
        values = [row.get(self.metric, row.get(self.otherwise, math.nan)) for row in rows]
        if outcome.diverged or not values:
            return math.nan
        return self.scale * math.fsum(values) / len(values)


@dataclass(frozen=True)
class Recovered:
    """How many pairs of clients chose the same model if and only if they are of one kind, in %.

    Attributes:
        kinds: client number i is of the kind i modulo this.
    """

    kinds: int
    digits: int = 0
    title: str = "pairs of clients told apart rightly, %"

    def of(self, outcome: Outcome) -> float:
        """Return the share, NaN for an algorithm with one model."""
        pairs = list(itertools.combinations(outcome.chosen.items(), 2))
        right = [
            (chosen == other_chosen) == ((client - other) % self.kinds == 0)
            for (client, chosen), (other, other_chosen) in pairs
        ]
        return 100 * sum(right) / len(right) if right else math.nan


@dataclass(frozen=True)
class Sent:
    """How much of the model a client is sent and sends, in % and on average."""

    digits: int = 1
    title: str = "bytes of a client, % of the whole model's"

    def of(self, outcome: Outcome) -> float:
        """Return the share."""
        return 100 * outcome.sent


class Claim(Protocol):
    """Something that published results say, and that ours are to say too."""

    @property
    def text(self) -> str:
        """One clause."""
        ...

    def holds(self, table: Mapping[str, Values]) -> bool:
        """Return whether it is so; ``table`` has the values by quantity."""
        ...


@dataclass(frozen=True)
class Within:
    """The mean over the seeds lies in a range."""

    variant: str
    least: float
    most: float
    quantity: str

    @property
    def text(self) -> str:
        """The range, in words."""
        return f"{self.variant}: {self.quantity} from {self.least:g} to {self.most:g}"

    def holds(self, table: Mapping[str, Values]) -> bool:
        """Return whether it does; never where a seed has no value."""
        return self.least <= mean(table[self.quantity][self.variant]) <= self.most


@dataclass(frozen=True)
class Ahead:
    """Each of some variants has more, or less, of a quantity than another has.

    Attributes:
        by: at least by so much.
    """

    better: tuple[str, ...]
    than: str
    quantity: str
    lower: bool = False
    by: float = 0.0

    @property
    def text(self) -> str:
        """The order, in words."""
        ahead = ", ".join(self.better)
        word = "below" if self.lower else "above"
        far = f"at least {self.by:g} " if self.by else ""
        return f"{self.quantity}: {ahead} {far}{word} {self.than}"

    def holds(self, table: Mapping[str, Values]) -> bool:
        """Return whether the means are so; a run without a value is behind all."""
        sign = -1 if self.lower else 1
        values = table[self.quantity]
        other = _or_worst(sign * mean(values[self.than]))
        own = [_or_worst(sign * mean(values[each])) for each in self.better]
        return all(each > other and each - other >= self.by for each in own)


@dataclass(frozen=True)
class Alike:
    """Two variants have means that differ by no more than ``by``."""

    variant: str
    other: str
    by: float
    quantity: str

    @property
    def text(self) -> str:
        """The bound, in words."""
        return f"{self.quantity}: {self.variant} within {self.by:g} of {self.other}"

    def holds(self, table: Mapping[str, Values]) -> bool:
        """Return whether they do."""
        values = table[self.quantity]
        return abs(mean(values[self.variant]) - mean(values[self.other])) <= self.by


def mean(values: Sequence[float]) -> float:
    """Return the mean, NaN where one of the values is."""
    return math.fsum(values) / len(values) if values else math.nan


def deviation(values: Sequence[float]) -> float:
    """Return the sample deviation, 0 of a single value."""
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return math.sqrt(math.fsum((each - middle) ** 2 for each in values) / (len(values) - 1))


def _or_worst(value: float) -> float:
    return -math.inf if math.isnan(value) else value
