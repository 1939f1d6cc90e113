"""Which backend computes a simulation, where its definition leaves the choice, and why."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fl_client.engines.stacked.per_client import CannotBatch
from rengo.simulation.backend import BackendSetup
from rengo.simulation.backends import names, require_known
from rengo.simulation.backends.batched import engine_of


@dataclass(frozen=True)
class Choice:
    """A backend's name, and why it was chosen."""

    name: str
    reason: str


def choose(name: str, setup: BackendSetup) -> Choice:
    """Return the backend to take, where "auto" leaves the choice.

    What can be batched is: its clients share each call of numpy, and a large model's products are
    shared out over threads. The rest has a process for each core.

    Raises:
        ConfigError: there is no such backend.
    """
    if name != "auto":
        require_known(name)
        return Choice(name, "it was asked for")
    try:
        size = engine_of(setup).size
    except CannotBatch as error:
        return _one_by_one(str(error), setup)
    return Choice("batched", f"a cohort's models of {size:,} weights fit in one product each layer")


def _one_by_one(reason: str, setup: BackendSetup) -> Choice:
    cores = setup.workers or os.cpu_count() or 1
    alone = f"{reason} needs one client at a time"
    if "processes" not in names() or cores < 2:
        return Choice("inline", alone)
    return Choice("processes", f"{alone}, and there are {cores} cores")
