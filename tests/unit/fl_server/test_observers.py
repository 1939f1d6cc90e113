"""An observer that fails, blocks or is slow costs the run nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.wire.messages import RunEvent
from fl_server.flows.events import StopRequested
from fl_server.observers import base
from fl_server.observers.base import ObservedFact, ObserverList
from fl_server.observers.log import LogObserver
from fl_server.observers.mqtt import MqttObserver
from fl_server.rounds.facts import RunPaused, UpdateAccepted
from fl_server.rounds.model import Model
from fl_server.runs.definition import parse_definition
from tests.flows import TOPICS, FlowServer
from tests.integration.two_phase import RunEnded, TwoPhaseKind

MODEL = Model(0, "k", "0" * 64, 4)


def observed(name: str = "RunPaused") -> ObservedFact:
    event = RunEvent(run_id="r", name=name, round=1, attempt=1, detail={})
    return ObservedFact("sync", RunPaused(), event)


class Recorder:
    name = "recorder"

    def __init__(self) -> None:
        self.facts: list[str] = []
        self.arrived = threading.Semaphore(0)

    def observe(self, each: ObservedFact) -> None:
        self.facts.append(each.event.name)
        self.arrived.release()


class Failing:
    name = "failing"

    def observe(self, _: ObservedFact) -> None:
        raise ValueError("no such tracker")


class Blocking:
    name = "blocking"

    def __init__(self) -> None:
        self.reached, self.gate = threading.Event(), threading.Event()

    def observe(self, _: ObservedFact) -> None:
        self.reached.set()
        assert self.gate.wait(30)


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    made = Blocking()
    yield made
    made.gate.set()


def test_an_observer_that_fails_is_counted_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder()
    observers = ObserverList([Failing(), recorder])
    for _ in range(3):
        observers.tell(observed())
    observers.close()
    assert recorder.facts == ["RunPaused"] * 3, "the others are told of all"
    assert observers.failed == {"failing": 3, "recorder": 0}
    assert len([each for each in caplog.records if "observer failing fails" in each.message]) == 1


def test_an_observer_that_blocks_misses_facts_and_nobody_waits_for_it(
    blocking: Blocking, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_CLOSE_S", 0.05)
    recorder = Recorder()
    observers = ObserverList([blocking, recorder], queue_max=5)
    observers.tell(observed())
    assert blocking.reached.wait(10)
    assert recorder.arrived.acquire(timeout=10)
    for number in range(9):
        observers.tell(observed(f"Fact{number}"))
        assert recorder.arrived.acquire(timeout=10), "the recorder's own queue is as short"
    assert observers.missed == {"blocking": 4, "recorder": 0}
    assert len(recorder.facts) == 10
    assert len([each for each in caplog.records if "is too slow" in each.message]) == 1
    observers.close()
    assert any("is left behind" in each.message for each in caplog.records)


def test_a_run_goes_on_beside_observers_that_fail_and_block(
    tmp_path: Path, blocking: Blocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_CLOSE_S", 0.05)
    recorder = Recorder()
    server = FlowServer(tmp_path, {"two_phase": TwoPhaseKind()}, [blocking, Failing(), recorder])
    definition = parse_definition({"task": "digits", "flow": "two_phase"}, "test")
    server.runner.begin(server.runner.new_record("r", definition, MODEL))
    server.runner.handle("r", StopRequested())
    assert server.runner.flows["r"].ended
    told = [row.fact for row in server.journal.facts("r", "two_phase")]
    assert told == [RunEnded("stopped", ())]
    server.close()
    assert recorder.facts == ["RunEnded"]


def test_the_log_has_a_line_a_round_and_not_one_a_device(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "fl_server.observers.log")
    LogObserver().observe(observed("RoundCommitted"))
    LogObserver().observe(observed(UpdateAccepted.__name__))
    assert [each.message for each in caplog.records] == ["run r: RoundCommitted {}"]


def test_the_stream_has_every_fact() -> None:
    sent: list[tuple[str, object]] = []
    each = observed()
    MqttObserver(TOPICS, lambda topic, message: sent.append((topic, message))).observe(each)
    assert sent == [(TOPICS.run("r", "events"), each.event)]
