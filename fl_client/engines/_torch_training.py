"""One round's training on the torch engine: its steps and its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from algorithms.base import STATISTICS, Arrays, Received, Sent, State
from fl_client.engines._client_half import ClientHalf, LocalTraining, nested
from fl_client.engines._descent import Descent, clip_factor
from fl_client.engines._torch_forward import TorchForward
from fl_client.engines._torch_loss import TaskLoss
from fl_client.engines._torch_replicas import Replicas
from fl_client.engines._torch_tuning import MixedPrecision, compiled, to_device
from fl_client.engines.base import Indices, pieces
from fl_client.models.dropout import DropoutMasks
from fl_client.models.local_round import LocalRound
from fl_client.models.parts import ModelParts
from fl_client.torch_models.layers import use_masks
from fl_client.torch_models.normalisation import single_values
from fl_client.torch_models.tensors import to_numpy, to_tensor
from runtime.errors import ConfigError

Gradients: TypeAlias = dict[str, torch.Tensor]
_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class TorchData:
    """What a round trains on: the number of examples, a function from indices to a batch."""

    count: int
    read: Callable[[Indices], Any]
    loss: TaskLoss


@dataclass(frozen=True)
class _View:
    """A replica's tensors for the loss and the algorithm; ``w`` shares memory with the model."""

    model: torch.nn.Module
    forward: torch.nn.Module
    trainable: dict[str, torch.nn.Parameter]
    masks: DropoutMasks
    w: dict[str, torch.Tensor]
    got: Received
    state: State


