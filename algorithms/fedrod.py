"""Fed-RoD: a generic head by a class-balanced loss, and a personal head on top of it.

Source: Chen, Chao, "On Bridging Generic and Personalized Federated Learning for Image
Classification", ICLR 2022, Algorithm 1 with the balanced softmax loss and linear personal heads,
https://arxiv.org/abs/2107.00778.

The balanced loss adds the logarithms of the class shares to the outputs. That is the plain loss
with them in the head's bias, where they stand during local training. The outputs of two linear
heads together are those of the sum of their weights. So both losses are the task's own. The shares
follow from it too: with a head of zeros all ``C`` classes are as likely, and the gradient for the
bias is ``1 / C`` less the class's share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from algorithms._advice import plain_steps
from algorithms.base import Arrays, Batch, Family, Local, Need, Received, Sent, State
from algorithms.fedavg import FedAvg
from runtime.errors import ConfigError
from runtime.records import Bounds

_OWN, _SHIFT = "own", "shift"
_ABSENT = 1e-6
"""What a class that a client has none of counts as, beside 1 for an equal share."""


@dataclass(frozen=True)
class FedRoD(FedAvg):
    """FedAvg by a class-balanced loss, with a personal head by the plain loss on top.

    It is for classification by cross-entropy, under a head of one linear layer with a bias.

    Attributes:
        balance: the power of the class shares; 0 is FedAvg beside the personal heads.
    """

    family: ClassVar[Family] = "personal"
    needs: ClassVar[tuple[Need, ...]] = ("head",)

    balance: Annotated[float, Bounds(least=0)] = 1.0

    def advice(self, training: Mapping[str, Any]) -> str:
        """Tell that personal models are not trained by the optimiser."""
        return plain_steps(training)

    def start(self, got: Received, state: State, local: Local) -> tuple[Arrays, State]:
        """Return the global weights, the bias with ``balance * log(C * share)`` of each class."""
        w = got.weights
        biases = [name for name in w if name in local.head and len(w[name].shape) == 1]
        if len(biases) != 1 or len(local.head) > 2:
            raise ConfigError("fedrod needs a head of one linear layer with a bias")
        (bias,) = biases
        g = local.gradient({**w, **{name: w[name] * 0 for name in local.head}})[bias]
        counts = [round(count) for count in ((1 / len(g) - g) * local.num_examples).tolist()]
        if min(counts) < 0 or sum(counts) != local.num_examples:
            raise ConfigError("fedrod needs a classification by the mean cross-entropy")
        shift: Any = w[bias] * 0
        for number, count in enumerate(counts):
            share = max(len(counts) * count / local.num_examples, _ABSENT)
            shift[number] = self.balance * math.log(share)
        own = state.get(_OWN) or {name: w[name] * 0 for name in local.head}
        return {**w, bias: w[bias] + shift}, {**state, _OWN: own, _SHIFT: {bias: shift}}

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return the balanced loss's gradient, and the personal head after a plain step."""
        g, own, plain = batch.gradient(w), state[_OWN], self._unshifted(w, state)
        h = batch.gradient({**plain, **{name: plain[name] + own[name] for name in own}})
        after = {name: own[name] - local.learning_rate * h[name] for name in own}
        return g, {**state, _OWN: after}

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Return the change of the weights, without what ``start`` put into the bias."""
        return super().finish(self._unshifted(w, state), got, {_OWN: state[_OWN]}, local)

    def personal(self, got: Received, state: State, local: Local) -> Arrays | None:
        """Return the global weights, with the personal head added to the head."""
        if _OWN not in state:
            return None
        return {**got.weights, **{n: got.weights[n] + own for n, own in state[_OWN].items()}}

    def _unshifted(self, w: Arrays, state: State) -> Arrays:
        return {**w, **{name: w[name] - shift for name, shift in state[_SHIFT].items()}}
