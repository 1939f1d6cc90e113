"""What orders ask of devices, from the task's model, the clients' data and the settings."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fl_client.models import layers
from fl_client.tasks.user_code import model_of
from rengo.simulation.backend import VirtualOrder
from rengo.simulation.clients import VirtualClients
from rengo.simulation.virtual.flops import TRAINING, forward_flops, forward_flops_of
from rengo.simulation.virtual.work import OrderSize
from storage.weights import Weights

if TYPE_CHECKING:
    from fl_client.tasks.split import Split

_FLOAT_BYTES = 4


class OrderSizes:
    """The sizes of a run's orders.

    A declared model's operations are counted layer by layer; a torch module counts two for each
    weight and example. An update counts whole with each vector that its algorithm may send.
    """

    def __init__(self, clients: VirtualClients, weights: Weights) -> None:
        self._clients, self._layout = clients, weights.layout
        self._model_bytes = sum(tensor.stored_bytes for tensor in weights.layout.tensors)

    def training(
        self, order: VirtualOrder, vectors: tuple[int, int], share: float = 1.0
    ) -> OrderSize:
        """Return what a client's order to train asks of it.

        Args:
            vectors: how many vectors of the model's size come beside the model, and how many go.
            share: of the model that the client trains, and gets and sends.
        """
        settings = order.settings
        split, _ = self._clients.splits(order.client)
        examples = _count(split)
        in_epoch = math.ceil(examples / settings.batch_size)
        steps = settings.local_epochs * in_epoch
        seen = settings.local_epochs * examples
        if 0 < settings.max_steps < steps:
            whole, rest = divmod(settings.max_steps, in_epoch)
            seen = whole * examples + min(examples, rest * settings.batch_size)
            steps = settings.max_steps
        with_it, sent = (
            round(share * count * self._layout.size * _FLOAT_BYTES) for count in vectors
        )
        flops = share * TRAINING * self._forward_flops
        return OrderSize(seen, steps, flops, round(share * self._model_bytes) + with_it, sent)

    def evaluation(self, examples: int) -> OrderSize:
        """Return what an order to evaluate asks of a device with so many held-out examples."""
        return OrderSize(examples, 0, self._forward_flops, self._model_bytes, 0)

    @cached_property
    def _forward_flops(self) -> float:
        model, (split, _) = model_of(self._clients.task), self._clients.splits(0)
        if layers.is_declarative(model) and isinstance(split, tuple):
            return forward_flops(model, split[0].shape[1:])
        return forward_flops_of(self._layout.size)


def _count(split: Split) -> int:
    """Return how many examples there are, 0 where a data set does not know."""
    examples: Any = split[0] if isinstance(split, tuple) else split
    return len(examples) if hasattr(examples, "__len__") else 0
