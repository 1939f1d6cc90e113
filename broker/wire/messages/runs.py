"""What a run publishes: its retained document and its live events."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from broker.wire.messages.base import (
    Detail,
    Finite,
    Id,
    Message,
    Round,
    Seconds,
    Sha256,
    Text,
    Total,
)

RunStatus = Literal["waiting", "running", "paused", "completed", "stopped", "failed"]


class RunDocument(Message):
    """The state of a run, retained: all that a client that connects later needs to know."""

    kind = "run_document"
    channel = ("run", "state")
    run_id: Id
    task: Text
    algorithm: Text
    status: RunStatus
    reason: Text = ""
    round: Round
    attempt: Round
    rounds: Round
    epoch: Total
    phase: Text
    deadline_s: Seconds
    cohort: Annotated[list[Id], Field(max_length=2000)]
    answered: Annotated[list[Id], Field(max_length=2000)]
    model_sha256: Sha256 | Literal[""]
    accuracy: Finite | None
    loss: Finite | None


class RunEvent(Message):
    """One line of a run's live stream. ``name`` is the fact's name, in the past tense."""

    kind = "run_event"
    channel = ("run", "events")
    run_id: Id
    name: Annotated[str, Field(max_length=64)]
    round: Round
    attempt: Round
    detail: Detail