class TorchTraining:
    """One round's training: the model, the algorithm's client half, and the local optimiser.

    Every replica computes the gradient of its part of a batch. The first takes the step along
    their sum, which is added up in the replicas' order.

    Args:
        replicas: of the model, with the global weights.
        received: the server's vectors, as named arrays.
        parts: the head and the normalisation of the model.
        backend: of ``torch.compile``, "" for none.
    """

    def __init__(
        self,
        data: TorchData,
        replicas: Replicas,
        plan: LocalRound,
        received: Mapping[str, Mapping[str, NDArray[Any]]],
        parts: ModelParts,
        mixed: MixedPrecision,
        backend: str = "",
    ) -> None:
        self._data, self._replicas, self._plan, self._mixed = data, replicas, plan, mixed
        self._model, self._device = replicas.models[0].train(), replicas.devices[0]
        self._backend = backend
        self.w = _floats(self._model)
        self.w0 = {name: tensor.clone() for name, tensor in self.w.items()}
        got = Received(self.w0, self._on_device(received), plan.scalars)
        local = LocalTraining(plan, data.count, parts, self._loss_of_all, self._gradient_of_all)
        self.half = ClientHalf(plan, got, self._on_device(nested(plan.state)), local)
        self._freeze()
        self._views = [self._view(0)]
        self._trainable = self._views[0].trainable
        if not self._trainable:
            raise ConfigError(f"the model of task {data.loss.task.name} has nothing to train")
        # the optimiser's state and step would underflow
        halves = (torch.float16, torch.bfloat16)
        self._is_half = any(weight.dtype in halves for weight in self._trainable.values())
        self._optimizer = data.loss.task.optimizer(self._trainable.values())
        self._descent, self._steps = Descent(plan.settings), 0
        self._has_overflowed = False

    def _freeze(self) -> None:
        """Have torch compute no gradient of what the algorithm does not train."""
        for model in self._replicas.models:
            named = dict(model.named_parameters())
            for name in self.half.frozen(named):
                named[name].requires_grad_(False)

    def begin(self) -> None:
        """Take the weights that training starts from."""
        with torch.no_grad():
            start = self.half.start()
            for name, tensor in self.w.items():
                if start[name] is not self.w0[name]:
                    tensor.copy_(start[name])
        self._views = [self._view(number) for number in range(len(self._replicas))]

    def personal(self) -> Arrays | None:
        """Return the weights that the device predicts with, None where they are the global ones."""
        with torch.no_grad():
            return self.half.personal()

    def _on_device(self, named: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        return {
            name: {each: to_tensor(array).to(self._device) for each, array in arrays.items()}
            for name, arrays in named.items()
        }

    def _view(self, number: int) -> _View:
        model, masks = self._replicas.models[number].train(), DropoutMasks(self._plan.local_seed)
        use_masks(model, masks)
        named = model.named_parameters()
        # only an algorithm with its own loss needs these tensors on the replica's device
        needed = "loss" in self._plan.algorithm.needs
        device, half = self._replicas.devices[number], self.half
        return _View(
            model=model,
            forward=compiled(model, self._backend),
            trainable={name: weight for name, weight in named if weight.requires_grad},
            masks=masks,
            w=_floats(model),
            got=Received(
                to_device(half.got.weights, device),
                to_device(half.got.vectors, device),
                half.got.scalars,
            )
            if needed
            else half.got,
            state=to_device(half.state, device) if needed else {},
        )

    # --- gradients and losses -----------------------------------------------------------------

    def step(self, chosen: Indices) -> float:
        """Train on one batch and return its loss."""
        batch, before = TorchBatch(self, chosen, self._steps, []), self.half.state
        self._has_overflowed = False
        with torch.no_grad():
            direction = self.half.direction(batch, self.w)
            if self._has_overflowed:
                self.half.state = before
            else:
                self._descend(direction)
        self._steps += 1
        return batch.losses[0]

    def gradient(self, w: Arrays, chosen: Indices) -> tuple[float, Gradients]:
        """Return the loss and the gradient of a batch; at the own weights statistics go on."""
        with self._at(w):
            loss, g = self._gradient(chosen)
        self._has_overflowed |= self._mixed.overflowed(g)
        return loss, g

    def _gradient(self, chosen: Indices) -> tuple[float, Gradients]:
        total, g = 0.0, Gradients()
        self._replicas.broadcast()
        for view in self._views:
            view.masks.begin(self._steps)
        for piece, _ in pieces(chosen, self._plan.settings):
            parts = self._parts(piece)
            # parts have two examples if there are two: only the first replica can get one
            with single_values(self._model) if len(piece) == 1 else nullcontext():
                found = self._replicas.each(self._gradients, self._data.read, parts)
            for (loss, grads), part in zip(found, parts, strict=True):
                share = len(part) / len(chosen)
                total += loss * share
                if share == 1.0:
                    g = grads
                    continue
                self._add(g, grads, share)
        return total, g

    @contextmanager
    def _at(self, w: Arrays) -> Iterator[None]:
        """Have other weights in the model within the block, unless they are its own."""
        if w is self.w:
            yield
            return
        before = {name: tensor.clone() for name, tensor in self.w.items()}
        with torch.no_grad():
            for name, value in w.items():
                self.w[name].copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in before.items():
                    self.w[name].copy_(tensor)

    def _loss_of_all(self, w: Arrays) -> float:
        total = 0.0
        with self._at(w), torch.no_grad(), self._mixed.cast():
            self._model.eval()
            for chosen in self._cuts(_EVALUATION_BATCH):
                batch = to_device(self._data.read(chosen), self._device)
                total += float(self._data.loss.measured(self._model, batch)[2]) * len(chosen)
            self._model.train()
        return total / self._data.count

    def _gradient_of_all(self, w: Arrays) -> Gradients:
        g = Gradients()
        for chosen in self._cuts(self._plan.settings.batch_size):
            _, grads = self.gradient(dict(w), chosen)
            self._add(g, grads, len(chosen) / self._data.count)
        return g

    def _cuts(self, size: int) -> list[Indices]:
        return np.array_split(np.arange(self._data.count), range(size, self._data.count, size))

    def _parts(self, piece: Indices) -> list[Indices]:
        """Return each replica's part of a micro batch, after setting its dropout to that part."""
        parts, before = self._replicas.parts(piece)[: len(self._views)], 0
        for part, view in zip(parts, self._views, strict=False):
            view.masks.set_position(before, len(piece) - before - len(part))
            before += len(part)
        return parts

    def _gradients(self, number: int, batch: Any) -> tuple[float, Gradients]:
        algorithm, view = self._plan.algorithm, self._views[number]
        with torch.enable_grad():
            if "loss" not in algorithm.needs:
                with self._mixed.cast():
                    loss = objective = self._data.loss.of_step(view.forward, batch)
            else:
                with self._mixed.cast():
                    forward = TorchForward(self._data.loss, view.model, batch, self.half.local.head)
                live = {**view.w, **view.trainable}
                loss = forward.loss
                objective = algorithm.loss(forward, live, view.got, view.state, self.half.local)
            return float(loss.detach()), self._mixed.gradients(objective, view.trainable)

    def _add(self, g: Gradients, grads: Gradients, share: float) -> None:
        for name, grad in grads.items():
            weighted = grad.to(self._device) * share
            g[name] = weighted if name not in g else g[name].add_(weighted)

    def clipped(self, g: Gradients) -> Gradients:
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

    def finish(self) -> tuple[Sent, State]:
        """Return what is sent and kept, as numpy arrays."""
        with torch.no_grad():
            sent, state = self.half.finish(self.w, self._trainable)
            vectors = dict(sent.vectors)
            if STATISTICS in vectors:
                changes = vectors[STATISTICS].items()
                vectors[STATISTICS] = {name: self._change(name, value) for name, value in changes}
            named = {name: to_numpy(arrays) for name, arrays in vectors.items()}
        return (
            Sent(named, sent.scalars),
            {name: to_numpy(arrays) for name, arrays in state.items()},
        )

    def _change(self, name: str, value: Any) -> Any:
        """Return the change of a buffer, which is none where it did not change.

        A model may hold infinite constants, such as an attention mask: their difference is NaN.
        """
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
        found.update(self.half.capture())
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
        self._steps = self._descent.steps = int(arrays["steps"][0])
        self.half.restore(arrays, lambda array: to_tensor(array).to(self._device, copy=True))
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


@dataclass(frozen=True)
class TorchBatch:
    """The examples of a step; ``losses`` are of the gradients that were asked for, in order."""

    training: TorchTraining
    chosen: Indices
    number: int
    losses: list[float]

    def gradient(self, w: Arrays) -> Gradients:
        loss, g = self.training.gradient(w, self.chosen)
        self.losses.append(loss)
        return self.training.clipped(g)

    def halves(self) -> tuple[TorchBatch, TorchBatch]:
        middle = (len(self.chosen) + 1) // 2
        second = self.chosen[middle:] if len(self.chosen) > 1 else self.chosen
        return replace(self, chosen=self.chosen[:middle]), replace(self, chosen=second)


def _floats(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's floating point tensors, which share its memory."""
    return {n: tensor for n, tensor in model.state_dict().items() if tensor.is_floating_point()}


def _under(folder: str, arrays: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, array in arrays.items():
        if name.startswith(folder + "/"):
            yield name.removeprefix(folder + "/"), array
