"""Canaries: trying a version before it is in production."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from broker.wire.messages import RunDocument
from fl_server.operations.catalogue import CANARY_BEGIN, CANARY_SHOW
from fl_server.operations.results.models import CanaryReport
from rengo.operator.client import OperatorClient

_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class CanaryTrial:
    """How a candidate is tried.

    Attributes:
        share: of the online evaluators, above 0, at most 1.
        metric: what is compared, "" for what runs of the task are compared by. The task says what
            is better, higher or lower; of other metrics named like loss and error, lower is.
        max_drop: by how much it may be worse than in production.
    """

    share: float = 0.2
    metric: str = ""
    max_drop: float = 0.01
    deadline_s: float = 120.0


def begin(client: OperatorClient, name: str, trial: CanaryTrial) -> str:
    """Begin a canary of a version and return its id.

    Raises:
        ConfigError: there is nothing to compare with, nobody to measure, or one runs already.
    """
    return client.request(CANARY_BEGIN, {"name": name, **asdict(trial)}).canary_id


def follow(
    client: OperatorClient, canary_id: str, show: Callable[[CanaryReport], None]
) -> CanaryReport:
    """Return how a canary ended; ``show`` gets how it stands, about once a second."""
    while True:
        report = client.request(CANARY_SHOW, {"canary_id": canary_id})
        show(report)
        if report.state == "ended":
            return report
        for news in client.news(_LOOK_EVERY_S):
            if isinstance(news.message, RunDocument) and news.message.run_id == canary_id:
                break  # it is over: no need to wait
