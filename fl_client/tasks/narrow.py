"""A task whose model is a narrower one: what a device trains that trains a part of the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fl_client.models import layers
from fl_client.models.narrowing import narrowed
from fl_client.tasks.base import Task
from fl_client.tasks.user_code import calling, model_of
from runtime.errors import ConfigError


def narrow_task(task: Task, width: float, shapes: Mapping[str, tuple[int, ...]]) -> Task:
    """Return the task with a model of these weights.

    Args:
        width: how much of each hidden layer is left, for a task that makes the model itself.
        shapes: of the weights, by name.

    Raises:
        ConfigError: the task's model cannot be narrowed so.
    """
    if type(task).model_at is not Task.model_at:

        def model() -> Any:
            with calling(task, "model_at"):
                return task.model_at(width)

    else:
        whole = model_of(task)
        if not layers.is_declarative(whole):
            raise ConfigError(
                f"task {task.name} has a torch module for a model, which can be narrowed where the "
                "task defines model_at(width)"
            )
        smaller = narrowed(whole, shapes)

        def model() -> Any:
            return smaller

    found = copy.copy(task)
    # not a subclass: engines look at what the task's own class overrides
    object.__setattr__(found, "model", model)
    return found
