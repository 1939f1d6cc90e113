"""What the numpy engine passes to a layer beside its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

from fl_client.models.dropout import DropoutMasks

Array: TypeAlias = NDArray[Any]
Backward: TypeAlias = Callable[[Array], Array]
"""Returns the gradient at the input for that at the output, which it may overwrite."""


@dataclass(frozen=True)
class GradientOf:
    """Which gradient of a batch is wanted.

    Attributes:
        class_weights: how much each class counts in the loss; None is 1 each.
        frozen: the names of weights that are left out.
    """

    class_weights: Array | None = None
    frozen: frozenset[str] = frozenset()


OF_ALL = GradientOf()


@dataclass(frozen=True)
class LayerCall:
    """One layer's part in a pass over the model.

    Attributes:
        index: the layer's number in the model.
        w: the model's tensors.
        grads: where the gradients of the weights are stored.
        masks: the dropout of this step; None outside training.
        in_place: whether the input is not needed any more, so that it may be overwritten.
        first: whether no layer before this one is trained, so that its input needs no gradient.
        frozen: the names of weights whose gradients are not wanted.
    """

    index: int
    w: Mapping[str, Array]
    grads: MutableMapping[str, Array]
    masks: DropoutMasks | None = None
    in_place: bool = False
    first: bool = False
    frozen: frozenset[str] = frozenset()

    def tensor(self, part: str) -> Array:
        """Return a tensor of this layer."""
        return self.w[f"{self.index}.{part}"]

    def optional(self, part: str) -> Array | None:
        """Return a tensor of this layer, None if it has no such tensor."""
        return self.w.get(f"{self.index}.{part}")

    def trains(self, part: str) -> bool:
        """Return whether the gradient of a weight of this layer is wanted."""
        return f"{self.index}.{part}" not in self.frozen

    def store_gradient(self, part: str, value: Array) -> None:
        """Store the gradient of a weight of this layer, where it is wanted."""
        if self.trains(part):
            self.grads[f"{self.index}.{part}"] = value
