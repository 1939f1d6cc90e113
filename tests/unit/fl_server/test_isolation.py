"""An error that nobody foresaw fails the run that it comes from, and no other."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.wire.messages import Message, Order, Receipt, RunDocument
from fl_server.flows.events import DeviceAnswered, TimerFired
from fl_server.flows.flow import Flow
from fl_server.kinds.failed import FailedFlow
from fl_server.persistence.database import JournalError
from fl_server.rounds.facts import EvaluationRecorded, RoundStarted, RunFailed
from fl_server.rounds.machine import RoundMachine
from fl_server.rounds.model import Model
from fl_server.runs.definition import parse_definition
from tests.flows import FlowServer, Sent
from tests.integration.two_phase import TwoPhase, TwoPhaseKind

MODEL = Model(0, "k", "0" * 64, 4)
WEAK, SOUND = "weak", "sound"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FlowServer]:
    made = FlowServer(tmp_path, {"two_phase": TwoPhaseKind()})
    yield made
    made.close()


def begin(server: FlowServer, run_id: str, **changes: Any) -> None:
    values = {"task": "digits", "rounds": 2, "evaluation": {"on": "none"}, **changes}
    definition = parse_definition(values, "test")
    server.runner.begin(server.runner.new_record(run_id, definition, MODEL))


def trained(device_id: str) -> DeviceAnswered:
    return DeviceAnswered(device_id, "train", 1, 1, 5)


def status(server: FlowServer, run_id: str) -> tuple[str, str]:
    documents = [each for each in server.said(RunDocument) if each.run_id == run_id]
    return documents[-1].status, documents[-1].reason


def fails(error: Exception) -> Callable[..., Any]:
    def raising(*_: object, **__: object) -> Any:
        raise error

    return raising


class WeakRun:
    """Breaks one method of the flows of one run alone."""

    def __init__(self, patch: pytest.MonkeyPatch, method: str, error: Exception) -> None:
        whole = getattr(TwoPhase, method)

        def broken(flow: Flow, *given: Any) -> Any:
            if flow.run_id == WEAK:
                raise error
            return whole(flow, *given)

        patch.setattr(TwoPhase, method, broken)


@pytest.fixture
def both(server: FlowServer) -> FlowServer:
    for run_id in (WEAK, SOUND):
        begin(server, run_id, flow="two_phase", rounds=1)
    return server


@pytest.mark.parametrize("method", ["handle", "event_of", "document", "concerns"])
def test_one_flow_s_error_is_its_own(
    both: FlowServer,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    WeakRun(monkeypatch, method, ZeroDivisionError("float division by zero"))
    both.online("a", "b")
    both.runner.documents.publish_all()
    assert isinstance(both.runner.flows[WEAK], FailedFlow)
    said, reason = status(both, WEAK)
    assert said == "failed"
    assert "ZeroDivisionError: float division by zero" in reason
    flow = both.runner.flows[SOUND]
    assert isinstance(flow, TwoPhase)
    assert (flow.phase.phase, status(both, SOUND)[0]) == ("count", "running")
    traced = [each for each in caplog.records if each.exc_info and "internal" in each.message]
    fault_id = reason.split()[2].strip(",")
    assert [fault_id in each.message for each in traced].count(True) == 1, "logged once"


def test_a_run_in_rounds_fails_in_its_journal_and_stays_failed(
    server: FlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(server, WEAK)
    server.online("a", "b")
    whole = RoundMachine.handle

    def broken(machine: RoundMachine, event: Any) -> Any:
        step = whole(machine, event)
        if getattr(event, "device_id", "") == "a" and not machine.plan.run_id == SOUND:
            raise OverflowError("int too large")  # after its facts were applied in memory
        return step

    with monkeypatch.context() as patch:
        patch.setattr(RoundMachine, "handle", broken)
        server.runner.handle(WEAK, trained("a"), trained("b"))
    facts = [row.fact for row in server.journal.facts(WEAK)]
    assert isinstance(facts[-1], RunFailed)
    assert "OverflowError: int too large" in facts[-1].reason
    assert status(server, WEAK)[0] == "failed"
    server.crash()
    assert server.runner.flows[WEAK].ended
    begin(server, SOUND)
    server.runner.handle(WEAK, trained("b"))
    assert server.said(Receipt)[-1].status == "late"


def test_a_fact_that_cannot_be_told_is_never_written(
    both: FlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    WeakRun(monkeypatch, "event_of", ValueError("no message holds this"))
    both.online("a", "b")
    assert both.journal.facts(WEAK, "two_phase") == []
    assert len(both.journal.facts(SOUND, "two_phase")) == 1


@pytest.mark.parametrize("kind", [Order, Receipt])
def test_a_command_that_cannot_be_carried_out_fails_the_run(
    server: FlowServer, kind: type[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(server, WEAK)
    whole = Sent.publish

    def publish(sent: Sent, topic: str, message: Message, *, retain: bool = False) -> None:
        if isinstance(message, kind):
            raise TypeError("not for msgpack")
        whole(sent, topic, message, retain=retain)

    monkeypatch.setattr(Sent, "publish", publish)
    server.online("a", "b")
    if kind is Receipt:
        server.runner.handle(WEAK, trained("c"))
    assert status(server, WEAK)[0] == "failed"
    assert "TypeError: not for msgpack" in status(server, WEAK)[1]


def test_a_timer_s_error_fails_its_run(both: FlowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    WeakRun(monkeypatch, "handle", RecursionError("too deep"))
    fired = [(WEAK, TimerFired("deadline", 1, 1)), (SOUND, TimerFired("deadline", 1, 1))]
    monkeypatch.setattr(both.runner.timers, "fired", lambda: iter(fired))
    both.runner.handle_due()
    assert isinstance(both.runner.flows[WEAK], FailedFlow)
    assert not both.runner.flows[SOUND].ended


def test_at_a_start_what_cannot_be_folded_fails_its_run_alone(server: FlowServer) -> None:
    for run_id in (WEAK, SOUND):
        begin(server, run_id)
    server.online("a", "b")
    # well formed, but nothing that may follow here
    server.journal.append(WEAK, [RoundStarted(7, 3, ("a",), 1)])
    server.crash()
    server.runner.documents.publish_all()
    said, reason = status(server, WEAK)
    assert said == "failed"
    assert "InvalidTransition" in reason
    server.online("a", "b")
    assert not server.runner.flows[SOUND].ended
    server.runner.handle(WEAK, trained("a"))
    assert (server.said(Receipt)[-1].run_id, server.said(Receipt)[-1].status) == (WEAK, "late")


def test_facts_that_an_earlier_version_let_in_harm_nobody(server: FlowServer) -> None:
    """Seen before: the server ended at every start."""
    begin(server, WEAK)
    poison = [EvaluationRecorded(1, f"d-{n}", 1 << 40, {"loss": -1e300}) for n in range(4)]
    server.journal.append(WEAK, poison)
    server.crash()
    server.online("a", "b")
    server.runner.documents.publish_all()
    documents = [each for each in server.said(RunDocument) if each.run_id == WEAK]
    assert (documents[-1].status, documents[-1].loss) == ("running", None)


@pytest.mark.parametrize(
    "error",
    [
        JournalError("the disk is full"),
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError(),
        KeyboardInterrupt(),
        SystemExit(3),
    ],
)
def test_what_concerns_the_whole_process_ends_it(
    both: FlowServer, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(both.journal, "append", fails(error))
    with pytest.raises(type(error)):
        both.online("a", "b")
