"""What ``rengo runs`` tells: the fold of the journal, bounded so that it travels in one message."""

from __future__ import annotations

import pytest

from broker.wire.messages import MAX_MESSAGE_BYTES, OperatorReply
from fl_server.kinds.sync_report import report_of
from fl_server.operations.handlers.run_summary import report, summary
from fl_server.operations.mqtt import RESULT_BYTES
from fl_server.operations.results.runs import RunReport
from fl_server.rounds.facts import (
    EvaluationRecorded,
    Fact,
    OrderDeclined,
    RoundAbandoned,
    RoundClosed,
    RoundCommitted,
    RoundStarted,
    RunCompleted,
    RunFailed,
    RunStopped,
    UpdateAccepted,
    UpdateRefused,
    UpdateWithdrawn,
)
from fl_server.rounds.ledger import Ledger
from fl_server.rounds.model import Model, Update
from fl_server.rounds.plan import Plan
from fl_server.rounds.workload import OrderWork
from fl_server.runs.definition import parse_definition
from fl_server.runs.record import FactRecord, RunRecord
from tests.messages import wire

ROUNDS = 200
INITIAL = Model(0, "k/0", "0" * 64, 1)


def record(rounds: int = 2, cohort: int = 2) -> RunRecord[Plan]:
    definition = parse_definition({"task": "digits", "rounds": rounds, "seed": 7}, "test")
    plan = Plan("r", rounds=rounds, cohort_size=cohort, quorum=1, seed=7)
    return RunRecord("r", definition, plan, INITIAL, 100.0)


def update(device: str) -> Update:
    usage = {"bytes_up": 10.0, "bytes_down": 5.0, "peak_rss_bytes": 1000.0, "train_s": 0.1}
    usage |= {"steps": 4, "steps_s": 2.0, "full_steps": 20}
    return Update(f"u/{device}", 10, "a" * 64, 5, {"loss": 1.0}, usage)


def model(version: int) -> Model:
    return Model(version, f"k/{version}", f"{version:064d}", 1)


def told(record_: RunRecord[Plan], facts: list[Fact]) -> RunReport:
    ledger = Ledger(record_.plan.rounds, record_.initial)
    for fact in facts:
        ledger.apply(fact)
    rows = [FactRecord(fact, 101.0 + index) for index, fact in enumerate(facts)]
    wall_s = rows[-1].at - record_.at if rows else 0.0
    return report(
        record_,
        summary(record_, ledger),
        report_of(rows, ledger, record_.definition.evaluation.headline),
        wall_s,
    )


def one_round(number: int, attempt: int = 1, devices: tuple[str, ...] = ("a", "b")) -> list[Fact]:
    return [
        RoundStarted(number, attempt, devices, len(devices)),
        *(UpdateAccepted(number, attempt, device, update(device)) for device in devices),
        RoundClosed(number, attempt, devices),
        RoundCommitted(number, attempt, model(number)),
    ]


FACTS: list[Fact] = [
    RoundStarted(1, 1, ("a", "b"), 2),
    UpdateAccepted(1, 1, "a", update("a")),
    UpdateRefused(1, 1, "b", "u/b: chunk 0 has another sha256"),
    RoundAbandoned(1, 1, "1 of at least 2 updates at the deadline"),
    *one_round(1, 2),
    EvaluationRecorded(1, "e", 10, {"accuracy": 0.5, "loss": 1.0}, {"bytes_down": 7.0}),
    EvaluationRecorded(1, "f", 30, {"accuracy": 0.9}, {}),
    RoundStarted(2, 1, ("a", "b"), 2),
    OrderDeclined(2, 1, "b", "out of memory"),
    UpdateAccepted(2, 1, "a", update("a")),
    RoundClosed(2, 1, ("a",)),
    RoundCommitted(2, 1, model(2)),
    RunCompleted(),
]


def test_the_whole_story() -> None:
    shown = told(record(), FACTS)
    assert (shown.status, shown.rounds_completed, shown.rounds) == ("completed", 2, 2)
    assert (shown.model_key, shown.model_sha256) == ("k/2", f"{2:064d}")
    history = shown.history
    assert [(row.round, row.attempt, row.outcome) for row in history] == [
        (1, 1, "abandoned"),
        (1, 2, "committed"),
        (2, 1, "committed"),
    ]
    assert history[0].refused == {"b": "u/b: chunk 0 has another sha256"}
    assert history[0].reason == "1 of at least 2 updates at the deadline"
    assert history[0].included == []
    assert history[1].included == ["a", "b"]
    assert history[2].refused == {"b": "out of memory"}
    assert history[1].accuracy == (0.5 * 10 + 0.9 * 30) / 40
    assert history[1].loss == 1.0
    assert (history[0].accuracy, history[2].accuracy) == (None, None)


def test_a_runs_accuracy_is_that_of_the_last_measured_version() -> None:
    shown = told(record(), FACTS)
    assert shown.accuracy == 0.8
    assert shown.loss == 1.0


