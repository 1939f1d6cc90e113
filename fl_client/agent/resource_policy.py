"""What keeps an agent within its machine's resources: budgets, limits and health.

The agent asks before it accepts an order, and counts what it transfers. It knows no sensor and no
limit: ``iot.policy`` does, and :class:`Unbounded` has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from broker.wire.messages import Message, Order


@dataclass(frozen=True)
class Need:
    """What an order would cost this device, as far as the order tells.

    Attributes:
        download_bytes: of the model, beside what is here already.
        upload_bytes: of the update, at most; 0 for an evaluation.
        disk_bytes: what the files of the job take.
        promised_bytes: of orders that were taken before and are not done.
    """

    download_bytes: int = 0
    upload_bytes: int = 0
    disk_bytes: int = 0
    promised_bytes: int = 0


class ResourcePolicy(Protocol):
    """The agent's owner thread calls it, ``count_bytes`` apart, which any thread may call."""

    def refusal(self, order: Order, need: Need) -> str:
        """Return why this order must be declined now, "" when it fits."""

    def memory_bytes(self) -> int:
        """Return what a training process may hold, 0 where nothing limits it."""

    def download_refusal(self, size_bytes: int) -> str:
        """Return why a model for use must not be fetched now, "" when it may."""

    def environment(self) -> Mapping[str, str]:
        """Return what a training process is started with, over the agent's own environment."""

    def limit_process(self, pid: int) -> None:
        """Keep a training process within its limits, from its start to its end."""

    def killed_for_memory(self) -> bool:
        """Return whether a process was killed for its memory since the last call."""

    def count_bytes(self, count: int) -> None:
        """Count bytes that went over the network."""

    def poll(self, now_s: float) -> Message | None:
        """Measure the machine if that is due; return what to publish, retained.

        Pauses and resumes the limited processes by itself. ``now_s`` is monotonic.
        """

    def left_s(self, now_s: float) -> float | None:
        """Return how long until ``poll`` is due, None when it never is."""

    def health(self) -> Message | None:
        """Return what a new connection publishes, retained; None when nothing is known."""

    def status(self) -> dict[str, Any]:
        """Return budgets, health and the latest refusals as plain data, for a person."""

    def close(self) -> None:
        """Write down what must outlive the agent."""


class Unbounded:
    """The policy of an agent without limits: every order is allowed, nothing is measured."""

    def refusal(self, order: Order, need: Need) -> str:
        """Return "": every order is allowed."""
        del order, need
        return ""

    def memory_bytes(self) -> int:
        """Return 0: there is no limit."""
        return 0

    def download_refusal(self, size_bytes: int) -> str:
        """Return "": every download is allowed."""
        del size_bytes
        return ""

    def environment(self) -> Mapping[str, str]:
        """Return an empty environment."""
        return {}

    def limit_process(self, pid: int) -> None:
        """Do nothing: the process has no limits."""

    def killed_for_memory(self) -> bool:
        """Return False: it is not measured."""
        return False

    def count_bytes(self, count: int) -> None:
        """Do nothing: there is no budget."""

    def poll(self, now_s: float) -> Message | None:
        """Return None: nothing is measured."""
        del now_s
        return None

    def left_s(self, now_s: float) -> float | None:
        """Return None: ``poll`` is never due."""
        del now_s
        return None

    def health(self) -> Message | None:
        """Return None: nothing is measured."""
        return None

    def status(self) -> dict[str, Any]:
        """Return an empty document."""
        return {}

    def close(self) -> None:
        """Do nothing: there is nothing to store."""
