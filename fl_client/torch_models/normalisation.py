"""Batch normalisation in a torch module, for a batch that leaves it one value a channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def running_statistics_of_one(model: torch.nn.Module) -> Iterator[None]:
    """Within the block, batch normalisation of one value a channel uses the running statistics.

    One value has no variance, and torch refuses it: the last batch of an epoch, or a device with
    one example, would end the training. Declared layers do the same.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                stack.callback(module.train, module.training)
                stack.callback(module.register_forward_pre_hook(_evaluate_one).remove)
                stack.callback(module.register_forward_hook(_train_again).remove)
        yield


def _evaluate_one(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    if inputs[0].numel() == inputs[0].shape[1]:
        module.eval()


def _train_again(module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    del inputs, output
    module.train()
