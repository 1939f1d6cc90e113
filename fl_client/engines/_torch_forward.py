"""A batch's pass through a model, for algorithms that have a loss of their own."""

from __future__ import annotations

from typing import Any

import torch

from algorithms.base import Arrays
from fl_client.engines._torch_loss import TaskLoss
from runtime.errors import ConfigError


class TorchForward:
    """The outputs, the targets, the loss and the head's inputs of a batch.

    Raises:
        ConfigError: the task has a training step of its own, so that outputs are not known.
    """

    def __init__(
        self, loss: TaskLoss, model: torch.nn.Module, batch: Any, head: frozenset[str]
    ) -> None:
        if loss.has_own_step:
            raise ConfigError(
                f"task {loss.task.name} overrides training_step(), which the loss of this "
                "algorithm replaces; override loss() or predict() instead"
            )
        self._loss, self._batch = loss, batch
        self._call = _Prediction(loss, model)
        self._seen: list[torch.Tensor] = []
        self._head = _layer_of(model, head)
        with self._watched():
            self.outputs, self.targets, self.loss = loss.trained(model, batch)
        self._features = self._seen[:1]

    @property
    def features(self) -> torch.Tensor:
        """What goes into the head, one row for each example."""
        return _rows(self._features)

    def at(self, w: Arrays) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs and the features at other weights; no gradient passes to them."""
        # a pass changes running statistics in place
        given = {f"model.{name}": value.detach().clone() for name, value in w.items()}
        with torch.no_grad(), self._watched():
            outputs = torch.func.functional_call(self._call, given, (self._batch,))
        return outputs, _rows(self._seen[:1])

    def _watched(self) -> torch.utils.hooks.RemovableHandle:
        self._seen.clear()
        return self._head.register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0]))


class _Prediction(torch.nn.Module):
    """A task's prediction of a batch as a module, so that its weights can be replaced."""

    def __init__(self, loss: TaskLoss, model: torch.nn.Module) -> None:
        super().__init__()
        self._measured = loss.measured
        self.model = model

    def forward(self, batch: Any) -> Any:
        return self._measured(self.model, batch)[0]


def _rows(seen: list[torch.Tensor]) -> torch.Tensor:
    if not seen:
        raise ConfigError("the model's head was not called, so that its inputs are not known")
    return seen[0].flatten(1)


def _layer_of(model: torch.nn.Module, head: frozenset[str]) -> torch.nn.Module:
    """Return the first layer of the head."""
    first = next(name for name, _ in model.named_parameters() if name in head)
    return model.get_submodule(first.rpartition(".")[0])
