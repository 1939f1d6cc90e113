"""What the losses of classification share; tensors of torch alone."""

from __future__ import annotations

from typing import Any

from runtime.errors import ConfigError


def rows_of_classes(outputs: Any, targets: Any) -> tuple[Any, Any]:
    """Return a row of class scores for each label, and the labels, without those left out (-100).

    Shapes: outputs (batch, classes, ...), targets (batch, ...).

    Raises:
        ConfigError: the targets are not numbers of classes.
    """
    if outputs.ndim < 2 or targets.shape != outputs.shape[:1] + outputs.shape[2:]:
        raise ConfigError(
            "this algorithm's loss needs class numbers as targets and a score for each class, not "
            f"targets of shape {tuple(targets.shape)} and outputs of {tuple(outputs.shape)}"
        )
    labels = targets.flatten()
    kept = labels >= 0
    return outputs.movedim(1, -1).flatten(0, -2)[kept], labels[kept]
