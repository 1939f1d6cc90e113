"""Seeded moments at which the server dies, and the plan file by which a server learns of them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.files import atomic_write

# Where a server can be when it dies, by what the operator sees it doing.
POINTS: dict[str, tuple[str, ...]] = {
    "idle": ("before-round", "evaluated", "committed"),
    "collecting": ("ordered", "ordered-and-later", "receipted"),
    "verifying": ("verify-begins", "verify-ended", "before-accept"),
    "between journal and receipt": ("accepted",),
    "aggregating": ("closed", "fold-begins", "aggregate-begins", "version-stored"),
}
_LATEST_NTH = 4
_LATEST_S = 0.25


@dataclass(frozen=True)
class Moment:
    """The ``nth`` time in one life of the server that ``point`` is passed in ``round`` or later.

    ``delay_s`` is how long the server still lives from then on.
    """

    phase: str
    point: str
    round: int
    nth: int = 1
    delay_s: float = 0.0


def draw(seed: int, runs: int, per_run: int, rounds: int) -> list[list[Moment]]:
    """Return the moments of each run, in order; over all runs every phase comes equally often.

    The rounds of one run's moments differ and leave the last round free, so that each moment is
    reached: at the latest one round after its own.
    """
    rng = random.Random(seed)
    total = runs * per_run
    phases = [list(POINTS)[number % len(POINTS)] for number in range(total)]
    rng.shuffle(phases)
    plans = []
    for run in range(runs):
        chosen = phases[run * per_run : (run + 1) * per_run]
        when = sorted(rng.sample(range(1, rounds), per_run))
        plans.append([_moment(rng, *each) for each in zip(chosen, when, strict=True)])
    return plans


def _moment(rng: random.Random, phase: str, round_number: int) -> Moment:
    point = rng.choice(POINTS[phase])
    once = point in {*POINTS["idle"], "closed", "aggregate-begins", "version-stored"}
    later = point == "ordered-and-later"
    return Moment(
        phase,
        point,
        round_number,
        1 if once else rng.randint(1, _LATEST_NTH),
        rng.uniform(0, _LATEST_S) if later else 0.0,
    )


def write_plan(path: Path, moments: Sequence[Moment]) -> None:
    """Write the moments that are still to come; a server reads them at every point it passes."""
    atomic_write(path, json.dumps([asdict(each) for each in moments]).encode())


def read_plan(path: Path) -> list[Moment]:
    """Return the moments that are still to come."""
    return [Moment(**each) for each in json.loads(path.read_bytes())] if path.exists() else []
