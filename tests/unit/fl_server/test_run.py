"""What the server says of a run always fits into one message."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from broker.wire.messages import MAX_MESSAGE_BYTES, Order
from fl_server.dataplane.bundles import SiteBundles
from fl_server.dataplane.orders import OrderSender
from fl_server.dataplane.plane import DataPlane
from fl_server.flows.commands import IssueOrder, ModelFile, ReportResult, SendReceipt
from fl_server.flows.events import (
    DeviceAnswered,
    DeviceDeclined,
    DeviceJoined,
    OrderRequested,
    ReportedUpdate,
    TimerFired,
)
from fl_server.flows.flow import Step
from fl_server.kinds.sync import SyncFlow
from fl_server.rounds.commands import ReportRound, SendOrder
from fl_server.rounds.events import AggregationFinished, RoundRequested, UpdateVerified
from fl_server.rounds.facts import Fact, RoundClosed, RoundCommitted, RoundStarted, UpdateAccepted
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from fl_server.rounds.workload import OrderWork
from fl_server.runs.definition import parse_definition
from fl_server.runs.record import FactRecord, RunRecord
from runtime.security.signing import SecretKey
from storage.registry.registry import ModelRegistry
from storage.store.memory import MemoryStore
from storage.transfer.multipart import PartSizes
from tests.messages import wire

DEVICES = tuple(f"{'d' * 58}-{number:05d}" for number in range(4000))
UPDATE = Update("u", 10, "a" * 64, 5, {}, {})


def run_of(*facts: Fact) -> SyncFlow:
    definition = parse_definition({"task": "digits", "cohort": {"size": len(DEVICES)}}, "test")
    plan = definition.plan("r", evaluators_online=False)
    record = RunRecord("r", definition, plan, Model(0, "k/0", "0" * 64, 1), 0.0)
    return opened(record, *facts)


def data_plane(store: MemoryStore) -> DataPlane:
    """Return one that is never given work."""
    registry = ModelRegistry(store, "default", SecretKey("5e" * 32))
    return DataPlane(store, registry, Path("nowhere"), lambda _: None)


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
    event = run_of(STARTED).event_of(fact)
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
    assert run.event_of(FITTED).detail["work"].keys() == set(FITTED.cohort[:200])
    assert order_of(run_of(RoundStarted(1, 1, ("d-1",), 1))).training == {}


@pytest.mark.parametrize("fact", [STARTED, FITTED, ACCEPTED[0], CLOSED])
def test_the_events_of_a_huge_cohort(fact: Fact) -> None:
    event = run_of(STARTED, *ACCEPTED).event_of(fact)
    assert len(wire(event)) < MAX_MESSAGE_BYTES
    assert (event.name, event.round, event.attempt) == (type(fact).__name__, 1, 1)


def test_a_run_that_waits_for_devices_says_so() -> None:
    assert run_of().document(1).status == "waiting"
    assert run_of(STARTED).document(1).status == "running"


def order_of(run: SyncFlow, action: str = "train", place: tuple[int, int] = (1, 1)) -> Order:
    """Return an order as it goes out, with as much time as the flow gives."""
    sent: list[Order] = []
    data = data_plane(MemoryStore(sizes=PartSizes(large_bytes=1 << 40)))
    sender = OrderSender(
        data,
        SiteBundles(data.store, "default", Path("nowhere")),
        lambda _, order: order.time_s,
        lambda _, order: sent.append(order),
        epoch=4,
    )
    order = run.order(SendOrder("d-1", action, *place))  # type: ignore[arg-type]
    sender.send(run, order, nullcontext())
    (order,) = sent
    return order


def test_an_order_says_the_time_that_is_left() -> None:
    run = run_of(STARTED)
    plan = run.machine.plan
    train, evaluate = (
        run.order(SendOrder("d-1", action, 1, 2))  # type: ignore[arg-type]
        for action in ("train", "evaluate")
    )
    assert (train.timer, train.time_s) == (TimerFired("deadline", 1, 2), plan.deadline_s)
    assert (evaluate.timer, evaluate.time_s) == (None, plan.evaluation_deadline_s)


def test_only_an_order_to_train_has_a_place_for_an_update() -> None:
    run = run_of(STARTED)
    upload = order_of(run).upload
    assert upload is not None
    assert upload.key == "projects/default/runs/r/updates/000001/001/d-1.upd"
    assert order_of(run, "evaluate").upload is None


def test_a_round_that_is_requested_begins_with_its_base_and_reports_its_model() -> None:
    record = run_of().record
    plan = replace(record.plan, on_request=True, cohort_size=1, quorum=1, evaluate_on="none")
    record = replace(record, plan=plan)
    run, facts, base = opened(record), list[Fact](), Model(2, "platform/2", "2" * 64, 1)
    assert (run.document(1).status, run.document(1).phase) == ("waiting", "waiting")

    def handle(event: object) -> list[object]:
        step = run.handle(event)
        facts.extend(step.facts)
        return list(step.commands)

    handle(DeviceJoined("d-1"))
    order, *_ = handle(RoundRequested(3, base))
    assert isinstance(order, IssueOrder)
    assert (order.round, order.model) == (3, ModelFile(base.key, base.sha256, base.size_bytes))
    reported = ReportedUpdate(order.upload_key, 9, "")
    handle(DeviceAnswered("d-1", "train", 3, 1, 5, update=reported))
    handle(UpdateVerified("d-1", 3, 1, Update(order.upload_key, 9, "", 5)))
    report = ReportResult(ReportRound(3, version(3)))
    assert report in handle(AggregationFinished(3, 1, version(3)))
    assert report in opened(record, *facts).resume().commands, "until the next request"
    handle(RoundRequested(4, version(3)))
    assert report not in opened(record, *facts).resume().commands


def opened(record: RunRecord[Plan], *facts: Fact) -> SyncFlow:
    return SyncFlow(record, [FactRecord(fact, 0.0) for fact in facts], data_plane(MemoryStore()))


def test_an_exchange_with_a_run_in_rounds_is_refused_and_changes_nothing() -> None:
    run = run_of(RoundStarted(1, 1, ("d-1",), 1))
    answer = DeviceAnswered("d-1", "exchange", 1, 1, 0, payload=b"x", phase="share", seq=7)
    [receipt] = run.handle(answer).commands
    assert isinstance(receipt, SendReceipt)
    assert (receipt.status, receipt.phase, receipt.seq) == ("refused", "share", 7)
    assert run.handle(DeviceDeclined("d-1", "exchange", 1, 1, "no", "share", 7)) == Step()
    assert run.handle(OrderRequested("d-1", "exchange", 1, 1, "share", 7)) == Step()
    assert run.machine.ledger.answered == set(), "its order to train stands"
