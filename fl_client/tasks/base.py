"""What a task is: a model, a device's data and, if the defaults do not fit, how to train.

This module imports neither numpy nor torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fl_client.models.settings import Goal, Objective, TrainingSettings
from fl_client.tasks.listing import snake_case
from fl_client.tasks.user_code import model_of
from runtime.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from fl_client.datasets.device import Device
    from fl_client.models.layers import Layers
    from fl_client.models.local_round import Evaluation, LocalUpdate
    from fl_client.tasks.context import LocalContext
    from fl_client.tasks.exchange import ExchangeContext
    from fl_client.tasks.split import Split
    from storage.weights import Vector, Weights


_LEFT_OUT = -100
"""The class number that torch's cross entropy leaves out; only torch modules may have it."""


class Task:
    """A learning task; a subclass defines ``model`` and ``data``, and overrides what it needs to.

    ``name`` is the class's name in snake case unless the subclass sets it. A task whose model is
    a list of layers, and that overrides no method marked torch only, runs on every engine.

    Attributes:
        objective: chooses the loss, unless ``loss`` is overridden.
        goals: the metrics in the order in which they are shown, each with what is better, "higher"
            or "lower"; the first is the one that runs are compared by. If empty, it is accuracy
            for the cross entropies and the loss else.
        head: the beginnings of the names of the weights that make the model's head, for algorithms
            that treat it apart; if empty, it is the last layer with weights.
    """

    name: ClassVar[str] = "task"
    objective: ClassVar[Objective] = "cross_entropy"
    training: ClassVar[TrainingSettings] = TrainingSettings()
    goals: ClassVar[Mapping[str, Goal]] = {}
    head: ClassVar[Sequence[str]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = snake_case(cls.__name__)

    def model(self) -> Layers | torch.nn.Module:
        """Return the model: a list of layers (any engine) or a torch module."""
        raise ConfigError(f"task {self.name} does not define model()")

    def model_at(self, width: float) -> Layers | torch.nn.Module:
        """Return the model with ``width`` of the units of each hidden layer, rounded up.

        For algorithms whose devices train parts. A list of layers is narrowed without it.
        """
        raise ConfigError(f"task {self.name} does not define model_at(width)")

    def data(self, device: Device) -> tuple[Split, Split]:
        """Return the device's training split and its held-out split.

        Called once per process, or for every job if the device gathers the data itself.
        """
        raise ConfigError(f"task {self.name} does not define data(device)")

    def samples(self, device: Device) -> Iterable[Mapping[str, Any]]:
        """Yield the samples of the device's sensor as records, without end.

        Runs in a process of its own beside the agent if the settings name a ``sensor`` source.
        """
        raise ConfigError(f"task {self.name} does not define samples(device)")

    def initial_weights(self, seed: int) -> Weights:
        """Return version 0 of the global model, the same for the same ``seed``."""
        from fl_client.models import layers  # noqa: PLC0415  needs numpy, see the module

        model = model_of(self)
        if layers.is_declarative(model):
            return layers.initial_weights(model, seed)
        # needs torch
        from fl_client.tasks.torch_module import module_of  # noqa: PLC0415
        from fl_client.torch_models.weights import initial_weights  # noqa: PLC0415

        return initial_weights(lambda: module_of(self), seed)

    def metrics(self, outputs: NDArray[Any], targets: NDArray[Any]) -> dict[str, float]:
        """Return further metrics than the loss, as means over a batch of outputs and targets.

        One that a batch says nothing about is left out, or NaN: its mean is over the other batches.

        Args:
            outputs: of the model, float32.
            targets: as the loss takes them: class numbers or class probabilities for
                ``cross_entropy``, an array of the outputs' shape for the other objectives.
        """
        if self.objective == "binary_cross_entropy":
            return {"accuracy": float(((outputs > 0) == (targets > 0.5)).mean())}
        if self.objective != "cross_entropy":
            return {}
        classes = targets.argmax(1) if targets.shape == outputs.shape else targets
        right = (outputs.argmax(1) == classes)[classes != _LEFT_OUT]
        return {"accuracy": float(right.mean())} if right.size else {}

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch (overriding it: torch only)."""
        from torch.nn import functional  # noqa: PLC0415  only the torch engine calls this

        if self.objective == "cross_entropy":
            return functional.cross_entropy(outputs, targets)
        if outputs.shape != targets.shape:
            # torch would repeat one along the other
            raise ConfigError(
                f"task {self.name}: outputs of shape {tuple(outputs.shape)} and targets of shape "
                f"{tuple(targets.shape)} have no {self.objective}; give both one shape"
            )
        if self.objective == "binary_cross_entropy":
            return functional.binary_cross_entropy_with_logits(outputs, targets)
        return functional.mse_loss(outputs, targets)

    def predict(self, model: torch.nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs and the targets of a batch (overriding it: torch only)."""
        inputs, targets = batch
        return model(inputs), targets

    def training_step(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """Return the loss to differentiate (overriding it: torch only)."""
        return self.loss(*self.predict(model, batch))

    def optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer | None:
        """Return the local optimiser, None for that of the settings (overriding it: torch only)."""
        del parameters
        return None

    def local_update(
        self, weights: Vector, context: LocalContext
    ) -> LocalUpdate | tuple[Vector, int, dict[str, float]]:
        """Return this device's update of a round; override it to replace local training entirely.

        An override that needs no ``model``, ``data`` or engine causes none to be loaded.

        Args:
            weights: the global weights as a flat float32 vector, read-only.
            context: the device, the round, the settings, the algorithm and its state, a seed.

        Returns:
            The vector to send (the change of the weights or the weights, by the algorithm's
            ``kind``), the number of examples, and metrics.
        """
        del weights
        return context.train()

    def evaluate(
        self, weights: Vector, context: LocalContext
    ) -> Evaluation | tuple[int, dict[str, float]]:
        """Return the number of held-out examples and the metrics on them; override as above."""
        del weights
        return context.evaluate()

    def exchange(self, context: ExchangeContext) -> bytes | tuple[bytes, dict[str, float]]:
        """Return this device's answer to one message of a flow whose rounds have several.

        Args:
            context: the message (phase, number, payload), the order's model, the device's data,
                and what the run keeps here.

        Returns:
            The answer, alone or with metrics; what it means is between the task and the flow.
        """
        raise ConfigError(
            f"task {self.name} takes part in no exchange (phase {context.phase!r}): "
            "it does not define exchange(context)"
        )
