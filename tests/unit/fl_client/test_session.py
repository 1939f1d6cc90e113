"""The device's session, rule by rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.wire.messages import Action, ModelRef, Order, Receipt, UploadRef
from fl_client.session import events as s
from fl_client.session.machine import (
    MAX_SHRINKS,
    MAX_WAITING_EVALUATIONS,
    MAX_WAITING_EXCHANGES,
    DeviceSession,
)

OUTCOME = s.JobOutcome(10, {}, header_sha256="a" * 64, size_bytes=100)
METRICS = s.JobOutcome(10, {"accuracy": 0.5})


def order(
    action: Action = "train",
    round_number: int = 1,
    attempt: int = 1,
    epoch: int = 1,
    url: str = "u",
) -> Order:
    train = action == "train"
    return Order(
        epoch=epoch,
        action=action,
        run_id="run",
        round=round_number,
        attempt=attempt,
        task="digits",
        algorithm="fedavg",
        algorithm_settings={},
        training={},
        seed=0,
        model=ModelRef(url=url, key="g", sha256="0" * 64, size_bytes=1),
        upload=UploadRef(url=url, key="u") if train else None,
        time_left_s=60.0,
    )


def key(action: Action = "train", round_number: int = 1, attempt: int = 1) -> s.JobKey:
    return s.JobKey("run", action, round_number, attempt)


def receipt(of: s.JobKey, status: str = "accepted") -> s.ReceiptArrived:
    return s.ReceiptArrived(
        Receipt(
            action=of.action,
            run_id=of.run_id,
            round=of.round,
            attempt=of.attempt,
            status=status,  # type: ignore[arg-type]
        )
    )


def run_at(
    round_number: int,
    attempt: int = 1,
    *,
    epoch: int = 1,
    closed: bool = False,
    ended: bool = False,
) -> s.RunChanged:
    return s.RunChanged("run", epoch, ended, round_number, attempt, closed)


def arrive(session: DeviceSession, *orders: Order) -> list[s.Command]:
    commands: list[s.Command] = []
    for one in orders:
        commands += session.handle(s.OrderArrived(one))
    return commands


def kinds(commands: list[s.Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


def at(stage: s.Stage, action: Action = "train") -> DeviceSession:
    """Return a session whose one job has come to a stage."""
    session = DeviceSession()
    arrive(session, order(action))
    steps: list[tuple[s.Stage, s.Event]] = [
        ("working", s.ModelFetched(key(action))),
        ("uploading", s.WorkFinished(key(action), OUTCOME if action == "train" else METRICS)),
        ("reporting", s.UpdateUploaded(key(action))),
    ]
    for reached, event in steps:
        if stage == "fetching":
            break
        session.handle(event)
        if reached == stage:
            break
    return session


# --- one job from order to receipt ------------------------------------------------------------


def test_a_training_job_from_its_order_to_its_receipt() -> None:
    session = DeviceSession()
    assert kinds(arrive(session, order())) == ["FetchModel", "PublishState"]
    assert session.presence == "training"
    assert kinds(session.handle(s.ModelFetched(key()))) == ["DoWork"]
    assert kinds(session.handle(s.WorkFinished(key(), OUTCOME))) == ["KeepJob", "UploadUpdate"]
    commands = session.handle(s.UpdateUploaded(key()))
    assert kinds(commands) == ["KeepJob", "SendResult", "PublishState"]
    assert commands[-1] == s.PublishState("ready")
    assert session.handle(receipt(key())) == [s.ForgetJob(key(), accepted=True)]
    assert session.handle(receipt(key())) == []


def test_an_evaluation_uploads_nothing() -> None:
    session = at("working", "evaluate")
    commands = session.handle(s.WorkFinished(key("evaluate"), METRICS))
    assert kinds(commands) == ["KeepJob", "SendResult", "PublishState"]


@pytest.mark.parametrize("status", ["late", "refused", "unknown"])
def test_any_receipt_ends_the_job_and_only_accepted_keeps_its_state(status: str) -> None:
    session = at("reporting")
    assert session.handle(receipt(key(), status)) == [s.ForgetJob(key(), accepted=False)]


def test_a_receipt_of_another_job_ends_nothing() -> None:
    session = at("reporting")
    assert session.handle(receipt(key("train", 2))) == []
    assert session.handle(receipt(key("evaluate"))) == []
    assert key() in session.reporting


def test_an_event_of_a_job_that_is_no_longer_active_has_no_effect() -> None:
    session = at("fetching")
    assert session.handle(s.ModelFetched(key("train", 2))) == []
    assert session.handle(s.UpdateUploaded(key())) == []


# --- orders -----------------------------------------------------------------------------------


def test_an_order_of_an_old_epoch_is_not_obeyed() -> None:
    session = DeviceSession()
    session.handle(s.ServerChanged(3))
    assert arrive(session, order(epoch=2)) == []
    assert kinds(arrive(session, order(epoch=3)))[0] == "FetchModel"


def test_an_order_teaches_the_epoch() -> None:
    session = DeviceSession()
    arrive(session, order(epoch=5))
    assert arrive(session, order(round_number=2, epoch=4)) == []


def test_what_was_kept_teaches_the_epoch() -> None:
    job = s.Job(key(), order(epoch=4), "reporting", OUTCOME)
    session = DeviceSession()
    session.restore([job])
    assert arrive(session, order(round_number=2, epoch=3)) == []


def test_the_same_order_again_renews_the_urls() -> None:
    session = at("working")
    (command,) = arrive(session, order(url="fresh"))
    assert isinstance(command, s.RenewUrls)
    assert session.active is not None
    assert session.active.order.model.url == "fresh"
    assert session.active.stage == "working"


def test_the_same_order_while_its_result_is_pending_sends_the_result_again() -> None:
    session = at("reporting")
    assert kinds(arrive(session, order())) == ["SendResult"]


def test_a_refused_order_is_declined_with_its_reason() -> None:
    session = DeviceSession()
    commands = session.handle(s.OrderArrived(order(), "unknown task"))
    assert commands == [s.SendDecline(key(), reason="unknown task")]


def test_a_newer_training_order_takes_the_place_of_an_older() -> None:
    session = at("working")
    commands = arrive(session, order(round_number=2))
    assert kinds(commands) == ["CancelJob", "ForgetJob", "FetchModel"]
    assert session.active is not None
    assert session.active.key == key("train", 2)


def test_an_older_training_order_is_ignored() -> None:
    session = DeviceSession()
    arrive(session, order(round_number=2))
    assert arrive(session, order(round_number=1)) == []


def test_training_goes_before_evaluation_but_interrupts_none() -> None:
    session = at("working", "evaluate")
    arrive(session, order("evaluate", 2), order("train", 2))
    assert [job.key for job in session.waiting] == [key("train", 2), key("evaluate", 2)]
    assert session.active is not None
    assert session.active.key == key("evaluate")


def test_evaluations_wait_in_order_a_few_at_most() -> None:
    session = at("working")
    rounds = list(range(1, MAX_WAITING_EVALUATIONS + 3))
    arrive(session, *(order("evaluate", number) for number in rounds))
    arrive(session, order("evaluate", rounds[-1]))
    waiting = [job.key.round for job in session.waiting]
    assert waiting == rounds[-MAX_WAITING_EVALUATIONS:]


# --- failures ---------------------------------------------------------------------------------


def test_work_that_can_be_done_again_is_done_again_once() -> None:
    session = at("working")
    died = s.JobFailed(key(), "killed", retryable=True)
    assert kinds(session.handle(died)) == ["DoWork"]
    commands = session.handle(died)
    assert kinds(commands) == ["SendDecline", "ForgetJob", "PublishState"]
    assert commands[0] == s.SendDecline(key(), reason="killed")


@pytest.mark.parametrize("stage", ["fetching", "working"])
def test_a_failure_before_the_upload_declines_the_order(stage: s.Stage) -> None:
    commands = at(stage).handle(s.JobFailed(key(), "no space"))
    assert kinds(commands) == ["SendDecline", "ForgetJob", "PublishState"]


@pytest.mark.parametrize("unusable", [True, False])
def test_a_decline_says_whether_the_work_came_to_nothing(unusable: bool) -> None:
    commands = at("working").handle(s.JobFailed(key(), "diverged", unusable=unusable))
    assert commands[0] == s.SendDecline(key(), "diverged", unusable)


def test_a_failed_upload_is_reported_since_it_may_have_arrived() -> None:
    commands = at("uploading").handle(s.JobFailed(key(), "the store answers no more"))
    assert kinds(commands) == ["KeepJob", "SendResult", "PublishState"]


def test_the_next_order_starts_after_a_failure() -> None:
    session = at("working")
    arrive(session, order("evaluate"))
    commands = session.handle(s.JobFailed(key(), "no space"))
    assert kinds(commands) == ["SendDecline", "ForgetJob", "FetchModel"]


# --- the run's document -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "over"),
    [
        (run_at(1), False),
        (run_at(1, closed=True), True),
        (run_at(1, 2), True),
        (run_at(2), True),
        (run_at(1, ended=True), True),
        (run_at(0), False),
    ],
    ids=["open", "closed", "next attempt", "next round", "ended", "a document from before"],
)
def test_a_job_is_dropped_when_nobody_waits_for_it(change: s.RunChanged, over: bool) -> None:
    session = at("working")
    commands = session.handle(change)
    assert kinds(commands) == (["CancelJob", "ForgetJob", "PublishState"] if over else [])


def test_an_order_for_what_is_over_is_not_taken() -> None:
    session = DeviceSession()
    session.handle(run_at(2))
    assert arrive(session, order(round_number=1)) == []
    assert kinds(arrive(session, order(round_number=2)))[0] == "FetchModel"


def test_a_cancelled_upload_is_reported_since_it_may_have_arrived() -> None:
    commands = at("uploading").handle(run_at(2))
    assert kinds(commands) == ["CancelJob", "KeepJob", "SendResult", "PublishState"]


def test_a_pending_result_outlives_its_run() -> None:
    session = at("reporting")
    assert session.handle(run_at(1, ended=True)) == []
    assert key() in session.reporting


def test_an_evaluation_goes_on_after_its_round_and_not_after_its_run() -> None:
    session = at("working", "evaluate")
    assert session.handle(run_at(3)) == []
    assert kinds(session.handle(run_at(3, ended=True)))[0] == "CancelJob"


def test_a_document_of_an_older_epoch_is_ignored() -> None:
    session = at("working")
    session.handle(run_at(1, epoch=2))
    assert session.handle(run_at(1, epoch=1, closed=True)) == []
    assert session.active is not None


# --- after a crash ----------------------------------------------------------------------------


def kept(stage: s.Stage, round_number: int = 1) -> s.Job:
    return s.Job(key("train", round_number), order("train", round_number), stage, OUTCOME)


def test_a_restart_uploads_what_was_trained() -> None:
    session = DeviceSession()
    commands = session.restore([kept("uploading")])
    assert kinds(commands) == ["UploadUpdate", "PublishState"]
    assert kinds(session.handle(s.UpdateUploaded(key()))) == [
        "KeepJob",
        "SendResult",
        "PublishState",
    ]


def test_a_restart_reports_what_was_uploaded() -> None:
    session = DeviceSession()
    assert kinds(session.restore([kept("reporting")])) == ["SendResult"]
    assert session.presence == "ready"


def test_a_restart_with_two_uploads_reports_the_second() -> None:
    session = DeviceSession()
    commands = session.restore([kept("uploading"), kept("uploading", 2)])
    assert kinds(commands) == ["UploadUpdate", "KeepJob", "SendResult", "PublishState"]


def test_a_restart_drops_an_upload_that_nobody_waits_for_and_reports_it() -> None:
    session = DeviceSession()
    session.restore([kept("uploading")])
    commands = session.handle(run_at(2))
    assert kinds(commands) == ["CancelJob", "KeepJob", "SendResult", "PublishState"]
    reported = replace(kept("uploading"), stage="reporting")
    assert s.SendResult(reported) in commands


# --- memory ---------------------------------------------------------------------------------------


def fail(session: DeviceSession, memory: s.Memory, *, retryable: bool = True) -> list[s.Command]:
    assert session.active is not None
    return session.handle(s.JobFailed(session.active.key, "why", retryable, memory))


def test_work_that_runs_short_of_memory_is_done_again_with_less() -> None:
    session = at("working")
    for times in range(1, MAX_SHRINKS + 1):
        (again,) = fail(session, "short")
        assert isinstance(again, s.DoWork)
        assert again.job.shrink == times
    assert kinds(fail(session, "short", retryable=False))[:2] == ["SendDecline", "ForgetJob"]


def test_a_process_that_somebody_killed_is_started_again_as_it_was_and_then_with_less() -> None:
    session = at("working")
    shrinks = []
    for _ in range(3):
        (again,) = fail(session, "suspected")
        assert isinstance(again, s.DoWork)
        shrinks.append(again.job.shrink)
    assert shrinks == [0, 1, 2]


def test_the_next_round_of_the_run_begins_with_less_and_another_run_does_not() -> None:
    session = at("working")
    fail(session, "short")
    session.handle(run_at(2))
    (fetch,) = [c for c in arrive(session, order(round_number=2)) if isinstance(c, s.FetchModel)]
    assert fetch.job.shrink == 1
    session.handle(run_at(2, ended=True))
    other = order().model_copy(update={"run_id": "other"})
    (fetch,) = [c for c in arrive(session, other) if isinstance(c, s.FetchModel)]
    assert fetch.job.shrink == 0


def test_an_evaluation_that_runs_short_is_declined() -> None:
    session = at("working", "evaluate")
    assert kinds(fail(session, "short", retryable=False))[:1] == ["SendDecline"]


# --- the algorithm's state ----------------------------------------------------------------------


def stateful(*, orphan: bool) -> DeviceSession:
    """Return a session whose result of round 1 waits for its receipt, with or without its job."""
    job = s.Job(key(), order(), "reporting", replace(OUTCOME, keeps_state=True))
    session = DeviceSession()
    session.restore([] if orphan else [job], [key()] if orphan else [])
    return session


@pytest.mark.parametrize("orphan", [False, True])
@pytest.mark.parametrize("status", ["accepted", "late", "unknown"])
def test_a_training_waits_until_its_state_is_known(orphan: bool, status: str) -> None:
    session = stateful(orphan=orphan)
    assert arrive(session, order(round_number=2)) == []
    evaluation = arrive(session, order("evaluate", 1))
    assert s.FetchModel(s.Job(key("evaluate"), order("evaluate", 1))) in evaluation
    session.handle(s.JobFailed(key("evaluate"), "no data"))
    commands = session.handle(receipt(key(), status))
    assert kinds(commands)[-2:] == ["FetchModel", "PublishState"]
    assert session.active == s.Job(key("train", 2), order(round_number=2))
    if not orphan:
        # what the receipt says of the state comes before the training that begins with it
        assert commands[0] == s.ForgetJob(key(), accepted=status == "accepted")


def test_without_a_state_nothing_waits_for_a_receipt() -> None:
    session = DeviceSession()
    session.restore([s.Job(key(), order(), "reporting", OUTCOME)])
    assert "FetchModel" in kinds(arrive(session, order(round_number=2)))


def test_what_waits_for_a_receipt_is_forgotten_with_its_run() -> None:
    session = stateful(orphan=True)
    session.handle(run_at(1, ended=True))
    assert session.unanswered == set()


def test_a_receipt_ends_the_order_that_came_again_meanwhile() -> None:
    """The result of a lost job waited: to train again would begin with the state after it."""
    session = stateful(orphan=True)
    assert arrive(session, order()) == []
    assert session.handle(receipt(key())) == []
    assert session.active is None
    assert session.waiting == []


def test_a_run_that_has_ended_needs_no_state() -> None:
    session = stateful(orphan=False)
    session.handle(run_at(1, ended=True))
    assert s.ForgetJob(key(), accepted=False) in session.handle(receipt(key()))


# --- exchanges ------------------------------------------------------------------------------------


def exchange(
    phase: str = "a", seq: int = 0, round_number: int = 1, attempt: int = 1, *, upload: bool = False
) -> Order:
    plain = order("train", round_number, attempt)
    changes = {"action": "exchange", "phase": phase, "seq": seq, "model": None, "payload": b"said"}
    return plain.model_copy(update=changes if upload else {**changes, "upload": None})


def answer(*, keeps_state: bool = False) -> s.JobOutcome:
    return s.JobOutcome(0, {}, payload=b"answer", keeps_state=keeps_state)


def done_in_order(session: DeviceSession) -> list[tuple[int, int, str, int]]:
    """Do all that waits, and return in which order that was."""
    found: list[tuple[int, int, str, int]] = []
    while session.active is not None:
        done = session.active.key
        assert len(found) <= MAX_WAITING_EXCHANGES, "an answer ends an exchange"
        found.append((done.round, done.attempt, done.phase, done.seq))
        session.handle(s.WorkFinished(done, answer()))
    return found


def test_an_exchange_without_a_model_begins_at_once_and_is_reported_from_the_disk() -> None:
    session = DeviceSession()
    asked = exchange()
    commands = arrive(session, asked)
    assert kinds(commands) == ["DoWork", "PublishState"]
    key = s.JobKey.of(asked)
    commands = session.handle(s.WorkFinished(key, answer()))
    assert kinds(commands) == ["KeepJob", "SendResult", "PublishState"]
    assert session.handle(s.ReceiptArrived(receipt_of(key))) == [s.ForgetJob(key, accepted=True)]


def test_an_exchange_with_a_model_and_an_upload_brings_both() -> None:
    session = DeviceSession()
    asked = exchange(upload=True).model_copy(update={"model": order().model})
    key = s.JobKey.of(asked)
    assert kinds(arrive(session, asked))[:1] == ["FetchModel"]
    assert kinds(session.handle(s.ModelFetched(key))) == ["DoWork"]
    assert kinds(session.handle(s.WorkFinished(key, OUTCOME))) == ["KeepJob", "UploadUpdate"]
    assert kinds(session.handle(s.UpdateUploaded(key)))[:2] == ["KeepJob", "SendResult"]


def receipt_of(key: s.JobKey) -> Receipt:
    return Receipt(
        action=key.action,
        run_id=key.run_id,
        round=key.round,
        attempt=key.attempt,
        phase=key.phase,
        seq=key.seq,
        status="accepted",
    )


def test_exchanges_are_done_by_attempt_then_by_phase_as_they_came_then_by_number() -> None:
    session = DeviceSession()
    arrive(session, exchange("first"))
    for phase, seq, attempt in (
        *(("b", 2, 1), ("a", 1, 1), ("b", 0, 1), ("a", 0, 1), ("c", 0, 2)),
        *(("b", 1, 1), ("a", 0, 2)),
    ):
        arrive(session, exchange(phase, seq, attempt=attempt))
    assert done_in_order(session) == [
        (1, 1, "first", 0),
        *((1, 1, "b", 0), (1, 1, "b", 1), (1, 1, "b", 2), (1, 1, "a", 0), (1, 1, "a", 1)),
        *((1, 2, "c", 0), (1, 2, "a", 0)),
    ]


def test_an_exchange_that_comes_again_is_done_once_with_its_latest_urls() -> None:
    session = DeviceSession()
    arrive(session, exchange("a"), exchange("b"))
    again = exchange("b").model_copy(update={"time_left_s": 9.0})
    assert arrive(session, again) == []
    assert [job.order for job in session.waiting] == [again]


def test_an_exchange_goes_before_an_evaluation() -> None:
    session = DeviceSession()
    arrive(session, exchange("a"), order("evaluate", 1), exchange("b", round_number=2))
    assert [job.key.action for job in session.waiting] == ["exchange", "evaluate"]


def test_an_exchange_waits_until_it_is_known_which_state_it_begins_with() -> None:
    session = DeviceSession()
    arrive(session, exchange("a"), exchange("b"))
    key = s.JobKey.of(exchange("a"))
    assert "DoWork" not in kinds(session.handle(s.WorkFinished(key, answer(keeps_state=True))))
    assert session.active is None
    commands = session.handle(s.ReceiptArrived(receipt_of(key)))
    # the state becomes permanent before the next one begins with it
    assert kinds(commands) == ["ForgetJob", "DoWork", "PublishState"]


def test_too_many_exchanges_are_declined_and_no_earlier_one_is_lost() -> None:
    session = DeviceSession()
    arrive(session, exchange("begun"))
    for number in range(MAX_WAITING_EXCHANGES):
        assert arrive(session, exchange(seq=number)) == []
    (refused,) = arrive(session, exchange(seq=99))
    assert isinstance(refused, s.SendDecline)
    assert "32 exchanges of the run wait here" in refused.reason
    assert len(session.waiting) == MAX_WAITING_EXCHANGES


def test_the_exchanges_of_a_run_that_has_ended_are_dropped() -> None:
    session = DeviceSession()
    arrive(session, exchange("a"), exchange("b"), exchange("c", round_number=2))
    assert session.handle(run_at(2, closed=True)) == [], "another round is no end"
    commands = session.handle(run_at(2, ended=True))
    assert kinds(commands) == ["CancelJob", "ForgetJob", "PublishState"]
    assert session.waiting == []
    assert arrive(session, exchange("d")) == []
