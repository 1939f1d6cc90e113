"""What the domain's agent has in the place of a training process: the domain's own server.

The agent's owner thread calls it. The server's work is done on the server's thread, and comes back
as events in the agent's inbox.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from broker.session.publication import Publication
from broker.wire.messages import DeviceInfo, DeviceState, Order
from fl_client.agent.messages import DeviceMessages
from fl_client.agent.orders import OrderGate
from fl_client.agent.parts import Session
from fl_client.jobs.folder import DeviceFolder
from fl_client.session.events import Event, Job
from fl_client.session.machine import DeviceSession
from fl_client.training.child import ChildProgressed
from fl_server.server import Server
from rengo.domain.runs import DomainRuns, JobFiles
from rengo.domain.tree import TreeView
from runtime.errors import PeerError

_LOG = logging.getLogger(__name__)
_INFO_EVERY_S = 2.0
_POSITION_WITHIN_S = 30.0


@dataclass(frozen=True)
class TreeChanged:
    """Something below the domain has changed."""

    view: TreeView


class DomainMessages(DeviceMessages):
    """The messages of a domain to its parent: a device's, with what is below it.

    Attributes:
        view: what is below it as it was told last.
        status: what the presence said last.
    """

    view: TreeView | None = None
    status: str = "ready"

    def state(self, status: str, epoch: int = 0) -> Publication:
        """Return the retained presence; a domain in which nobody takes orders takes none."""
        if status not in {"lost", "offline"}:
            self.status = status
        accepting = self.view is not None and self.view.accepting
        state = DeviceState.model_validate(
            {
                "status": "draining" if status == "ready" and not accepting else status,
                "boot_id": self.boot_id,
                "role": "trainer",
                "tasks": [] if self.view is None else list(self.view.tasks),
                "epoch": epoch,
                "domain": True,
            }
        )
        return self._write("state", state, retain=True)

    def info(self) -> Publication:
        """Return the retained description of the domain."""
        view = self.view
        changes = {} if view is None else {"tree": view.summary, "tasks": list(view.tasks)}
        info = self.description_of_machine().model_copy(update=changes)
        return self._write("info", DeviceInfo.model_validate(info.model_dump()), retain=True)


class DomainOrders(OrderGate):
    """Which of its parent's orders a domain takes.

    Attributes:
        tasks_below: the tasks of the devices below it.
    """

    tasks_below: tuple[str, ...] = ()

    def refusal(self, order: Order, machine: DeviceSession) -> str:
        """Return why an order is declined, "" when it is taken."""
        del machine
        if order.action == "exchange":
            return "a domain passes no exchanges on; submit runs of this kind to the domain itself"
        if (order.action == "train") != (order.upload is not None):
            return "an order to train needs an upload, an order to evaluate has none"
        if order.task not in self.tasks_below:
            installed = ", ".join(self.tasks_below) or "none"
            return f"no device below this domain has task {order.task!r} (there are: {installed})"
        return ""


@dataclass(frozen=True)
class WorkerParts:
    """What the worker works with; ``folder``, ``messages``, ``orders`` are its agent's."""

    server: Server
    runs: DomainRuns
    folder: DeviceFolder
    messages: DomainMessages
    orders: DomainOrders
    session: Session


class DomainWorker:
    """Does the parent's orders with the domain's own devices; see ``fl_client.agent.parts``."""

    def __init__(self, parts: WorkerParts) -> None:
        self._parts = parts
        self._told_s = 0.0
        self._is_stale = False
        self._position_due_s: float | None = None

    @property
    def child_pids(self) -> list[int]:
        """None: the domain's server is this process."""
        return []

    def submit(self, job: Job) -> None:
        """Begin the work of a job."""
        folder = self._parts.folder
        folder.mark_latest_model(job)
        files = JobFiles(folder.model(job), folder.vectors(job), folder.update(job.key))
        self._parts.server.call(lambda: self._parts.runs.begin(job, files))

    def cancel(self) -> None:
        """Await nothing more of the job that is under way."""
        self._parts.server.call(self._parts.runs.cancel)

    def end_run(self, run_id: str) -> None:
        """End a run that has ended at the parent."""

        def end() -> None:
            try:
                self._parts.runs.end(run_id)
            except PeerError as error:
                _LOG.error("run %s cannot be ended: %s", run_id, error)

        self._parts.server.call(end)

    def close(self, why: str) -> None:
        """Do nothing: whoever runs the server ends it."""
        del why

    # --- what is below, told upwards ----------------------------------------------------------

    def translate(self, event: object) -> Event | ChildProgressed | None:
        """Handle a change below; no event of the session's follows."""
        if isinstance(event, TreeChanged):
            self._show(event.view)
        return None

    def _show(self, view: TreeView) -> None:
        parts, before = self._parts, self._parts.messages.view
        parts.messages.view, parts.orders.tasks_below = view, view.tasks
        if before is None or (view.tasks, view.accepting) != (before.tasks, before.accepting):
            parts.session.publish(parts.messages.state(parts.messages.status))
        self._is_stale = True
        if self.idle_left_s() == 0:
            self.end_idle()

    def await_position(self) -> None:
        """Note that the parent is to say where this domain stands."""
        self._position_due_s = time.monotonic() + _POSITION_WITHIN_S

    def has_position(self) -> None:
        """Note that it has."""
        self._position_due_s = None

    def idle_left_s(self) -> float | None:
        """Return how long until there is something to tell, None when there is not."""
        now_s, due = time.monotonic(), []
        if self._is_stale:
            due.append(self._told_s + _INFO_EVERY_S)
        if self._position_due_s is not None:
            due.append(self._position_due_s)
        return max(0.0, min(due) - now_s) if due else None

    def end_idle(self) -> None:
        """Tell the parent what is below, and the owner when the parent does not answer."""
        now_s = time.monotonic()
        if self._is_stale and now_s >= self._told_s + _INFO_EVERY_S:
            self._is_stale, self._told_s = False, now_s
            self._parts.session.publish(self._parts.messages.info())
        if self._position_due_s is not None and now_s >= self._position_due_s:
            self._position_due_s = None
            _LOG.error(
                "the parent's server has not said where this domain stands: it is down, or of a "
                "version of Rengo that knows no domains; upgrade the parent first"
            )
