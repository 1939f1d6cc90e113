"""How the torch engine uses an accelerator: mixed precision, the way to its memory, compiling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from fl_client.engines.base import Indices, Tuning
from runtime.errors import ConfigError

Tensors: TypeAlias = Mapping[str, torch.Tensor]
_HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_FIRST_SCALE = 65_536.0
_GROWTH_STEPS = 2_000
# beside the data the device's memory holds the model, its gradients and every layer's output
_DATA_SHARE = 4


def devices_of(profile: str, tuning: Tuning) -> list[torch.device]:
    """Return where to train, the first of which holds the weights that learn.

    Raises:
        ConfigError: torch does not see all that this process was started for.
    """
    names = tuning.accelerators
    kind = names[0].partition(":")[0] if names else ""
    wanted = {"rocm": "cuda"}.get(kind, kind)
    there = {
        "cpu": len(names) or 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if not wanted:
        found = next((name for name in ("cuda", "mps") if there[name]), "cpu")
        return [torch.device(found if profile == "gpu" else "cpu")]
    if there.get(wanted, 0) < len(names):
        raise ConfigError(
            f"this device trains on {', '.join(names)}, but torch {torch.__version__} does not see "
            'that: install the build of torch for it, or set accelerators = "cpu"'
        )
    if len(names) == 1 or wanted == "cpu":
        return [torch.device(wanted)] * len(names)
    return [torch.device(wanted, index) for index in range(len(names))]


def half_of(devices: Sequence[torch.device], precision: str) -> torch.dtype | None:
    """Return the type that the matrix products are done in; None: that of the weights.

    "auto" is what all devices are made for. On the CPU and on Apple's GPUs it is the weights'
    own: little is gained there.
    """
    if precision != "auto":
        return _HALVES.get(precision)
    made_for = {_half_of(device) for device in devices}
    if len(made_for) == 1:
        return made_for.pop()
    return None if None in made_for else torch.float16


def _half_of(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        return None
    if torch.version.hip is not None:
        return torch.bfloat16
    major, _ = torch.cuda.get_device_capability(device)
    return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else None


class Mixed:
    """Mixed precision: weights and optimiser stay as they are, layers compute in half.

    With float16 the loss is scaled so that small gradients do not become 0, as
    ``torch.amp.GradScaler`` does it, which knows no gradients but those in ``parameter.grad``.
    One scale holds for all replicas of a model; any thread may ask for what changes nothing here.

    Args:
        replicas: with more than one, a weight that is used twice is cast twice: autocast's memory
            of that is the process's, and which thread clears it when is chance.

    Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018,
    https://arxiv.org/abs/1710.03740.
    """

    def __init__(
        self, device: torch.device, half: torch.dtype | None, *, replicas: int = 1
    ) -> None:
        self._device, self._half = device, half
        self._remembers = replicas == 1
        self._scales = half == torch.float16
        self.scale = _FIRST_SCALE if self._scales else 1.0
        self._good = 0

    def cast(self) -> AbstractContextManager[Any]:
        """Compute in half within the block, where that is safe."""
        if self._half is None:
            return nullcontext()
        kind = self._device.type
        return torch.autocast(kind, dtype=self._half, cache_enabled=self._remembers)

    def gradients(
        self, objective: torch.Tensor, parameters: Mapping[str, torch.nn.Parameter]
    ) -> dict[str, torch.Tensor]:
        """Return the gradient by name, without those that the objective does not depend on."""
        scaled = objective * self.scale if self._scales else objective
        grads = torch.autograd.grad(scaled, list(parameters.values()), allow_unused=True)
        named = zip(parameters, grads, strict=True)
        if not self._scales:
            return {name: grad for name, grad in named if grad is not None}
        return {name: grad / self.scale for name, grad in named if grad is not None}

    def overflowed(self, grads: Tensors) -> bool:
        """Return whether this step is to be left out, the scale having been too large."""
        if not self._scales:
            return False
        if all(bool(torch.isfinite(grad).all()) for grad in grads.values()):
            self._good += 1
            if self._good == _GROWTH_STEPS:
                self.scale, self._good = self.scale * 2, 0
            return False
        self.scale, self._good = self.scale / 2, 0
        return True

    def capture(self) -> dict[str, NDArray[Any]]:
        """Return the scale's state, nothing where there is none."""
        return {"scale": np.array([self.scale, self._good])} if self._scales else {}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take captured state back."""
        if self._scales:
            self.scale, self._good = float(arrays["scale"][0]), int(arrays["scale"][1])

    def fits(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Return whether the captured state is of the same precision."""
        return ("scale" in arrays) == self._scales


def compiled(model: torch.nn.Module, backend: str) -> torch.nn.Module:
    """Return the module, compiled where a backend is named; both share their weights."""
    return cast("torch.nn.Module", torch.compile(model, backend=backend)) if backend else model


def is_resident(size_bytes: int, device: torch.device) -> bool:
    """Return whether a data set of this size is to lie in the device's own memory."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size_bytes <= free // _DATA_SHARE


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch on the device; to CUDA from page-locked memory, without waiting for it."""
    if isinstance(batch, torch.Tensor):
        if device.type == "cuda" and batch.device.type == "cpu":
            return batch.pin_memory().to(device, non_blocking=True)
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [moved(value, device) for value in batch]
    return batch


def reader(dataset: Any, threads: int) -> Callable[[Indices], Any]:
    """Return what makes a batch of a Dataset's items, in order, read by so many threads."""
    from torch.utils.data import default_collate  # noqa: PLC0415  slow, seldom needed

    if not threads:
        return lambda chosen: default_collate([dataset[int(index)] for index in chosen])
    pool = ThreadPoolExecutor(threads, "loader")

    def item(index: Any) -> Any:
        return dataset[int(index)]

    return lambda chosen: default_collate(list(pool.map(item, chosen)))
