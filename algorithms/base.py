"""What a federated algorithm is: pure functions over explicit state, in two halves.

The client half works on named arrays and is written with ``+ - * /`` and the methods that torch
tensors and numpy arrays share, so that both pass. The server half works on flat vectors, one block
of them at a time, so that a server never holds all updates.

A client sends named **vectors**, each as long as the model, and named **scalars**. Each name has a
weighted mean of its own, over the clients that sent it. The server keeps named vectors and scalars
too, and those in ``broadcasts`` go to the clients with the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.records import require_checked
from storage.weights import Layout, Slices

UPDATE = "update"
"""The vector that FedAvg's clients send: the change of the weights."""

STATISTICS = "statistics"
"""The change of running statistics, as batch normalisation has: of every algorithm, the plain mean
is added. Engines take it out of the update, so that no server's optimiser acts on it."""

PRIVATE = "private"
"""The part of a client's state that holds the weights which never leave its device."""

BLOCK = 1 << 18
"""How many values the server handles at a time."""

Arrays: TypeAlias = Mapping[str, Any]
"""Name of a weight to array: numpy arrays or torch tensors, all of one kind."""

Vectors: TypeAlias = Mapping[str, Arrays]
"""Name of a vector to its arrays; weights that are left out are zeros."""

State: TypeAlias = Mapping[str, Arrays]
"""What a client keeps from round to round: names to named arrays of any shape."""

Scalars: TypeAlias = Mapping[str, float]

Flat: TypeAlias = NDArray[np.floating[Any]]
"""A flat vector of weights, or a block of one."""

Blocks: TypeAlias = Mapping[str, Flat]
"""Name of a vector to a block of it, each as long as the block of the weights."""

Need: TypeAlias = Literal["head", "norms", "adapters", "loss"]
Family: TypeAlias = Literal[
    "server", "drift", "fairness", "personal", "clusters", "widths", "adapters"
]


@dataclass(frozen=True)
class DeviceFacts:
    """What is known of a device when a round begins; "" and 0 are unknown."""

    device_id: str
    profile: str = ""
    ram_bytes: int = 0


@dataclass(frozen=True)
class Received:
    """What a client gets: the global weights, and the server's vectors and scalars by name."""

    weights: Arrays
    vectors: Vectors = field(default_factory=dict)
    scalars: Scalars = field(default_factory=dict)


@dataclass(frozen=True)
class Sent:
    """What a client sends; a name that is left out does not count in that name's mean."""

    vectors: Vectors
    scalars: Scalars = field(default_factory=dict)


class Batch(Protocol):
    """The examples of one local step."""

    @property
    def number(self) -> int:
        """The number of the step within the round, from 0 on."""
        ...

    def gradient(self, w: Arrays) -> dict[str, Any]:
        """Return the gradient of the mean loss at ``w``, for the trainable weights alone.

        Weights that ``w`` leaves out are those of the model that is trained.
        """
        ...

    def halves(self) -> tuple[Batch, Batch]:
        """Return two batches of half the examples each; of one example, the same twice."""
        ...


class Local(Protocol):
    """What is known of a client's training in a round, and its whole training data."""

    @property
    def round(self) -> int:
        """The number of the round, from 1 on."""
        ...

    @property
    def num_examples(self) -> int:
        """The number of training examples."""
        ...

    @property
    def steps(self) -> int:
        """The number of steps that the round's training has in all."""
        ...

    @property
    def learning_rate(self) -> float:
        """The learning rate of the round."""
        ...

    @property
    def seed(self) -> int:
        """A seed of this client and round alone."""
        ...

    @property
    def width(self) -> float:
        """How much of the model is trained here; 1 is the whole."""
        ...

    @property
    def head(self) -> frozenset[str]:
        """The names of the weights of the model's last layer, or of the task's own head."""
        ...

    @property
    def norms(self) -> frozenset[str]:
        """The names of the weights and statistics of normalisation layers."""
        ...

    @property
    def adapters(self) -> frozenset[str]:
        """The names of the weights of low-rank adapters."""
        ...

    def loss(self, w: Arrays) -> float:
        """Return the mean loss at ``w`` over the training data."""
        ...

    def gradient(self, w: Arrays) -> dict[str, Any]:
        """Return the gradient at ``w`` of the mean loss over the training data."""
        ...


