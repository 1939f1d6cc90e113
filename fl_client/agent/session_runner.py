"""Gives events to the device's session and carries out what it answers."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from fl_client.agent.parts import AgentParts
from fl_client.agent.presence import PresenceDebouncer
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
    Presence,
    PublishState,
    RenewUrls,
    SendDecline,
    SendResult,
    ServerChanged,
    UploadUpdate,
    WorkFinished,
)
from fl_client.session.machine import DeviceSession

_LOG = logging.getLogger(__name__)


class SessionRunner:
    """The shell of one session machine. The agent's owner thread calls it.

    Attributes:
        machine: for reading; only ``handle`` and ``restore`` change it.
    """

    def __init__(self, parts: AgentParts) -> None:
        self.machine = DeviceSession()
        self._parts = parts
        self._presence = PresenceDebouncer()
        # the epoch that this device has obeyed, while the server's is lower, else 0
        self._ignoring = 0

    def restore(self) -> None:
        """Go on with the jobs that the disk holds of an earlier process."""
        self._carry_out(self.machine.restore(*self._jobs_on_disk()))

    def handle(self, event: Event) -> None:
        """Give an event to the machine and carry out its commands."""
        if isinstance(event, WorkFinished):
            event = self._sendable(event)
        self._carry_out(self.machine.handle(event))

    def _sendable(self, event: WorkFinished) -> WorkFinished | JobFailed:
        """Return the end of a job's work: a failure where no message can hold its result.

        Nothing that cannot be sent is journalled: it would be met again at every start.
        """
        for job in self.machine.unfinished:
            done = replace(job, outcome=event.outcome)
            if job.key == event.key and (problem := self._parts.messages.problem(done)):
                return JobFailed(job.key, f"its result cannot be sent: {problem}", unusable=True)
        return event

    # --- presence -----------------------------------------------------------------------------

    def server_online(self, epoch: int, *, asks: bool) -> None:
        """Handle the server's presence: answer it, and say so where its epoch is too low.

        Args:
            epoch: the server's.
            asks: it was published just now, and not retained from before this connection.
        """
        obeyed = self.machine.obeyed_epoch
        ignoring = obeyed if epoch < obeyed else 0
        if ignoring != self._ignoring:
            self._ignoring = ignoring
            self._parts.status.server_trouble(_ignored(epoch, obeyed) if ignoring else "")
        if asks or ignoring:
            self.publish_presence()
        self.handle(ServerChanged(epoch))

    def publish_presence(self) -> None:
        """Publish the presence at once, as a new connection must."""
        self._publish(self.machine.presence)
        self._presence.published(self.machine.presence)

    def poll(self, now_s: float) -> None:
        """Publish the presence if that is due."""
        self._publish(self._presence.due(now_s))

    def left_s(self, now_s: float) -> float | None:
        """Return how long until ``poll`` has something to do, None for never."""
        return self._presence.left_s(now_s)

    def _publish(self, presence: Presence | None) -> None:
        if presence is not None:
            self._parts.session.publish(self._parts.messages.state(presence, self._ignoring))

    # --- after a restart ----------------------------------------------------------------------

    def _jobs_on_disk(self) -> tuple[list[Job], list[JobKey]]:
        """Return the jobs whose update is still what was written; forget the others.

        With them the jobs, known or not, whose result and state wait for a receipt.
        """
        parts = self._parts
        whole, reported = [], parts.messages.keys_in(parts.outbox)
        for stored in parts.journal.jobs():
            if stored.key not in reported and (problem := parts.messages.problem(stored)):
                # of an earlier version, which wrote it down first
                _LOG.error(
                    "the result of %s cannot be sent, and is dropped: %s", stored.key, problem
                )
                self._drop(stored.key)
                continue
            # of the two files the outbox is the one that a power cut takes nothing from
            job = replace(stored, stage="reporting") if stored.key in reported else stored
            if job.stage == "reporting" or parts.folder.has_whole_update(job):
                whole.append(job)
            else:
                _LOG.warning("the update of %s did not survive; it is trained again", job.key)
                self._drop(job.key)
        parts.folder.remove_all_but({job.key for job in whole} | reported)
        return whole, [key for key in reported if parts.folder.next_state(key).exists()]

    def _drop(self, key: JobKey) -> None:
        self._parts.journal.remove(key)
        self._parts.folder.remove_job(key, accepted=False)

    # --- commands -----------------------------------------------------------------------------

    def _carry_out(self, commands: Iterable[Command]) -> None:
        parts = self._parts
        for command in commands:
            match command:
                case FetchModel(job=job):
                    self._fetch(job)
                case DoWork(job=job):
                    parts.worker.submit(job)
                case UploadUpdate(job=job):
                    parts.follower.interrupt()
                    parts.transfers.upload(job)
                case SendResult(job=job):
                    self._send_result(job)
                case SendDecline():
                    self._decline(command)
                case RenewUrls(job=job):
                    parts.transfers.renew(job)
                case CancelJob(key=key):
                    parts.follower.interrupt()
                    parts.transfers.cancel(key)
                    parts.worker.cancel()
                case KeepJob(job=job):
                    parts.journal.store(job)
                case ForgetJob():
                    self._forget(command)
                case PublishState(presence=presence):
                    self._publish(self._presence.change(presence, parts.clock()))

    def _fetch(self, job: Job) -> None:
        if job.order.model is not None:
            self._parts.status.store_at(job.order.model.url)
        self._parts.follower.interrupt()
        self._parts.transfers.fetch(job)

    def _send_result(self, job: Job) -> None:
        parts = self._parts
        result = parts.messages.result(job, parts.transfers.cost(job.key))
        name = parts.messages.outbox_key(job.key)
        parts.session.publish_durably(name, result.topic, result.payload, until="confirm")

    def _decline(self, command: SendDecline) -> None:
        _LOG.warning("declined %s: %s", command.key, command.reason)
        self._parts.status.declined(command.key, command.reason)
        self._parts.session.publish(self._parts.messages.decline(command))

    def _forget(self, command: ForgetJob) -> None:
        parts, key = self._parts, command.key
        # the files first: what a cut leaves undone is done again at the next receipt
        parts.folder.remove_job(key, accepted=command.accepted, active=self.machine.active)
        parts.journal.remove(key)
        parts.session.confirm(parts.messages.outbox_key(key))
        parts.transfers.forget(key)


def _ignored(epoch: int, obeyed: int) -> str:
    return (
        f"the server is at epoch {epoch} and this device has obeyed epoch {obeyed}: it ignores the "
        "server, which has perhaps been restored from an older backup, and has told it so"
    )
