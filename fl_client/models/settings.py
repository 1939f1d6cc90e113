"""How a device trains in one round, as a task declares it and a run overrides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, TypeAlias

from runtime.bounds import MAX_CLASSES, MAX_HYPER_PARAMETER, MAX_SIZE
from runtime.errors import ConfigError
from runtime.records import Bounds, FieldError, build, require_checked

Objective: TypeAlias = Literal["cross_entropy", "binary_cross_entropy", "mean_squared_error"]
Goal: TypeAlias = Literal["higher", "lower"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a device trains in one round. The optimiser's state does not outlive the round.

    Raises:
        FieldError: a value that is not allowed.
    """

    local_epochs: Annotated[int, Bounds(least=1, most=100_000)] = 1
    """How often a device goes through its examples in a round."""
    batch_size: Annotated[int, Bounds(least=1, most=MAX_SIZE)] = 32
    """How many examples a step is of."""
    learning_rate: Annotated[float, Bounds(above=0, most=MAX_HYPER_PARAMETER)] = 0.1
    """How far a step goes along the gradient."""
    momentum: Annotated[float, Bounds(least=0, below=1)] = 0.0
    """How much of the step before is added; of SGD alone, Adam has its usual 0.9 and 0.999."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """What makes steps of gradients; its state does not outlive a round."""
    weight_decay: Annotated[float, Bounds(least=0, most=MAX_HYPER_PARAMETER)] = 0.0
    """How much of every trained weight is added to its gradient, as `weight_decay` of torch's SGD
    and Adam. It comes last: after clipping, and after what the algorithm adds to the gradient."""
    clip_norm: Annotated[float, Bounds(least=0, most=MAX_HYPER_PARAMETER)] = 0.0
    """The largest norm of a batch's gradient, over all weights together: a longer one is scaled to
    it, before the algorithm and the weight decay add to it. 0 is no bound."""
    class_weights: Annotated[tuple[float, ...], Bounds(length=MAX_CLASSES)] = ()
    """How much each class counts in the cross entropy that is trained, as
    `training.class_weights=[1,2.5]`; empty is 1 each. The mean is over the number of examples, not
    of their weights, so that a batch in parts has the same gradient. Evaluation has none."""
    max_steps: Annotated[int, Bounds(least=0, most=MAX_SIZE)] = 0
    """The most steps in a round; 0 is all steps of the epochs."""
    micro_batch: Annotated[int, Bounds(least=0, most=MAX_SIZE)] = 0
    """The most examples in memory at once; 0 is the whole batch. The gradients of micro batches are
    summed to that of the batch. Only batch normalisation gives another result: its statistics are
    those of a micro batch."""

    def __post_init__(self) -> None:
        require_checked(self)
        for weight in self.class_weights:
            Bounds(least=0, most=MAX_HYPER_PARAMETER).require(weight, "class_weights")
        if self.class_weights and not any(self.class_weights):
            raise FieldError("class_weights", "must not all be 0")

    def overridden(self, overrides: Mapping[str, Any]) -> TrainingSettings:
        """Return these settings with some values replaced.

        Raises:
            ConfigError: an unknown key or a value that is not allowed, by name.
        """
        try:
            return build(TrainingSettings, {**asdict(self), **overrides})
        except FieldError as error:
            raise ConfigError(
                f"training setting {error.field}: {error.reason} "
                f"(got {overrides.get(error.field)!r}); "
                f"the settings are: {', '.join(each.name for each in fields(self))}"
            ) from error
