"""What an agent is made of. A simulator, a domain or a test may put its own part in each place.

``fl_client.agent.build`` makes the real ones. A part that ends something puts an event of
``fl_client.session.events`` into the inbox; the agent's owner thread takes it from there.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from broker.session.endpoint import Endpoint
from broker.session.outbox import Outbox, Until
from broker.session.publication import Delivery, Publication
from broker.wire.messages import TreePosition
from fl_client.agent.messages import DeviceMessages
from fl_client.agent.orders import OrderGate
from fl_client.agent.resource_policy import ResourcePolicy
from fl_client.agent.status.server import StatusServer
from fl_client.bundles.store import DeviceBundles
from fl_client.collectors.owned import OwnData
from fl_client.identity.credentials import DeviceCredentials
from fl_client.jobs.folder import DeviceFolder
from fl_client.jobs.journal import JobJournal
from fl_client.jobs.transfer import TransferCost
from fl_client.production.follower import ProductionFollower
from fl_client.session.events import Event, Job, JobKey
from fl_client.training.child import ChildProgressed

_INBOX_MAX = 1000


class Inbox:
    """The queue of the agent's owner thread. Any thread may put, and so may a signal handler."""

    def __init__(self) -> None:
        # a SimpleQueue's put is reentrant
        self._queue: queue.SimpleQueue[object] = queue.SimpleQueue()

    def put(self, event: object) -> None:
        """Add an event."""
        self._queue.put(event)

    def offer(self, event: object) -> bool:
        """Add an event of the network, unless too many wait: the broker then brings it again."""
        if self._queue.qsize() >= _INBOX_MAX:
            return False
        self._queue.put(event)
        return True

    @property
    def empty(self) -> bool:
        """Whether no event waits."""
        return self._queue.empty()

    def get(self, timeout_s: float | None) -> object:
        """Return the next event; None when none came in time."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None


class Session(Protocol):
    """The connection to the broker; ``broker.session.session.MqttSession`` is one.

    It puts ``Connected``, ``Disconnected``, ``Delivery`` and ``SessionFault`` into the inbox.
    """

    @property
    def endpoint(self) -> Endpoint:
        """Where it connects to, and as whom."""

    def set_endpoint(self, endpoint: Endpoint) -> None:
        """Connect so from the next connection on."""

    def start(self) -> None:
        """Connect in the background, and stay connected."""

    def stop(self, farewell: Publication | None = None) -> None:
        """Disconnect, after ``farewell``."""

    def publish(self, publication: Publication) -> bool:
        """Send now or never."""

    def publish_durably(self, key: str, topic: str, payload: bytes, *, until: Until) -> None:
        """Send again and again until ``confirm``."""

    def confirm(self, key: str) -> bool:
        """End what ``publish_durably`` began."""

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a message that was handled."""


class Worker(Protocol):
    """Does the work of jobs, one at a time; ``fl_client.agent.worker.TrainingWorker`` is one.

    It puts ``WorkFinished`` or ``JobFailed`` into the inbox, or events of its own, which the agent
    gives back to it for ``translate``.
    """

    @property
    def child_pids(self) -> list[int]:
        """The processes, the one that was used last at the end."""

    def submit(self, job: Job) -> None:
        """Begin the work of a job."""

    def cancel(self) -> None:
        """End the work that is under way, if any; no event of it follows."""

    def end_run(self, run_id: str) -> None:
        """Release what only this run needs: it has ended."""

    def end_idle(self) -> None:
        """End the processes that have waited for work long enough."""

    def close(self, why: str) -> None:
        """End every process."""

    def idle_left_s(self) -> float | None:
        """Return how long until ``end_idle`` is due, None when it is not."""

    def translate(self, event: object) -> Event | ChildProgressed | None:
        """Return what an event of the worker's own means, None when nothing."""


class TransferQueue(Protocol):
    """Moves files between the store and the device, in order.

    ``fl_client.jobs.transfer_thread.TransferThread`` is one. It puts ``ModelFetched``,
    ``UpdateUploaded`` or ``JobFailed`` into the inbox.
    """

    def fetch(self, job: Job) -> None:
        """Bring the order's bundle and its model, where it has them."""

    def upload(self, job: Job) -> None:
        """Bring the update to the store."""

    def renew(self, job: Job) -> None:
        """Use the URLs of an order that came again."""

    def cancel(self, key: JobKey) -> None:
        """End a job's transfer; no event of it follows."""

    def cost(self, key: JobKey) -> TransferCost | None:
        """Return what a job's transfers took, None when this process knows of none."""

    def forget(self, key: JobKey) -> None:
        """Drop what is known of a job that has ended."""

    def remove_models(self, run_id: str) -> None:
        """Remove a run's models, after what was begun before."""

    def cancel_all(self) -> None:
        """End every transfer."""

    def stop(self) -> None:
        """Wait for what is at work and drop the rest."""


@dataclass(frozen=True, kw_only=True)
class AgentParts:
    """The parts of one agent.

    Attributes:
        description: what does not change while the agent runs, for its status.
        clock: monotonic.
        stand_at: is told where a domain stands; a device is told nothing.
    """

    inbox: Inbox
    messages: DeviceMessages
    session: Session
    worker: Worker
    transfers: TransferQueue
    orders: OrderGate
    follower: ProductionFollower
    credentials: DeviceCredentials
    bundles: DeviceBundles
    folder: DeviceFolder
    journal: JobJournal
    outbox: Outbox
    data: OwnData
    policy: ResourcePolicy
    status: StatusServer
    description: dict[str, Any]
    clock: Callable[[], float] = time.monotonic
    stand_at: Callable[[TreePosition], None] = lambda _: None
