"""Advice that several algorithms give about training settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain_sgd(training: Mapping[str, Any], name: str) -> str:
    """Return advice for an algorithm whose arithmetic holds for plain SGD alone, "" for nothing."""
    if not training.get("momentum") and training.get("optimizer", "sgd") == "sgd":
        return ""
    return (
        f"{name} takes a client's change for its learning rate times the sum of its gradients, "
        "which momentum and Adam make wrong: set training.momentum=0 and training.optimizer=sgd"
    )


def plain_steps(training: Mapping[str, Any]) -> str:
    """Return advice for an algorithm whose own models train without the optimiser, "" for none."""
    if training.get("optimizer", "sgd") == "sgd":
        return ""
    return (
        "personal models are trained by plain gradient descent, which needs a larger learning rate "
        "than Adam: set training.optimizer=sgd"
    )
