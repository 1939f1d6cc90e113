"""FedALA: each client learns how much of the global head it takes over, weight by weight.

Source: Zhang et al., "FedALA: Adaptive Local Aggregation for Personalized Federated Learning",
AAAI 2023, equations 4 to 6 and Algorithm 1, https://arxiv.org/abs/2212.01197.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from algorithms.base import Arrays, Family, Local, Need, Received, Sent, State
from algorithms.fedavg import FedAvg
from runtime.bounds import MAX_SIZE
from runtime.records import Bounds

_OWN, _MIXING = "own", "mixing"


@dataclass(frozen=True)
class FedALA(FedAvg):
    """FedAvg whose clients begin each round between their own head and the global one.

    Attributes:
        mixing_rate: the learning rate of the mixing weights; 0 is FedAvg.
        mixing_steps: the number of steps in a round, each on the whole of a client's data.
        first_mixing_steps: their number where there are no mixing weights yet; the paper goes on
            until these converge.
    """

    family: ClassVar[Family] = "personal"
    needs: ClassVar[tuple[Need, ...]] = ("head",)

    mixing_rate: Annotated[float, Bounds(least=0)] = 1.0
    mixing_steps: Annotated[int, Bounds(least=0, most=MAX_SIZE)] = 1
    first_mixing_steps: Annotated[int, Bounds(least=0, most=MAX_SIZE)] = 20

    def start(self, got: Received, state: State, local: Local) -> tuple[Arrays, State]:
        """Return ``own + (global - own) * mixing`` for the head, the global weights for the rest.

        Before, ``mixing`` goes down the gradient, ``F'(w) * (global - own)``, within 0 and 1.
        """
        if _OWN not in state:
            return got.weights, state
        apart = {name: got.weights[name] - own for name, own in state[_OWN].items()}
        mixing = state.get(_MIXING) or {name: apart[name] * 0 + 1 for name in apart}
        w = self._mixed(got, apart, mixing)
        for _ in range(self.mixing_steps if _MIXING in state else self.first_mixing_steps):
            g = local.gradient(w)
            mixing = {
                name: (mixing[name] - self.mixing_rate * (g[name] * apart[name])).clip(0, 1)
                for name in mixing
                if name in g
            }
            w = self._mixed(got, apart, mixing)
        return w, {**state, _MIXING: mixing}

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Return FedAvg's update, and keep the head."""
        sent, state = super().finish(w, got, state, local)
        return sent, {**state, _OWN: {name: w[name] for name in w if name in local.head}}

    def personal(self, got: Received, state: State, local: Local) -> Arrays | None:
        """Return the weights that the client would start to train from."""
        return self.start(got, state, local)[0] if _OWN in state else None

    def _mixed(self, got: Received, apart: Arrays, mixing: Arrays) -> Arrays:
        # from the global side: where all is taken over, not a bit of it is changed
        part = {name: got.weights[name] + (mixing[name] - 1) * apart[name] for name in mixing}
        return {**got.weights, **part}
