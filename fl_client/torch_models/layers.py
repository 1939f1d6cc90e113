"""Declared layers as torch modules, with the names and the behaviour of the numpy engine."""

from __future__ import annotations

from typing import cast

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fl_client.models import layers
from fl_client.models.dropout import DropoutMasks
from runtime.errors import ConfigError


def declared_module(declared: layers.Layers) -> torch.nn.Module:
    """Return declared layers as a torch module.

    A maximum is taken before the ReLU that is declared before it, and images have their channels
    last in memory: both compute the same sooner.
    """
    model = torch.nn.Sequential(*(_layer(*each) for each in _pooled_first(declared)))
    if any(isinstance(layer, layers.Conv2d) for layer in declared):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _pooled_first(declared: layers.Layers) -> list[tuple[int, layers.Layer]]:
    """Return the layers in the order of their computation, each with its declared number.

    ``max(relu(x))`` is ``relu(max(x))``, value for value and gradient for gradient, of a quarter of
    the values. Neither has weights, so that no name of a weight depends on their order.
    """
    order = list(enumerate(declared))
    for place in range(len(order) - 1):
        one, other = order[place][1], order[place + 1][1]
        pools = isinstance(other, layers.MaxPool1d | layers.MaxPool2d)
        if isinstance(one, layers.ReLU) and pools:
            order[place : place + 2] = order[place + 1], order[place]
    return order


def use_masks(model: torch.nn.Module, masks: DropoutMasks) -> None:
    """Make the model's declared dropout use ``masks``."""
    for part in model.modules():
        if isinstance(part, _Dropout):
            part.masks = masks


class _Dropout(torch.nn.Module):
    def __init__(self, index: int, rate: float) -> None:
        super().__init__()
        self.masks: DropoutMasks | None = None
        self._index, self._rate = index, rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.masks is None or self._rate == 0:
            return x
        keep = torch.from_numpy(self.masks.mask(self._index, tuple(x.shape), self._rate))
        return x * keep.to(x.device) * (1 / (1 - self._rate))


class _Norm(_BatchNorm):
    """Batch normalisation for any number of axes, also for a batch of one value."""

    def _check_input_dim(self, input: torch.Tensor) -> None:  # noqa: A002  torch's name
        """Accept any shape: torch has one class for each number of axes."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        if input.numel() > input.shape[1]:
            return super().forward(input)
        return torch.nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class AdaptedLinear(torch.nn.Linear):
    """A linear layer with a low-rank adapter; see :class:`fl_client.models.layers.Linear`."""

    def __init__(self, inputs: int, outputs: int, rank: int, *, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias)
        bound = inputs**-0.5
        self.lora_a = torch.nn.Parameter(torch.empty(rank, inputs).uniform_(-bound, bound))
        self.lora_b = torch.nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer and its adapter give together."""
        return super().forward(x) + x @ self.lora_a.T @ self.lora_b.T


class _Gru(torch.nn.GRU):
    def __init__(self, layer: layers.GRU) -> None:
        super().__init__(layer.inputs, layer.hidden, batch_first=True)
        self._sequence = layer.sequence

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        states, last = super().forward(x)
        return states if self._sequence else last[0]


class _Lstm(torch.nn.LSTM):
    def __init__(self, layer: layers.LSTM) -> None:
        super().__init__(layer.inputs, layer.hidden, batch_first=True)
        self._sequence = layer.sequence

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        states, (last, _) = super().forward(x)
        return states if self._sequence else last[0]


class _Embedding(torch.nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        return super().forward(input.long())


class _Reshape(torch.nn.Module):
    def __init__(self, shape: layers.Shape) -> None:
        super().__init__()
        self._shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # len() would make the batch's size a constant of an exported graph
        return x.reshape(x.shape[0], *self._shape)


class _Transpose(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2)


class _GlobalAvgPool(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(tuple(range(2, x.ndim)))


def _layer(index: int, layer: layers.Layer) -> torch.nn.Module:
    found = _weighted(layer) or _reshaping(layer) or _plain(index, layer)
    if found is None:
        raise ConfigError(f"the torch engine has no layer {layer!r}")
    return found


def _weighted(layer: layers.Layer) -> torch.nn.Module | None:
    match layer:
        case layers.Linear():
            return _linear(layer)
        case layers.Conv1d() | layers.Conv2d():
            kind = torch.nn.Conv1d if isinstance(layer, layers.Conv1d) else torch.nn.Conv2d
            sizes = (layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.padding)
            return kind(*sizes, bias=layer.bias)
        case layers.BatchNorm():
            return _Norm(layer.features, layer.epsilon, layer.momentum)
        case layers.LayerNorm():
            return torch.nn.LayerNorm(layer.shape, layer.epsilon)
        case layers.GRU():
            return _Gru(layer)
        case layers.LSTM():
            return _Lstm(layer)
        case layers.Embedding():
            return _Embedding(layer.count, layer.size)
    return None


def _linear(layer: layers.Linear) -> torch.nn.Module:
    if layer.rank:
        return AdaptedLinear(layer.inputs, layer.outputs, layer.rank, bias=layer.bias)
    return torch.nn.Linear(layer.inputs, layer.outputs, layer.bias)


def _reshaping(layer: layers.Layer) -> torch.nn.Module | None:
    match layer:
        case layers.MaxPool1d() | layers.MaxPool2d() | layers.AvgPool1d() | layers.AvgPool2d():
            # they have the names of torch's modules
            return cast("torch.nn.Module", getattr(torch.nn, type(layer).__name__)(layer.size))
        case layers.GlobalAvgPool():
            return _GlobalAvgPool()
        case layers.Flatten():
            return torch.nn.Flatten()
        case layers.Reshape():
            return _Reshape(layer.shape)
        case layers.Transpose():
            return _Transpose()
    return None


def _plain(index: int, layer: layers.Layer) -> torch.nn.Module | None:
    match layer:
        case layers.Dropout():
            return _Dropout(index, layer.rate)
        case layers.ReLU():
            return torch.nn.ReLU()
        case layers.Tanh():
            return torch.nn.Tanh()
        case layers.Sigmoid():
            return torch.nn.Sigmoid()
    return None
