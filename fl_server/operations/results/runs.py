"""What operations on runs return. Pure."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from broker.wire.messages import (
    PartsRef,
    Sha256,
)
from broker.wire.messages.base import Key, Url
from broker.wire.messages.references import StoreHeader, StoreHeaderValue
from fl_server.operations.arguments import Name
from fl_server.operations.results.base import (
    MAX_DEVICES,
    MAX_ROWS,
    Count,
    Finite,
    Listing,
    OperationResult,
    Seconds,
    Short,
    Text,
    encoded_bytes,
)

_ROUND_TIMES_SHOWN, _ROUNDS_SHOWN, _DEVICES_SHOWN = 1000, 200, 500
_NAMES_SHOWN, _REASON_SHOWN = 100, 300


Names = Annotated[list[Short], Field(max_length=256)]
Conditions = Annotated[list[Short], Field(max_length=32)]


class RunSummary(OperationResult):
    """A run in one row. Units: ``submitted_at`` and ``waiting_since`` are Unix seconds.

    Attributes:
        waiting: what its work on bytes waits for, "" where it waits for nothing.
        headline: the metric that runs of its task are compared by.
        measured: the value of that metric.
        best_version: the best version so far, where the run looks for it; its tag is ``RUN.best``.
        best_value: what it was compared by.
        headline_goal: what is better of the headline metric, "higher" or "lower".
        group: the name that it shares with the other runs of its experiment.
        variant: what of its group it is.
        target: the devices, domains and groups (``group:NAME``) that it addresses; empty is all.
        where: the conditions that they must fulfil.
    """

    run_id: Name
    task: Name
    algorithm: Name
    status: Short
    reason: Text
    phase: Short
    round: Count
    attempt: Count
    rounds: Count
    cohort_size: Count
    quorum: Count
    fit: Short
    bundled: bool
    evaluate_on: Short
    evaluate_every: Count
    rounds_completed: Count
    accuracy: Finite | None
    loss: Finite | None
    submitted_at: Finite
    waiting: Text = ""
    waiting_since: Finite | None = None
    headline: Short = "accuracy"
    measured: Finite | None = None
    best_version: Count | None = None
    best_value: Finite | None = None
    headline_goal: Short = "higher"
    group: Short = ""
    variant: Text = ""
    target: Names = Field(default_factory=list)
    where: Conditions = Field(default_factory=list)


class RunList(Listing):
    """Every run, the latest first."""

    rows_key, id_key = "runs", "run_id"
    runs: Annotated[list[RunSummary], Field(max_length=1_000_000)]


class RoundRow(OperationResult):
    """One attempt of a round. ``seconds`` is null while it goes on.

    ``measured`` is the value of the run's headline metric.
    """

    round: Count
    attempt: Count
    outcome: Literal["collecting", "committed", "abandoned"]
    reason: Text
    seconds: Finite | None
    invited: Count
    updates: Count
    included: Annotated[list[Name], Field(max_length=MAX_DEVICES)]
    refused: Annotated[dict[Name, Text], Field(max_length=MAX_DEVICES)]
    not_evaluated: Annotated[dict[Name, Text], Field(max_length=MAX_DEVICES)]
    ordered_steps: Annotated[dict[Name, Count], Field(max_length=MAX_DEVICES)]
    accuracy: Finite | None
    loss: Finite | None
    measured: Finite | None = None

    def fitted(self, size_bytes: int) -> Self:
        """Return it with the first hundred names and the beginnings of reasons."""
        if encoded_bytes(self) <= size_bytes:
            return self
        refused = list(self.refused.items())[:_NAMES_SHOWN]
        not_evaluated = list(self.not_evaluated.items())[:_NAMES_SHOWN]
        return self.model_copy(
            update={
                "reason": self.reason[:_REASON_SHOWN],
                "included": self.included[:_NAMES_SHOWN],
                "refused": {name: reason[:_REASON_SHOWN] for name, reason in refused},
                "not_evaluated": {name: why[:_REASON_SHOWN] for name, why in not_evaluated},
                "ordered_steps": dict(list(self.ordered_steps.items())[:_NAMES_SHOWN]),
            }
        )


class RunDevice(OperationResult):
    """What one device did in a run: ``steps`` of ``full_steps`` are of its latest round.

    ``width`` is how much of the model it trained there; 1 is the whole.
    """

    id: Name
    rounds: Count
    bytes_up: Count
    bytes_down: Count
    peak_rss_bytes: Count
    steps: Count
    full_steps: Count
    step_s: Seconds
    profile: Annotated[str, Field(max_length=32)] = ""
    engine: Annotated[str, Field(max_length=32)] = ""
    width: Finite = 1.0


class DeviceSpread(OperationResult):
    """The headline metric of a version over the devices that measured it, each counting alike.

    Attributes:
        worst_tenth: the mean over the worst tenth of the devices.
        variance: of all of them, null where it is out of bounds.
    """

    version: Count
    devices: Count
    mean: Finite
    worst_tenth: Finite
    variance: Finite | None


class MisfitCount(OperationResult):
    """How many devices take no part for one cause."""

    cause: Text
    devices: Count


class RunMisfit(OperationResult):
    """Why a device takes no part in a run."""

    id: Name
    reason: Text


class RunAddressed(OperationResult):
    """Which of a site's devices can train in a run now, and why the others do not.

    Attributes:
        devices: how many there are, revoked ones not counted.
        fitting: how many of them can train.
        causes: why the others do not, the most frequent first.
        first: the first of the others by id, each with its reason.
        note: what is wrong with the target itself, "" where nothing is.
    """

    run_id: Name
    devices: Count
    fitting: Count
    causes: Annotated[list[MisfitCount], Field(max_length=64)]
    first: Annotated[list[RunMisfit], Field(max_length=64)]
    note: Text = ""


class RunReport(RunSummary):
    """A run with its rounds, devices, refusals, bytes and metrics.

    ``addressed`` is there while it waits for devices.

    ``spread`` is of the latest measured version, where devices measure on data of their own.
    Units: times are Unix seconds or seconds, sizes bytes.
    """

    seed: Count
    model_key: Key
    model_sha256: Sha256
    wall_s: Finite
    round_s: Annotated[list[Finite], Field(max_length=MAX_ROWS)]
    bytes_up: Count
    bytes_down: Count
    history: Annotated[list[RoundRow], Field(max_length=MAX_ROWS)]
    devices: Annotated[list[RunDevice], Field(max_length=MAX_DEVICES)]
    spread: DeviceSpread | None = None
    addressed: RunAddressed | None = None

    def fitted(self, size_bytes: int) -> Self:
        """Return it with the latest rounds, as many as fit, and the first devices."""
        left = size_bytes - encoded_bytes(self.model_copy(update={"history": []}))
        if all((left := left - encoded_bytes(row)) >= 0 for row in reversed(self.history)):
            return self
        short = self.model_copy(
            update={
                "round_s": self.round_s[-_ROUND_TIMES_SHOWN:],
                "devices": self.devices[:_DEVICES_SHOWN],
                "history": [],
            }
        )
        left = size_bytes - encoded_bytes(short)
        rounds: list[RoundRow] = []
        for row in reversed(self.history[-_ROUNDS_SHOWN:]):
            shown = row.fitted(size_bytes // _ROUNDS_SHOWN)
            left -= encoded_bytes(shown) + 1
            if rounds and left < 0:
                break
            rounds.append(shown)
        return short.model_copy(update={"history": rounds[::-1]})


class RunUpload(OperationResult):
    """Where version 0 of a prepared run goes: by one PUT, or in parts where it is large."""

    run_id: Name
    url: Url
    headers: dict[StoreHeader, StoreHeaderValue]
    parts: PartsRef | None = None


class RunStarted(OperationResult):
    """The run that goes on by now."""

    run_id: Name
