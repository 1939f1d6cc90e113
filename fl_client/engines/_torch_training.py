"""One round's training on the torch engine: its steps and its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from algorithms.base import Arrays
from fl_client.engines._descent import Descent, clip_factor
from fl_client.engines._torch_loss import TaskLoss
from fl_client.engines._torch_replicas import Replicas
from fl_client.engines._torch_tuning import MixedPrecision, compiled, to_device
from fl_client.engines.base import Indices, pieces
from fl_client.models.dropout import DropoutMasks
from fl_client.models.local_round import LocalRound
from fl_client.torch_models.layers import use_masks
from fl_client.torch_models.normalisation import single_values
from fl_client.torch_models.tensors import to_numpy, to_tensor
from runtime.errors import ConfigError

Gradients: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _View:
    """A replica's tensors for the loss and the algorithm; ``w`` shares memory with the model."""

    forward: torch.nn.Module
    trainable: dict[str, torch.nn.Parameter]
    masks: DropoutMasks
    w: dict[str, torch.Tensor]
    w0: Arrays
    state: Arrays


class TorchTraining:
    """One round's training: the model, the algorithm's state, and the local optimiser.

    Every replica computes the gradient of its part of a batch. The first takes the step along
    their sum, which is added up in the replicas' order.

    Args:
        replicas: of the model, with the global weights.
        backend: of ``torch.compile``, "" for none.
    """

    def __init__(
        self,
        loss: TaskLoss,
        replicas: Replicas,
        plan: LocalRound,
        mixed: MixedPrecision,
        backend: str = "",
    ) -> None:
        self._loss, self._replicas, self._plan, self._mixed = loss, replicas, plan, mixed
        self._model, self._device = replicas.models[0], replicas.devices[0]
        self.w = _floats(self._model)
        self.w0 = {name: tensor.clone() for name, tensor in self.w.items()}
        given = {
            name: torch.from_numpy(np.array(array)).to(self._device)
            for name, array in plan.state.items()
        }
        self.state = plan.algorithm.begin(self.w0, given)
        self._views = [self._view(number, backend) for number in range(len(replicas))]
        self._trainable = self._views[0].trainable
        if not self._trainable:
            raise ConfigError(f"the model of task {loss.task.name} has nothing to train")
        # the optimiser's state and step would underflow
        halves = (torch.float16, torch.bfloat16)
        self._is_half = any(weight.dtype in halves for weight in self._trainable.values())
        self._optimizer = loss.task.optimizer(self._trainable.values())
        self._descent, self._steps = Descent(plan.settings), 0

    def _view(self, number: int, backend: str) -> _View:
        model, masks = self._replicas.models[number].train(), DropoutMasks(self._plan.local_seed)
        use_masks(model, masks)
        named = model.named_parameters()
        # only an algorithm with its own loss needs these tensors on the replica's device
        needed = self._plan.algorithm.needs_loss
        device = self._replicas.devices[number]
        return _View(
            forward=compiled(model, backend),
            trainable={name: weight for name, weight in named if weight.requires_grad},
            masks=masks,
            w=_floats(model),
            w0=to_device(self.w0, device) if needed else {},
            state=to_device(self.state, device) if needed else {},
        )

    def step(self, read: Callable[[Indices], Any], chosen: Indices) -> float:
        """Train on one batch, whose parts ``read`` returns, and return its loss."""
        total, g = 0.0, Gradients()
        self._replicas.broadcast()
        for piece, _ in pieces(chosen, self._plan.settings):
            parts = self._parts(piece)
            # parts have two examples if there are two: only the first replica can get one
            with single_values(self._model) if len(piece) == 1 else nullcontext():
                found = self._replicas.each(self._gradients, read, parts)
            for (loss, grads), part in zip(found, parts, strict=True):
                share = len(part) / len(chosen)
                total += loss * share
                if share == 1.0:
                    g = grads
                    continue
                self._add(g, grads, share)
        if not self._mixed.overflowed(g):
            with torch.no_grad():
                clipped = self._clipped(g)
                self._descend(self._plan.algorithm.gradient(clipped, self.w, self.w0, self.state))
        self._begin(self._steps + 1)
        return total

    def _parts(self, piece: Indices) -> list[Indices]:
        """Return each replica's part of a micro batch, after setting its dropout to that part."""
        parts, before = self._replicas.parts(piece), 0
        for part, view in zip(parts, self._views, strict=False):
            view.masks.set_position(before, len(piece) - before - len(part))
            before += len(part)
        return parts

    def _gradients(self, number: int, batch: Any) -> tuple[float, Gradients]:
        algorithm, view = self._plan.algorithm, self._views[number]
        with self._mixed.cast():
            loss = self._loss.of_step(view.forward, batch)
        objective = loss
        if algorithm.needs_loss:
            live = {**view.w, **view.trainable}
            objective = algorithm.loss(loss, live, view.w0, view.state)
        return float(loss.detach()), self._mixed.gradients(objective, view.trainable)

    def _add(self, g: Gradients, grads: Gradients, share: float) -> None:
        for name, grad in grads.items():
            weighted = grad.to(self._device) * share
            g[name] = weighted if name not in g else g[name].add_(weighted)

    def _clipped(self, g: Gradients) -> Gradients:
        """Return the gradient within its largest norm; two weights may share one tensor of it."""
        if not self._plan.settings.clip_norm:
            return g
        # the squares of 16-bit floats would overflow
        wide = [grad.to(torch.promote_types(grad.dtype, torch.float32)) for grad in g.values()]
        norms = [torch.linalg.vector_norm(grad) for grad in wide]
        factor = clip_factor(torch.stack(norms).tolist(), self._plan.settings.clip_norm)
        return g if factor == 1 else {name: grad * factor for name, grad in g.items()}

    def _descend(self, g: Mapping[str, torch.Tensor]) -> None:
        if self._optimizer is None:
            wide = {name: grad.float() for name, grad in g.items()} if self._is_half else g
            self._descent.step(self._trainable, wide)
            return
        for name, parameter in self._trainable.items():
            parameter.grad = g.get(name)
        self._optimizer.step()

    def _begin(self, step: int) -> None:
        self._steps = step
        for view in self._views:
            view.masks.begin(step)

    def finish(self) -> tuple[Arrays, Arrays]:
        """Return the update and the algorithm's next state."""
        with torch.no_grad():
            update, state = self._plan.algorithm.finish(self.w, self.w0, self.state)
            if self._plan.algorithm.kind == "delta":
                update = {name: self._change(name, value) for name, value in update.items()}
        return update, state

    def _change(self, name: str, value: Any) -> Any:
        """Return the change of a tensor, which is none where it did not change.

        A model may hold infinite constants, such as an attention mask: their difference is NaN.
        """
        if name in self._trainable:
            return value
        constant = (self.w[name] == self.w0[name]) & ~torch.isfinite(self.w0[name])
        return torch.where(constant, 0, value)

    def capture(self) -> dict[str, NDArray[Any]]:
        """Return the model, the optimiser's state, and torch's random state of every device."""
        found: dict[str, Any] = {
            f"model/{name}": tensor for name, tensor in self._model.state_dict().items()
        }
        found.update((f"optimizer/{name}", tensor) for name, tensor in self._descent.arrays())
        if self._optimizer is not None:
            for index, state in self._optimizer.state_dict()["state"].items():
                kept = {key: value for key, value in state.items() if value is not None}
                found.update((f"own/{index}/{key}", value) for key, value in kept.items())
        found["steps"] = np.array([self._steps], np.int64)
        found["replicas"] = np.array([len(self._replicas)], np.int64)
        found["random/cpu"] = torch.get_rng_state()
        for name, device in self._generators().items():
            found[name] = torch.cuda.get_rng_state(device)
        return to_numpy(found) | self._mixed.capture()

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Set a captured state; False when it is not of this model on these devices."""
        if not self._fits(arrays):
            return False
        self._mixed.restore(arrays)
        with torch.no_grad():
            for name, tensor in self._model.state_dict().items():
                tensor.copy_(to_tensor(arrays[f"model/{name}"]))
        self._begin(int(arrays["steps"][0]))
        self._descent.steps = self._steps
        for name, array in _under("optimizer", arrays):
            self._descent.restore(name, to_tensor(array).to(self._device, copy=True))
        if self._optimizer is not None:
            self._restore_own(self._optimizer, arrays)
        torch.set_rng_state(to_tensor(arrays["random/cpu"]))
        for name, device in self._generators().items():
            torch.cuda.set_rng_state(to_tensor(arrays[name]), device)
        return True

    def _fits(self, arrays: Mapping[str, NDArray[Any]]) -> bool:
        model = self._model.state_dict()
        expected = {f"model/{name}": tuple(tensor.shape) for name, tensor in model.items()}
        given = {n: tuple(a.shape) for n, a in arrays.items() if n.startswith("model/")}
        generators = {name for name in arrays if name.startswith("random/cuda/")}
        return (
            given == expected
            and generators == set(self._generators())
            # several CPU replicas have no generators to tell them by
            and np.array_equal(arrays.get("replicas", 0), [len(self._replicas)])
            and self._mixed.fits(arrays)
        )

    def _generators(self) -> dict[str, torch.device]:
        """Return the devices with random numbers of their own, by their names in a checkpoint."""
        numbered = enumerate(self._replicas.devices)
        return {f"random/cuda/{n}": device for n, device in numbered if device.type == "cuda"}

    def _restore_own(
        self, optimizer: torch.optim.Optimizer, arrays: Mapping[str, NDArray[Any]]
    ) -> None:
        """Restore the state of a task's own optimiser; its parameter groups do not change."""
        saved = optimizer.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for path, array in _under("own", arrays):
            index, _, key = path.partition("/")
            state.setdefault(int(index), {})[key] = to_tensor(array).clone()
        optimizer.load_state_dict({**saved, "state": state})


def _floats(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's floating point tensors, which share its memory."""
    return {n: tensor for n, tensor in model.state_dict().items() if tensor.is_floating_point()}


def _under(folder: str, arrays: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, array in arrays.items():
        if name.startswith(folder + "/"):
            yield name.removeprefix(folder + "/"), array
