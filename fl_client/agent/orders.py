"""Which orders an agent takes: none that came before, and none that does not fit the device."""

from __future__ import annotations

from collections.abc import Callable

from broker.wire.messages import MAX_EXCHANGE_BYTES, Order
from fl_client.agent.resource_policy import Need, ResourcePolicy
from fl_client.bundles.store import DeviceBundles
from fl_client.jobs.folder import DeviceFolder
from fl_client.session.events import Job, JobKey
from fl_client.session.machine import DeviceSession
from runtime.errors import PeerError
from storage.transfer.byte_ranges import length

_REMEMBERED = 1000


class OrderGate:
    """Judges orders before they reach the session.

    Args:
        held: returns why no order is taken now, "" when orders may be.
    """

    def __init__(
        self,
        tasks: list[str],
        bundles: DeviceBundles,
        folder: DeviceFolder,
        policy: ResourcePolicy,
        held: Callable[[], str],
    ) -> None:
        self._tasks = tasks
        self._bundles = bundles
        self._folder = folder
        self._policy = policy
        self._held = held
        self._seen: dict[int, None] = {}

    def require_new(self, order: Order, seq: int) -> None:
        """Raise PeerError for a message that came before: the server numbers its messages.

        Args:
            order: the message's body.
            seq: of its envelope.
        """
        # one number: a thousand of them need half the memory of pairs
        number = order.epoch << 64 | seq
        if number in self._seen:
            raise PeerError("this very order came before", "replayed")
        self._seen[number] = None
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]

    def refusal(self, order: Order, machine: DeviceSession) -> str:
        """Return why an order is declined, "" when it is taken."""
        if order.task not in self._tasks and (reason := self._bundles.refusal(order)):
            installed = ", ".join(self._tasks)
            return f"task {order.task!r} is not installed here (installed: {installed}), {reason}"
        known = machine.knows(JobKey.of(order))
        if not known and (held := self._held()):
            return held
        if order.action != "exchange" and (order.action == "train") != (order.upload is not None):
            return "an order to train needs an upload, an order to evaluate has none"
        return "" if known else self._policy.refusal(order, self._need(order, machine))

    def _need(self, order: Order, machine: DeviceSession) -> Need:
        """Return what an order would cost, and what the orders accepted before it will."""
        promised = [self._traffic(Job(job.key, job.order)) for job in machine.unfinished]
        down, up = self._traffic(Job(JobKey.of(order), order))
        return Need(
            download_bytes=down,
            upload_bytes=up,
            # the update beside the state that its algorithm leaves
            disk_bytes=down + 2 * up,
            promised_bytes=sum(sum(each) for each in promised),
        )

    def _traffic(self, job: Job) -> tuple[int, int]:
        """Return the bytes of the download and of the upload."""
        model = job.order.model
        size = MAX_EXCHANGE_BYTES if model is None else model.size_bytes
        up = 0 if job.order.upload is None else size
        if model is None or self._folder.model(job).is_file():
            return 0, up
        earlier = self._folder.earlier_model(job)
        return (size if earlier is None else length(earlier.changed)), up
