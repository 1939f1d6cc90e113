"""The device's daemon: one owner thread and a bounded inbox around the session machine.

Network and files are on other threads and processes, whose ends come back as events: paho's
thread for the broker, one transfer thread for the store, the training child for the work.
"""

from __future__ import annotations

import logging
from typing import Any

from broker.session.inbox import Connected, Disconnected, SessionFault
from broker.session.publication import Delivery
from broker.wire.messages import Message
from fl_client.agent.message_router import MessageRouter
from fl_client.agent.parts import AgentParts
from fl_client.agent.session_runner import SessionRunner
from fl_client.agent.status.document import session_document
from fl_client.agent.status.question_socket import Question
from fl_client.jobs.transfer_thread import TransferCrashed, UrlsNeeded
from fl_client.production.follower import DownloadEnded
from fl_client.session.events import Event, JobFailed, ModelFetched, UpdateUploaded, WorkFinished
from fl_client.training.child import ChildProgressed
from runtime.errors import AuthenticationFailed, UntrustedPeer

_LOG = logging.getLogger(__name__)
_STOP = "stop"
_WHY_REFUSED = (
    "the device was revoked, or the site has lost its data or was restored from an older backup; "
    "where `rengo devices ls` does not list this device, restore a newer backup or enrol it again "
    "with a new token"
)


class Agent:
    """One device. ``run_forever`` is the owner thread and must outlive the training child.

    Args:
        parts: see ``fl_client.agent.build.build_agent`` for those of a real device.
    """

    def __init__(self, parts: AgentParts) -> None:
        self.parts = parts
        self._runner = SessionRunner(parts)
        self._router = MessageRouter(parts, self._runner)
        self._was_connected = False

    def run_forever(self) -> None:
        """Serve until ``stop``."""
        try:
            self.start()
            while self._handle_next(self._time_to_next_task_s()):
                pass
        finally:
            self.close()

    def start(self) -> None:
        """Connect, answer the device's owner, gather its data, and go on with the jobs on disk."""
        parts = self.parts
        parts.session.start()
        parts.status.open(parts.folder.root, parts.inbox.put)
        parts.data.start()
        self._runner.restore()

    def run_until_idle(self) -> None:
        """Handle what is in the inbox and what comes of it, without waiting.

        For a caller with a clock of its own, between ``start`` and ``close``.
        """
        while not self.parts.inbox.empty and self._handle_next(0.0):
            pass

    def close(self) -> None:
        """End all parts; what must outlive the process is on the disk."""
        parts = self.parts
        parts.status.close()
        parts.data.stop()
        parts.transfers.cancel_all()
        parts.follower.stop()
        parts.worker.cancel()
        parts.worker.close("the agent stops")
        parts.session.stop(parts.messages.state("offline"))
        parts.transfers.stop()
        parts.policy.close()
        parts.journal.close()
        parts.outbox.close()

    def stop(self) -> None:
        """Ask the owner to end; any thread may call it, and so may a signal handler."""
        self.parts.inbox.put(_STOP)

    def handle(self, event: Event) -> None:
        """Give an event to the session and carry out its commands."""
        self._runner.handle(event)

    # --- the owner's loop ---------------------------------------------------------------------

    def _handle_next(self, timeout_s: float | None) -> bool:
        """Wait for an event or for what is due, and handle it; False when the agent shall end."""
        item = self.parts.inbox.get(timeout_s)
        if item is None and self.parts.worker.idle_left_s() == 0:
            self.parts.worker.end_idle()
        self._poll(self.parts.clock())
        return True if item is None else self._dispatch(item)

    def _time_to_next_task_s(self) -> float | None:
        parts, now_s = self.parts, self.parts.clock()
        waits = (
            parts.worker.idle_left_s(),
            self._runner.left_s(now_s),
            parts.follower.left_s(now_s),
            parts.status.watchdog.left_s(now_s),
            parts.policy.left_s(now_s),
        )
        return min((each for each in waits if each is not None), default=None)

    def _poll(self, now_s: float) -> None:
        self.parts.status.watchdog.poll(now_s)
        self._runner.poll(now_s)
        self.parts.follower.poll(now_s)
        self._publish_health(self.parts.policy.poll(now_s))

    def _dispatch(self, item: object) -> bool:
        parts = self.parts
        match item:
            case Delivery():
                self._router.deliver(item)
            case Connected() | Disconnected() | SessionFault():
                self._connection_changed(item)
            case ModelFetched() | UpdateUploaded() | JobFailed():
                self.handle(item)
            case DownloadEnded():
                parts.follower.on_ended(item)
            case UrlsNeeded():
                parts.session.publish(parts.messages.request(item.key))
            case TransferCrashed():
                self._crashed(item)
            case Question():
                return not parts.status.answer(item, self._state())
            case str():
                return item != _STOP
            case _:
                self._worked(item)
        return True

    # --- events -------------------------------------------------------------------------------

    def _connection_changed(self, event: Connected | Disconnected | SessionFault) -> None:
        status = self.parts.status
        match event:
            case Connected(password=password):
                self._was_connected = True
                status.connected(self.parts.messages.broker)
                self._router.confirm_password(password)
                self._publish_all()
            case Disconnected(reason=reason):
                status.disconnected(reason)
                _LOG.warning("broker connection lost: %s", reason)
            case SessionFault(error=error):
                if isinstance(error, AuthenticationFailed) and not isinstance(error, UntrustedPeer):
                    error = AuthenticationFailed(f"{error}; {_WHY_REFUSED}")
                if isinstance(error, AuthenticationFailed) and not self._was_connected:
                    raise error  # a wrong password at the start: somebody has to correct it
                status.session_failed(str(error))
                _LOG.error("broker session: %s", error)

    def _publish_all(self) -> None:
        """Publish all that is retained of this device, as a new connection must."""
        self.parts.session.publish(self.parts.messages.info())
        self._runner.publish_presence()
        self._publish_health(self.parts.policy.health())
        self._publish_data(self.parts.data.latest())

    def _crashed(self, crash: TransferCrashed) -> None:
        _LOG.error("a transfer crashed", exc_info=crash.error)
        if crash.what is not None:
            self.handle(JobFailed(crash.what, f"internal error: {crash.error!r}"[:2000]))

    def _worked(self, item: object) -> None:
        """Handle an event of the worker."""
        parts = self.parts
        event = item if isinstance(item, WorkFinished) else parts.worker.translate(item)
        if isinstance(event, ChildProgressed):
            progress = parts.messages.progress(event.job, event.fraction, event.loss)
            parts.session.publish(progress)
        elif event is not None:
            self.handle(event)
            self._publish_data(parts.data.changed())

    def _state(self) -> dict[str, Any]:
        """Return what `rengo agent status` shows."""
        parts = self.parts
        now = session_document(self._runner.machine, len(parts.outbox), parts.worker.child_pids)
        return {**parts.description, **now, "steward": parts.policy.status()}

    def _publish_health(self, health: Message | None) -> None:
        if health is not None:
            self.parts.session.publish(self.parts.messages.health(health))

    def _publish_data(self, report: Message | None) -> None:
        if report is not None:
            self.parts.session.publish(self.parts.messages.data(report))
