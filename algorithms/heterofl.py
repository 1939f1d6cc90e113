"""HeteroFL: devices train the first units of each layer, as many as they can.

Source: Diao et al., "HeteroFL: Computation and Communication Efficient Federated Learning for
Heterogeneous Clients", ICLR 2021, Algorithm 1, https://arxiv.org/abs/2010.01264. Each coordinate
becomes the mean over the devices that have it, here weighted by their examples; one that nobody has
stays. While a narrow model is trained, the outputs of its hidden layers are divided by its width
(section 3, "scaler"), as if its weights were so much larger. Batch normalisation uses a batch's own
statistics in training, as "static batch normalization" there; the running ones, which evaluation
needs, are averaged every round instead of being asked for once after the last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from algorithms._widths import Narrowed, layout_of, multiplying
from algorithms.base import UPDATE, Arrays, Batch, Local, Received, Sent, State


@dataclass(frozen=True)
class HeteroFL(Narrowed):
    """FedAvg in which weak devices train and download the first units of each layer alone.

    The scaler makes a narrow model's gradients larger, so that learning rates are lower than of
    FedAvg: 0.01 in the paper.
    """

    def advice(self, training: Mapping[str, Any]) -> str:
        """Tell that Adam does not see how the scaler changes gradients."""
        if self.widths and training.get("optimizer") == "adam":
            return "with adam, narrow devices take smaller steps than whole ones: use sgd"
        return ""

    def start(self, got: Received, state: State, local: Local) -> tuple[Arrays, State]:
        """Return ``w / width`` for the weights of hidden layers: so the forward pass has them."""
        return self._times(1 / local.width, got.weights), state

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return ``g / width^2``: the chain rule to the weights, and from them to what is kept."""
        return self._times(local.width**-2, batch.gradient(w)), state

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Return the change of the weights, without the scaler's factor."""
        scaled = replace(got, weights=self._times(1 / local.width, got.weights))
        sent, state = super().finish(w, scaled, state, local)
        return Sent({UPDATE: self._times(local.width, sent.vectors[UPDATE])}), state

    @staticmethod
    def _times(factor: float, arrays: Arrays) -> Arrays:
        if factor == 1:
            return arrays
        hidden = multiplying(layout_of(arrays))
        return {name: arrays[name] * factor if name in hidden else arrays[name] for name in arrays}
