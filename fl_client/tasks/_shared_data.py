"""Tasks on a data set that every device has whole, and takes its own part of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_client.datasets.device import Device
from fl_client.datasets.splits.partitions import divided
from fl_client.datasets.splits.scheme import Examples, parse
from fl_client.datasets.splits.shifts import shifted, shifted_evenly
from fl_client.models.layers import Layers, Shape
from fl_client.tasks._models import build
from fl_client.tasks.base import Task
from fl_client.tasks.split import Split
from runtime.errors import ConfigError

if TYPE_CHECKING:
    import torch

Array = NDArray[Any]


@dataclass(frozen=True)
class Pool:
    """The examples of a data set: those that are divided over trainers, and the evaluators'.

    Attributes:
        labels: the class of each trainers' example, by which they are divided.
        owners: whose each trainers' example is, where the data set says so.
    """

    inputs: Array
    targets: Array
    test_inputs: Array
    test_targets: Array
    labels: Array
    owners: Array | None = None


class SharedDataTask(Task):
    """A task whose data set is divided over the devices, by default or by their settings.

    Attributes:
        partition: how it is divided, unless the device's settings say; see ``scheme.parse``.
        min_examples: no device gets fewer, where there are enough for all.
        local_held_out: about which share of its part a device does not train on.
        example: the shape of an example; one with three axes is an image, which can be shifted.
        classes: how many there are.
        models: what the task can have as its model (``_models.build``), the default first: the
            task ``mnist-cnn`` is ``mnist`` with its model ``cnn``.
        architecture: the one that was chosen; empty for the default.
    """

    partition: ClassVar[str] = "iid"
    min_examples: ClassVar[int] = 10
    local_held_out: ClassVar[float] = 0.1
    example: ClassVar[Shape] = ()
    classes: ClassVar[int] = 10
    models: ClassVar[tuple[str, ...]] = ()
    architecture: ClassVar[str] = ""

    def model(self) -> Layers | torch.nn.Module:
        """Return the chosen model, or the task's default."""
        return build(self.architecture or self.models[0], self.example, self.classes)

    def pool(self, device: Device) -> Pool:
        """Return the data set; the same for all devices of one ``seed``."""
        raise ConfigError(f"task {self.name} does not define pool(device)")

    def inputs(self, chosen: Array) -> Array:
        """Return what the model takes of inputs that were chosen from the pool."""
        return chosen

    def is_divided(self, device: Device) -> bool:
        """Whether the data set is made whole and divided; else each device's part is made alone."""
        del device
        return type(self).data is SharedDataTask.data

    def data(self, device: Device) -> tuple[Split, Split]:
        """Return a trainer's part, some of it held out, or the evaluators' examples."""
        pool = self.pool(device)
        if device.role == "evaluator":
            return None, self.evaluators_part(pool, device)
        return self.trainers_part(pool, self.parts(pool, device)[device.index], device)

    def evaluators_part(self, pool: Pool, device: Device) -> tuple[Array, Array]:
        """Return the evaluators' examples, as the devices see theirs."""
        seen, shift = self.inputs(pool.test_inputs), self._shift(device)
        if shift:
            images = self._images(seen, shift)
            seen = shifted_evenly(images, shift, device.count, device.seed).reshape(seen.shape)
        return seen, pool.test_targets

    def trainers_part(
        self, pool: Pool, part: NDArray[np.int64], device: Device
    ) -> tuple[Split, Split]:
        """Return what a trainer learns from, and what it holds out.

        Args:
            part: the device's own of what ``parts`` returned.
        """
        own = np.random.default_rng([device.seed, device.index]).permutation(part)
        seen, shift = self.inputs(pool.inputs[own]), self._shift(device)
        if shift:
            images = self._images(seen, shift)
            seen = shifted(images, shift, device.index, device.seed).reshape(seen.shape)
        targets, cut = pool.targets[own], int(len(own) * self.local_held_out)
        held_out = (seen[:cut], targets[:cut]) if cut else None
        return (seen[cut:], targets[cut:]), held_out

    def _shift(self, device: Device) -> str:
        return parse(device.partition or self.partition).shift

    def parts(self, pool: Pool, device: Device) -> list[NDArray[np.int64]]:
        """Return which of the trainers' examples each device has, by the device's settings."""
        scheme = parse(device.partition or self.partition)
        examples = Examples(pool.labels, pool.owners, self.min_examples)
        return divided(scheme, examples, device.count, device.seed)

    def _images(self, seen: Array, shift: str) -> Array:
        if len(self.example) != 3:
            raise ConfigError(f"task {self.name} has no images, to which shift {shift} could apply")
        return seen.reshape(-1, *self.example)
