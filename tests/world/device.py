"""A device's shell, simulated: a disk that survives, a process that does not.

What a real shell must do as well: hold a result in the outbox until any receipt for it; say again
what it is at when the server's epoch is new; give up a transfer whose URL nobody renews; remove on
start the files of jobs that were not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from broker.wire.messages import DeviceState, Order, Receipt
from fl_client.session import events as s
from fl_client.session.machine import DeviceSession
from tests.laws import DeviceLaws, require
from tests.world.broker import Broker, Letter
from tests.world.kernel import Kernel
from tests.world.server import update_key, update_of
from tests.world.store import Store, is_expired

RESEND_S = 10.0
TRIES = 5
PATIENCE = 4
EXAMPLES = 10


@dataclass
class Disk:
    """What a dead device still has."""

    kept: dict[s.JobKey, s.Job] = field(default_factory=dict)
    outbox: dict[s.JobKey, s.Job] = field(default_factory=dict)
    updates: dict[s.JobKey, int] = field(default_factory=dict)


@lru_cache(maxsize=4096)
def state_of(status: Any, boot_id: str, role: Any) -> DeviceState:
    """Return a presence message."""
    return DeviceState.model_construct(status=status, boot_id=boot_id, role=role, tasks=["digits"])


class Device:
    """One device, which may die at any step and comes back by itself."""

    def __init__(
        self,
        name: str,
        kernel: Kernel,
        broker: Broker,
        store: Store,
        make: Callable[[], DeviceSession],
        role: str,
    ) -> None:
        self.name, self.role, self.make = name, role, make
        self.kernel, self.broker, self.store = kernel, broker, store
        self.disk = Disk()
        self.laws = DeviceLaws()
        self.life = self.transfer = self.connections = 0
        self.alive = self.draining = self.resending = False
        broker.add(name, self)

    # --- life and death -------------------------------------------------------------------------

    def boot(self) -> None:
        """Start, or start again from the disk."""
        if self.alive:
            return
        self.life += 1
        self.alive, self.draining, self.resending = True, False, False
        self.epoch_heard = 0
        self.kernel.note(self.name, "starts", tuple(self.disk.kept))
        self.session = self.make()
        for key in [key for key in self.disk.updates if key not in self.disk.kept]:
            del self.disk.updates[key]
        self._carry_out(None, self.session.restore(list(self.disk.kept.values())))
        self.kernel.after(self.kernel.between(0, 1), self._connect, self.life)

    def die(self) -> None:
        """Lose everything but the disk, and come back."""
        if self.alive:
            self.fall()
            away = 60 if self.kernel.random() < 0.15 else 10
            self.kernel.after(self.kernel.between(0.5, away), self.boot)

    def fall(self) -> None:
        """Lose everything but the disk."""
        self.kernel.note(self.name, "dies")
        self.alive = False
        self.life += 1
        self.transfer += 1
        self.laws.crashed()
        self.broker.disconnect(self.name)

    def lose_connection(self) -> None:
        """Notice that the connection is gone, and make another."""
        self.broker.disconnect(self.name)
        if self.alive:
            self.kernel.after(self.kernel.between(0.1, 3), self._connect, self.life)

    def drain(self, *, on: bool) -> None:
        """Take no new order for a while."""
        if self.alive and self.draining != on:
            self.draining = on
            self._say()

    def _connect(self, life: int) -> None:
        if life == self.life and not self.broker.is_up(self.name):
            self.connections += 1
            self.broker.connect(self.name, Letter("state", self.name, self._state("lost"), True))

    def connected(self) -> None:
        """Say again what the server must know."""
        self._say()
        for job in list(self.disk.outbox.values()):
            self._send(job)

    def _state(self, status: str) -> DeviceState:
        return state_of(status, f"{self.name}-{self.connections}", self.role)

    def _say(self) -> None:
        status = "draining" if self.draining else self.session.presence
        self._publish("state", self._state(status), retained=True)

    def _publish(self, leaf: str, body: Any, *, retained: bool = False) -> None:
        self.broker.publish(self.name, leaf, self.name, body, retained=retained)

    # --- what the server says -------------------------------------------------------------------

    def receive(self, leaf: str, sender: str, body: Any) -> bool:
        """Take a message; not acknowledged when the device died of it."""
        if not self.alive:
            return False
        life = self.life
        match leaf:
            case "task":
                self._ordered(body)
            case "receipt":
                self._answered(body)
            case "run":
                self.give(body)
            case "server":
                epoch, status = body
                if status == "online":
                    self.give(s.ServerChanged(epoch))
                    if self.alive and epoch > self.epoch_heard:
                        self.epoch_heard = epoch
                        self._say()
        return self.life == life

    def _ordered(self, order: Order) -> None:
        if order.epoch < self.laws.known_epoch:
            self.kernel.note(self.name, "gets an order of an old epoch", order.epoch)
        self.give(s.OrderArrived(order, "this device drains" if self.draining else ""))

    def _answered(self, receipt: Receipt) -> None:
        key = s.JobKey.of(receipt)
        self.disk.outbox.pop(key, None)
        self.give(s.ReceiptArrived(receipt))

    # --- the machine ----------------------------------------------------------------------------

    def give(self, event: s.Event) -> None:
        """Let the session take an event, and do what follows."""
        self.kernel.note(self.name, "<-", event)
        self._carry_out(event, self.session.handle(event))

    def _carry_out(self, event: s.Event | None, commands: list[s.Command]) -> None:
        kernel = self.kernel
        self.laws.observe(self.session, event, commands)
        done = len(commands)
        dies = kernel.happens(kernel.odds.device_dies_in_step)
        if dies:
            done = int(kernel.random() * (done + 1))
        for command in commands[:done]:
            self.laws.carry_out(command)
            self._do(command)
        if dies:
            self.die()

    def _do(self, command: s.Command) -> None:
        kernel, disk = self.kernel, self.disk
        match command:
            case s.FetchModel(job=job):
                self._transfer(job.key, self._fetched)
            case s.DoWork(job=job):
                self.transfer += 1
                kernel.after(kernel.between(0.5, 3), self._worked, self.transfer, job)
            case s.UploadUpdate(job=job):
                require(job.key in disk.updates, "an uploaded file is there", job.key)
                self._transfer(job.key, self._uploaded)
            case s.SendResult(job=job):
                kernel.note(self.name, "reports", job.key)
                disk.outbox[job.key] = job
                self._send(job)
                self._resend_later()
            case s.SendDecline():
                self._publish("ack", (command.key, command.reason, command.permanent))
            case s.RenewUrls(job=job):
                self.renewed = True
            case s.CancelJob(key=key):
                self._cancel(key)
            case s.KeepJob(job=job):
                disk.kept[job.key] = job
            case s.ForgetJob(key=key):
                disk.outbox.pop(key, None)
                disk.updates.pop(key, None)
                disk.kept.pop(key, None)
            case s.PublishState():
                self._say()

    # --- results --------------------------------------------------------------------------------

    def _send(self, job: s.Job) -> None:
        upload = job.order.upload
        self._publish("result", (job.key, job.outcome, "" if upload is None else upload.key))

    def _resend_later(self) -> None:
        if not self.resending:
            self.resending = True
            self.kernel.after(RESEND_S, self._resend, self.life)

    def _resend(self, life: int) -> None:
        if life != self.life:
            return
        self.resending = False
        for job in list(self.disk.outbox.values()):
            self._send(job)
        if self.disk.outbox:
            self._resend_later()

    # --- transfers and work ---------------------------------------------------------------------

    def _transfer(self, key: s.JobKey, then: Callable[..., None]) -> None:
        """Start a transfer; there is at most one."""
        kernel = self.kernel
        self.transfer += 1
        self.renewed = False
        slow = 15 if kernel.happens(kernel.odds.transfer_slow) else 1
        kernel.after(kernel.between(0.1, 0.6) * slow, then, self.transfer, key, 1)

    def _again(self, then: Callable[..., None], key: s.JobKey, tries: int, why: str) -> None:
        if tries >= TRIES:
            self.give(s.JobFailed(key, why))
        else:
            self.kernel.after(0.5, then, self.transfer, key, tries + 1)

    def _expired(self, then: Callable[..., None], key: s.JobKey) -> None:
        """Ask for fresh URLs, a few times."""
        self.renewed = False
        self.kernel.note(self.name, "asks for fresh URLs", key)
        self._wait_for_urls(self.transfer, then, key, PATIENCE)

    def _wait_for_urls(
        self, transfer: int, then: Callable[..., None], key: s.JobKey, patience: int
    ) -> None:
        if transfer != self.transfer:
            return
        if self.renewed:
            then(transfer, key, 1)
        elif patience == 0:
            self.give(s.JobFailed(key, "the URL has expired"))
        else:
            self._publish("request", key)
            self.kernel.after(3.0, self._wait_for_urls, transfer, then, key, patience - 1)

    def _fetched(self, transfer: int, key: s.JobKey, tries: int) -> None:
        active, kernel = self.session.active, self.kernel
        if transfer != self.transfer or active is None:
            return
        model = active.model
        if is_expired(model.url, kernel.now):
            self._expired(self._fetched, key)
        elif kernel.happens(kernel.odds.download_fails):
            self._again(self._fetched, key, tries, "the download failed")
        else:
            found = self.store.get(model.key)
            if found is None or found.sha256 != model.sha256:
                self.give(s.JobFailed(key, "the model is not what the order says"))
                return
            self.base = found.value
            self.give(s.ModelFetched(key))

    def _worked(self, transfer: int, job: s.Job) -> None:
        kernel, key = self.kernel, job.key
        if transfer != self.transfer:
            return
        if kernel.happens(kernel.odds.work_fails):
            self.give(s.JobFailed(key, "the training process died", retryable=True))
        elif kernel.happens(kernel.odds.work_breaks):
            self.give(s.JobFailed(key, "the task raised an error"))
        elif key.action == "evaluate":
            accuracy = key.round * 3 % 5 / 10  # 0.3, 0.1, 0.4, 0.2, 0
            self.give(s.WorkFinished(key, s.JobOutcome(EXAMPLES, {"accuracy": accuracy})))
        else:
            made = update_of(self.name, key.round, self.base)
            self.disk.updates[key] = self.base
            outcome = s.JobOutcome(
                made.examples, {}, header_sha256=made.sha256, size_bytes=100 + key.round
            )
            self.give(s.WorkFinished(key, outcome))

    def _uploaded(self, transfer: int, key: s.JobKey, tries: int) -> None:
        active, kernel = self.session.active, self.kernel
        if transfer != self.transfer or active is None or active.order.upload is None:
            return
        odds = kernel.odds
        if is_expired(active.order.upload.url, kernel.now):
            self._expired(self._uploaded, key)
        elif kernel.happens(odds.upload_fails) or kernel.happens(odds.upload_torn):
            self._again(self._uploaded, key, tries, "the upload failed")
        else:
            self._put(key)
            if kernel.happens(odds.upload_hopeless):
                self.give(s.JobFailed(key, "the store answers no more"))
            elif kernel.happens(odds.upload_answer_lost):
                self._again(self._uploaded, key, tries, "the upload's answer was lost")
            else:
                self.give(s.UpdateUploaded(key))

    def _put(self, key: s.JobKey) -> None:
        kernel = self.kernel
        made = update_of(self.name, key.round, self.disk.updates[key])
        where = update_key(key.round, key.attempt, self.name)
        kernel.note(self.name, "stores", where)
        self.store.put(where, made)
        if kernel.happens(kernel.odds.upload_flipped):
            kernel.note(self.name, "stores with one flipped bit", where)
            self.store.damage(where)

    def _cancel(self, key: s.JobKey) -> None:
        """Stop the transfer or the work; an upload's last bytes may have been on their way."""
        self.transfer += 1
        landed = self.kernel.happens(self.kernel.odds.cancelled_upload_lands)
        if landed and key in self.disk.updates:
            self._put(key)
