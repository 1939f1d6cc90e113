"""What a layer in numpy is given beside its input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from numpy.typing import NDArray

from fl_client.models.dropout import Masks

Array: TypeAlias = NDArray[Any]
Backward: TypeAlias = Callable[[Array], Array]
"""From the gradient at the output, which it may overwrite, to that at the input."""


@dataclass(frozen=True)
class Call:
    """One layer's place in a pass over the model.

    Attributes:
        grads: where the gradients of the weights go.
        masks: the dropout of this step; None outside training.
        in_place: whether nobody needs the input any more, so that it may be overwritten.
        first: whether nothing before this layer is trained: its input's gradient is not wanted.
    """

    index: int
    w: Mapping[str, Array]
    grads: MutableMapping[str, Array]
    masks: Masks | None = None
    in_place: bool = False
    first: bool = False

    def tensor(self, part: str) -> Array:
        """Return a tensor of this layer."""
        return self.w[f"{self.index}.{part}"]

    def optional(self, part: str) -> Array | None:
        """Return a tensor of this layer, None where the layer has none."""
        return self.w.get(f"{self.index}.{part}")

    def gradient(self, part: str, value: Array) -> None:
        """Leave the gradient of a weight of this layer."""
        self.grads[f"{self.index}.{part}"] = value
