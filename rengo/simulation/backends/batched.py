"""batched: all clients of a cohort at once, each operation one call for the weights of all.

What one client at a time must do, it does as ``inline``: the reason is logged once. Evaluation is
always that of ``inline``.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl_client.engines.stacked.client import NOT_FINITE, CohortMember, vectors_of
from fl_client.engines.stacked.cohort import CohortEngine
from fl_client.engines.stacked.per_client import CannotBatch
from fl_client.training.failure import failure_of, file_of
from fl_client.training.transforming import transformed, without_transforms
from rengo.simulation.backend import (
    BackendSetup,
    Declined,
    EvaluationResult,
    GlobalModel,
    TrainingResult,
    VirtualOrder,
    trained,
)
from rengo.simulation.backends.inline import InlineBackend
from runtime.errors import ConfigError, RengoError

if TYPE_CHECKING:
    from fl_client.engines.stacked.client import Outcome, Pair

Array: TypeAlias = NDArray[Any]

_AT_ONCE_BYTES = 64 << 20
"""How much the weights, gradients and examples of clients that train at once may take."""

_CHECKED = 10_000
"""Of so many clients it is known that their data were checked."""

_LOG = logging.getLogger(__name__)


def open_backend(setup: BackendSetup) -> BatchedBackend | InlineBackend:
    """Return the backend, or ``inline`` where the task cannot be batched."""
    try:
        return BatchedBackend(setup, engine_of(setup))
    except CannotBatch as error:
        _LOG.warning("%s", _as_inline(error))
        return InlineBackend(setup)


def engine_of(setup: BackendSetup) -> CohortEngine:
    """Return the engine for cohorts.

    Raises:
        CannotBatch: the task or the algorithm needs one client at a time; says for what.
    """
    if setup.engine != "numpy":
        raise CannotBatch(f"the {setup.engine} engine")
    if "loss" in setup.algorithm.needs:
        raise CannotBatch(f"the loss of algorithm {type(setup.algorithm).__name__}")
    if setup.algorithm.narrow_widths:
        raise CannotBatch(f"the model's parts of algorithm {type(setup.algorithm).__name__}")
    try:
        return CohortEngine(setup.clients.task, threads=setup.workers or os.cpu_count() or 1)
    except ConfigError as error:
        raise CannotBatch(str(error)) from error


class BatchedBackend:
    """Trains the clients of a cohort at once."""

    def __init__(self, setup: BackendSetup, engine: CohortEngine) -> None:
        self._setup, self._engine = setup, engine
        self._inline = InlineBackend(setup)
        self._file = file_of(setup.clients.task)
        self._alone = False
        self._checked: dict[int, tuple[weakref.ref[Array], Array]] = {}

    def train(self, orders: Sequence[VirtualOrder], got: GlobalModel) -> Iterator[TrainingResult]:
        """See :class:`rengo.simulation.backend.Backend`."""
        if self._alone:
            yield from self._inline.train(orders, got)
            return
        members, others = self._members(orders, got)
        for part in self._parts(members, got):
            try:
                outcomes = self._engine.train(got.weights, [member for _, member in part])
            except CannotBatch as error:
                self._alone = True
                _LOG.warning("%s", _as_inline(error, self._setup))
                yield from self._inline.train([order for order, _ in part], got)
                continue
            for (order, member), outcome in zip(part, outcomes, strict=True):
                yield self._result(order, member, outcome)
        yield from self._inline.train(others, got)

    def evaluate(
        self, orders: Sequence[VirtualOrder], got: GlobalModel
    ) -> Iterator[EvaluationResult]:
        """See :class:`rengo.simulation.backend.Backend`."""
        yield from self._inline.evaluate(orders, got)

    def close(self) -> None:
        """See :class:`rengo.simulation.backend.Backend`."""
        self._inline.close()

    def _members(
        self, orders: Sequence[VirtualOrder], got: GlobalModel
    ) -> tuple[list[tuple[VirtualOrder, CohortMember]], list[VirtualOrder]]:
        """Return the orders with what they train on, and those whose clients have no such data."""
        members, others = [], []
        for order in orders:
            if order.width < 1:
                # models of several sizes are no stack
                others.append(order)
                continue
            try:
                examples = self._examples(order.client)
            # why a client declines is found, and said, where it is asked alone
            except (Exception, SystemExit):  # noqa: BLE001
                others.append(order)
                continue
            plan = without_transforms(self._setup.plan(order, got))
            members.append((order, CohortMember(examples, plan)))
        return members, others

    def _examples(self, client: int) -> Pair:
        """Return what a client trains on, which is checked once for as long as it is in memory."""
        split: Any = self._setup.clients.splits(client)[0]
        known = self._checked.get(client)
        inputs = None if known is None else known[0]()
        if known is not None and inputs is not None and inputs is split[0]:
            return inputs, known[1]
        inputs, targets = self._engine.examples(split)
        if isinstance(split, tuple) and inputs is split[0]:
            if len(self._checked) > _CHECKED:
                self._checked.clear()
            self._checked[client] = (weakref.ref(inputs), targets)
        return inputs, targets

    def _parts(
        self, members: list[tuple[VirtualOrder, CohortMember]], got: GlobalModel
    ) -> Iterator[list[tuple[VirtualOrder, CohortMember]]]:
        """Yield the members in parts that fit into memory, in their order."""
        if not members:
            return
        examples = max(member.examples[0].size for _, member in members)
        each = 4 * (2 * got.weights.layout.size + examples)
        size = max(1, _AT_ONCE_BYTES // each)
        for start in range(0, len(members), size):
            yield members[start : start + size]

    def _result(
        self, order: VirtualOrder, member: CohortMember, outcome: Outcome
    ) -> TrainingResult:
        plan = member.plan
        if not isinstance(outcome, RengoError) and plan.transforms:
            # what they keep is in the order's state
            outcome = transformed(outcome, replace(plan, state=order.state))
            if not all(np.isfinite(vector).all() for vector in vectors_of(outcome)):
                outcome = NOT_FINITE
        if isinstance(outcome, RengoError):
            failed = failure_of(outcome, self._file)
            return Declined(order.device_id, failed.reason, failed.unusable)
        return trained(order, plan, outcome)


def _as_inline(error: CannotBatch, setup: BackendSetup | None = None) -> str:
    of = f", in algorithm {type(setup.algorithm).__name__}" if setup is not None else ""
    return f"clients are trained one after the other, not at once: {error}{of}"
