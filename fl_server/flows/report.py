"""What a flow reports of its run to operators: its rounds, and what each device did. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from runtime.bounds import total


class RecordedFact(Protocol):
    """A journalled fact, and its Unix time."""

    @property
    def fact(self) -> Any:
        """The fact."""
        ...

    @property
    def at(self) -> float:
        """When it was journalled."""
        ...


@dataclass
class RoundReport:
    """One attempt of a round.

    Attributes:
        started_at: in Unix time.
        seconds: how long it took; None while it goes on.
        included: whose contributions counted.
        ordered_steps: by device, where the flow limited them.
        widths: how much of the model devices trained, by device, where that was not the whole.
        refused: the reasons, by device.
        not_evaluated: why devices did not measure its version.
        measured: the metric that runs of its task are compared by.
    """

    round: int
    attempt: int
    started_at: float
    cohort: Sequence[str]
    outcome: Literal["collecting", "committed", "abandoned"] = "collecting"
    seconds: float | None = None
    included: Sequence[str] = ()
    ordered_steps: Mapping[str, int] = field(default_factory=dict)
    widths: Mapping[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    not_evaluated: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    accuracy: float | None = None
    loss: float | None = None
    measured: float | None = None

    def end(self, outcome: Literal["committed", "abandoned"], at: float, reason: str = "") -> None:
        """Set how and when it ended."""
        self.outcome, self.reason = outcome, reason
        self.seconds = at - self.started_at


@dataclass
class DeviceReport:
    """What one device did in a run: ``steps`` of ``full_steps`` are of its latest round.

    ``width`` is how much of the model it trained there.
    """

    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    peak_rss_bytes: int = 0
    steps: int = 0
    full_steps: int = 0
    step_s: float = 0.0
    width: float = 1.0

    def add(self, usage: Mapping[str, float]) -> None:
        """Count what one of its results took."""
        self.bytes_up = total((self.bytes_up, int(usage.get("bytes_up", 0))))
        self.bytes_down = total((self.bytes_down, int(usage.get("bytes_down", 0))))
        peak = int(usage.get("peak_rss_bytes", 0))
        self.peak_rss_bytes = max(self.peak_rss_bytes, peak)


@dataclass(frozen=True)
class MetricSpread:
    """A metric of a version over devices, of which each counts alike, however much data it has.

    Attributes:
        worst_tenth: the mean over the worst tenth of them, rounded up to whole devices.
        variance: of all of them, not a sample's.

    Source: Li et al., "Fair Resource Allocation in Federated Learning", ICLR 2020, table 1,
    https://arxiv.org/abs/1905.10497.
    """

    version: int
    devices: int
    mean: float
    worst_tenth: float
    variance: float


@dataclass
class FlowReport:
    """The rounds of a run, the devices that took part, and the latest version that it committed.

    The key and the sha256 are empty where it has committed none. ``spread`` is that of the metric
    that runs are compared by, where devices measured it on data of their own.
    """

    rounds: list[RoundReport] = field(default_factory=list)
    devices: dict[str, DeviceReport] = field(default_factory=lambda: defaultdict(DeviceReport))
    model_key: str = ""
    model_sha256: str = ""
    spread: MetricSpread | None = None
