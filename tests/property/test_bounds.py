"""Every field of every message, at its bounds and beyond: it is refused, or all goes on.

The documents are made from the types (``tests.bounds``), and so is the list of what is tried. What
is accepted goes on through the run that it is about: facts, ledger, document, report and event.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, cast

import msgpack
import pytest
from hypothesis import given
from pydantic import TypeAdapter

from broker.wire.limits import MessageTooLarge
from broker.wire.messages import (
    KINDS,
    Action,
    DataReport,
    DeviceHealth,
    DeviceInfo,
    DeviceState,
    Envelope,
    Message,
    RefusedBody,
    Result,
    RunDocument,
    decode,
)
from broker.wire.topics import Address
from fl_server.canary import events as canary_events
from fl_server.canary.machine import CanaryMachine
from fl_server.canary.messages import closing_of, shown
from fl_server.dataplane.plane import DataPlane
from fl_server.flows import events as flow_events
from fl_server.kinds.sync import SyncFlow
from fl_server.operations.handlers.run_report import report_of
from fl_server.operations.mqtt import PAGE_BYTES, ROW_BYTES
from fl_server.operations.results.base import encoded_bytes
from fl_server.operations.results.members import DeviceRow
from fl_server.operations.results.models import CanaryReport
from fl_server.rounds import events as e
from fl_server.rounds.facts import Fact
from fl_server.rounds.model import Model
from fl_server.rounds.plan import Plan
from fl_server.runs.definition import parse_definition
from fl_server.runs.record import FactRecord, RunRecord
from fl_server.shell.results import answer_of
from runtime.errors import PeerError
from storage.versions.keys import RunKeys
from tests.bounds import (
    SIZES,
    documents,
    numbers,
    replaced,
    sample,
    searching,
    values,
    variations,
)
from tests.messages import KEY, envelope, signed, wire
from tests.property.machine_canary import plan_of

FROM_PEERS = [each for each in KINDS.values() if each.channel[0] in {"dev", "op", "enroll"}]
# kept on disk as JSON, or shown so
AS_JSON = frozenset({DeviceInfo, DeviceHealth, DataReport, DeviceState, RunDocument})
INITIAL = Model(0, "k/0", "0" * 64, 100)


def address(kind: type[Message]) -> Address:
    area, leaf = kind.channel
    return Address("home", area, "" if area == "server" else "d-1", leaf)


def received(kind: type[Message], body: dict[str, Any]) -> Message | None:
    """Return what a correctly signed message brings, None where it is refused."""
    at = address(kind)
    fields = {"v": 1, "kind": kind.kind, "sender": "d-1", "boot_id": "b", "seq": 1}
    data = msgpack.packb({**fields, "sent_ms": 1, "ttl_s": None, "body": body})
    try:
        return decode(signed(data, at), at, KEY.public)[1]
    except RefusedBody as error:
        refusal = str(error)
    except PeerError as error:
        if error.reason not in {"oversize", "too_deep"}:
            raise
        return None
    assert len(refusal) < 2000
    assert ": " in refusal, "which field, and why"
    return None


def passed_on(kind: type[Message], body: dict[str, Any]) -> Message | None:
    """Return what a message brings, passed on as far as one is by itself."""
    message = received(kind, body)
    if message is not None:
        with contextlib.suppress(MessageTooLarge):  # near the limit, and without its defaults
            wire(message)
        if kind in AS_JSON:
            json.dumps(message.model_dump(mode="json"), allow_nan=False)
        if isinstance(message, DeviceInfo | DeviceHealth | DataReport):
            assert told(message)
    return message


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_is_accepted_can_be_passed_on(kind: type[Message]) -> None:
    assert received(kind, sample(kind)) is not None
    for _, _, body in variations(kind):
        passed_on(kind, body)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("kind", FROM_PEERS, ids=lambda kind: kind.kind)
def test_what_is_accepted_of_whole_documents_can_be_passed_on(
    kind: type[Message], count: int
) -> None:
    @searching(count)
    @given(documents(kind))
    def search(body: dict[str, Any]) -> None:
        passed_on(kind, body)

    search()


def told(message: DeviceInfo | DeviceHealth | DataReport) -> int:
    """Return how large the row of a device is that says this of itself."""
    known = {"info": None, "info" if isinstance(message, DeviceInfo) else message.kind: message}
    row = DeviceRow.model_validate(
        {"id": "d-1", "status": "ready", "role": "trainer", "tasks": [], **known}
    )
    assert encoded_bytes(row.fitted(ROW_BYTES)) < PAGE_BYTES
    return encoded_bytes(row)


def test_an_envelope_s_numbers_are_bounded_too() -> None:
    plain = envelope(KINDS["password_kept"].model_validate({"rotation": 1}))
    at = address(KINDS["password_kept"])
    for path, hint in numbers(Envelope):
        for value in values(hint):
            data = msgpack.packb(replaced(plain, path, value))
            with contextlib.suppress(PeerError):
                found, _ = decode(signed(data, at), at, KEY.public)
                assert json.loads(found.model_dump_json())


# --- through a run ------------------------------------------------------------------------------


class Plane:
    """What a flow asks of the data plane without giving it work."""

    def keys(self, run_id: str) -> RunKeys:
        return RunKeys("p", run_id)

    def open_run(self, record: RunRecord[Plan]) -> None:
        """Hold nothing for a run."""


def flow_of(facts: list[Fact], **changes: Any) -> SyncFlow:
    """Return a run as its facts left it, whose plan has these changes."""
    values = {"task": "digits", "rounds": 2, "cohort": {"size": 2, "fit": "time"}}
    definition = parse_definition({**values, "evaluation": {"on": "devices"}}, "test")
    plan = replace(definition.plan("a", evaluators_online=False), **changes)
    record = RunRecord("a", definition, plan, INITIAL, 100.0)
    rows = [FactRecord(fact, 101.0) for fact in facts]
    return SyncFlow(record, rows, cast(DataPlane, Plane()))


def go_on_with(result: Result) -> None:
    """Give a result to a run, as a training's and as an evaluation's, and tell all that follows."""
    flow, facts = flow_of([]), list[Fact]()

    def handle(event: object) -> None:
        step = flow.handle(event)
        facts.extend(step.facts)
        for fact in step.facts:
            wire(flow.event_of(fact))
        tell(flow, facts)

    for name in ("d-1", "d-2"):
        handle(flow_events.DeviceJoined(name, domain=result.population > 1))
    for name in ("d-1", "d-2"):
        answer = named(answer_of(name, result), flow, "train")
        handle(answer)
        update = flow._result(answer)
        assert isinstance(update, e.ResultReceived)
        handle(e.UpdateVerified(name, 1, 1, update.update))
    handle(e.AggregationFinished(1, 1, Model(1, "k/1", "1" * 64, 100)))
    for name in ("d-1", "d-2"):
        handle(named(answer_of(name, result), flow, "evaluate"))
    handle(answer_of("d-1", result))
    kinds = {type(fact).__name__ for fact in facts}
    assert kinds >= {"RoundStarted", "UpdateAccepted", "RoundCommitted", "EvaluationRecorded"}
    read = [
        TypeAdapter(type(fact)).validate_json(json.dumps(asdict(fact), allow_nan=False))
        for fact in facts
    ]
    again = flow_of(read)
    assert again.machine.ledger == flow.machine.ledger
    tell(again, read)


def named(
    answer: flow_events.DeviceAnswered, flow: SyncFlow, action: Action
) -> flow_events.DeviceAnswered:
    """Return an answer to an order that the run has given, with what is shown of its metrics."""
    update = answer.update or flow_events.ReportedUpdate("", 1, "0" * 64)
    update = replace(update, key=flow.keys.update(1, 1, answer.device_id))
    value = min(answer.metrics.values(), default=0.0)
    metrics = {**answer.metrics, **dict.fromkeys(("loss", "accuracy"), value)}
    return replace(answer, action=action, round=1, attempt=1, update=update, metrics=metrics)


def tell(flow: SyncFlow, facts: list[Fact]) -> None:
    """Make everything that is shown of a run."""
    wire(flow.document(1))
    rows = [FactRecord(fact, 101.0) for fact in facts]
    shown = report_of(flow.record, flow, rows, flow.document(1), {})
    encoded_bytes(shown)
    json.dumps(shown.document(), allow_nan=False)


def evaluate_in_canary(result: Result) -> None:
    """Give an evaluation to a canary and tell its verdict."""
    plan = plan_of(("d-1", "d-2"), 2, max_drop=0.01)
    machine = CanaryMachine(plan)
    machine.handle(canary_events.CandidateMarked())
    for name in plan.cohort:
        for attempt in canary_events.ATTEMPTS:
            metrics = dict.fromkeys([plan.metric], min(result.metrics.values(), default=0.0))
            machine.handle(
                e.EvaluationReceived(
                    name, canary_events.ROUND, attempt, result.num_examples, metrics
                )
            )
    machine.handle(canary_events.DeadlinePassed())
    CanaryReport(**shown_of(machine))
    wire(closing_of(plan, 1))


def shown_of(machine: CanaryMachine) -> dict[str, Any]:
    return shown(machine.plan, machine.state, 1.0)


def accepted_results(bodies: Iterator[dict[str, Any]]) -> Iterator[Result]:
    for body in bodies:
        message = received(Result, body)
        if isinstance(message, Result) and message.num_examples:
            yield message


def test_a_result_that_is_accepted_goes_through_its_run_and_a_canary() -> None:
    found = list(accepted_results(body for _, _, body in variations(Result)))
    assert len(found) > 100
    for result in found:
        go_on_with(result)
        evaluate_in_canary(result)


@pytest.mark.parametrize("count", SIZES)
def test_any_result_goes_through_its_run_and_a_canary(count: int) -> None:
    @searching(count)
    @given(documents(Result))
    def search(body: dict[str, Any]) -> None:
        for result in accepted_results(iter([body])):
            go_on_with(result)
            evaluate_in_canary(result)

    search()
