"""Whether an algorithm can run with a task: found out when a run is submitted, not in round 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from algorithms.base import UPDATE, Algorithm
from fl_client.models import layers
from fl_client.models.parts import ModelParts, parts_of_layers
from fl_client.tasks.base import Task
from fl_client.tasks.narrow import narrow_task
from fl_client.tasks.user_code import initial_weights_of, model_of
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from fl_client.models.layers import Layers


def require_match(task: Task, name: str, algorithm: Algorithm) -> None:
    """Return when the algorithm can run with the task.

    Args:
        name: the algorithm's.

    Raises:
        ConfigError: it cannot; the text says why, and what to do.
        TaskError: the task's model cannot be made.
        MissingExtra: torch is needed for that and not installed.
    """
    _require_engine(task, name, algorithm)
    _require_parts(task, name, algorithm)
    wanted = {"head", "norms", "adapters"}.intersection(algorithm.needs)
    if not wanted:
        return
    parts = parts_of(task)
    if "norms" in wanted and not parts.norms:
        raise ConfigError(
            f"algorithm {name} keeps the layers that normalise on the devices, and the model of "
            f"task {task.name} has none"
        )
    if "adapters" in wanted and not parts.adapters:
        raise ConfigError(
            f"algorithm {name} trains low-rank adapters alone, and the model of task {task.name} "
            "has none: they are weights whose names end with `.lora_a` and `.lora_b`, as those of "
            "Linear(..., rank=4) do"
        )
    if "head" in wanted and not 0 < len(parts.head) < parts.trained:
        raise ConfigError(
            f"algorithm {name} tells the head from the rest of the model, and the head that task "
            f"{task.name} has is {'empty' if not parts.head else 'the whole model'}; name its "
            "weights in the task's class attribute `head`"
        )


def require_transforms(task: Task, names: Sequence[str]) -> None:
    """Raise ConfigError where a transform cannot be with the task's model."""
    if "noise" in names and parts_of(task).statistics:
        raise ConfigError(
            f"transform noise is added to the update alone, and the model of task {task.name} has "
            "running statistics, which are sent too; take a normalisation without any"
        )


def _require_engine(task: Task, name: str, algorithm: Algorithm) -> None:
    kind = type(task)
    more = (*algorithm.reports, *algorithm.broadcasts, *algorithm.narrow_widths)
    says_more = algorithm.sends != (UPDATE,) or more
    if kind.local_update is not Task.local_update and (says_more or algorithm.is_personal):
        raise ConfigError(
            f"task {task.name} overrides local_update(), which replaces the training that "
            f"algorithm {name} is a part of; use fedavg, or let an engine train"
        )
    if "loss" in algorithm.needs and kind.training_step is not Task.training_step:
        raise ConfigError(
            f"task {task.name} overrides training_step(), which the loss of algorithm {name} "
            "replaces; override loss() or predict() instead"
        )


def _require_parts(task: Task, name: str, algorithm: Algorithm) -> None:
    """Raise ConfigError where a width that a device may train is none of the task's model."""
    if not algorithm.narrow_widths:
        return
    layout = initial_weights_of(task, 0).layout
    for width in algorithm.narrow_widths:
        try:
            slices = algorithm.part(width, 1, layout)
            if slices is not None:
                _require_shapes(
                    task, width, {each.name: each.shape for each in slices.part.tensors}
                )
        except ConfigError as error:
            raise ConfigError(
                f"algorithm {name} has devices train {width:g} of each layer, and the model of "
                f"task {task.name} cannot be divided so: {error}"
            ) from error


def _require_shapes(task: Task, width: float, shapes: Mapping[str, tuple[int, ...]]) -> None:
    narrow = narrow_task(task, width, shapes)
    model = model_of(narrow)
    if layers.is_declarative(model):
        found = {each: tensor.shape for each, tensor in layers.tensors(model).items()}
    else:
        # needs torch
        from fl_client.tasks.torch_module import module_of  # noqa: PLC0415

        state = module_of(narrow).state_dict()
        found = {each: tuple(tensor.shape) for each, tensor in state.items()}
    for each in sorted(found.keys() | shapes.keys()):
        if found.get(each) != shapes.get(each):
            raise ConfigError(
                f"model_at({width:g}) has {each!r} of shape {found.get(each, 'missing')}, and the "
                f"part has {shapes.get(each, 'none')}"
            )


def parts_of(task: Task) -> ModelParts:
    """Return the head and the normalisation of a task's model."""
    model = model_of(task)
    if layers.is_declarative(model):
        return parts_of_layers(cast("Layers", model), task.head)
    # needs torch
    from fl_client.tasks.torch_module import module_of  # noqa: PLC0415
    from fl_client.torch_models.parts import parts_of_module  # noqa: PLC0415

    return parts_of_module(module_of(task), task.head)
