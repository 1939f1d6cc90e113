"""How a device trains in one round, as a task declares it and a run overrides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, TypeAlias

from runtime.bounds import MAX_HYPER_PARAMETER, MAX_SIZE
from runtime.errors import ConfigError
from runtime.records import Bounds, FieldError, build, require_checked

Objective: TypeAlias = Literal["cross_entropy", "mean_squared_error"]
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
    max_steps: Annotated[int, Bounds(least=0, most=MAX_SIZE)] = 0
    """The most steps in a round; 0 is all steps of the epochs."""
    micro_batch: Annotated[int, Bounds(least=0, most=MAX_SIZE)] = 0
    """The most examples in memory at once; 0 is the whole batch. The gradients of micro batches are
    summed to that of the batch. Only batch normalisation gives another result: its statistics are
    those of a micro batch."""

    def __post_init__(self) -> None:
        require_checked(self)

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
