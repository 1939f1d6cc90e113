"""The base classes of messages and of what nests in them, and the bounded types of their fields."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.wire.topics import Area

Id = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
KeyText = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=2000)]
Url = Annotated[str, Field(max_length=4096)]
Key = Annotated[str, Field(max_length=512)]
Round = Annotated[int, Field(ge=0, le=1_000_000)]
Attempt = Annotated[int, Field(ge=1, le=1_000_000)]
Size = Annotated[int, Field(ge=0, le=1 << 40)]
Seconds = Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Settings = Annotated[dict[str, Any], Field(max_length=128)]
Action = Literal["train", "evaluate", "exchange"]
Phase = Annotated[str, Field(pattern=r"^[a-z0-9_-]{0,32}$")]
Seq = Annotated[int, Field(ge=0, lt=1 << 31)]


class WireModel(BaseModel):
    """What nests in messages: frozen, of declared fields alone, with no value converted."""

    # built when first used: a device needs a third of them
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class Message(WireModel):
    """The body of a message.

    ``kind`` names it on the wire. ``channel`` is the area and the leaf of the topics it travels on.
    """

    kind: ClassVar[str]
    channel: ClassVar[tuple[Area, str]]
