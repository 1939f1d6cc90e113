"""A task's model as a torch module whose tensors can travel."""

from __future__ import annotations

from typing import cast

import torch
from torch.nn.parameter import is_lazy

from fl_client.models import layers
from fl_client.tasks.user_code import TaskCode, calling, model_of, wrong
from fl_client.torch_models.layers import declared_module


def module_of(task: TaskCode) -> torch.nn.Module:
    """Return the task's model as a torch module.

    Raises:
        TaskError: ``model()`` failed, or gave a module that cannot be federated.
    """
    model = model_of(task)
    if layers.is_declarative(model):
        return declared_module(cast("layers.Layers", model))
    if not isinstance(model, torch.nn.Module):
        kind = type(model).__name__
        raise wrong(
            task, "model", f"must return a list of layers or a torch module, it returned a {kind}"
        )
    for name, module in model.named_modules():
        if any(is_lazy(each) for each in (*module.parameters(False), *module.buffers(False))):
            raise wrong(
                task,
                "model",
                f"has the lazy layer {name!r} ({type(module).__name__}), whose shape only a first "
                "batch would tell: give it the size of its input",
            )
    with calling(task, "model"):
        tensors = model.state_dict()
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise wrong(
                task,
                "model",
                f"has the state {name!r} of type {type(tensor).__name__}, as get_extra_state() "
                "gives it; only tensors travel: keep them as buffers, or leave it out",
            )
    return model
