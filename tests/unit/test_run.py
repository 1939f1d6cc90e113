"""What the server says of a run always fits into one message."""

from __future__ import annotations

import pytest

from broker.wire.messages import MAX_MESSAGE_BYTES, Order
from fl_server.persistence.journal import FactRecord, RunRecord
from fl_server.rounds.events import (
    ArmTimer,
    Fact,
    Model,
    RoundClosed,
    RoundCommitted,
    RoundStarted,
    SendOrder,
    Update,
    UpdateAccepted,
)
from fl_server.rounds.workload import OrderWork
from fl_server.runs.active import ActiveRun
from fl_server.runs.definition import parse_definition
from storage.store.objects import MemoryStore
from storage.versions.keys import RunKeys
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


SCATTERED = tuple((number << 21, (number << 21) + (1 << 20)) for number in range(256))
"""As many ranges as a version may have."""


def version(number: int) -> Model:
    return Model(number, f"k/{number}", f"{number:064x}", 1 << 30, changed=SCATTERED)


def committed(number: int) -> list[Fact]:
    return [
        RoundStarted(number, 1, DEVICES, len(DEVICES)),
        UpdateAccepted(number, 1, DEVICES[0], UPDATE),
        RoundClosed(number, 1, DEVICES[:1]),
        RoundCommitted(number, 1, version(number)),
    ]


def test_an_order_with_the_most_patches_fits_into_a_message() -> None:
    run = run_of(*(fact for number in range(1, 7) for fact in committed(number)))
    order = order_of(run, place=(7, 1))
    assert len(wire(order)) < MAX_MESSAGE_BYTES // 4
    assert [patch.base_sha256 for patch in order.model.patches] == [
        f"{number:064x}" for number in (5, 4, 3, 2)
    ]
    assert tuple(order.model.patches[3].changed) == SCATTERED
    assert order_of(run, "evaluate", place=(6, 1)).model.patches == order.model.patches


def test_the_patches_are_those_of_the_latest_version() -> None:
    run = run_of(*committed(1), *committed(2), *committed(3)[:3])
    assert len(order_of(run).model.patches) == 1, "version 0 has another size"
    fact = committed(3)[3]
    run.machine.ledger.apply(fact)
    assert [patch.base_sha256[-1] for patch in order_of(run).model.patches] == ["2", "1"]


def test_the_event_of_a_commit_leaves_the_ranges_out() -> None:
    fact = committed(1)[3]
    event = run_of(STARTED).event(fact)
    assert event.detail["model"]["sha256"] == version(1).sha256
    assert "changed" not in event.detail["model"]


FITTED = RoundStarted(
    1, 1, DEVICES, len(DEVICES), {device: OrderWork(1_000_000, 4_096) for device in DEVICES}
)


def test_an_order_carries_what_is_fitted_to_its_device() -> None:
    work = {"d-1": OrderWork(7, 2), "d-2": OrderWork()}
    run = run_of(RoundStarted(1, 1, ("d-1", "d-2"), 2, work))
    assert order_of(run).training == {"max_steps": 7, "micro_batch": 2}
    assert order_of(run, "evaluate").training == {}
    assert run.event(FITTED).detail["work"].keys() == set(FITTED.cohort[:200])
    assert order_of(run_of(RoundStarted(1, 1, ("d-1",), 1))).training == {}


@pytest.mark.parametrize("fact", [STARTED, FITTED, ACCEPTED[0], CLOSED])
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
