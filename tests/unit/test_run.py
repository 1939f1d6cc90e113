"""What the server says of a run always fits into one message."""

from __future__ import annotations

import pytest

from broker.messages import MAX_MESSAGE_BYTES, Order
from fl_server.definition import parse_definition
from fl_server.events import (
    ArmTimer,
    Fact,
    Model,
    RoundClosed,
    RoundStarted,
    SendOrder,
    Update,
    UpdateAccepted,
)
from fl_server.journal import FactRecord, RunRecord
from fl_server.run import ActiveRun
from storage.keys import RunKeys
from storage.objects import MemoryStore
from tests.messages import wire

DEVICES = tuple(f"{'d' * 58}-{number:05d}" for number in range(4000))
UPDATE = Update("u", 10, "a" * 64, 5, {}, {})


def run_of(*facts: Fact) -> ActiveRun:
    definition = parse_definition({"task": "digits", "cohort": {"size": len(DEVICES)}}, "test")
    plan = definition.plan("r", evaluators_online=False)
    record = RunRecord("r", definition, plan, Model(0, "k/0", "0" * 64, 1), 0.0)
    return ActiveRun.from_journal(
        record, [FactRecord(fact, 0.0) for fact in facts], RunKeys("default", "r")
    )


STARTED = RoundStarted(1, 1, DEVICES, len(DEVICES))
ACCEPTED = [UpdateAccepted(1, 1, device, UPDATE) for device in DEVICES]
CLOSED = RoundClosed(1, 1, DEVICES)


def test_the_document_of_a_huge_cohort() -> None:
    document = run_of(STARTED, *ACCEPTED).document(epoch=1)
    assert len(wire(document)) < MAX_MESSAGE_BYTES
    assert document.cohort[0] == document.answered[0] == DEVICES[0]
    assert document.phase == "collecting"


@pytest.mark.parametrize("fact", [STARTED, ACCEPTED[0], CLOSED])
def test_the_events_of_a_huge_cohort(fact: Fact) -> None:
    event = run_of(STARTED, *ACCEPTED).event(fact)
    assert len(wire(event)) < MAX_MESSAGE_BYTES
    assert (event.name, event.round, event.attempt) == (type(fact).__name__, 1, 1)


def test_a_run_that_waits_for_devices_says_so() -> None:
    assert run_of().document(1).status == "waiting"
    assert run_of(STARTED).document(1).status == "running"


def order_of(run: ActiveRun, action: str = "train", place: tuple[int, int] = (1, 1)) -> Order:
    command = SendOrder("d-1", action, *place)  # type: ignore[arg-type]
    return run.order(command, MemoryStore(), epoch=4)


def test_an_order_says_the_time_that_is_left() -> None:
    run = run_of(STARTED)
    run.deadline_armed(ArmTimer("deadline", 1, 1, 60.0))
    assert 59.0 < order_of(run).time_left_s <= 60.0
    assert order_of(run, place=(1, 2)).time_left_s == run.machine.plan.deadline_s
    assert order_of(run, "evaluate").time_left_s == run.machine.plan.evaluation_deadline_s


def test_a_deadline_that_is_over_leaves_no_negative_time() -> None:
    run = run_of(STARTED)
    run.deadline_armed(ArmTimer("deadline", 1, 1, -5.0))
    assert order_of(run).time_left_s == 0.0


def test_only_an_order_to_train_has_a_place_for_an_update() -> None:
    run = run_of(STARTED)
    upload = order_of(run).upload
    assert upload is not None
    assert upload.key == "projects/default/runs/r/updates/000001/001/d-1.upd"
    assert order_of(run, "evaluate").upload is None
