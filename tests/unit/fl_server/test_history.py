"""Runs that have ended are rows with reports: no start folds them, and no server keeps them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from broker.wire.messages import Receipt, RunDocument
from fl_server.flows.commands import ArmTimer
from fl_server.flows.events import DeviceAnswered, StopRequested, TimerFired
from fl_server.kinds.sync import SyncFlow
from fl_server.operations.handlers.ended_runs import report_of
from fl_server.persistence import tables
from fl_server.persistence.journal import Journal
from fl_server.rounds.facts import (
    RoundClosed,
    RoundCommitted,
    RoundStarted,
    RunCompleted,
    UpdateAccepted,
)
from fl_server.rounds.model import Model, Update
from fl_server.runs.definition import parse_definition
from runtime.errors import Corrupt
from tests.flows import FlowServer
from tests.integration.two_phase import (
    PhaseStarted,
    RunEnded,
    ShareCounted,
    TwoPhase,
    TwoPhaseKind,
)

MODEL = Model(0, "k", "0" * 64, 4)
DEFINITION = {"task": "digits", "flow": "two_phase", "rounds": 1, "cohort": {"size": 2}}
FACTS = [
    PhaseStarted(1, "count", ("a", "b")),
    ShareCounted(1, "count", "a", (1,)),
    ShareCounted(1, "count", "b", (2,)),
    PhaseStarted(1, "weigh", ("a", "b"), (3,)),
    ShareCounted(1, "weigh", "a", (4,)),
    ShareCounted(1, "weigh", "b", (5,)),
    RunEnded("completed", (9,)),
]
USAGE = {"train_s": 1.0, "steps_s": 0.8, "steps": 40.0, "full_steps": 40.0, "bytes_up": 7.0}
UPDATE = Update("u/a", 10, "a" * 64, 5, {"loss": 0.1}, USAGE)
ROUNDS = [
    RoundStarted(1, 1, ("a",), 1),
    UpdateAccepted(1, 1, "a", UPDATE),
    RoundClosed(1, 1, ("a",)),
    RoundCommitted(1, 1, Model(1, "k/1", "b" * 64, 4)),
    RunCompleted(),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FlowServer]:
    made = FlowServer(tmp_path, {"two_phase": TwoPhaseKind()})
    yield made
    made.close()


def write(server: FlowServer, run_id: str, facts: list[Any], **keys: Any) -> None:
    """Write a run as an earlier life of the server left it."""
    definition = parse_definition(DEFINITION | keys, "test")
    server.journal.add_run(server.runner.new_record(run_id, definition, MODEL))
    server.journal.append(run_id, facts)


def write_rounds(server: FlowServer, run_id: str, **keys: Any) -> None:
    cohort = {"size": 1, "fit": "time"}
    write(server, run_id, ROUNDS, **{"flow": "sync", "cohort": cohort, **keys})


def settle(server: FlowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start anew and let everything that ended runs have left to do be done."""
    server.crash()
    later_s = time.monotonic() + 10_000
    with monkeypatch.context() as patched:
        patched.setattr("time.monotonic", lambda: later_s)
        server.plane.run()
        server.runner.handle_due()
        server.plane.run()


