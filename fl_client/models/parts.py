"""Which weights of a model of layers are its head, and which normalise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fl_client.models.layers import BatchNorm, LayerNorm, Layers, tensors


@dataclass(frozen=True)
class ModelParts:
    """The names of weights that algorithms tell from the others.

    Attributes:
        head: of the last layer with weights, or what the task calls its head.
        norms: of normalisation layers, with their running statistics.
        adapters: of low-rank adapters, see :func:`adapters_of`.
        trained: how many weights are trained.
    """

    head: frozenset[str]
    norms: frozenset[str]
    adapters: frozenset[str]
    trained: int

    @property
    def statistics(self) -> frozenset[str]:
        """The running statistics among the names of normalisation layers."""
        return frozenset(n for n in self.norms if n.rpartition(".")[2].startswith("running_"))


def parts_of_layers(layers: Layers, head: Sequence[str] = ()) -> ModelParts:
    """Return the parts of a model of layers.

    Args:
        head: the beginnings of the head's names; if empty, it is the last layer with weights.
    """
    named = tensors(layers)
    trained = [name for name, tensor in named.items() if tensor.role == "weight"]
    normalises = [isinstance(layer, BatchNorm | LayerNorm) for layer in layers]
    norms = {
        name
        for name, tensor in named.items()
        if normalises[int(name.partition(".")[0])] and tensor.role != "count"
    }
    return ModelParts(head_of(trained, head), frozenset(norms), adapters_of(trained), len(trained))


def head_of(names: Sequence[str], beginnings: Iterable[str]) -> frozenset[str]:
    """Return the names that begin so, or those of the last layer.

    Args:
        names: of the trained weights, in the model's order.
    """
    starts = tuple(beginnings)
    if starts:
        return frozenset(name for name in names if name.startswith(starts))
    last = names[-1].rpartition(".")[0] if names else ""
    return frozenset(name for name in names if name.rpartition(".")[0] == last)


def adapters_of(names: Iterable[str]) -> frozenset[str]:
    """Return the names with a part ``lora_a`` or ``lora_b``, in any case, as PEFT writes them too.

    >>> sorted(adapters_of(["q.weight", "q.lora_a", "v.lora_B.default.weight"]))
    ['q.lora_a', 'v.lora_B.default.weight']
    """
    return frozenset(
        name for name in names if {"lora_a", "lora_b"}.intersection(name.lower().split("."))
    )
