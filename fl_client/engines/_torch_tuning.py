"""How the torch engine uses an accelerator: mixed precision, copies to its memory, compiling."""

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
# the device's memory also holds the model, its gradients and every layer's output
_DATA_SHARE = 4


def devices_of(profile: str, tuning: Tuning) -> list[torch.device]:
    """Return the devices to train on; the first holds the weights that are trained.

    Raises:
        ConfigError: torch does not see all accelerators that this process was started for.
    """
    names = tuning.accelerators
    kind = names[0].partition(":")[0] if names else ""
    wanted = {"rocm": "cuda"}.get(kind, kind)
    available = {
        "cpu": len(names) or 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if not wanted:
        found = next((name for name in ("cuda", "mps") if available[name]), "cpu")
        return [torch.device(found if profile == "gpu" else "cpu")]
    if available.get(wanted, 0) < len(names):
        raise ConfigError(
            f"this device trains on {', '.join(names)}, but torch {torch.__version__} does not see "
            'that: install the build of torch for it, or set accelerators = "cpu"'
        )
    if len(names) == 1 or wanted == "cpu":
        return [torch.device(wanted)] * len(names)
    return [torch.device(wanted, index) for index in range(len(names))]


def half_of(devices: Sequence[torch.device], precision: str) -> torch.dtype | None:
    """Return the type of the matrix products; None for that of the weights.

    "auto" is a type that all devices support in hardware. On the CPU and on Apple's GPUs it is
    that of the weights, because a smaller one gains little there.
    """
    if precision != "auto":
        return _HALVES.get(precision)
    supported = {_half_of(device) for device in devices}
    if len(supported) == 1:
        return supported.pop()
    return None if None in supported else torch.float16


def _half_of(device: torch.device) -> torch.dtype | None:
    if device.type != "cuda":
        return None
    if torch.version.hip is not None:
        return torch.bfloat16
    major, _ = torch.cuda.get_device_capability(device)
    return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else None


class MixedPrecision:
    """Mixed precision: weights and optimiser keep their type, layers compute in 16 bits.

    With float16 the loss is scaled so that small gradients do not become 0. It is done here
    because ``torch.amp.GradScaler`` handles only the gradients in ``parameter.grad``. All replicas
    of a model share one scale; ``cast`` and ``gradients`` may be called on any thread.

    Args:
        replicas: with more than one, a weight that is used twice is cast twice: autocast's cache
            is shared by all threads, and any of them may clear it at any time.

    Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018,
    https://arxiv.org/abs/1710.03740.
    """

    def __init__(
        self, device: torch.device, half: torch.dtype | None, *, replicas: int = 1
    ) -> None:
        self._device, self._half = device, half
        self._caches = replicas == 1
        self._scales = half == torch.float16
        self.scale = _FIRST_SCALE if self._scales else 1.0
        self._good = 0

    def cast(self) -> AbstractContextManager[Any]:
        """Compute in 16 bits within the block, in operations for which that is safe."""
        if self._half is None:
            return nullcontext()
        kind = self._device.type
        return torch.autocast(kind, dtype=self._half, cache_enabled=self._caches)

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
        """Return whether to skip this step because the scale was too large, and adapt the scale."""
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
        """Return the scale's state; empty if there is none."""
        return {"scale": np.array([self.scale, self._good])} if self._scales else {}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set a captured state."""
        if self._scales:
            self.scale, self._good = float(arrays["scale"][0]), int(arrays["scale"][1])

    def fits(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Return whether the captured state is of the same precision."""
        return ("scale" in arrays) == self._scales


def compiled(model: torch.nn.Module, backend: str) -> torch.nn.Module:
    """Return the module, compiled where a backend is named; both share their weights."""
    return cast("torch.nn.Module", torch.compile(model, backend=backend)) if backend else model


def is_resident(size_bytes: int, device: torch.device) -> bool:
    """Return whether a data set of this size should be kept in the device's own memory."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return size_bytes <= free // _DATA_SHARE


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch on the device; the copy to CUDA is from pinned memory and asynchronous."""
    if isinstance(batch, torch.Tensor):
        if device.type == "cuda" and batch.device.type == "cpu":
            return batch.pin_memory().to(device, non_blocking=True)
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [to_device(value, device) for value in batch]
    return batch


def reader(dataset: Any, threads: int) -> Callable[[Indices], Any]:
    """Return a function from indices to a batch of the Dataset's items, read by so many threads."""
    from torch.utils.data import default_collate  # noqa: PLC0415  slow, seldom needed

    if not threads:
        return lambda chosen: default_collate([dataset[int(index)] for index in chosen])
    pool = ThreadPoolExecutor(threads, "loader")

    def item(index: Any) -> Any:
        return dataset[int(index)]

    return lambda chosen: default_collate(list(pool.map(item, chosen)))
