"""Writes every fact that this commit can journal, each at least once, as a database in text form.

    python -m tests.old_data.every_fact         from the repository's root; at once

It writes ``COMMIT.sql``, one line a row, by the journal itself. Later
commits must still read it (``tests/integration/test_old_facts.py``): the name of a fact and its
fields are data on disk. Each run and each canary is a story that the machines accept.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fl_server.canary import events as c
from fl_server.canary.machine import CanaryMachine
from fl_server.deployment.canaries import record_of
from fl_server.persistence.journal import Journal
from fl_server.rounds.facts import (
    FACTS,
    EvaluationDeclined,
    EvaluationOrdered,
    EvaluationRecorded,
    Fact,
    OrderDeclined,
    RoundAbandoned,
    RoundClosed,
    RoundCommitted,
    RoundOpened,
    RoundStarted,
    RunCompleted,
    RunFailed,
    RunPaused,
    RunResumed,
    RunStopped,
    RunStoppedEarly,
    UpdateAccepted,
    UpdateRefused,
    UpdateWithdrawn,
    VersionJudged,
)
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from fl_server.rounds.workload import OrderWork, Speed
from fl_server.runs.definition import RunDefinition, parse_definition
from fl_server.runs.record import AwaitedModel, PreparedRun, RunRecord
from tests.old_data.fleet import HERE
from tests.old_data.record import commit

SHA = "0123456789abcdef" * 4
BUNDLE = {"sha256": SHA, "size_bytes": 4_000}
USAGE = {"train_s": 1.5, "bytes_up": 10_076.0, "bytes_down": 9_968.0, "steps": 400.0}
DEFINITION: dict[str, Any] = {
    "task": "digits",
    "rounds": 1,
    "seed": (1 << 63) - 1,
    "algorithm": {"name": "fedprox", "mu": 0.1, "server_learning_rate": 0.5},
    "training": {"local_epochs": 2, "learning_rate": 0.05, "optimizer": "adam"},
    "cohort": {
        **{"size": 3, "quorum": 2, "over_selection": 1.5, "deadline_s": 60.0, "gather_s": 1.0},
        **{"max_attempts": 5, "fit": "time", "fit_target_s": 10.0},
    },
    "evaluation": {"on": "devices", "every": 2, "deadline_s": 20.0},
    "aggregation": {"scale_bits": 24, "weight_bits": 30},
    "schedule": {"name": "cosine", "least": 0.1},
    "best": {"keep": True, "metric": "accuracy", "min_delta": 0.01, "patience": 3},
    "models": {
        **{"keep": 5, "keep_every": 10},
        "parent": {"run_id": "digits-00000001", "version": 4, "sha256": SHA},
    },
    "bundle": BUNDLE,
}


def model(run_id: str, version: int) -> Model:
    """Return a version with a server's state and the ranges that changed."""
    folder = f"projects/default/runs/{run_id}"
    return Model(
        version,
        f"{folder}/global/{version:06d}.safetensors",
        SHA,
        9_968,
        f"{folder}/state/{version:06d}.safetensors" if version else "",
        SHA if version else "",
        ((0, 8), (96, 9_968)) if version else None,
    )


def update(device_id: str) -> Update:
    key = f"projects/default/runs/whole/updates/000001/001/{device_id}.upd"
    return Update(key, 10_076, SHA, 1 << 40, {"train_loss": 0.25, "accuracy": 1.0}, USAGE)


