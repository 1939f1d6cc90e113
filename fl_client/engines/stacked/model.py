"""A declarative model of several clients at once: its pass forward and back over their batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fl_client.engines.stacked.layers import StackedCall, forward
from fl_client.engines.stacked.losses import Share, loss_of
from fl_client.models import layers, memory
from fl_client.models.dropout import DropoutMasks
from fl_client.models.layers import Layers
from fl_client.models.settings import Objective

Array: TypeAlias = NDArray[Any]


class StackedModel:
    """What the models of a cohort's clients have in common; ``size`` is one's number of weights."""

    def __init__(self, model: Layers, objective: Objective) -> None:
        self._layers, self._objective = model, objective
        tensors = layers.tensors(model)
        self.trained = [name for name, tensor in tensors.items() if tensor.role == "weight"]
        self.size = sum(math.prod(tensor.shape) for tensor in tensors.values())
        self._first = int(self.trained[0].partition(".")[0])
        pairs = zip(model[1:], model, strict=False)
        self._in_place = [False, *(memory.overwrites(after, before) for after, before in pairs)]
        # what the last layer returns may be overwritten, unless its backward pass needs it
        self._owned = isinstance(model[-1], layers.Linear)

    def gradient(
        self,
        w: Mapping[str, Array],
        batch: tuple[Array, Array, Share],
        masks: Sequence[DropoutMasks] | None,
        grads: dict[str, Array],
        scale: np.float32 | None = None,
    ) -> Array:
        """Return each client's mean loss, and store the gradients of the trained weights.

        Args:
            w: [clients, ...] each, without that axis where all clients share one.
            batch: inputs and targets, [clients, batch, ...], and what each example counts.
            masks: each client's dropout of the step.
            grads: where the gradients are stored; arrays in it are overwritten.
            scale: a factor on all gradients.
        """
        outputs, targets, share = batch
        backwards = []
        for index, layer in enumerate(self._layers):
            call = StackedCall(
                index, w, grads, masks, self._in_place[index], first=index <= self._first
            )
            outputs, backward = forward(layer, call, outputs)
            backwards.append(backward)
        if not self._owned:
            outputs = outputs.copy()
        losses, dy = loss_of(self._objective, outputs, targets, share)
        if scale is not None:
            dy *= scale
        while len(backwards) > self._first:
            dy = backwards.pop()(dy)
        return losses