class Forward(Protocol):
    """A batch's pass through the model, for an algorithm with a loss of its own: torch tensors."""

    @property
    def loss(self) -> Any:
        """The task's loss."""
        ...

    @property
    def outputs(self) -> Any:
        """The model's outputs."""
        ...

    @property
    def targets(self) -> Any:
        """The targets as the loss takes them."""
        ...

    @property
    def features(self) -> Any:
        """What goes into the model's head, one row for each example."""
        ...

    def at(self, w: Arrays) -> tuple[Any, Any]:
        """Return the outputs and the features at other weights; no gradient passes to them."""
        ...


@dataclass(frozen=True)
class Report:
    """What the server knows of one update without its vectors."""

    device_id: str
    num_examples: int
    scalars: Scalars = field(default_factory=dict)


@dataclass(frozen=True)
class Mean:
    """The weighted means of what a round's clients sent.

    Attributes:
        vectors: the block's means; zeros for a name that nobody sent.
        scalars: the means of the scalars that were sent.
        updates: the number of clients that are in it.
        population: the number of clients that the run knows.
        coverage: only of an algorithm with parts: the total weight of the clients that trained each
            coordinate of the block, by name of the vector. Where it is 0, so is the mean.
    """

    vectors: Blocks
    scalars: Scalars = field(default_factory=dict)
    updates: int = 1
    population: int = 1
    coverage: Blocks = field(default_factory=dict)


