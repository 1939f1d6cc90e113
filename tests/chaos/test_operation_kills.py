"""The server is killed while it does what an operator asks; the client asks on, it is done once.

``tests/unit/fl_server/test_operations.py`` ends a process without a network at every step of every
operation. Here the processes, the broker, the client's repetitions and the broker's redeliveries
are real. `make test` kills each operation once, at a seeded moment; `make soak` at all of them.
"""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.arena import PATIENCE_S, Arena, Opened
from tests.chaos.moments import Moment

SEED = 12
MOMENTS = [
    Moment("operation", "request-sought", 0),
    Moment("operation", "request-written", 0),
    Moment("operation", "transaction-ended", 0, 2),
    Moment("operation", "before-reply", 0),
    Moment("operation", "replied", 0),
]
ACTS = {
    "devices_invite": "token made",
    "devices_rotate": "rotation begun",
    "runs_pause": "run paused",
    "runs_resume": "run resumed",
    "models_tag": "model tagged",
    "models_promote": "model promoted",
}
_RNG = random.Random(SEED)
CASES = [
    pytest.param(
        operation,
        moment,
        id=f"{operation}-{moment.point}-{moment.nth}",
        marks=() if moment is chosen else pytest.mark.soak,
    )
    for operation, chosen in [(name, _RNG.choice(MOMENTS)) for name in ACTS]
    for moment in MOMENTS
]


@dataclass
class Ground:
    """A site whose server dies as planned, with a device and a run that waits for devices."""

    arena: Arena
    run_id: str

    def arguments(self, operation: str) -> dict[str, Any]:
        if operation == "devices_rotate":
            return {"device_id": "d-1"}
        if operation.startswith("runs_"):
            return {"run_id": self.run_id}
        if operation == "models_tag":
            return {"name": f"{self.run_id}:0", "label": "kept"}
        return {"name": f"{self.run_id}:0"} if operation == "models_promote" else {}

    def acts(self) -> Counter[str]:
        """Return how often each act stands in the audit log."""
        return Counter(act for (act,) in self._rows("SELECT act FROM rengo_audit"))

    def counts(self) -> tuple[int, int, int]:
        """Return how many tokens there are, and how often the password and the run changed."""
        queries = (
            "SELECT count(*) FROM rengo_tokens",
            "SELECT sum(rotation) FROM rengo_devices",
            "SELECT count(*) FROM rengo_facts WHERE kind IN ('RunPaused', 'RunResumed')",
        )
        tokens, rotations, steered = (self._rows(query)[0][0] for query in queries)
        return tokens, rotations, steered

    def _rows(self, query: str) -> list[Any]:
        path = self.arena.site.folder.root / "server" / "journal.sqlite"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
            return journal.execute(query).fetchall()


@pytest.fixture(scope="module")
def ground(folder: Path) -> Iterator[Ground]:
    with Opened(folder, "digits", mortal=True) as arena:
        arena.site.member("d-1")
        run_id = arena.submit({"rounds": 2, "cohort": {"size": 1}})
        yield Ground(arena, run_id)
        arena.client.call("runs_stop", {"run_id": run_id}, timeout_s=PATIENCE_S)
        arena.assert_nothing_left(run_id)


@pytest.mark.parametrize(("operation", "moment"), CASES)
def test_it_is_done_once_whenever_the_server_is_killed(
    ground: Ground, operation: str, moment: Moment
) -> None:
    arena = ground.arena
    if operation == "runs_resume":
        arena.client.call("runs_pause", {"run_id": ground.run_id})
    elif operation == "runs_pause":
        arena.client.call("runs_resume", {"run_id": ground.run_id})
    before, (tokens, rotations, steered) = ground.acts(), ground.counts()
    killed = arena.site.restarts("server")
    arena.plan([moment])
    arena.client.call(operation, ground.arguments(operation), timeout_s=PATIENCE_S)
    arena.client.call("server_info", timeout_s=PATIENCE_S)  # a kill after the reply too is over
    assert arena.moments_left() == []
    assert arena.site.restarts("server") == killed + 1
    assert ground.acts() - before == Counter({ACTS[operation]: 1})
    assert ground.counts() == (
        tokens + (operation == "devices_invite"),
        rotations + (operation == "devices_rotate"),
        steered + (operation in {"runs_pause", "runs_resume"}),
    )
    assert arena.client.call("audit_verify")["entries"] == ground.acts().total()
