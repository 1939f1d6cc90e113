"""The loss of a task's batches on the torch engine, with their targets checked first."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn import functional

from fl_client.engines._examples import IGNORED, class_weights_of, fitted
from fl_client.models.settings import TrainingSettings
from fl_client.tasks.attributes import require_trainable
from fl_client.tasks.base import Task
from fl_client.torch_models.tensors import to_numpy
from runtime.errors import ConfigError


class TaskLoss:
    """Computes the loss of batches. Several threads may call it.

    Targets are checked where the loss is that of the task's objective: those of two arrays once,
    all of them, before the first step; others batch by batch. A loss of the task's own takes
    whatever targets its data have.

    Args:
        targets: of all examples, where the data are two arrays.
        leaves_out: whether class number -100 is allowed, as torch has it.
        settings: those of training, where the loss is to be trained.
    """

    def __init__(
        self,
        task: Task,
        targets: NDArray[Any] | None,
        *,
        leaves_out: bool,
        settings: TrainingSettings | None = None,
    ) -> None:
        self._settings = settings or TrainingSettings()
        require_trainable(task, self._settings)
        kind = type(task)
        self.task = task
        self._checks = kind.loss is Task.loss
        self.has_own_step = kind.training_step is not Task.training_step
        self._whole = targets if kind.predict is Task.predict else None
        self._leaves_out = leaves_out
        self._checked: tuple[int, ...] | None = None

    def of_step(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Return the loss to differentiate."""
        if self.has_own_step:
            return self.task.training_step(model, batch)
        return self.trained(model, batch)[2]

    def trained(
        self, model: torch.nn.Module, batch: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the same as ``measured``, with the loss that is trained: by weights of classes."""
        if not self._settings.class_weights:
            return self.measured(model, batch)
        outputs, targets = self._predicted(model, batch)
        return outputs, targets, self._weighted(outputs, targets)

    def measured(
        self, model: torch.nn.Module, batch: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the outputs, the targets as the loss takes them, and the loss.

        Raises:
            ConfigError: the targets do not fit the outputs.
        """
        outputs, targets = self._predicted(model, batch)
        return outputs, targets, self.task.loss(outputs, targets)

    def _predicted(self, model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, targets = self.task.predict(model, batch)
        if self._checks:
            # a model that drops all axes of size 1 gives a batch of one example no axis
            outputs = outputs if outputs.ndim else outputs.reshape(1)
            targets = self._fitted(outputs, targets)
        return outputs, targets

    def _weighted(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the cross entropy by the weights of classes, a mean over the examples."""
        found = class_weights_of(self.task, self._settings, outputs.shape[1])
        # a sum of 16-bit floats would overflow
        wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        weights = torch.tensor(found, dtype=wide.dtype, device=wide.device)
        loss = functional.cross_entropy(wide, targets, weight=weights, reduction="sum")
        if targets.shape == outputs.shape:
            return loss / (outputs.numel() // outputs.shape[1])
        return loss / (targets != IGNORED).sum()

    def _fitted(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if outputs.shape[:1] != targets.shape[:1]:
            raise ConfigError(
                f"task {self.task.name}: the model gives outputs of shape {tuple(outputs.shape)} "
                f"for a batch of {len(targets)} examples"
            )
        shape = tuple(outputs.shape[1:])
        if self._whole is None:
            array = to_numpy({"targets": targets})["targets"]
            fitted(self.task, array, shape, leaves_out=self._leaves_out)
        elif self._checked != shape:
            fitted(self.task, self._whole, shape, leaves_out=self._leaves_out)
            self._checked = shape
        if self.task.objective != "cross_entropy":
            return targets.reshape(outputs.shape).to(outputs.dtype)
        if targets.shape == outputs.shape:
            return targets.to(outputs.dtype)
        return targets.reshape(outputs.shape[:1] + outputs.shape[2:]).long()
