"""What a backend of the simulator is: where the virtual clients of a cohort train and evaluate.

The coordinator decides who trains and what becomes of it; a backend only computes. Whatever it is,
a client's update is a function of its order and of the global model, as on a device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from algorithms.base import UPDATE, Algorithm, Scalars
from algorithms.transforms.base import Transform
from fl_client.engines.base import Precision
from fl_client.models.local_round import LocalRound, LocalUpdate
from fl_client.models.settings import TrainingSettings
from storage.weights import Array, Vector, Weights

if TYPE_CHECKING:
    from rengo.simulation.clients import VirtualClients


@dataclass(frozen=True, eq=False)
class GlobalModel:
    """What clients get: one version of the model, and what of the server goes with it.

    Attributes:
        version: 0 is what the run begins with.
        vectors: the server's, each as long as the weights; empty where the algorithm's clients get
            none, and before the first round.
        scalars: those of the server's that clients get.
    """

    version: int
    weights: Weights
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    scalars: Scalars = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class VirtualOrder:
    """One virtual client's order to train in a round, or to evaluate a version.

    Attributes:
        client: its number, from 0; ``EVALUATOR`` for the one beside them.
        round: that is trained; to evaluate, the version.
        settings: of the training in this round.
        state: what the client keeps from its last accepted update, by ``name/weight``.
        width: how much of the model it trains; below 1 it gets a part of it.
    """

    client: int
    device_id: str
    round: int
    settings: TrainingSettings
    state: Mapping[str, Array] = field(default_factory=dict)
    width: float = 1.0


@dataclass(frozen=True, eq=False)
class Trained:
    """What a virtual client made of an order to train.

    Attributes:
        vectors: what it sends, by name: the update, the change of statistics, the algorithm's own.
            They may share memory with other clients', and stay as they are: they are added to the
            round's sums when the whole cohort has trained.
        scalars: what it sends as numbers, by name.
        state: what it keeps if the update is accepted.
        steps: how many steps it took, of ``full_steps`` that its epochs have.
    """

    device_id: str
    vectors: Mapping[str, Vector]
    num_examples: int
    scalars: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    state: Mapping[str, Array] = field(default_factory=dict)
    steps: int = 0
    full_steps: int = 0


@dataclass(frozen=True)
class Evaluated:
    """What a virtual client measured of a version."""

    device_id: str
    num_examples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Declined:
    """Why an order gave no result.

    Attributes:
        unusable: the client did train, and its update can never count, as where it diverged.
    """

    device_id: str
    reason: str
    unusable: bool = False


TrainingResult: TypeAlias = Trained | Declined
EvaluationResult: TypeAlias = Evaluated | Declined


@dataclass(frozen=True)
class BackendSetup:
    """What a backend is opened with.

    Attributes:
        clients: the virtual clients with their task and data.
        algorithm: its client half trains.
        seed: the run's.
        engine: the name of the engine that a client trains with.
        workers: how many processes at most, where the backend has any; 0 for as many as cores.
        transforms: what is done to updates.
        precision: of the torch engine's products.
    """

    clients: VirtualClients
    algorithm: Algorithm
    seed: int
    engine: str
    workers: int = 0
    transforms: tuple[Transform, ...] = ()
    precision: Precision = "auto"

    @property
    def arithmetic(self) -> str:
        """The engine, and the precision where one was chosen: the bits of a run depend on both."""
        return self.engine if self.precision == "auto" else f"{self.engine} in {self.precision}"

    def weights_of(self, order: VirtualOrder, got: GlobalModel) -> Weights:
        """Return the weights that a client gets: the version, or its part of it."""
        whole = got.weights
        if order.width >= 1:
            return whole
        slices = self.algorithm.part(order.width, order.round, whole.layout)
        if slices is None:
            return whole
        return Weights(slices.part, slices.take(whole.vector), whole.others)

    def plan(self, order: VirtualOrder, got: GlobalModel) -> LocalRound:
        """Return what a device's training in the round depends on, as a device makes it."""
        return LocalRound(
            algorithm=self.algorithm,
            settings=order.settings,
            seed=self.seed,
            round=order.round,
            device_id=order.device_id,
            state=order.state,
            vectors=got.vectors,
            scalars=got.scalars,
            transforms=self.transforms,
            width=order.width,
        )


class Backend(Protocol):
    """Computes what virtual clients do. One thread calls it."""

    def train(self, orders: Sequence[VirtualOrder], got: GlobalModel) -> Iterable[TrainingResult]:
        """Yield what comes of each order, in any order.

        Raises:
            RengoError: the backend itself failed, as where one of its processes was killed.
        """
        ...

    def evaluate(
        self, orders: Sequence[VirtualOrder], got: GlobalModel
    ) -> Iterable[EvaluationResult]:
        """Yield what each client measures of a version, in any order; raises as ``train``."""
        ...

    def close(self) -> None:
        """End its processes and give its memory back; called once, whatever happened."""
        ...


def trained(order: VirtualOrder, plan: LocalRound, update: LocalUpdate) -> Trained:
    """Return a device's update as what the virtual client sends and keeps.

    What it sends and keeps are float32 as they would be in files.
    """
    vectors = dict(update.vectors)
    if update.vector is not None:
        vectors = {UPDATE: update.vector, **vectors}
    return Trained(
        order.device_id,
        vectors,
        update.num_examples,
        update.scalars,
        update.metrics,
        stored(update.state),
        plan.tally.steps,
        plan.tally.full_steps,
    )


def stored(state: Mapping[str, Any]) -> dict[str, Array]:
    """Return a client's state as it comes back from the file that a device keeps it in."""
    return Weights.from_arrays(state).arrays() if state else {}