def whole() -> list[Fact]:
    """Return the facts of a run that was completed after much trouble."""
    work = {"a": OrderWork(8, 4), "b": OrderWork(16)}
    return [
        RoundStarted(1, 1, ("a", "b", "c"), 2, work),
        UpdateAccepted(1, 1, "a", update("a")),
        UpdateRefused(1, 1, "b", "a value is not finite"),
        OrderDeclined(1, 1, "c", "too hot: 84 °C"),
        UpdateWithdrawn(1, 1, "a", "the object is gone"),
        RoundAbandoned(1, 1, "the quorum of 2 was not met"),
        RunPaused(),
        RunResumed(),
        RoundStarted(1, 2, ("a", "b"), 2),
        UpdateAccepted(1, 2, "a", update("a")),
        UpdateAccepted(1, 2, "b", update("b")),
        RoundClosed(1, 2, ("a", "b")),
        RoundCommitted(1, 2, model("whole", 1)),
        EvaluationOrdered(1, ("a", "b")),
        EvaluationDeclined(1, "b", "metrics() raised ValueError", permanent=True),
        EvaluationRecorded(1, "a", 359, {"accuracy": 0.93, "loss": 0.2}, USAGE),
        VersionJudged(1, 0.93, True),
        RunCompleted(),
    ]


RUNS: dict[str, list[Fact]] = {
    "whole": whole(),
    "requested": [
        RoundOpened(1, 1, model("platform", 0)),
        RunStopped("its platform's run ended"),
    ],
    "early": [RunStoppedEarly("no version was better than version 1")],
    "stopped": [RunStopped("stopped by the operator")],
    "failed": [RunFailed("no round was committed in 50 attempts")],
}
CANARIES: dict[str, list[c.Fact]] = {
    "canary-decided": [
        c.OrdersOpened(),
        c.SideMeasured("a", "production", 359, {"accuracy": 0.61, "loss": 1.4}),
        c.SideMeasured("a", "candidate", 359, {"accuracy": 0.43, "loss": 1.9}),
        c.SideDeclined("b", "candidate", "battery low: 12%"),
        c.Judged("rolled_back", "accuracy is 0.43, in production 0.61", 1, 0.43, 0.61),
        c.Settled(),
    ],
    "canary-undecided": [
        c.Judged("inconclusive", "0 of at least 1 devices measured f1", 0, None, None),
        c.Settled("the version was removed"),
    ],
}


def plan(definition: RunDefinition, run_id: str) -> Plan:
    speeds = {"a": Speed(0.01, 2.0, 400, 8)}
    return definition.plan(run_id, evaluators_online=False, speeds=speeds)


def canary_plan(canary_id: str) -> c.CanaryPlan:
    sides = [
        c.Contender("whole", version, model("whole", version).key, SHA, 9_968) for version in (0, 1)
    ]
    return c.CanaryPlan(
        canary_id=canary_id,
        task="digits",
        candidate=sides[1],
        production=sides[0],
        cohort=("a", "b"),
        measured_by="devices",
        metric="accuracy",
        max_drop=0.01,
        deadline_s=120.0,
        quorum=1,
        algorithm="fedprox",
        algorithm_settings={"mu": 0.1},
        training={"local_epochs": 2},
        seed=7,
        bundle=c.TaskBundle(SHA, 4_000),
    )


def write(path: Path) -> None:
    """Write all into a database, which the machines can take up again."""
    written = {type(fact) for facts in RUNS.values() for fact in facts}
    judged = {type(fact) for facts in CANARIES.values() for fact in facts}
    missing = {*FACTS.values(), *c.FACTS.values()} - written - judged
    assert not missing, f"no run and no canary has {missing}"
    definition = parse_definition(DEFINITION, "every fact")
    journal = Journal(f"sqlite:///{path}")
    awaited = AwaitedModel(model("prepared", 0).key, 9_968)
    journal.prepare(PreparedRun("prepared", definition, awaited))
    for run_id, facts in RUNS.items():
        decided = replace(plan(definition, run_id), on_request=run_id == "requested")
        record = RunRecord(run_id, definition, decided, model(run_id, 0), time.time())
        RoundMachine(record.plan, record.initial, facts)
        journal.add_run(record)
        journal.append(run_id, facts)
    for canary_id, told in CANARIES.items():
        CanaryMachine(canary_plan(canary_id), told)
        journal.add_run(record_of(canary_plan(canary_id)))
        journal.append(canary_id, told)
    journal.close()


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.sqlite"
        write(path)
        with contextlib.closing(sqlite3.connect(path)) as database:
            text = "\n".join(database.iterdump())
    (HERE / f"{commit()}.sql").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