def read_at_start(server: FlowServer, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return what a start reads, by what."""
    read: Counter[str] = Counter()

    def counted(cursor_name: str, found: Any) -> Any:
        read[cursor_name] += 1 if not isinstance(found, list) else len(found)
        return found

    record, facts = Journal.record, Journal.facts
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "record", lambda *a: counted("runs", record(*a)))
        patched.setattr(Journal, "facts", lambda *a: counted("facts", facts(*a)))
        server.crash()
    read["flows"] = len(server.runner.flows)
    read["statements"] = statements(server)
    return read


def statements(server: FlowServer) -> int:
    """Return how many statements a start and what follows a connection take."""
    count = 0

    def one_more(*_: object) -> None:
        nonlocal count
        count += 1

    engine = server.journal.database._engine
    sa.event.listen(engine, "before_cursor_execute", one_more)
    server.runner.restore()
    server.runner.resume()
    server.runner.documents.publish_all()
    sa.event.remove(engine, "before_cursor_execute", one_more)
    return count


def test_a_start_reads_as_much_after_300_runs_as_after_30(
    server: FlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for count in (30, 300):
        for number in range(len(server.history.listed(1000)), count):
            write(server, f"r-{number}", FACTS)
        write(server, f"going-{count}", FACTS[:2])
        settle(server, monkeypatch)
        found.append(read_at_start(server, monkeypatch))
        server.runner.handle(f"going-{count}", StopRequested())
        server.plane.run()
    assert found[0] == found[1]
    assert (found[0]["runs"], found[0]["facts"], found[0]["flows"]) == (1, 2, 1)


def test_a_run_is_history_when_it_has_nothing_left_to_do(
    server: FlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rounds(server, "r")
    server.crash()
    server.plane.run()
    assert isinstance(server.runner.flows["r"], SyncFlow), "it sweeps once more"
    settle(server, monkeypatch)
    assert (dict(server.runner.flows), dict(server.runner.records)) == ({}, {})
    assert server.plane.closed == ["r"]
    assert server.journal.unfiled() == []


def test_its_report_is_what_its_flow_would_tell(
    server: FlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rounds(server, "r")
    settle(server, monkeypatch)
    report = report_of(server.history.report("r") or {}, {})
    assert (report.status, report.rounds_completed, report.bytes_up) == ("completed", 1, 7)
    assert [(row.outcome, row.included) for row in report.history] == [("committed", ["a"])]
    assert [(each.id, each.rounds, each.steps) for each in report.devices] == [("a", 1, 40)]
    row = server.history.summary("r") or {}
    assert (row["status"], row["task"], row["rounds_completed"]) == ("completed", "digits", 1)


@pytest.mark.parametrize(("sha256", "status"), [("a" * 64, "accepted"), ("c" * 64, "refused")])
def test_a_late_result_gets_the_receipt_it_had(
    sha256: str, status: str, server: FlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rounds(server, "r")
    settle(server, monkeypatch)
    key = server.plane.keys("r").update(1, 1, "a")
    update = type("Reported", (), {"key": key, "size_bytes": 10, "header_sha256": sha256})
    server.runner.handle("r", DeviceAnswered("a", "train", 1, 1, 5, {}, {}, update))  # type: ignore[arg-type]
    assert [each.status for each in server.said(Receipt)] == [status]
    assert dict(server.runner.flows) == {}, "it is history still"


def test_late_messages_open_few_flows(server: FlowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        write(server, f"r-{number}", FACTS)
    settle(server, monkeypatch)
    opened: list[str] = []
    begin = TwoPhase.__init__
    with monkeypatch.context() as patched:
        patched.setattr(
            TwoPhase,
            "__init__",
            lambda self, record, facts: opened.append(record.run_id) or begin(self, record, facts),
        )
        for _ in range(3):
            for number in range(8):
                late = np.array([7], np.int64).tobytes()
                answer = DeviceAnswered("a", "exchange", 1, 1, 0, payload=late, phase="count")
                server.runner.handle(f"r-{number}", answer)
    assert opened == [f"r-{number}" for number in range(8)]
    assert {each.status for each in server.said(Receipt)} == {"late"}
    assert len(server.runner._ended._reopened) == 8


def test_facts_of_old_runs_are_removed_and_their_reports_stay(
    server: FlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(25):
        write(server, f"r-{number}", FACTS)
    write(server, "going", FACTS[:2])
    settle(server, monkeypatch)
    assert server.history.compact(before=time.time() - 60) == 0, "too young"
    assert [server.history.compact(before=time.time() + 1) for _ in range(4)] == [10, 10, 5, 0]
    with server.journal.database.begin() as connection:
        query = sa.select(tables.facts.c.run_id).distinct()
        assert list(connection.execute(query).scalars()) == ["going"]
    assert (server.history.report("r-3") or {})["status"] == "completed"
    assert server.runner.find("r-3") is None
    assert server.runner.knows("r-3"), "a late result is told that the run has ended"
    server.runner.handle("r-3", StopRequested())  # without effect, and no error
    assert len(server.history.listed(100)) == 26


def test_the_latest_documents_are_published_and_older_ones_cleared(
    server: FlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        write(server, f"r-{number:02}", FACTS)
    settle(server, monkeypatch)
    server.crash()
    server.sent.messages.clear()
    server.sent.cleared.clear()
    server.runner.documents.publish_all()
    documents = server.said(RunDocument)
    assert [each.run_id for each in documents] == [f"r-{number}" for number in range(10, 30)]
    assert {each.epoch for each in documents} == {server.epoch}, "devices obey no older one"
    cleared = [topic.split("/")[4] for topic in server.sent.cleared]
    assert cleared == [f"r-{number:02}" for number in range(10)]


def test_speeds_outlive_the_run_for_runs_with_the_same_steps(
    server: FlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rounds(server, "slow", training={"local_epochs": 2})
    write_rounds(server, "fast")
    settle(server, monkeypatch)
    keys = {"flow": "sync", "cohort": {"size": 1, "fit": "time"}}
    record = server.runner.new_record("next", parse_definition(DEFINITION | keys, "test"), MODEL)
    assert record.plan.fit.known["a"].step_s == 0.8 / 40
    other = parse_definition(DEFINITION | keys | {"task": "faces"}, "test")
    assert server.runner.new_record("other", other, MODEL).plan.fit.known == {}


def test_a_run_that_ends_early_waits_for_no_timer_of_its_rounds(server: FlowServer) -> None:
    write(server, "r", FACTS[:2])
    server.crash()
    server.runner.timers.arm("r", ArmTimer("deadline", 1, 1, 600_000.0))
    server.runner.handle("r", StopRequested())
    server.plane.run()
    assert server.runner.timers.left_s("r", TimerFired("deadline", 1, 1)) is None
    assert server.journal.unfiled() == []


def test_a_damaged_report_is_named(server: FlowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    write(server, "r", FACTS)
    settle(server, monkeypatch)
    with server.journal.database.begin() as connection:
        connection.execute(sa.update(tables.reports).values(report=b"x", summary="{"))
    with pytest.raises(Corrupt, match="damaged report of run r"):
        server.history.report("r")
    with pytest.raises(Corrupt, match="damaged report of run r"):
        server.history.summary("r")


# --- what was changed behind the journal's back ---------------------------------------------------


OF_ROW = "its definition, plan or first model was changed"
SEEDS = """replace(definition, '"seed":7', '"seed":8')"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (f"UPDATE rengo_runs SET definition = {SEEDS}", OF_ROW),
        ("UPDATE rengo_runs SET plan = replace(plan, '2', '3')", OF_ROW),
        ("UPDATE rengo_runs SET initial = replace(initial, '0000', '0001')", OF_ROW),
        ("UPDATE rengo_runs SET digest = 'x' || substr(digest, 2)", OF_ROW),
        (
            "UPDATE rengo_facts SET body = replace(body, '[1]', '[2]') WHERE number = 1",
            "fact 1 or the one before it was changed",
        ),
        ("DELETE FROM rengo_facts WHERE number = 1", "fact 2 or the one before it was changed"),
        # the highest bit of a letter flipped: what SQLite refuses to give as a text
        ("UPDATE rengo_runs SET definition = CAST(X'FB7D' AS TEXT)", OF_ROW),
        (
            "UPDATE rengo_facts SET body = CAST(X'FB7D' AS TEXT) WHERE number = 1",
            "fact 1 or the one before it was changed",
        ),
    ],
)
def test_a_changed_run_fails_with_its_cause_and_the_others_go_on(
    change: str, said: str, server: FlowServer
) -> None:
    write(server, "r", FACTS[:4], seed=7)
    with server.journal.database.begin() as connection:
        assert connection.exec_driver_sql(change).rowcount == 1
    write(server, "other", FACTS[:4])
    server.crash()
    assert list(server.runner.flows) == ["other"]
    row = server.history.summary("r") or {}
    assert (row["status"], row["phase"]) == ("failed", "ended")
    assert said in row["reason"]
    assert [(act.act, act.subject) for act in server.acts] == [("run failed", "r")]
    document = server.said(RunDocument)[-1]
    assert (document.run_id, document.status) == ("r", "failed"), "its devices end their jobs"
    server.acts.clear()
    server.crash()
    assert (list(server.runner.flows), server.acts) == (["other"], []), "it fails once"


def test_a_run_whose_id_is_no_text_stands_in_nobody_s_way(
    server: FlowServer, caplog: pytest.LogCaptureFixture
) -> None:
    write(server, "r", FACTS[:4])
    with server.journal.database.begin() as connection:
        change = "UPDATE rengo_runs SET run_id = CAST(X'F2' AS TEXT)"
        assert connection.exec_driver_sql(change).rowcount == 1
    write(server, "other", FACTS[:4])
    server.crash()
    assert list(server.runner.flows) == ["other"]
    assert "a run whose id is damaged" in caplog.text
