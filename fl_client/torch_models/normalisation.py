"""Normalisation in a torch module, for a batch that leaves it one value to take a mean of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def single_values(*models: torch.nn.Module) -> Iterator[None]:
    """Within the block, batch and group normalisation take a mean of one value too.

    One value has no variance, and torch refuses it: the last batch of an epoch, or a device with
    one example, would end the training. Batch normalisation uses its running statistics then, as
    declared layers do. Where there are none, the value is its own mean, which leaves the bias.
    """
    with ExitStack() as stack:
        for module in (each for model in models for each in model.modules()):
            if isinstance(module, torch.nn.GroupNorm) or _has_no_statistics(module):
                doubling = _Doubling()
                stack.callback(module.register_forward_pre_hook(doubling.before).remove)
                stack.callback(module.register_forward_hook(doubling.after).remove)
            elif isinstance(module, _BatchNorm) and module.training:
                stack.callback(module.train, module.training)
                stack.callback(module.register_forward_pre_hook(_evaluate_one).remove)
                stack.callback(module.register_forward_hook(_train_again).remove)
        yield


def _has_no_statistics(module: torch.nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _is_single(module: torch.nn.Module, values: torch.Tensor) -> bool:
    means = module.num_groups if isinstance(module, torch.nn.GroupNorm) else values.shape[1]
    return values.numel() == means


def _evaluate_one(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    if _is_single(module, inputs[0]):
        module.eval()


def _train_again(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    del inputs, output
    module.train()


class _Doubling:
    """Gives a module the only example twice, which has the same mean and gradient."""

    def __init__(self) -> None:
        self._doubled = False

    def before(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> Any:
        self._doubled = _is_single(module, inputs[0])
        return (inputs[0].repeat_interleave(2, 0),) if self._doubled else None

    def after(self, module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        del module, inputs
        return output[:1] if self._doubled else None