def test_times_are_those_of_the_facts() -> None:
    shown = told(record(), FACTS)
    assert shown.wall_s == 101.0 + len(FACTS) - 1 - 100.0
    assert shown.round_s == [4.0, 4.0]


def test_devices_are_told_what_they_did() -> None:
    shown = told(record(), FACTS)
    devices = shown.devices
    rows = {row.id: row for row in devices}
    assert rows["a"].document() == {
        "id": "a",
        "rounds": 2,
        "bytes_up": 30,
        "bytes_down": 15,
        "peak_rss_bytes": 1000,
        "steps": 4,
        "full_steps": 20,
        "step_s": 0.5,
        "profile": "",
        "engine": "",
        "width": 1.0,
    }
    assert rows["b"].rounds == 1
    assert (rows["e"].rounds, rows["e"].bytes_down) == (0, 7)
    assert (shown.bytes_up, shown.bytes_down) == (40, 27)


def test_a_device_that_trained_a_part_is_told_apart() -> None:
    work = {"a": OrderWork(3, width=0.25), "b": OrderWork(3)}
    facts: list[Fact] = [
        RoundStarted(1, 1, ("a", "b"), 2, work),
        UpdateAccepted(1, 1, "a", update("a")),
        UpdateAccepted(1, 1, "b", update("b")),
    ]
    shown = told(record(), facts)
    assert {row.id: row.width for row in shown.devices} == {"a": 0.25, "b": 1.0}
    assert shown.history[0].ordered_steps == {"a": 3, "b": 3}


def test_a_withdrawn_update_is_shown_with_its_reason() -> None:
    facts: list[Fact] = [
        RoundStarted(1, 1, ("a", "b"), 2),
        UpdateAccepted(1, 1, "a", update("a")),
        UpdateWithdrawn(1, 1, "a", "no object at u/a"),
    ]
    history = told(record(), facts).history
    assert history[0].outcome == "collecting"
    assert history[0].seconds is None
    assert history[0].refused == {"a": "no object at u/a"}


@pytest.mark.parametrize("end", [RunFailed("nobody came"), RunStopped("nobody came")])
@pytest.mark.parametrize("closed", [False, True])
def test_the_attempt_within_which_a_run_ended_is_not_told_as_going_on(
    end: Fact, closed: bool
) -> None:
    facts: list[Fact] = [RoundStarted(1, 1, ("a", "b"), 2), UpdateAccepted(1, 1, "a", update("a"))]
    facts += [RoundClosed(1, 1, ("a",))] if closed else []
    (row,) = told(record(), [*facts, end]).history
    assert (row.outcome, row.reason) == ("abandoned", "nobody came")
    assert row.seconds is not None


def test_a_run_before_its_first_round() -> None:
    shown = told(record(), [])
    assert (shown.status, shown.history, shown.accuracy) == ("running", [], None)
    assert (shown.wall_s, shown.round_s, shown.devices) == (0.0, [], [])


def test_a_failed_run_says_why() -> None:
    ledger = Ledger(2, INITIAL)
    ledger.apply(RunFailed("round 1, attempt 50: nobody came"))
    row = summary(record(), ledger)
    assert (row.status, row.reason) == ("failed", "round 1, attempt 50: nobody came")


def test_a_long_run_of_many_devices_fits_into_one_message() -> None:
    """300 rounds of 300 devices whose names and refusals are long: the latest are shown."""
    devices = tuple(sorted(f"{'d' * 50}-{number:05d}" for number in range(300)))
    facts: list[Fact] = []
    for number in range(1, 301):
        facts += [
            RoundStarted(number, 1, devices, 200),
            *(UpdateAccepted(number, 1, device, update(device)) for device in devices[:200]),
            *(UpdateRefused(number, 1, device, "x" * 2000) for device in devices[200:]),
            RoundClosed(number, 1, devices[:200]),
            RoundCommitted(number, 1, model(number)),
        ]
    shown = told(record(rounds=300, cohort=300), facts)
    assert len(shown.history) == 300, "what is not sent in a message is whole"
    fitted = shown.fitted(RESULT_BYTES)
    reply = OperatorReply(request_id="q", result=fitted.document())
    assert RESULT_BYTES * 0.75 < len(wire(reply)) < MAX_MESSAGE_BYTES
    history = fitted.history
    assert history[-1].round == 300
    assert history[-1].updates == 200
    assert history[-1].included[0] == devices[0]
    assert shown.rounds_completed == 300


def test_a_usual_run_is_shown_whole() -> None:
    devices = tuple(f"edge-{number}" for number in range(8))
    facts: list[Fact] = []
    for number in range(1, ROUNDS + 1):
        facts += one_round(number, devices=devices)
    shown = told(record(rounds=ROUNDS), facts)
    history = shown.fitted(RESULT_BYTES).history
    assert len(history) == ROUNDS
    assert all(row.included == list(devices) for row in history)
