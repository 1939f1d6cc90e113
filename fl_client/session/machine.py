"""The device's session: what a device does with orders and receipts, sans-IO.

``handle(event)`` returns commands for the shell. A job lives from its order to its receipt:

    fetching -> working -> uploading -> reporting -> (receipt) gone

A job is kept on disk from ``uploading`` on (``KeepJob``), so that a killed device sends what it
had trained. What may already lie in the store is always reported, so that the server can delete it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from broker.wire.messages import Receipt
from fl_client.session.events import (
    CancelJob,
    Command,
    DoWork,
    Event,
    FetchModel,
    ForgetJob,
    Job,
    JobFailed,
    JobKey,
    KeepJob,
    ModelFetched,
    OrderArrived,
    Presence,
    PublishState,
    ReceiptArrived,
    RenewUrls,
    RunChanged,
    SendDecline,
    SendResult,
    ServerChanged,
    UpdateUploaded,
    UploadUpdate,
    WorkFinished,
)

MAX_WORK_ATTEMPTS = 2
# a quarter each time: 4096 examples are then one
MAX_SHRINKS = 6
# so many trainings that went well, and it is tried with four times as many examples at once
GOOD_BEFORE_GROWTH = 3
MAX_WAITING_EVALUATIONS = 4
MAX_WAITING_EXCHANGES = 32


@dataclass
class _Shrink:
    """How often a run's micro batch is quartered, and when the next larger one is tried.

    What was short may have been another program's doing. Each time that it is short again, twice as
    many trainings must go well first.
    """

    times: int = 0
    good: int = 0
    needed: int = 0

    def more(self, before: int) -> None:
        """Quarter once more than ``before``."""
        self.times, self.good = before + 1, 0
        self.needed = 2 * self.needed or GOOD_BEFORE_GROWTH

    def went_well(self, times: int) -> None:
        """Count a training that was quartered so often."""
        if times != self.times or not times:
            return
        self.good += 1
        if self.good >= self.needed:
            self.times, self.good = times - 1, 0


@dataclass
class DeviceSession:
    """One device's jobs. Not thread-safe: one owner calls it.

    At most one job is active (fetching, working or uploading); further orders wait. Runs take
    turns. Each run may train once before an evaluation that waits, and no more. Of a run at most
    one training order and a few evaluations wait. Its exchanges are done in the order of (round,
    attempt), then of their phases as they came, then of ``seq``.
    """

    epoch: int = 0
    active: Job | None = None
    waiting: list[Job] = field(default_factory=list)
    reporting: dict[JobKey, Job] = field(default_factory=dict)
    unanswered: set[JobKey] = field(default_factory=set)
    _runs: dict[str, RunChanged] = field(default_factory=dict)
    _presence: Presence = "ready"
    # by run, so that the next round does not run short again
    _shrinks: dict[str, _Shrink] = field(default_factory=dict)
    # when each run had its last turn
    _turns: dict[str, int] = field(default_factory=dict)
    # the runs that went before each waiting evaluation
    _passed: dict[JobKey, set[str]] = field(default_factory=dict)
    # of each run, as they came: (round, attempt, phase)
    _phases: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)

    def restore(self, jobs: Iterable[Job], unanswered: Iterable[JobKey] = ()) -> list[Command]:
        """Go on with the jobs that an earlier process stored.

        Args:
            jobs: those that are whole.
            unanswered: those whose result, with a state, waits for its receipt without a job.
        """
        commands: list[Command] = []
        self.unanswered.update(unanswered)
        for job in jobs:
            self.epoch = max(self.epoch, job.order.epoch)
            if job.stage == "reporting":
                self._await_receipt(job)
                commands.append(SendResult(job))
            elif self.active is None:
                self.active = replace(job, stage="uploading")
                commands.append(UploadUpdate(self.active))
            else:
                self._report(job, commands)
        self._start_next(commands)
        return commands

    def handle(self, event: Event) -> list[Command]:
        """Return what an event leads to; one that no longer matters leads to nothing."""
        commands: list[Command] = []
        match event:
            case OrderArrived():
                self._ordered(event, commands)
            case ReceiptArrived():
                self._receipt(event.receipt, commands)
            case RunChanged():
                self._run_changed(event, commands)
            case ServerChanged():
                self.epoch = max(self.epoch, event.epoch)
            case ModelFetched() | WorkFinished() | UpdateUploaded() | JobFailed():
                if self.active is not None and self.active.key == event.key:
                    self._advance(self.active, event, commands)
        self._start_next(commands)
        return commands

    @property
    def presence(self) -> Presence:
        """What the presence topic should hold now."""
        return "training" if self.active is not None else "ready"

    @property
    def obeyed_epoch(self) -> int:
        """The highest epoch of a server that this process has obeyed."""
        return max([self.epoch, *(run.epoch for run in self._runs.values())])

    @property
    def unfinished(self) -> list[Job]:
        """The jobs whose work is not done: the active one, then those that wait."""
        return [*([self.active] if self.active else []), *self.waiting]

    def knows(self, key: JobKey) -> bool:
        """Return whether this very job is under way, waits, or is reported."""
        return key in self.reporting or any(job.key == key for job in self.unfinished)

    # --- orders -------------------------------------------------------------------------------

    def _ordered(self, event: OrderArrived, commands: list[Command]) -> None:
        order = event.order
        key = JobKey.of(order)
        if order.epoch < self.epoch or self._is_over(key):
            return
        self.epoch = order.epoch
        if event.refusal:
            commands.append(SendDecline(key, event.refusal, permanent=event.permanent))
        elif self.active is not None and self.active.key == key:
            self.active = replace(self.active, order=order)
            commands.append(RenewUrls(self.active))
        elif key in self.reporting:
            commands.append(SendResult(self.reporting[key]))
        else:
            known = self._shrinks.get(key.run_id) if key.action == "train" else None
            self._accept(Job(key, order, shrink=known.times if known else 0), commands)

    def _accept(self, job: Job, commands: list[Command]) -> None:
        # an order that came again has fresh URLs
        self.waiting = [other for other in self.waiting if other.key != job.key]
        if self._has_room(job, commands):
            self.waiting.append(job)
            self.waiting.sort(key=self._place)

    def _has_room(self, job: Job, commands: list[Command]) -> bool:
        """Return whether a job may wait, after those that it replaces were dropped."""
        kind = (job.key.run_id, job.key.action)
        others = [other for other in self.waiting if (other.key.run_id, other.key.action) == kind]
        match job.key.action:
            case "train":
                if self.active and (self.active.key.run_id, self.active.key.action) == kind:
                    others.append(self.active)
                if max((_pair(other.key) for other in others), default=(0, 0)) > _pair(job.key):
                    return False
                for other in others:
                    self._drop(other, commands)
            case "evaluate":
                # versions are evaluated in order; when too many wait, the oldest goes unmeasured
                for other in others[: max(0, len(others) + 1 - MAX_WAITING_EVALUATIONS)]:
                    self.waiting.remove(other)
            case "exchange":
                if len(others) >= MAX_WAITING_EXCHANGES:
                    reason = f"{len(others)} exchanges of the run wait here already"
                    commands.append(SendDecline(job.key, reason))
                    return False
                self._note_phase(job.key)
        return True

    def _note_phase(self, key: JobKey) -> None:
        phases = self._phases.setdefault(key.run_id, [])
        if _phase(key) not in phases:
            open_ones = {_phase(job.key) for job in self.waiting if job.key.run_id == key.run_id}
            # phases of earlier attempts go once none of their exchanges waits
            phases[:] = [each for each in phases if each in open_ones or each[:2] >= _pair(key)]
            phases.append(_phase(key))

    def _place(self, job: Job) -> tuple[bool, tuple[int, int], int, int]:
        """Return what the waiting jobs of a run are sorted by."""
        key = job.key
        if key.action != "exchange":
            return (key.action == "evaluate", _pair(key), 0, 0)
        return (False, _pair(key), self._phases[key.run_id].index(_phase(key)), key.seq)

    def _start_next(self, commands: list[Command]) -> None:
        """Start the next waiting job when none is active, and publish a changed presence."""
        ready = self._next_job() if self.active is None else None
        if ready is not None:
            self.waiting.remove(ready)
            self._note_turn(ready)
            if ready.order.model is None and ready.order.bundle is None:
                self.active = replace(ready, stage="working")
                commands.append(DoWork(self.active))
            else:
                self.active = ready
                commands.append(FetchModel(self.active))
        if self.presence != self._presence:
            self._presence = self.presence
            commands.append(PublishState(self.presence))

    def _next_job(self) -> Job | None:
        """Return the job whose turn it is, None where none can start."""
        ready = [job for job in self.waiting if not self._lacks_state(job)]
        evaluations = [job for job in ready if job.key.action == "evaluate"]
        passed = {run for job in evaluations for run in self._passed.get(job.key, ())}
        others = [
            job for job in ready if job.key.action != "evaluate" and job.key.run_id not in passed
        ]
        # the first of those that had their turn longest ago
        return min(
            others or evaluations, key=lambda job: self._turns.get(job.key.run_id, 0), default=None
        )

    def _note_turn(self, job: Job) -> None:
        """Note that a job starts, which waits no more."""
        self._turns[job.key.run_id] = max(self._turns.values(), default=0) + 1
        waiting = {other.key for other in self.waiting if other.key.action == "evaluate"}
        self._passed = {key: runs for key, runs in self._passed.items() if key in waiting}
        if job.key.action != "evaluate":
            for key in waiting:
                self._passed.setdefault(key, set()).add(job.key.run_id)

    def _lacks_state(self, job: Job) -> bool:
        """Return whether it is open which state a job begins with: an earlier result may count."""
        runs = {key.run_id for key in self.unanswered}
        return job.key.action != "evaluate" and job.key.run_id in runs

    # --- the job's steps ----------------------------------------------------------------------

    def _advance(
        self,
        job: Job,
        event: ModelFetched | WorkFinished | UpdateUploaded | JobFailed,
        commands: list[Command],
    ) -> None:
        match event, job.stage:
            case ModelFetched(), "fetching":
                self.active = replace(job, stage="working")
                commands.append(DoWork(self.active))
            case WorkFinished(outcome=outcome), "working":
                if job.key.action == "train" and job.key.run_id in self._shrinks:
                    self._shrinks[job.key.run_id].went_well(job.shrink)
                self._worked(replace(job, outcome=outcome), commands)
            case UpdateUploaded() | JobFailed(), "uploading":  # a failed upload may have arrived
                self.active = None
                self._report(job, commands)
            case JobFailed(), "working" if _wants_less(job, event):
                self._shrinks.setdefault(job.key.run_id, _Shrink()).more(job.shrink)
                self.active = replace(job, shrink=job.shrink + 1)
                commands.append(DoWork(self.active))
            case JobFailed(retryable=True), "working" if job.work_attempts < MAX_WORK_ATTEMPTS:
                self.active = replace(job, work_attempts=job.work_attempts + 1)
                commands.append(DoWork(self.active))
            case JobFailed(), _:
                self.active = None
                why = (event.reason, event.unusable, event.permanent, event.traceback)
                commands.append(SendDecline(job.key, *why))
                commands.append(ForgetJob(job.key, accepted=False))

    def _worked(self, job: Job, commands: list[Command]) -> None:
        if job.order.upload is None:
            self.active = None
            self._report(job, commands)
            return
        self.active = replace(job, stage="uploading")
        commands.append(KeepJob(self.active))
        commands.append(UploadUpdate(self.active))

    def _report(self, job: Job, commands: list[Command]) -> None:
        reported = replace(job, stage="reporting")
        self._await_receipt(reported)
        commands.append(KeepJob(reported))
        commands.append(SendResult(reported))

    def _await_receipt(self, job: Job) -> None:
        self.reporting[job.key] = job
        if job.outcome is not None and job.outcome.keeps_state:
            self.unanswered.add(job.key)

    # --- receipts and runs --------------------------------------------------------------------

    def _receipt(self, receipt: Receipt, commands: list[Command]) -> None:
        key = JobKey.of(receipt)
        if key in self.unanswered:
            self.unanswered.discard(key)
            # its order may have come again while the result of a lost job waited
            self.waiting = [job for job in self.waiting if job.key != key]
        if self.reporting.pop(key, None) is not None:
            commands.append(ForgetJob(key, accepted=self.counts(receipt)))

    def counts(self, receipt: Receipt) -> bool:
        """Return whether a run that goes on has accepted a result: only it needs the state."""
        view = self._runs.get(receipt.run_id)
        return receipt.status == "accepted" and (view is None or not view.ended)

    def _run_changed(self, event: RunChanged, commands: list[Command]) -> None:
        known = self._runs.get(event.run_id)
        if known is not None and event.epoch < known.epoch:
            return
        self._runs[event.run_id] = event
        if event.ended:
            self.unanswered = {key for key in self.unanswered if key.run_id != event.run_id}
            self._shrinks.pop(event.run_id, None)
            self._turns.pop(event.run_id, None)
            self._phases.pop(event.run_id, None)
        for job in [*self.waiting, *([self.active] if self.active else [])]:
            if job.key.run_id == event.run_id and self._is_over(job.key):
                self._drop(job, commands)

    def _is_over(self, key: JobKey) -> bool:
        """Return whether the run's document says that this job is not needed any more."""
        view = self._runs.get(key.run_id)
        if view is None:
            return False
        if view.ended or key.action != "train":
            return view.ended
        current = (view.round, view.attempt)
        pair = (key.round, key.attempt)
        return pair < current or (pair == current and view.closed)

    def _drop(self, job: Job, commands: list[Command]) -> None:
        if job in self.waiting:
            self.waiting.remove(job)
            return
        self.active = None
        commands.append(CancelJob(job.key))
        if job.stage == "uploading":
            self._report(job, commands)
        else:
            commands.append(ForgetJob(job.key, accepted=False))


def _wants_less(job: Job, failure: JobFailed) -> bool:
    """Return whether the work is repeated with a smaller micro batch.

    A killed process may not have lacked memory: the first time the work is repeated as it was.
    """
    if job.key.action != "train" or job.shrink >= MAX_SHRINKS:
        return False
    return failure.memory == "short" or (
        failure.memory == "suspected" and job.work_attempts >= MAX_WORK_ATTEMPTS
    )


def _pair(key: JobKey) -> tuple[int, int]:
    return (key.round, key.attempt)


def _phase(key: JobKey) -> tuple[int, int, str]:
    return (key.round, key.attempt, key.phase)
