"""A device in a run with several messages a round: nothing is lost, doubled or done out of order.

The disk here is what the agent's is: jobs that were kept, results that wait for their receipts, and
the run's state with the states that unreceipted results would make of it. Each job adds one to the
state that it began with, so the server can tell whether a state was lost or counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.wire.messages import ModelRef, Order, Receipt, UploadRef
from fl_client.session import events as s
from fl_client.session.machine import MAX_WAITING_EXCHANGES, DeviceSession
from tests.laws import DeviceLaws, require

RUN = "run"
Step = tuple[int, int, str]


def order_of(key: s.JobKey, *, with_model: bool, with_upload: bool) -> Order:
    exchange = key.action == "exchange"
    model = ModelRef(url="u", key="g", sha256="0" * 64, size_bytes=1)
    upload = UploadRef(url="u", key="k")
    return Order(
        epoch=1,
        action=key.action,
        run_id=key.run_id,
        round=key.round,
        attempt=key.attempt,
        phase=key.phase,
        seq=key.seq,
        task="sums",
        algorithm="fedavg",
        algorithm_settings={},
        training={},
        seed=0,
        model=model if with_model or not exchange else None,
        upload=upload if key.action == "train" or (exchange and with_upload) else None,
        time_left_s=60.0,
        payload=b"said" if exchange else b"",
    )


@dataclass
class Disk:
    """What a killed device still has."""

    kept: dict[s.JobKey, s.Job] = field(default_factory=dict)
    outbox: dict[s.JobKey, s.Job] = field(default_factory=dict)
    state: int = 0
    next_states: dict[s.JobKey, int] = field(default_factory=dict)


class DeviceInRun(RuleBasedStateMachine):
    """One device, one run; rules are what the server, the device's shell and fate may do."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = Disk()
        self.laws = DeviceLaws()
        self.session = DeviceSession()
        self.ordered: dict[s.JobKey, Order] = {}
        self.accepted: dict[s.JobKey, str] = {}
        self.counted = 0
        self.phases: list[Step] = []
        self.over = self.heard_end = False
        self.at_work: s.JobKey | None = None

    # --- the server ---------------------------------------------------------------------------

    @rule(
        action=st.sampled_from(["exchange", "exchange", "exchange", "train", "evaluate"]),
        step=st.tuples(st.integers(1, 3), st.integers(1, 2), st.sampled_from("abc")),
        seq=st.integers(0, 3),
        with_model=st.booleans(),
        with_upload=st.booleans(),
    )
    def order(self, action: Any, step: Step, seq: int, **parts: bool) -> None:
        exchange = action == "exchange"
        key = s.JobKey(
            RUN, action, step[0], step[1], step[2] if exchange else "", seq if exchange else 0
        )
        if key not in self.accepted:
            self._order(self.ordered.setdefault(key, order_of(key, **parts)))

    @precondition(lambda self: self.ordered.keys() - self.accepted.keys())
    @rule(data=st.data())
    def order_again(self, data: st.DataObject) -> None:
        open_keys = sorted(self.ordered.keys() - self.accepted.keys())
        self._order(self.ordered[data.draw(st.sampled_from(open_keys))])

    def _order(self, order: Order) -> None:
        key = s.JobKey.of(order)
        waited = [job for job in self.session.waiting if job.key.action == "exchange"]
        known = key in self.disk.outbox or any(job.key == key for job in waited)
        active = self.session.active is not None and self.session.active.key == key
        new = not (self.heard_end or known or active or self._step(key) in self.phases)
        if key.action == "exchange" and new and len(waited) < MAX_WAITING_EXCHANGES:
            self.phases.append(self._step(key))
        self._give(s.OrderArrived(order))

    @precondition(lambda self: self.disk.outbox)
    @rule(data=st.data(), counts=st.booleans())
    def receive_result(self, data: st.DataObject, counts: bool) -> None:
        """The server gets a result, the first or another time, and the device its receipt."""
        key = data.draw(st.sampled_from(sorted(self.disk.outbox)))
        job = self.disk.outbox[key]
        assert job.outcome is not None
        if key not in self.accepted:
            self.accepted[key] = "accepted" if counts and not self.over else "late"
            if self.accepted[key] == "accepted" and job.outcome.keeps_state:
                began_with = int(job.outcome.payload)
                require(began_with == self.counted, "begun with the state of before", job)
                self.counted += 1
        status: Any = self.accepted[key]
        receipt = Receipt(
            action=key.action,
            run_id=RUN,
            round=key.round,
            attempt=key.attempt,
            phase=key.phase,
            seq=key.seq,
            status=status,
        )
        if key not in self.session.reporting:
            # as the agent does with a result whose job a power cut took
            self.disk.outbox.pop(key)
            written = self.disk.next_states.pop(key, None)
            if written is not None and self.session.counts(receipt):
                self.disk.state = written
        self._give(s.ReceiptArrived(receipt))

    @rule(really=st.integers(0, 19))
    def end_run(self, really: int) -> None:
        """The run's document says so, at once or again to a device that has come back."""
        if really < 19:  # seldom: little happens afterwards
            return
        self.over = self.heard_end = True
        self._give(s.RunChanged(RUN, 1, True, 3, 2, True))

    # --- the device's shell -------------------------------------------------------------------

    @precondition(lambda self: self.session.active is not None)
    @rule(keeps=st.booleans(), fails=st.sampled_from([False, False, False, True]))
    def advance(self, keeps: bool, fails: bool) -> None:
        job = self.session.active
        assert job is not None
        if fails:
            self._give(s.JobFailed(job.key, "why", retryable=True))
        elif job.stage == "fetching":
            self._give(s.ModelFetched(job.key))
        elif job.stage == "uploading":
            self._give(s.UpdateUploaded(job.key))
        else:
            keeps = keeps and job.key.action != "evaluate"
            if keeps:
                self.disk.next_states[job.key] = self.disk.state + 1
            outcome = s.JobOutcome(1, {}, keeps_state=keeps, payload=b"%d" % self.disk.state)
            self._give(s.WorkFinished(job.key, outcome))

    @rule(loses_jobs=st.booleans(), really=st.integers(0, 4))
    def crash(self, loses_jobs: bool, really: int) -> None:
        """Start again from the disk, the outbox being the file that a power cut takes least of."""
        if really < 4:
            return
        self.laws.crashed()
        if loses_jobs:
            for key in self.disk.outbox:
                self.disk.kept.pop(key, None)
                self.laws.kept.pop(key, None)
                self.laws.maybe_stored.discard(key)
        self.session = DeviceSession()
        self.phases = []
        self.heard_end = False
        self.at_work = None
        reported = set(self.disk.outbox)
        for key in self.disk.next_states.keys() - self.disk.kept.keys() - reported:
            del self.disk.next_states[key]
        unanswered = [key for key in reported if key in self.disk.next_states]
        jobs = [
            replace(job, stage="reporting") if job.key in reported else job
            for job in self.disk.kept.values()
        ]
        self._carry_out(None, self.session.restore(jobs, unanswered))

    def _give(self, event: s.Event) -> None:
        if self.session.active is None:
            self.at_work = None
        self._carry_out(event, self.session.handle(event))

    def _carry_out(self, event: s.Event | None, commands: list[s.Command]) -> None:
        self.laws.observe(self.session, event, commands)
        for command in commands:
            self.laws.carry_out(command)
            match command:
                case s.FetchModel(job=job) | s.DoWork(job=job):
                    if job.key != self.at_work:
                        self._begun(job)
                    self.at_work = job.key
                case s.KeepJob(job=job):
                    self.disk.kept[job.key] = job
                case s.SendResult(job=job):
                    self.disk.outbox[job.key] = job
                case s.ForgetJob(key=key, accepted=accepted):
                    self.disk.kept.pop(key, None)
                    self.disk.outbox.pop(key, None)
                    written = self.disk.next_states.pop(key, None)
                    if written is not None and accepted:
                        self.disk.state = written

    # --- the laws -----------------------------------------------------------------------------

    @staticmethod
    def _step(key: s.JobKey) -> Step:
        return (key.round, key.attempt, key.phase)

    def _turn(self, key: s.JobKey) -> tuple[int, int, int, int]:
        return (key.round, key.attempt, self.phases.index(self._step(key)), key.seq)

    def _begun(self, job: s.Job) -> None:
        require(not self.heard_end, "nothing of an ended run is begun", job)
        if job.key.action == "evaluate":
            return
        open_state = {key for key in self.disk.outbox if key in self.disk.next_states}
        require(not open_state, "no job begins while a state is open", (job, open_state))
        if job.key.action == "exchange":
            waiting = [each.key for each in self.session.waiting if each.key.action == "exchange"]
            earlier = [key for key in waiting if self._turn(key) < self._turn(job.key)]
            require(not earlier, "exchanges are done in order", (job.key, earlier))

    @invariant()
    def the_state_is_what_was_counted(self) -> None:
        open_state = [key for key in self.disk.outbox if key in self.disk.next_states]
        if not open_state and not self.over:
            require(self.disk.state == self.counted, "no state is lost or doubled", self.disk)

    @invariant()
    def few_exchanges_wait(self) -> None:
        assert len(self.session.waiting) <= MAX_WAITING_EXCHANGES + 5


TestDeviceInRun = DeviceInRun.TestCase
TestDeviceInRun.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
