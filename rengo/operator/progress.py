"""What an operator's client knows of a domain's devices and of a run; the terminal shows it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from broker.wire.messages import DeviceInfo, DeviceState, RunDocument, RunEvent
from fl_server.operations.results.runs import RunAddressed, RunSummary
from rengo.operator.client import News

ENDED = frozenset({"completed", "stopped", "failed"})
_LAST_EVENTS = frozenset({"RunCompleted", "RunStoppedEarly", "RunStopped", "RunFailed"})
_EVENTS_GRACE_S = 3.0
_PATIENCE_S = 20.0
_ONLINE = frozenset({"ready", "training", "draining"})


@dataclass
class DeviceTable:
    """The domain's devices, by their retained presence."""

    states: dict[str, DeviceState] = field(default_factory=dict)
    infos: dict[str, DeviceInfo] = field(default_factory=dict)

    def apply(self, news: News) -> None:
        """Apply a message; one that is not about a device changes nothing."""
        match news.message:
            case DeviceState():
                self.states[news.address.id] = news.message
            case DeviceInfo():
                self.infos[news.address.id] = news.message

    def online(self, device_id: str) -> bool:
        """Whether the device is online."""
        return device_id in self.states and self.states[device_id].status in _ONLINE

    def with_task(self, task: str, *, bundled: bool) -> list[str]:
        """Return the devices that can run the task, online or not, by name."""
        return sorted(
            name for name, state in self.states.items() if state.can_run(task, bundled=bundled)
        )

    def trainers(self, task: str, *, bundled: bool) -> list[str]:
        """Return the online trainers that can run the task, by name."""
        return self._here(task, "trainer", bundled=bundled)

    def evaluators(self, task: str, *, bundled: bool) -> list[str]:
        """Return the online evaluators that can run the task, by name."""
        return self._here(task, "evaluator", bundled=bundled)

    def _here(self, task: str, role: str, *, bundled: bool) -> list[str]:
        return [
            name
            for name in self.with_task(task, bundled=bundled)
            if self.online(name) and self.states[name].role == role
        ]


@dataclass
class RoundProgress:
    """The latest attempt of one round, by the events that came.

    Attributes:
        started_s: when its start became known, on the clock of the run's progress; None if that
            event was missed.
        committed_s: when its commit became known, None before.
        refused: why a device's answer did not count, by device.
    """

    number: int
    attempt: int
    started_s: float | None = None
    invited: int = 0
    updates: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    committed_s: float | None = None

    @property
    def seconds(self) -> float | None:
        """From its start to its commit; None when one of them is not known."""
        if self.committed_s is None or self.started_s is None:
            return None
        return self.committed_s - self.started_s


