"""Copies of a model on several devices; each computes its part of a batch on its own thread."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch

from fl_client.engines._torch_tuning import to_device
from fl_client.engines.base import Indices, TrainingFailed

Result = TypeVar("Result")
_LOG = logging.getLogger(__name__)


class Replicas:
    """The copies of a model, of which the first is the one that is trained.

    Results depend only on the weights, the data, the seed and the number of replicas: parts are
    cut and joined in the replicas' order, whichever ends first.

    Random numbers: a CUDA device has its own generator, which only its replica uses. The CPU's is
    shared, so what a model draws from it would depend on which thread runs first. Therefore
    replicas run one after the other until they have been seen to draw nothing from it, and always
    if they do. A new combination of part sizes also runs one after the other: that is when a
    model is compiled.

    It is a context manager that ends the threads. One thread owns it.

    Args:
        models: the same model on each device.
        devices: several of one kind, or the CPU as often as there shall be threads.
    """

    def __init__(self, models: Sequence[torch.nn.Module], devices: Sequence[torch.device]) -> None:
        self.models, self.devices = list(models), list(devices)
        # a thread starts when it is first needed
        self._threads = ThreadPoolExecutor(len(self.models), "replica")
        self._seen: set[tuple[int, ...]] = set()
        self._draws = False

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def __len__(self) -> int:
        return len(self.models)

    def parts(self, piece: Indices) -> list[Indices]:
        """Return parts of nearly the same size, one for each of the first replicas.

        Every part has two examples if there are two: batch normalisation needs more than one.
        """
        return np.array_split(piece, max(1, min(len(self), len(piece) // 2)))

    def broadcast(self) -> None:
        """Copy the weights and buffers of the first replica to all others.

        The others' buffers are overwritten: the running means of batch normalisation are those of
        the first replica's parts, as in ``torch.nn.DataParallel``.
        """
        with torch.no_grad():
            for model in self.models[1:]:
                for first, other in zip(_tensors(self.models[0]), _tensors(model), strict=True):
                    other.copy_(first, non_blocking=True)

    def each(
        self,
        work: Callable[[int, Any], Result],
        read: Callable[[Indices], Any],
        parts: Sequence[Indices],
    ) -> list[Result]:
        """Return the result of ``work(number, batch)`` for every part, in their order.

        Args:
            work: called with the replica's number and its batch, by several threads at once.
            read: returns the batch of a part; called by this thread only, in the parts' order.
            parts: one for each of the first replicas.

        Raises:
            TrainingFailed: replicas that had drawn no random numbers on the CPU now do.
        """
        batches = [to_device(read(part), self.devices[number]) for number, part in enumerate(parts)]
        if len(parts) == 1:
            return [self._on(work, 0, batches[0])]
        sizes = tuple(len(part) for part in parts)
        in_turns = self._draws or sizes not in self._seen
        before = torch.get_rng_state()
        arguments = (itertools.repeat(work), range(len(parts)), batches)
        if in_turns:
            found = list(map(self._on, *arguments))
        else:
            found = list(self._threads.map(self._on, *arguments))
        self._check_draws(before, in_turns=in_turns)
        self._seen.add(sizes)
        return found

    def _on(self, work: Callable[[int, Any], Result], number: int, batch: Any) -> Result:
        with _current(self.devices[number]):
            return work(number, batch)

    def _check_draws(self, before: torch.Tensor, *, in_turns: bool) -> None:
        if self._draws or torch.equal(before, torch.get_rng_state()):
            return
        if not in_turns:
            raise TrainingFailed(
                "the model draws random numbers on the CPU at some steps only, which several "
                "accelerators cannot repeat: train on one"
            )
        self._draws = True
        _LOG.warning("the model draws random numbers on the CPU: its replicas take turns")


def seed_devices(seed: int, devices: Sequence[torch.device]) -> None:
    """Seed torch, and every CUDA device but the first with a seed of its own."""
    torch.manual_seed(seed)
    for index, device in enumerate(devices[1:], 1):
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed((seed + index) % 2**64)


def _tensors(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Make this device the current one on this thread, for ``tensor.cuda()`` in a task's code."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
