"""What a device's training in one round is given, and what it returns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from numpy.typing import NDArray

from algorithms.base import Algorithm
from algorithms.transforms.base import Transform
from fl_client.models.settings import TrainingSettings
from storage.weights import Vector

Progress: TypeAlias = Callable[[float, float | None], None]
"""Called at every step with the fraction done and the mean loss of the last whole epoch."""


def no_progress(fraction: float, loss: float | None) -> None:
    """Report nothing."""


class Checkpoint(Protocol):
    """Where a round's training saves what it needs to resume after a power cut.

    It belongs to one order on one device and to the model that the order names. The training
    thread calls its methods, between two steps.
    """

    def load(self) -> dict[str, NDArray[Any]] | None:
        """Return what was saved last, byte for byte, or None."""
        ...

    def due(self) -> bool:
        """Return whether to save now: asked after every step, so it must be cheap."""
        ...

    def save(self, arrays: dict[str, NDArray[Any]]) -> None:
        """Save ``arrays``, of any numpy number type; the next step overwrites them."""
        ...


@dataclass
class Tally:
    """How many steps this process took in a round's training, and how long they took.

    Attributes:
        steps: its own, in ``steps_s`` seconds, without those of an earlier process.
        full_steps: those of all epochs on this data.
        micro_batch: the size of the parts that batches are computed in, 0 for whole batches.
    """

    steps: int = 0
    steps_s: float = 0.0
    full_steps: int = 0
    micro_batch: int = 0


@dataclass(frozen=True)
class LocalRound:
    """What one device's training in one round depends on, beside weights and data.

    Attributes:
        seed: the run's seed.
        device_id: with ``seed`` and ``round`` it determines the order of the batches.
        state: the algorithm's client state after this device's last accepted update.
        vectors: the algorithm's server vectors, each as long as the model's floats.
        scalars: the algorithm's server scalars.
        checkpoint: where to continue from and what to save to, if anywhere.
        memory_bytes: what the whole process may hold, 0 for no limit. The numpy engine computes
            its batches in parts small enough for it.
        width: how much of the model is trained; below 1 the weights are those of a part.
        transforms: what is done to the update before it is sent; what they keep is in ``state``.
        tally: is filled in during training.
    """

    algorithm: Algorithm
    settings: TrainingSettings
    seed: int
    round: int
    device_id: str
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    progress: Progress = no_progress
    checkpoint: Checkpoint | None = None
    memory_bytes: int = 0
    width: float = 1.0
    transforms: tuple[Transform, ...] = ()
    tally: Tally = field(default_factory=Tally, compare=False)

    @property
    def local_seed(self) -> int:
        """A seed for this device and round alone."""
        text = f"{self.seed}/{self.round}/{self.device_id}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class LocalUpdate(NamedTuple):
    """What a device sends, and its next client state.

    Attributes:
        vector: the change of the weights; None where the algorithm's client sends none.
        vectors: the algorithm's further vectors by name.
        scalars: the algorithm's scalars by name.
    """

    vector: Vector | None
    num_examples: int
    metrics: dict[str, float]
    state: Mapping[str, NDArray[Any]] = {}
    vectors: Mapping[str, Vector] = {}
    scalars: Mapping[str, float] = {}


class Evaluation(NamedTuple):
    """Means over ``num_examples`` held-out examples; ``loss`` is among the metrics."""

    num_examples: int
    metrics: dict[str, float]
