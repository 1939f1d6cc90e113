"""The server's runner of flows, with a kind of flow that it knows nothing of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.wire.messages import Order, Receipt, RunDocument
from fl_server.dataplane.workers import JobCrashed
from fl_server.flows.commands import ArmTimer, StartTask
from fl_server.flows.events import (
    DeviceAnswered,
    DeviceLeft,
    FailureReported,
    OrderRequested,
    TimerFired,
)
from fl_server.persistence.database import JournalUnusable
from fl_server.persistence.journal import Journal
from fl_server.rounds.model import Model
from fl_server.runs.definition import parse_definition
from fl_server.runs.timers import Timers
from runtime.errors import ConfigError, PeerError
from tests.flows import FlowServer
from tests.integration.two_phase import (
    PhaseStarted,
    RunEnded,
    ShareCounted,
    TwoPhase,
    TwoPhaseKind,
)

KINDS = {"two_phase": TwoPhaseKind()}
DEFINITION = {"task": "digits", "flow": "two_phase", "rounds": 1, "cohort": {"size": 2}}
MODEL = Model(0, "k", "0" * 64, 4)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FlowServer]:
    made = FlowServer(tmp_path, KINDS)
    yield made
    made.close()


def begin(server: FlowServer) -> None:
    definition = parse_definition(DEFINITION, "test")
    server.runner.begin(server.runner.new_record("r", definition, MODEL))


def answer(device_id: str, phase: str, *share: int, round_number: int = 1) -> DeviceAnswered:
    payload = np.array(share, np.int64).tobytes()
    return DeviceAnswered(device_id, "exchange", round_number, 1, 0, payload=payload, phase=phase)


def orders(server: FlowServer) -> list[tuple[str, tuple[int, ...]]]:
    found = [
        (topic.split("/")[4], message.phase, np.frombuffer(message.payload, np.int64))
        for topic, message, _ in server.sent.messages
        if isinstance(message, Order)
    ]
    server.sent.messages.clear()
    return [(f"{device}: {phase}", tuple(said.tolist())) for device, phase, said in found]


def facts(server: FlowServer) -> list[Any]:
    return [row.fact for row in server.journal.facts("r", "two_phase")]


def test_a_kind_that_a_caller_adds_runs_from_its_orders_to_its_sum(server: FlowServer) -> None:
    begin(server)
    server.online("a", "b")
    assert orders(server) == [("a: count", ()), ("b: count", ())]
    server.runner.handle("r", answer("a", "count", 1, 2))
    assert [(each.status, each.phase) for each in server.said(Receipt)] == [("accepted", "count")]
    server.runner.handle("r", answer("b", "count", 3, 4))
    assert orders(server) == [("a: weigh", (4, 6)), ("b: weigh", (4, 6))]
    server.runner.handle("r", answer("a", "weigh", 16), answer("b", "weigh", 36))
    assert facts(server)[-1] == RunEnded("completed", (52,))
    last = server.said(RunDocument)[-1]
    assert (last.status, last.phase) == ("completed", "ended")
    assert server.runner.submitted() == ["r"]
    assert server.plane.forgotten == ["r"], "no copy of its models stays"


def test_it_goes_on_after_a_crash_at_any_moment(server: FlowServer) -> None:
    begin(server)
    server.online("a", "b")
    server.runner.handle("r", answer("a", "count", 1, 2))
    server.crash()  # in a phase
    server.sent.messages.clear()
    server.online("a", "b")
    assert orders(server) == [("b: count", ())]
    server.runner.handle("r", answer("a", "count", 9, 9), answer("b", "count", 3, 4))
    server.crash()  # between the phases
    server.sent.messages.clear()
    server.online("a", "b")
    assert orders(server) == [("a: weigh", (4, 6)), ("b: weigh", (4, 6))]
    server.runner.handle("r", OrderRequested("b", "exchange", 1, 1, "weigh"))
    assert orders(server) == [("b: weigh", (4, 6))]
    server.runner.handle("r", answer("a", "weigh", 16), answer("b", "weigh", 36))
    server.crash()
    assert [type(each) for each in facts(server)] == [
        *(PhaseStarted, ShareCounted, ShareCounted),
        *(PhaseStarted, ShareCounted, ShareCounted, RunEnded),
    ]
    assert facts(server)[-1].sums == (52,)


def test_what_is_decided_is_on_disk_before_its_receipt_goes(
    server: FlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(server)
    server.online("a", "b")

    def fails(*_: object) -> None:
        raise JournalUnusable("disk full")

    monkeypatch.setattr(server.journal, "append", fails)
    with pytest.raises(JournalUnusable):
        server.runner.handle("r", answer("a", "count", 1, 2))
    assert server.said(Receipt) == []


def test_a_flow_is_told_of_its_devices_alone(server: FlowServer) -> None:
    begin(server)
    server.online("a", "b", tasks=["faces"])
    server.online("c")
    flow = server.runner.flows["r"]
    assert isinstance(flow, TwoPhase)
    assert flow.online == {"c"}
    server.online("c", status="offline")
    server.runner.handle_presence(DeviceLeft("x"), None)
    assert flow.online == set()


def test_a_message_about_an_unknown_run_is_the_sender_s_fault(server: FlowServer) -> None:
    with pytest.raises(PeerError, match="not here"):
        server.runner.handle("none", answer("a", "count", 1))


def test_a_kind_that_this_server_has_not(server: FlowServer, tmp_path: Path) -> None:
    definition = parse_definition(DEFINITION | {"flow": "os.system"[:2]}, "test")
    with pytest.raises(ConfigError, match="no flow 'os'; there are: canary, sync, two_phase"):
        server.runner.kind_of(definition)
    begin(server)
    plain = Journal(server.journal.url)
    with pytest.raises(JournalUnusable, match="run r is of the kind 'two_phase'"):
        plain.record("r")
    plain.close()


def test_a_canary_cannot_be_submitted(server: FlowServer) -> None:
    definition = parse_definition({"task": "digits", "flow": "canary"}, "test")
    with pytest.raises(ConfigError, match="--canary"):
        server.runner.kind_of(definition).check(definition)


def test_settings_that_nobody_reads_are_refused(server: FlowServer) -> None:
    definition = parse_definition({"task": "digits", "flow_settings": {"buffer": 3}}, "test")
    with pytest.raises(ConfigError, match="flow 'sync' has no flow_settings"):
        server.runner.kind_of(definition).check(definition)


# --- timers and tasks ---------------------------------------------------------------------------


def test_a_timer_that_is_armed_again_fires_once_and_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    timers = Timers()
    timers.arm("r", ArmTimer("deadline", 1, 1, 10.0))
    timers.arm("r", ArmTimer("deadline", 1, 1, 30.0))
    timers.arm("r", ArmTimer("gather", 1, 1, 20.0))
    timers.arm("other", ArmTimer("deadline", 1, 1, 40.0))
    deadline, gather = TimerFired("deadline", 1, 1), TimerFired("gather", 1, 1)
    assert (timers.due_s(), timers.left_s("r", deadline)) == (120.0, 30.0)
    now_s = 115.0
    assert list(timers.fired()) == []
    now_s = 135.0
    assert timers.left_s("r", deadline) == 0.0, "no time is negative"
    assert list(timers.fired()) == [("r", gather), ("r", deadline)]
    assert timers.left_s("r", deadline) is None
    assert timers.due_s() == 140.0


def test_a_task_that_crashes_is_reported_to_its_flow_alone(
    server: FlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(server)
    told: list[object] = []
    monkeypatch.setattr(TwoPhase, "handle", lambda self, event: told.append(event) or self.resume())
    server.runner.handle_crash(JobCrashed("r", ZeroDivisionError("division by zero")))
    server.runner.handle_crash(JobCrashed("", ZeroDivisionError("somebody else's")))
    assert [type(each) for each in told] == [FailureReported]
    assert "ZeroDivisionError: division by zero" in str(told[0])


def test_a_task_s_event_comes_back_to_its_flow(
    server: FlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(server)
    told: list[object] = []
    monkeypatch.setattr(TwoPhase, "handle", lambda self, event: told.append(event) or self.resume())
    server.plane.start_job("r", StartTask(lambda: "made", "run"))
    server.plane.start_job("r", StartTask(lambda: None))
    server.plane.run()
    assert told == ["made"]
