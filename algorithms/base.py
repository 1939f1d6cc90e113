"""What a federated algorithm is: pure functions over explicit state, in two halves.

The server half works on flat vectors, or on any block of them, so that a server can hold one
block at a time. The client half works on named arrays and is written with ``+ - *`` only, so
that torch tensors and numpy arrays both pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Arrays: TypeAlias = Mapping[str, Any]
"""Name to array: numpy arrays or torch tensors, all of one kind."""

Flat: TypeAlias = NDArray[np.floating[Any]]
"""A flat vector of weights, or a block of one."""

ServerState: TypeAlias = Mapping[str, Flat]
"""Named flat vectors, each as long as the weights: a block of the weights has its own block."""


@dataclass(frozen=True)
class Algorithm:
    """A federated algorithm; the defaults are federated averaging.

    Its fields are its hyper-parameters and are what configuration may set. No method changes
    what it is given.
    """

    kind: ClassVar[Literal["delta", "weights"]] = "delta"
    """What a client sends: the change of the weights, or the weights themselves."""

    needs_loss: ClassVar[bool] = False
    """Whether ``loss`` must be called: only the torch engine can."""

    def init(self, size: int) -> dict[str, Flat]:
        """Return the server's state before the first round, for ``size`` weights."""
        del size
        return {}

    def aggregate(
        self, weights: Flat, mean_update: Flat, state: ServerState
    ) -> tuple[Flat, dict[str, Flat]]:
        """Return the next global weights and server state.

        Args:
            weights: the global weights that the clients started from.
            mean_update: the weighted mean of what the clients sent.
            state: the server's state for this block.
        """
        if self.kind == "weights":
            return mean_update.astype(weights.dtype), dict(state)
        return (weights + mean_update).astype(weights.dtype, copy=False), dict(state)

    def begin(self, global_: Arrays, state: Arrays) -> Arrays:
        """Return the client's state at the start of its local training.

        Args:
            global_: the global weights of this round.
            state: what ``finish`` returned for this client's last accepted update, else empty.
        """
        del global_
        return state

    def gradient(self, g: Arrays, w: Arrays, w0: Arrays, state: Arrays) -> Arrays:
        """Return the gradient to step along; called at every step.

        Args:
            g: the gradient of the loss, for the trainable weights alone.
            w: the current weights (with buffers, where the model has any).
            w0: the global weights that training started from.
            state: what ``begin`` returned.
        """
        del w, w0, state
        return g

    def loss(self, loss: Any, w: Arrays, w0: Arrays, state: Arrays) -> Any:
        """Return the loss to differentiate, in place of ``loss``; called where ``needs_loss``."""
        del w, w0, state
        return loss

    def finish(self, w: Arrays, w0: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        """Return what the client sends, of the declared ``kind``, and its state to keep."""
        if self.kind == "weights":
            return dict(w), state
        return {name: w[name] - w0[name] for name in w}, state
