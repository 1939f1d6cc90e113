"""A kind of flow that one file adds, on a site of real processes that are killed in the middle."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np

from fl_client.datasets.device import Device
from fl_client.tasks.digits import Digits
from rengo.site.device_process import DeviceSpec
from tests.chaos.arena import Arena, Opened, wait_for
from tests.integration import two_phase

TASK = f"{two_phase.__file__}:CountingTask"
NAMES = ["t-1", "t-2", "t-3"]
DEFINITION = {"flow": "two_phase", "rounds": 2, "cohort": {"size": len(NAMES)}}
QUERY = "SELECT kind, body FROM rengo_facts WHERE run_id = ? ORDER BY number"


def spec_of(name: str) -> DeviceSpec:
    return DeviceSpec(name, engine="numpy", index=NAMES.index(name), count=len(NAMES))


def facts(arena: Arena, run_id: str) -> list[tuple[str, dict[str, Any]]]:
    path = arena.site.folder.root / "server" / "journal.sqlite"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
        rows = journal.execute(QUERY, (run_id,)).fetchall()
    return [(kind, json.loads(body)) for kind, body in rows]


def counted(arena: Arena, run_id: str, number: int, phase: str) -> set[str]:
    return {
        body["device_id"]
        for kind, body in facts(arena, run_id)
        if kind == "ShareCounted" and (body["round"], body["phase"]) == (number, phase)
    }


def expected_counts() -> np.ndarray:
    """Return how many examples of each class all devices hold, from the data themselves."""
    splits = [Digits().data(Device(name, NAMES.index(name), len(NAMES)))[0] for name in NAMES]
    return sum(np.bincount(split[1], minlength=10) for split in splits)  # type: ignore[index]


def test_it_is_killed_in_a_phase_and_between_phases_and_comes_to_the_right_sum(
    tmp_path: Path,
) -> None:
    with Opened(tmp_path, TASK, server="tests.integration.two_phase") as arena:
        arena.start_own([spec_of(name) for name in NAMES])
        arena.signal("t-3", signal.SIGSTOP)
        run_id = arena.submit(DEFINITION)

        def others(number: int, phase: str) -> bool:
            return counted(arena, run_id, number, phase) == {"t-1", "t-2"}

        wait_for(lambda: others(1, "count"), "two of three have answered", arena.story)
        arena.kill("server")  # within a phase
        before = arena.site.restarts("server")
        arena.site.plan.write_text("phase='weigh'")  # when this is journalled, before its orders
        arena.signal("t-2", signal.SIGSTOP)
        arena.signal("t-3", signal.SIGCONT)
        wait_for(
            lambda: arena.site.restarts("server") > before,
            "the server ends between the phases",
            arena.story,
        )
        wait_for(
            lambda: {"t-1", "t-3"} <= counted(arena, run_id, 1, "weigh"),
            "the next server orders the next phase",
            arena.story,
        )
        arena.own["t-1"].kill()
        arena.own["t-3"].kill()
        arena.start_own([spec_of("t-1")])
        arena.signal("t-2", signal.SIGCONT)
        wait_for(
            lambda: counted(arena, run_id, 2, "count") == {"t-1", "t-2"},
            "round 2 waits for the device that was killed",
            arena.story,
        )
        arena.start_own([spec_of("t-3")])
        wait_for(
            lambda: facts(arena, run_id)[-1][0] == "RunEnded", "the end of the run", arena.story
        )
        told = facts(arena, run_id)
        total = expected_counts()
        shown = arena.client.call("runs_show", {"run_id": run_id})
        assert (shown["status"], shown["round"], shown["rounds"]) == ("completed", 2, 2)
        history = [(row["outcome"], sorted(row["included"])) for row in shown["history"]]
        assert history == 2 * [("committed", NAMES)]
        assert [(row["id"], row["rounds"]) for row in shown["devices"]] == [
            (name, 2) for name in NAMES
        ]
        started = [body for kind, body in told if kind == "PhaseStarted"]
        assert [(each["round"], each["phase"]) for each in started] == [
            *((1, "count"), (1, "weigh")),
            *((2, "count"), (2, "weigh")),
        ]
        assert [each["said"] for each in started] == [[], total.tolist()] * 2
        assert told[-1][1] == {"status": "completed", "sums": [int(total @ total)]}
        shares = [body for kind, body in told if kind == "ShareCounted"]
        assert len(shares) == 4 * len(NAMES), "each share counts once"
        wait_for(
            lambda: not any(arena.kept_stages(name) for name in NAMES),
            "every answer has its receipt",
            arena.story,
        )
