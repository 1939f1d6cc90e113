"""Run definitions, checked against their task: here, before a server or a simulator sees them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from algorithms.registry import load as load_algorithm
from fl_client.engines.base import load_engine
from fl_client.machine.hardware import available_engines
from fl_client.tasks.attributes import goals_of, require_trainable
from fl_client.tasks.base import Task
from fl_client.tasks.user_code import TaskError
from fl_client.training.algorithm_match import require_match, require_transforms
from fl_server.runs.definition import parse_definition
from runtime.errors import ConfigError, MissingExtra

_LOG = logging.getLogger(__name__)
_OPTIMIZER_SETTINGS = frozenset({"optimizer", "learning_rate", "momentum"})


def with_goals(task: Task, definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return the definition with the task's metrics, unless it names some or they are the usual."""
    section, goals = definition.get("evaluation") or {}, goals_of(task)
    if section.get("metrics") or goals == {"accuracy": "higher"}:
        return dict(definition)
    return {**definition, "evaluation": {**section, "metrics": goals}}


def check_definition(task: Task, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check a run definition, its algorithm and its training settings against the task.

    What makes no sense and is no error is logged.

    Returns:
        The definition, with the task's learning rate where a schedule begins with it.

    Raises:
        ConfigError: a key or value is wrong, or has no effect with this task.
    """
    filled = _with_learning_rate(task, values)
    definition = parse_definition({**filled, "task": task.name}, "run definition")
    settings = task.training.overridden(definition.training)
    require_trainable(task, settings)
    name = definition.algorithm.name
    algorithm = load_algorithm(name, definition.algorithm.settings)
    require_match(task, name, algorithm)
    require_transforms(task, [each.name for each in definition.transforms])
    if advice := algorithm.advice(asdict(settings)):
        _LOG.warning("%s", advice)
    if type(task).optimizer is not Task.optimizer:
        set_here = _OPTIMIZER_SETTINGS.intersection(values.get("training") or ())
        keys = sorted(f"training.{key}" for key in set_here)
        for key in [*keys, *([] if definition.schedule.is_constant else ["schedule"])]:
            raise ConfigError(f"{key} has no effect: task {task.name} makes its own optimizer()")
    return filled


def _with_learning_rate(task: Task, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a definition whose training has a learning rate, where it has a schedule."""
    training = values.get("training") or {}
    if not values.get("schedule") or not isinstance(training, Mapping):
        return dict(values)
    rate = {"learning_rate": task.training.learning_rate}
    return {**values, "training": {**rate, **training}}


def needs_torch(task: Task, values: dict[str, Any]) -> str:
    """Return why only torch can do a run of the task, "" where numpy can too.

    Which data the task gives is not asked: its code would have to run here.

    Raises:
        TaskError: the task's model cannot be made.
        MissingExtra: torch is needed and not installed.
    """
    reason = _refusal_of_numpy(task, values)
    if reason and "torch" not in available_engines():
        raise MissingExtra("torch", "torch")
    return reason


def _refusal_of_numpy(task: Task, values: dict[str, Any]) -> str:
    try:
        load_engine("numpy", task)
    except TaskError:
        raise
    except ConfigError as error:
        return str(error)
    chosen = parse_definition({**values, "task": task.name}, "run definition").algorithm
    if "loss" in load_algorithm(chosen.name, chosen.settings).needs:
        return f"algorithm {chosen.name} changes the loss, which only the torch engine can do"
    return ""
