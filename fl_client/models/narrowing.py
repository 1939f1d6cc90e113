"""A model of layers with fewer units in each, whose sizes are those of the weights it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fl_client.models.layers import (
    GRU,
    LSTM,
    BatchNorm,
    Conv1d,
    Conv2d,
    Embedding,
    Layer,
    LayerNorm,
    Layers,
    Linear,
    Reshape,
    Shape,
    tensors,
)
from runtime.errors import ConfigError


def narrowed(layers: Layers, shapes: Mapping[str, Shape]) -> Layers:
    """Return the layers with the sizes of these weights.

    Args:
        shapes: of every tensor, by its name in the model.

    Raises:
        ConfigError: the sizes are not those of a narrower model with the same inputs and outputs.
    """
    expected = tensors(layers)
    if expected.keys() != shapes.keys():
        raise ConfigError("the weights are not those of the model: their names differ")
    found = [_sized(index, layer, shapes) for index, layer in enumerate(layers)]
    for name, tensor in tensors(found).items():
        if tensor.shape != shapes[name]:
            raise ConfigError(f"{name} of shape {shapes[name]} fits no layer: {tensor.shape} would")
    _require_chain(layers, found)
    return found


def _sized(index: int, layer: Layer, shapes: Mapping[str, Shape]) -> Layer:
    def shape(part: str = "weight") -> Shape:
        return shapes[f"{index}.{part}"]

    match layer:
        case Linear() | Conv1d() | Conv2d():
            return replace(layer, inputs=shape()[1], outputs=shape()[0])
        case BatchNorm():
            return replace(layer, features=shape()[0])
        case LayerNorm():
            return replace(layer, shape=shape())
        case Embedding():
            return replace(layer, count=shape()[0], size=shape()[1])
        case GRU() | LSTM():
            hidden = shape("weight_hh_l0")[1]
            return replace(layer, inputs=shape("weight_ih_l0")[1], hidden=hidden)
    return layer


def _require_chain(layers: Layers, narrow: Layers) -> None:
    """Raise ConfigError unless each layer takes what is left of what the one before it gives."""
    given: tuple[int, int] | None = None
    for index, (layer, smaller) in enumerate(zip(layers, narrow, strict=True)):
        if isinstance(layer, Reshape) and given is not None:
            raise ConfigError(f"layer {index}, {layer}: it needs all of its inputs")
        ends, own = _ends(index, layer), _ends(index, smaller)
        if ends is None or own is None:
            continue
        whole, part = (1, 1) if given is None else given
        if ends[0] % whole or own[0] != ends[0] // whole * part:
            raise ConfigError(f"layer {index}, {layer}: {own[0]} of its {ends[0]} inputs are left")
        given = (ends[1], own[1])
    if given is not None and given[0] != given[1]:
        raise ConfigError(f"the last layer has {given[1]} of its {given[0]} outputs left")


def _ends(index: int, layer: Layer) -> tuple[int, int] | None:
    """Return the number of a layer's inputs and outputs, None where it takes any."""
    match layer:
        case Linear() | Conv1d() | Conv2d():
            return layer.inputs, layer.outputs
        case BatchNorm():
            return layer.features, layer.features
        case LayerNorm():
            if len(layer.shape) > 1:
                raise ConfigError(f"layer {index}, {layer}: it normalises more than one axis")
            return layer.shape[0], layer.shape[0]
        case Embedding():
            return layer.count, layer.size
        case GRU() | LSTM():
            return layer.inputs, layer.hidden
    return None