@dataclass(frozen=True)
class Algorithm:
    """A federated algorithm; the defaults are federated averaging.

    Its fields are its hyper-parameters and are what configuration may set. No method changes
    what it is given.

    Attributes:
        family: the kind of problem that it is for, which listings are ordered by.
        needs: what the algorithm needs of a task: a head to tell from the rest of the model,
            normalisation layers, low-rank adapters, or the loss itself, which only the torch
            engine gives.
    """

    family: ClassVar[Family] = "server"
    needs: ClassVar[tuple[Need, ...]] = ()

    def __post_init__(self) -> None:
        require_checked(self)

    @property
    def sends(self) -> tuple[str, ...]:
        """The names of the vectors that a client may send."""
        return (UPDATE,)

    @property
    def reports(self) -> tuple[str, ...]:
        """The names of the scalars that a client sends; without one an update is refused."""
        return ()

    @property
    def broadcasts(self) -> tuple[str, ...]:
        """The names of the server's vectors and scalars that clients get."""
        return ()

    @property
    def is_personal(self) -> bool:
        """Whether a client may predict with a model of its own."""
        kind = type(self)
        return (
            kind.personal is not Algorithm.personal or kind.is_private is not Algorithm.is_private
        )

    @property
    def needs_updates(self) -> bool:
        """Whether the server needs the single updates, for ``factors``."""
        return type(self).factors is not Algorithm.factors

    @property
    def narrow_widths(self) -> tuple[float, ...]:
        """The widths below 1 that clients may train, which a task's model is tried with."""
        return ()

    def advice(self, training: Mapping[str, Any]) -> str:
        """Return what to tell a user about these training settings, "" for nothing."""
        del training
        return ""

    # --- which part of the model a client trains ------------------------------------------------

    def width(self, device: DeviceFacts, round_number: int, seed: int) -> float:
        """Return how much of the model a client trains in a round, above 0 and at most 1.

        The server asks once, when the round begins, and keeps the answer with the round.
        """
        del device, round_number, seed
        return 1.0

    def part(self, width: float, round_number: int, layout: Layout) -> Slices | None:
        """Return what a client of that width trains in a round, None for the whole model.

        The client gets, trains and sends nothing else. An algorithm that overrides it names its
        ``narrow_widths``, and has no ``broadcasts`` and no private weights.

        Raises:
            ConfigError: the model cannot be divided so.
        """
        del width, round_number, layout
        return None

    # --- the client half ----------------------------------------------------------------------

    def is_private(self, name: str, local: Local) -> bool:
        """Whether a weight never leaves its device: each client keeps its own."""
        del name, local
        return False

    def is_frozen(self, name: str, local: Local) -> bool:
        """Whether a weight stays as it is: no gradient of it is computed, and nothing is sent."""
        del name, local
        return False

    def start(self, got: Received, state: State, local: Local) -> tuple[Arrays, State]:
        """Return the weights that local training starts from, and the state to train with.

        Args:
            got: what the server sent.
            state: what ``finish`` returned for this client's last accepted update, else empty.
            local: the client's training and data.
        """
        del local
        return {**got.weights, **state.get(PRIVATE, {})}, state

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return what the local optimiser steps along, and the state after the step.

        Args:
            batch: gives the gradient, here or at other weights.
            w: the current weights (with buffers, where the model has any).
            got: what the server sent.
            state: what ``start`` or the step before returned.
            local: the client's training and data.
        """
        del got, local
        return batch.gradient(w), state

    def loss(self, forward: Forward, w: Arrays, got: Received, state: State, local: Local) -> Any:
        """Return the loss to differentiate; called where ``needs`` has "loss"."""
        del w, got, state, local
        return forward.loss

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Return what the client sends, and the state that it keeps once that was accepted."""
        own = {name: w[name] for name in w if self.is_private(name, local)}
        change = {
            name: w[name] - got.weights[name]
            for name in w
            if name not in own and not self.is_frozen(name, local)
        }
        return Sent({UPDATE: change}), {**state, PRIVATE: own} if own else state

    def personal(self, got: Received, state: State, local: Local) -> Arrays | None:
        """Return the weights that this client predicts with, None where they are the global ones.

        Args:
            got: the version that is measured, with its vectors and scalars.
            state: what this client keeps, empty where it has not trained.
            local: the client's data.
        """
        del local
        return {**got.weights, **state[PRIVATE]} if PRIVATE in state else None

    # --- the server half ----------------------------------------------------------------------

    def init(self, weights: Flat, start: int, seed: int) -> dict[str, Flat]:
        """Return a block of the server's vectors before the first round.

        Args:
            weights: the block of version 0.
            start: where in the vector the block begins, a multiple of ``BLOCK``.
            seed: the run's seed.
        """
        del weights, start, seed
        return {}

    def weight(self, report: Report, scalars: Scalars) -> float:
        """Return how much an update counts in the means, 0 or more; ``scalars`` are the server's.

        Overridden, it is rounded to a multiple of ``2**-20``.
        """
        del scalars
        return report.num_examples

    def factors(self, gram: Flat, reports: Sequence[Report]) -> Sequence[float]:
        """Return what each update is multiplied by before they are added up to the "means".

        Overridden, every update is kept until the round's end, all are read once more, and neither
        weights nor numbers of examples count. What it costs grows with the square of their number.

        Args:
            gram: the dot products of all pairs of updates, [updates, updates].
            reports: of the updates, in the same order, by device.
        """
        del gram, reports
        return ()

    def measure(self, weights: Flat, mean: Mean, state: Blocks) -> dict[str, float]:
        """Return numbers of a block, such as a squared norm, whose sums ``advance`` is given.

        Overridden, it costs a pass over all blocks before that of ``aggregate``.
        """
        del weights, mean, state
        return {}

    def advance(
        self, mean: Mean, reports: Sequence[Report], scalars: Scalars, measured: Scalars
    ) -> Scalars:
        """Return the server's next scalars, which ``aggregate`` and the next round are given.

        Args:
            mean: without its vectors.
            reports: of the updates that are in it, by device.
            scalars: the server's scalars until now, empty before the first round.
            measured: the sums over all blocks of what ``measure`` returned.
        """
        del mean, reports, measured
        return scalars

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Return the next global weights and the server's next vectors, for one block.

        Args:
            weights: the global weights that the clients started from.
            mean: what the clients sent.
            state: the server's vectors.
            scalars: what ``advance`` returned.
        """
        del scalars
        return (weights + mean.vectors[UPDATE]).astype(weights.dtype, copy=False), dict(state)


def initial(algorithm: Algorithm, weights: Flat, seed: int) -> dict[str, Flat]:
    """Return the server's vectors before the first round, whole."""
    found: dict[str, list[Flat]] = {}
    for start in range(0, len(weights), BLOCK):
        for name, block in algorithm.init(weights[start : start + BLOCK], start, seed).items():
            found.setdefault(name, []).append(block)
    return {name: np.concatenate(blocks) for name, blocks in found.items()}
