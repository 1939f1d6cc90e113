"""Only what was ordered counts: from an ordered device, a member of the run, a stranger."""

from __future__ import annotations

import pytest

from fl_server.flows.commands import SendReceipt
from fl_server.flows.events import (
    DeviceDeclined,
    DeviceJoined,
    DeviceLeft,
    OrderRequested,
    StopRequested,
)
from fl_server.rounds.commands import (
    DiscardUpdate,
    SendOrder,
    VerifyUpdate,
)
from fl_server.rounds.events import (
    EvaluationReceived,
    Event,
    ResultReceived,
)
from fl_server.rounds.facts import (
    EvaluationDeclined,
    EvaluationOrdered,
    EvaluationRecorded,
    OrderDeclined,
    UpdateRefused,
)
from tests.rounds import Run, ordered, receipt, update

CALLERS = ["ordered", "member", "stranger"]


def with_callers(*, restarted: bool) -> Run:
    """Return a run in round 2 whose version 1 ``e1`` was ordered to evaluate, and ``e2`` not."""
    run = Run.of("a", "b", "c", "e1")
    run.counts("a", "b", "c")
    run.commits()
    run.give(DeviceJoined("e2", "evaluator", accepting=False), DeviceJoined("m"))
    if restarted:
        run.restart()
    return run


def said(device_id: str, event: str) -> Event:
    train, measure = (device_id, "train", 2, 1), (device_id, "evaluate", 1, 1)
    events: dict[str, Event] = {
        "result": ResultReceived(device_id, 2, 1, update(device_id, 2)),
        "faulty result": ResultReceived(device_id, 2, 1, update(device_id, 2), "no such key"),
        "decline": DeviceDeclined(*train, "no"),  # type: ignore[arg-type]
        "permanent decline": DeviceDeclined(*train, "no", permanent=True),  # type: ignore[arg-type]
        "request": OrderRequested(*train),  # type: ignore[arg-type]
        "evaluation": EvaluationReceived(device_id, 1, 1, 1 << 40, {"accuracy": 123.456}),
        "evaluation decline": DeviceDeclined(*measure, "no"),  # type: ignore[arg-type]
        "evaluation request": OrderRequested(*measure),  # type: ignore[arg-type]
    }
    return events[event]


EVALUATES = {"evaluation", "evaluation decline", "evaluation request"}
ANSWERS = {
    "result": VerifyUpdate,
    "faulty result": UpdateRefused,
    "decline": OrderDeclined,
    "permanent decline": OrderDeclined,
    "request": SendOrder,
    "evaluation": EvaluationRecorded,
    "evaluation decline": EvaluationDeclined,
    "evaluation request": SendOrder,
}


@pytest.mark.parametrize("restarted", [False, True], ids=["", "after a restart"])
@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("event", ANSWERS)
def test_only_what_was_ordered_has_an_effect(event: str, caller: str, restarted: bool) -> None:
    run, evaluates = with_callers(restarted=restarted), event in EVALUATES
    names = {"ordered": "e1" if evaluates else "a", "member": "e2" if evaluates else "m"}
    before = len(run.facts)
    commands = run.give(said(names.get(caller, "stranger"), event))
    done = [*run.facts[before:], *commands]
    if caller == "ordered":
        # after a restart the shell publishes again which devices are there
        assert any(isinstance(each, ANSWERS[event]) for each in done)
        return
    assert run.facts[before:] == []
    assert all(isinstance(each, SendReceipt | DiscardUpdate) for each in commands)
    refused = [each.status for each in commands if isinstance(each, SendReceipt)]
    assert refused == (["refused"] if event in {"result", "faulty result", "evaluation"} else [])


@pytest.mark.parametrize("where", [(1, 2), (2, 1), (1, 7)], ids=str)
def test_an_ordered_device_measures_only_what_it_was_ordered_to(where: tuple[int, int]) -> None:
    run = with_callers(restarted=False)
    commands = run.give(EvaluationReceived("e1", *where, 10, {"accuracy": 0.5}))
    assert receipt(commands).status in {"refused", "unknown"}
    assert run.machine.ledger.evaluations == {}


def test_a_journal_holds_one_order_and_at_most_two_declines_of_a_device_and_version() -> None:
    run = with_callers(restarted=False)
    decline = DeviceDeclined("e1", "evaluate", 1, 1, "too hot")
    for _ in range(5):
        run.give(DeviceLeft("e1"), DeviceJoined("e1", "evaluator"), decline)
    run.give(DeviceJoined("e1", "evaluator"))
    run.give(DeviceDeclined("e1", "evaluate", 1, 1, "metrics() raised", permanent=True))
    assert ordered(run.give(DeviceJoined("e1", "evaluator"))) == set()
    kinds = [type(f) for f in run.facts if isinstance(f, EvaluationOrdered | EvaluationDeclined)]
    assert kinds == [EvaluationOrdered, EvaluationDeclined, EvaluationDeclined]


def test_a_version_that_nobody_could_measure_says_why() -> None:
    run = Run.of("a", "b", "c", "e1", "e2", "e3", rounds=1)
    run.counts("a", "b", "c")
    run.commits()
    for name, why in (("e1", "KeyError: 'x'"), ("e2", "KeyError: 'x'"), ("e3", "no data")):
        run.give(DeviceDeclined(name, "evaluate", 1, 1, why, permanent=True))
    ledger = run.machine.ledger
    assert ledger.status == "completed"
    why = "version 1 was not measured: KeyError: 'x' on 2 devices, and 1 for other reasons"
    assert ledger.explanation == why
    run.restart()
    assert run.machine.ledger.explanation == why


def test_a_run_that_has_ended_sends_no_order_to_whoever_asks_for_one() -> None:
    run = Run.of("a", "b", "c", "e1")
    run.counts("a", "b", "c")
    run.commits()
    run.give(StopRequested("enough"))
    for event in ("evaluation request", "request"):
        assert run.give(said("e1" if event.startswith("evaluation") else "a", event)) == []
