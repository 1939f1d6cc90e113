"""Trying a candidate before it is in production, over an operator's connection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from broker.wire.messages import RunDocument
from rengo.operator.client import OperatorClient

_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class CanaryTrial:
    """How a candidate is tried.

    Attributes:
        share: of the evaluators that are there, above 0, at most 1.
        metric: what is compared; of names like loss and error, lower is better.
        max_drop: by how much it may be worse than in production.
    """

    share: float = 0.2
    metric: str = "accuracy"
    max_drop: float = 0.01
    deadline_s: float = 120.0


def begin(client: OperatorClient, name: str, trial: CanaryTrial) -> str:
    """Begin a canary of a version and return its id.

    Raises:
        ConfigError: there is nothing to compare with, nobody to measure, or one runs already.
    """
    arguments = {
        "share": trial.share,
        "metric": trial.metric,
        "max_drop": trial.max_drop,
        "deadline_s": trial.deadline_s,
    }
    answer = client.call("models_promote", {"name": name, "canary": arguments})
    canary_id: str = answer["canary_id"]
    return canary_id


def follow(
    client: OperatorClient, canary_id: str, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Return how a canary ended; ``tell`` gets how it stands, now and again."""
    while True:
        shown = client.call("canary_show", {"canary_id": canary_id})
        tell(shown)
        if shown["state"] == "ended":
            return shown
        for news in client.news(_LOOK_EVERY_S):
            if isinstance(news.message, RunDocument) and news.message.run_id == canary_id:
                break  # it is over: no need to wait
