"""The local optimisers, written once for numpy arrays and torch tensors.

Only the step's direction is a new array; all else is in place, so that a step needs no second
model. A batch's gradient is clipped first, then the algorithm adds to it, then comes the weight
decay, so that neither a correction nor the decay is scaled down with a long gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from fl_client.models.settings import TrainingSettings

Named: TypeAlias = Mapping[str, Any]
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_CLIP_EPSILON = 1e-6


def clip_factor(norms: Iterable[float], clip_norm: float) -> float:
    """Return what a gradient is multiplied by, as ``torch.nn.utils.clip_grad_norm_`` has it.

    A gradient that is not finite is left as it is: training ends with its loss.

    Args:
        norms: of the gradient of each weight.
        clip_norm: the largest norm of all of them together, 0 for no bound.
    """
    if not clip_norm:
        return 1.0
    total = math.hypot(*norms)
    return min(1.0, clip_norm / (total + _CLIP_EPSILON)) if math.isfinite(total) else 1.0


class Descent:
    """One round's optimiser: its state, by name of the weight, and its number of steps."""

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self.steps = 0
        self.state: dict[str, dict[str, Any]] = {}

    def step(self, w: Named, g: Named) -> None:
        """Take one step along ``g``, in place."""
        self.steps += 1
        adam, decay = self._settings.optimizer == "adam", self._settings.weight_decay
        for name, gradient in g.items():
            grad = gradient + decay * w[name] if decay else gradient
            direction = self._adam(name, grad) if adam else self._sgd(name, grad)
            target = w[name]
            # the product first: a fused operation would round differently
            target -= self._settings.learning_rate * direction

    def arrays(self) -> Iterator[tuple[str, Any]]:
        """Yield the state as named arrays; the number of steps is not among them."""
        for kind, named in self.state.items():
            for name, array in named.items():
                yield f"{kind}/{name}", array

    def restore(self, path: str, array: Any) -> None:
        """Set one of the arrays that ``arrays`` gave."""
        kind, _, name = path.partition("/")
        self.state.setdefault(kind, {})[name] = array

    def _sgd(self, name: str, grad: Any) -> Any:
        """Return the direction as ``torch.optim.SGD`` has it."""
        if not self._settings.momentum:
            return grad
        momentum = self.state.setdefault("momentum", {})
        if name not in momentum:
            momentum[name] = grad * 1
            return momentum[name]
        momentum[name] *= self._settings.momentum
        momentum[name] += grad
        return momentum[name]

    def _adam(self, name: str, grad: Any) -> Any:
        """Return the direction as ``torch.optim.Adam`` has it.

        Source: Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, Algorithm 1,
        https://arxiv.org/abs/1412.6980.
        """
        first, second = (self.state.setdefault(kind, {}) for kind in ("first", "second"))
        if name not in first:
            first[name], second[name] = grad * 0, grad * 0
        first[name] *= _BETA1
        first[name] += (1 - _BETA1) * grad
        second[name] *= _BETA2
        second[name] += (1 - _BETA2) * (grad * grad)
        scale = (second[name] / (1 - _BETA2**self.steps)) ** 0.5
        scale += _EPSILON
        return first[name] / (1 - _BETA1**self.steps) / scale
