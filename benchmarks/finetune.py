"""A large backbone with a small head, trained by torch: the head alone, or everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rengo import Device, Task, TrainingSettings

_CLASSES = 10
_EXAMPLES = 32


class _Finetune(Task):
    training = TrainingSettings(batch_size=32, learning_rate=0.01)
    side = 0
    frozen = False

    def model(self) -> torch.nn.Module:
        # (side - 1) * side weights and side biases
        backbone = torch.nn.Linear(self.side - 1, self.side)
        if self.frozen:
            backbone.requires_grad_(requires_grad=False)
        return torch.nn.Sequential(backbone, torch.nn.ReLU(), torch.nn.Linear(self.side, _CLASSES))

    def data(self, device: Device) -> tuple[Any, Any]:
        source = np.random.default_rng([device.seed, device.index])
        inputs = source.standard_normal((_EXAMPLES, self.side - 1), dtype=np.float32)
        return (inputs, source.integers(0, _CLASSES, _EXAMPLES)), None


class Head25(_Finetune):
    """25 MiB, of which the head's 100 KiB are trained."""

    side = 2560
    frozen = True


class Whole25(_Finetune):
    """25 MiB, all of which are trained."""

    side = 2560


class Head100(_Finetune):
    """100 MiB, of which the head's 200 KiB are trained."""

    side = 5120
    frozen = True


class Whole100(_Finetune):
    """100 MiB, all of which are trained."""

    side = 5120
