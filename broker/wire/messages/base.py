"""The base classes of messages and of what nests in them, and the bounded types of their fields."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from broker.wire.topics import Area
from runtime.bounds import (
    MAX_EXAMPLES,
    MAX_FINITE,
    MAX_METRIC_NAME,
    MAX_METRICS,
    MAX_ROUNDS,
    MAX_SECONDS,
    MAX_SETTINGS,
    MAX_SIZE,
    MAX_TOTAL,
    require_plain,
)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    require_plain(settings)
    return settings


Id = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
KeyText = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=2000)]
Url = Annotated[str, Field(max_length=4096)]
Key = Annotated[str, Field(max_length=512)]
Round = Annotated[int, Field(ge=0, le=MAX_ROUNDS)]
Attempt = Annotated[int, Field(ge=1, le=MAX_ROUNDS)]
Size = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Examples = Annotated[int, Field(ge=0, le=MAX_EXAMPLES)]
Total = Annotated[int, Field(ge=0, le=MAX_TOTAL)]
Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
Finite = Annotated[float, Field(ge=-MAX_FINITE, le=MAX_FINITE, allow_inf_nan=False)]
MetricName = Annotated[str, Field(min_length=1, max_length=MAX_METRIC_NAME)]
Metrics = Annotated[dict[MetricName, Finite], Field(max_length=MAX_METRICS)]
Detail = Annotated[dict[str, Any], Field(max_length=MAX_SETTINGS)]
Settings = Annotated[Detail, AfterValidator(_plain)]
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
