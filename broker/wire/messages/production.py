"""Which version of a model is in production, and how a device fetches it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from broker.wire.messages.base import Id, Message, Sha256, Total
from broker.wire.messages.references import ModelRef

MAX_MANIFEST_BYTES = 192 << 10


class ProductionDocument(Message):
    """Which version of a task is in production, retained; none is where nothing is retained.

    ``manifest`` is the version's signed file. ``promotion`` grows with every promotion and every
    rollback: a device that has seen a higher one refuses a lower one, which is a replay.
    """

    kind = "production"
    channel = ("model", "state")
    task: Id
    manifest: Annotated[bytes, Field(max_length=MAX_MANIFEST_BYTES)]
    promotion: Annotated[Total, Field(ge=1)]
    epoch: Total


class ModelRequest(Message):
    """A device asks for a URL of the model that is in production."""

    kind = "model_request"
    channel = ("dev", "request")
    task: Id
    sha256: Sha256


class ModelOffer(Message):
    """The answer to a request; there is none when another version is in production by now."""

    kind = "model_offer"
    channel = ("dev", "task")
    task: Id
    model: ModelRef
