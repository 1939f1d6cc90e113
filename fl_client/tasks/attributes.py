"""The class attributes of a task that Rengo reads, checked when the task is loaded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, get_args

from fl_client.models.settings import Goal, Objective, TrainingSettings
from fl_client.tasks.base import Task
from runtime.errors import ConfigError

_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_GOALS = ("higher", "lower")
_OTHER_NAMES: dict[str, Objective] = {
    **dict.fromkeys(("mse", "l2", "squared_error", "regression"), "mean_squared_error"),
    **dict.fromkeys(("ce", "nll", "softmax", "classification"), "cross_entropy"),
    **dict.fromkeys(
        ("bce", "sigmoid", "multilabel", "multi_label", "multi-label"), "binary_cross_entropy"
    ),
}


def require_valid(task: Task, spec: str) -> None:
    """Raise ConfigError, with the choices, for a class attribute that is none of them."""
    try:
        _require_name(task.name)
        _require_objective(task.objective)
        if not isinstance(task.training, TrainingSettings):
            raise ConfigError(
                f"training is a {type(task.training).__name__}, and must be TrainingSettings(…)"
            )
        _require_goals(task.goals)
        _require_head(task.head)
    except ConfigError as error:
        raise ConfigError(f"task {spec}: {error}") from error


def _require_name(name: Any) -> None:
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ConfigError(f"the name {name!r} must be 1 to 64 of a-z, 0-9, '_' and '-'")


def _require_objective(objective: Any) -> None:
    choices = get_args(Objective)
    if objective not in choices:
        word = str(objective).lower()
        near = [_OTHER_NAMES[word]] if word in _OTHER_NAMES else []
        near += difflib.get_close_matches(word, choices, 1)
        raise ConfigError(
            f"objective = {objective!r} is none of {', '.join(map(repr, choices))}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )


def _require_goals(goals: Any) -> None:
    if not isinstance(goals, Mapping) or not all(isinstance(name, str) for name in goals):
        raise ConfigError(
            f"goals = {goals!r} must be a dict of metric names and 'higher' or 'lower'"
        )
    for name, goal in goals.items():
        if goal not in _GOALS:
            raise ConfigError(f"goals: {name!r} is {goal!r}, and must be one of 'higher', 'lower'")


def _require_head(head: Any) -> None:
    is_list = isinstance(head, list | tuple) and all(isinstance(name, str) for name in head)
    if not is_list or "" in head:
        raise ConfigError(
            f"head = {head!r} must be a list of what the names of the head's weights begin with"
        )


def goals_of(task: Task) -> dict[str, Goal]:
    """Return the task's metrics in the order in which they are shown; the first is the headline."""
    if task.goals:
        return dict(task.goals)
    return {"loss": "lower"} if task.objective == "mean_squared_error" else {"accuracy": "higher"}


def require_trainable(task: Task, settings: TrainingSettings) -> None:
    """Raise ConfigError for a setting that what the task does itself leaves without effect."""
    kind = type(task)
    if settings.weight_decay and kind.optimizer is not Task.optimizer:
        raise ConfigError(
            f"training.weight_decay: task {task.name} makes its own optimizer(), which takes its "
            "weight decay there"
        )
    own_loss = kind.loss is not Task.loss or kind.training_step is not Task.training_step
    if settings.class_weights and own_loss:
        raise ConfigError(
            f"training.class_weights: task {task.name} has a loss of its own, which takes its "
            "weights there"
        )
    if settings.class_weights and task.objective != "cross_entropy":
        raise ConfigError(
            f"training.class_weights: the objective of task {task.name} is {task.objective}, and "
            "they are of cross_entropy"
        )
