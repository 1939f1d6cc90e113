"""Copies of a model on several devices, each of which computes its part of a batch on a thread."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch

from fl_client.engines._torch_tuning import moved
from fl_client.engines.base import Indices, TrainingFailed

Found = TypeVar("Found")
_LOG = logging.getLogger(__name__)


class Replicas:
    """The copies of a model, of which the first is the one that learns.

    What comes back is a function of the weights, the data, the seed and the number of replicas:
    parts are cut and put together in the replicas' order, whichever is done first.

    Random numbers: a CUDA device has its own, which only its replica draws. The CPU's are shared,
    so what a model draws there would depend on which thread comes first. Therefore replicas take
    turns until they are seen to draw nothing there, and for ever where they do. Sizes of parts
    that are new are computed in turns as well: that is when a model is compiled.

    Use it as a context: threads end with it. One thread owns it.

    Args:
        models: the same model on each device.
        devices: several of one kind, or as many times the CPU as there are to be threads.
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

        A small piece is for fewer: batch normalisation takes no single example.
        """
        return np.array_split(piece, max(1, min(len(self), len(piece) // 2)))

    def spread(self) -> None:
        """Give every replica the weights and buffers of the first.

        What the others' buffers came to is lost: the running means of batch normalisation are
        those of the first replica's parts, as ``torch.nn.DataParallel`` has it.
        """
        with torch.no_grad():
            for model in self.models[1:]:
                for first, other in zip(_held(self.models[0]), _held(model), strict=True):
                    other.copy_(first, non_blocking=True)

    def each(
        self,
        work: Callable[[int, Any], Found],
        read: Callable[[Indices], Any],
        parts: Sequence[Indices],
    ) -> list[Found]:
        """Return what ``work(number, batch)`` gives for every part, in their order.

        Args:
            work: called with the replica's number and its batch, by several threads at once.
            read: gives the batch of a part; called by this thread alone, in the parts' order.
            parts: one for each of the first replicas.

        Raises:
            TrainingFailed: replicas that had drawn no random numbers on the CPU do so now.
        """
        batches = [moved(read(part), self.devices[number]) for number, part in enumerate(parts)]
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
        self._look_for_draws(before, in_turns=in_turns)
        self._seen.add(sizes)
        return found

    def _on(self, work: Callable[[int, Any], Found], number: int, batch: Any) -> Found:
        with _current(self.devices[number]):
            return work(number, batch)

    def _look_for_draws(self, before: torch.Tensor, *, in_turns: bool) -> None:
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
    """Seed torch; every CUDA device but the first draws numbers of its own."""
    torch.manual_seed(seed)
    for index, device in enumerate(devices[1:], 1):
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed((seed + index) % 2**64)


def _held(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Have ``tensor.cuda()`` of a task's own code mean this device, on this thread."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
