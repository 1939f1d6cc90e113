"""What a run publishes: its retained document and its live events."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

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
    """The state of a run, retained: all that a client that connects later needs to know.

    ``target`` and ``where`` say whom it addresses; empty ones are not encoded.
    """

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
    target: Annotated[list[Text], Field(max_length=256)] = []
    where: Annotated[list[Text], Field(max_length=32)] = []

    @model_serializer(mode="wrap")
    def _without_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        for name in ("target", "where"):
            if not getattr(self, name):
                fields.pop(name, None)
        return fields


class RunEvent(Message):
    """One line of a run's live stream. ``name`` is the fact's name, in the past tense."""

    kind = "run_event"
    channel = ("run", "events")
    run_id: Id
    name: Annotated[str, Field(max_length=64)]
    round: Round
    attempt: Round
    detail: Detail
