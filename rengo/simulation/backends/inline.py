"""inline: one client after the other, in this process, exactly as a device trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fl_client.engines.base import Tuning
from fl_client.training.failure import failure_of, file_of
from fl_client.training.participant import Participant
from rengo.simulation.backend import (
    BackendSetup,
    Declined,
    Evaluated,
    EvaluationResult,
    GlobalModel,
    Trained,
    TrainingResult,
    VirtualOrder,
    trained,
)
from runtime.bounds import MAX_EXAMPLES
from runtime.errors import ConfigError


def open_backend(setup: BackendSetup) -> InlineBackend:
    """Return the backend."""
    return InlineBackend(setup)


class InlineBackend:
    """Trains the clients of a cohort one after the other."""

    def __init__(self, setup: BackendSetup) -> None:
        self._setup = setup
        clients = setup.clients
        # as a device's training process: torch is deterministic, and on one thread
        self._first = Participant(
            clients.task,
            clients.spec.device(0),
            setup.engine,
            owns_process=True,
            tuning=Tuning(precision=setup.precision),
        )

    def train(self, orders: Sequence[VirtualOrder], got: GlobalModel) -> Iterator[TrainingResult]:
        """See :class:`rengo.simulation.backend.Backend`."""
        for order in orders:
            try:
                yield self._trained(order, got)
            # the task is the user's own code: whatever it raises is why the client declines
            except (Exception, SystemExit) as error:  # noqa: BLE001
                yield self._declined(order, error)

    def evaluate(
        self, orders: Sequence[VirtualOrder], got: GlobalModel
    ) -> Iterator[EvaluationResult]:
        """See :class:`rengo.simulation.backend.Backend`."""
        for order in orders:
            try:
                yield self._evaluated(order, got)
            # as above
            except (Exception, SystemExit) as error:  # noqa: BLE001
                yield self._declined(order, error)

    def close(self) -> None:
        """See :class:`rengo.simulation.backend.Backend`."""

    def _trained(self, order: VirtualOrder, got: GlobalModel) -> Trained:
        plan = self._setup.plan(order, got)
        weights = self._setup.weights_of(order, got)
        return trained(order, plan, self._participant(order).train(weights, plan))

    def _evaluated(self, order: VirtualOrder, got: GlobalModel) -> Evaluated:
        plan = self._setup.plan(order, got)
        count, metrics = self._participant(order).evaluate(got.weights, plan)
        if not 1 <= count <= MAX_EXAMPLES:
            raise ConfigError(f"it saw {count} held-out examples")
        return Evaluated(order.device_id, count, metrics)

    def _participant(self, order: VirtualOrder) -> Participant:
        clients = self._setup.clients
        device = clients.spec.device(order.client)
        return self._first.of_client(device, clients.splits(order.client))

    def _declined(self, order: VirtualOrder, error: BaseException) -> Declined:
        failed = failure_of(error, file_of(self._setup.clients.task))
        return Declined(order.device_id, failed.reason, failed.unusable)