@dataclass
class RunProgress:
    """What is known of a run while it goes on.

    Attributes:
        devices: the domain's.
        cohort_size: how many updates a round aims at; 0 while that is not known.
        bundled: whether devices without the task may take it as a bundle.
        addressed: who fits the run, by the server, when it was last asked while the run waited.
        clock: returns monotonic seconds.
    """

    run_id: str
    devices: DeviceTable = field(default_factory=DeviceTable)
    cohort_size: int = 0
    bundled: bool = False
    addressed: RunAddressed | None = None
    clock: Callable[[], float] = time.monotonic
    document: RunDocument | None = None
    events: list[RunEvent] = field(default_factory=list)
    rounds: dict[int, RoundProgress] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    _evaluate_on: str = "evaluators"
    _evaluate_every: int = 1
    _ended_s: float = 0.0
    headline: str = "accuracy"
    _measured: dict[int, dict[str, tuple[int, dict[str, float]]]] = field(default_factory=dict)

    def apply(self, news: News) -> None:
        """Apply a message."""
        match news.message:
            case RunDocument() if news.message.run_id == self.run_id:
                if not self.ended:
                    self._ended_s = self.clock()
                self.document = news.message
            case RunEvent() if news.message.run_id == self.run_id:
                self._event(news.message)
            case _:
                self.devices.apply(news)

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended and nothing more is to be waited for.

        Its document and its events are different topics, so the document may come before the last
        events; they are waited for a few seconds.
        """
        last = self.events[-1].name if self.events else ""
        since_end_s = self.clock() - self._ended_s
        return self.ended and (last in _LAST_EVENTS or since_end_s > _EVENTS_GRACE_S)

    @property
    def ended(self) -> bool:
        """Whether the run's document says that it has ended."""
        return self.document is not None and self.document.status in ENDED

    @property
    def committed(self) -> list[int]:
        """The rounds that are known to be committed, in order."""
        return sorted(
            number for number, each in self.rounds.items() if each.committed_s is not None
        )

    def set_definition(self, summary: RunSummary) -> None:
        """Set what only the run's definition says."""
        self.cohort_size, self.bundled = summary.cohort_size, summary.bundled
        self._evaluate_on, self.headline = summary.evaluate_on, summary.headline
        self._evaluate_every = summary.evaluate_every

    @property
    def measured(self) -> dict[int, float]:
        """The headline metric of each measured version."""
        return self.means(self.headline)

    def means(self, metric: str) -> dict[int, float]:
        """Return a metric of each version that has it: the mean over its examples."""
        means = {}
        for version, rows in sorted(self._measured.items()):
            known = [(count, each[metric]) for count, each in rows.values() if metric in each]
            if known:
                total = sum(examples for examples, _ in known)
                means[version] = sum(examples * value for examples, value in known) / total
        return means

    def is_measured(self, number: int) -> bool:
        """Whether a committed round's metrics are known, or need not be waited for any more."""
        document, committed_s = self.document, self.rounds[number].committed_s
        if self.is_complete or document is None or committed_s is None:
            return self.is_complete
        due = number % self._evaluate_every == 0 or number == document.rounds
        if not due or self._evaluate_on == "none":
            return True
        measuring = self._evaluate_on == "evaluators"
        expected = self.devices.evaluators if measuring else self.devices.trainers
        answers = len(self._measured.get(number, {}))
        if answers >= max(1, len(expected(document.task, bundled=self.bundled))):
            return True
        # some of many devices will not answer, or answer late
        overtaken = answers > 0 and any(each > number for each in self.committed)
        return overtaken or self.clock() - committed_s > _PATIENCE_S

    @property
    def waits(self) -> bool:
        """Whether the run waits, be it between two rounds."""
        return self.document is not None and self.document.status == "waiting"

    @property
    def here(self) -> int:
        """How many devices could train in the run now, as far as is known."""
        document = self.document
        if document is None:
            return 0
        if document.target or document.where:
            return 0 if self.addressed is None else self.addressed.fitting
        return len(self.devices.trainers(document.task, bundled=self.bundled))

    @property
    def short_of_devices(self) -> bool:
        """Whether the run waits for devices that are offline (not merely between two rounds)."""
        document = self.document
        if document is None or not self.waits:
            return False
        if (document.target or document.where) and self.addressed is None:
            return False  # who fits is known to the server alone, which is asked
        return self.here < max(1, self.cohort_size)

    @property
    def deadline_left_s(self) -> float | None:
        """How long the open round still collects; None when none does or its start is unknown."""
        document = self.document
        if document is None or document.phase != "collecting":
            return None
        current = self.rounds.get(document.round)
        if current is None or current.started_s is None or current.attempt != document.attempt:
            return None
        return max(0.0, current.started_s + document.deadline_s - self.clock())

    def _event(self, event: RunEvent) -> None:
        self.events.append(event)
        detail = event.detail
        match event.name:
            case "RoundStarted":
                self.rounds[event.round] = RoundProgress(
                    event.round, event.attempt, self.clock(), len(detail["cohort"])
                )
            case "UpdateAccepted":
                current = self._round(event)
                current.updates += 1
                moved = self._count_bytes(detail["update"]["usage"])
                current.bytes_up += moved["bytes_up"]
                current.bytes_down += moved["bytes_down"]
            case "UpdateWithdrawn":
                self._round(event).updates -= 1
            case "UpdateRefused" | "OrderDeclined":
                self._round(event).refused[detail["device_id"]] = detail["reason"]
            case "RoundCommitted":
                self._round(event).committed_s = self.clock()
            case "EvaluationRecorded":
                self._count_bytes(detail["usage"])
                metrics = {name: float(value) for name, value in detail["metrics"].items()}
                row = (int(detail["num_examples"]), metrics)
                self._measured.setdefault(event.round, {})[detail["device_id"]] = row

    def _round(self, event: RunEvent) -> RoundProgress:
        """Return the event's round; one whose start was missed has no start time."""
        known = self.rounds.get(event.round)
        if known is None or known.attempt != event.attempt:
            known = self.rounds[event.round] = RoundProgress(event.round, event.attempt)
        return known

    def _count_bytes(self, usage: dict[str, float]) -> Counter[str]:
        moved = Counter({key: int(usage.get(key, 0)) for key in ("bytes_up", "bytes_down")})
        self.bytes_up += moved["bytes_up"]
        self.bytes_down += moved["bytes_down"]
        return moved
