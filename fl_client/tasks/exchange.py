"""What a task is given in an exchange, and what it answers: one message of a flow with several."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from runtime.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fl_client.datasets.device import Device
    from fl_client.tasks.split import Split
    from storage.weights import Weights


class DataOwner(Protocol):
    """A device with its data, as an exchange needs it."""

    device: Device

    @property
    def train_split(self) -> Split:
        """The data to learn from; ConfigError when the device has none."""
        ...

    @property
    def held_out_split(self) -> Split:
        """The data to evaluate on; ConfigError when the device has none."""
        ...


@dataclass(frozen=True)
class ExchangeStep:
    """One message of a flow to this device.

    Attributes:
        phase: which of the round's phases it belongs to, as the flow calls it.
        seq: which message of the phase.
        payload: what the flow says.
        seed: of the run.
        weights: the order's model, where it has one.
        state: what the run keeps on this device: of its exchanges and its trainings, by name.
    """

    run_id: str
    round: int
    attempt: int
    phase: str
    seq: int
    payload: bytes
    seed: int
    weights: Weights | None = None
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class ExchangeAnswer(NamedTuple):
    """What goes back to the flow, and the next state of the run on this device, if any."""

    payload: bytes
    metrics: dict[str, float]
    state: Mapping[str, NDArray[Any]]


class ExchangeContext:
    """What ``Task.exchange`` knows: the message, the device and its data.

    After a kill the same message may be given to the task again. So an answer should be a function
    of what is here: the message, the state, the data, and ``random``.
    """

    def __init__(self, owner: DataOwner, step: ExchangeStep) -> None:
        self._owner = owner
        self.step = step
        self.next_state: Mapping[str, NDArray[Any]] = {}

    @property
    def phase(self) -> str:
        """The phase of the round."""
        return self.step.phase

    @property
    def seq(self) -> int:
        """The number of the message within its phase."""
        return self.step.seq

    @property
    def payload(self) -> bytes:
        """What the flow says."""
        return self.step.payload

    @property
    def weights(self) -> Weights | None:
        """The order's model, None where it has none."""
        return self.step.weights

    @property
    def state(self) -> Mapping[str, NDArray[Any]]:
        """What ``keep`` was last given in this run, as of the last answer that was accepted."""
        return self.step.state

    @property
    def device(self) -> Device:
        """The device that answers."""
        return self._owner.device

    @property
    def train_split(self) -> Split:
        """The device's training data; ConfigError when it has none."""
        return self._owner.train_split

    @property
    def held_out_split(self) -> Split:
        """The device's held-out data; ConfigError when it has none."""
        return self._owner.held_out_split

    def random(self) -> np.random.Generator:
        """Return random numbers that are this message's on this device, the same every time.

        They follow from the run's seed: no secret may be made of them.
        """
        step = self.step
        text = f"{step.seed}/{step.round}/{step.phase}/{step.seq}/{self.device.id}"
        return np.random.default_rng(
            int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
        )

    def keep(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays for the run's next exchange or training on this device, instead of ``state``.

        They count once the server has accepted this answer; until then the run waits here.
        """
        self.next_state = dict(state)


def checked_answer(task_name: str, given: object, context: ExchangeContext) -> ExchangeAnswer:
    """Return what a task's ``exchange`` gave, with its types checked.

    Raises:
        ConfigError: it is neither bytes nor bytes and metrics.
    """
    payload, metrics = given if isinstance(given, tuple) and len(given) == 2 else (given, {})
    if not isinstance(payload, bytes | bytearray | memoryview):
        raise ConfigError(
            f"task {task_name}: exchange gave a {type(payload).__name__}, not bytes "
            "or a pair of bytes and metrics"
        )
    if not isinstance(metrics, dict):
        raise ConfigError(f"task {task_name}: the metrics of exchange are a dict of numbers")
    return ExchangeAnswer(bytes(payload), metrics, context.next_state)
