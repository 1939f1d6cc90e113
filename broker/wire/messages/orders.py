"""Orders, and the answers to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from broker.wire.limits import MAX_EXCHANGE_BYTES
from broker.wire.messages.base import (
    Action,
    Attempt,
    Examples,
    Finite,
    Id,
    Message,
    MetricName,
    Metrics,
    Phase,
    Round,
    Seconds,
    Seq,
    Settings,
    Size,
    Text,
    Total,
    WireModel,
)
from broker.wire.messages.references import BundleRef, ModelRef, UpdateRef, UploadRef
from runtime.bounds import (
    MAX_POPULATION,
    MAX_SCALARS,
    MAX_TRACEBACK_LINE,
    MAX_TRACEBACK_LINES,
    MAX_TRANSFORMS,
)

Payload = Annotated[bytes, Field(max_length=MAX_EXCHANGE_BYTES)]
Scalars = Annotated[dict[MetricName, Finite], Field(max_length=MAX_SCALARS)]
Transforms = Annotated[list[Settings], Field(max_length=MAX_TRANSFORMS)]
Traceback = Annotated[
    list[Annotated[str, Field(max_length=MAX_TRACEBACK_LINE)]],
    Field(max_length=MAX_TRACEBACK_LINES),
]
_LATER_FIELDS: dict[str, Any] = {
    "phase": "",
    "seq": 0,
    "payload": b"",
    "vectors": None,
    "scalars": {},
    "transforms": [],
    "width": 1.0,
    "unusable": False,
    "permanent": False,
    "traceback": [],
    "evaluators": "",
    "singly": False,
    "population": 1,
}


class OrderMessage(Message):
    """A message about one order, which (run, action, round, attempt, phase, seq) names.

    In a round with one order a device ``phase`` and ``seq`` keep their defaults. What keeps its
    default is not encoded, so that versions before these fields existed read such a message.
    """

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        for name, default in _LATER_FIELDS.items():
            if name in fields and fields[name] == default:
                del fields[name]
        return fields


class Order(OrderMessage):
    """The server asks a device to train, to evaluate, or to take part in an exchange.

    The same (run, action, round, attempt, phase, seq) again renews the URLs. A device that is
    online, owes a run in rounds an answer and carries out nothing gets its order again every 10
    seconds, so that a lost one costs no more; one that says ``ready`` gets it at once.
    ``time_left_s`` counts from receipt, so that no clock must be right. ``upload`` is nil for an
    evaluation. An exchange may have a model or an upload, and has a ``payload``, which the task on
    the device reads; where it has an upload, the answer goes there. ``evaluators`` tells a domain
    which of its devices are to evaluate, ``singly`` to pass on its
    devices' updates and not their sum. ``scalars`` of an order to a domain are all that the
    algorithm's server keeps, since updates are weighted there. A ``width`` below 1 says
    that the model is a part, with so much of each hidden layer.
    """

    kind = "order"
    channel = ("dev", "task")
    epoch: Total
    action: Action
    run_id: Id
    round: Round
    attempt: Attempt
    phase: Phase = ""
    seq: Seq = 0
    task: Text
    algorithm: Text
    algorithm_settings: Settings
    training: Settings
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    model: ModelRef | None = None
    upload: UploadRef | None = None
    time_left_s: Seconds
    bundle: BundleRef | None = None
    payload: Payload = b""
    vectors: ModelRef | None = None
    scalars: Scalars = {}
    transforms: Transforms = []
    evaluators: Literal["", "evaluators", "devices"] = ""
    singly: bool = False
    width: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _has_what_its_action_needs(self) -> Order:
        if self.action != "exchange":
            if self.model is None:
                raise ValueError(f"an order to {self.action} needs a model")
            if self.payload:
                raise ValueError(f"an order to {self.action} has no payload")
        return self


class OrderAnswer(OrderMessage):
    """A message that follows an order and names it."""

    action: Action
    run_id: Id
    round: Round
    attempt: Attempt
    phase: Phase = ""
    seq: Seq = 0


class Decline(OrderAnswer):
    """A device refuses an order, and why; an order that it accepts is answered by a result.

    ``unusable``: it accepted the order, and what came of it could never count. ``permanent``: it
    cannot carry it out, and waiting changes nothing, as where the task raises an error. Else it may
    be able to carry out a later one. ``traceback``: the end of that of an error that the task's own
    code raised.
    """

    kind = "decline"
    channel = ("dev", "ack")
    reason: Text
    unusable: bool = False
    permanent: bool = False
    traceback: Traceback = []


class Progress(Message):
    """How far a device is with its order: for people alone."""

    kind = "progress"
    channel = ("dev", "progress")
    run_id: Id
    round: Round
    attempt: Attempt
    fraction: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    loss: Finite | None = None


class Usage(WireModel):
    """What an order cost the device.

    ``train_s`` is the time of the whole job, ``steps_s`` that of its ``steps``; ``full_steps`` is
    the number that all epochs on the device's data would take. ``micro_batch`` is the size that
    batches were split into, 0 where they were not. All but the first four are 0 where a device does
    not count them.
    """

    train_s: Seconds = 0.0
    bytes_down: Size = 0
    bytes_up: Size = 0
    peak_rss_bytes: Size = 0
    transfer_s: Seconds = 0.0
    steps: Size = 0
    steps_s: Seconds = 0.0
    full_steps: Size = 0
    micro_batch: Size = 0


class Result(OrderAnswer):
    """A device's answer to an order; sent until the server's receipt has come.

    ``num_examples`` is 0 for an exchange alone. The answer to an exchange is the ``payload``, or,
    where the order has an upload, the object that ``update`` names, with the sha256 of all of it.
    ``population`` is how many devices the run knows below a domain, 1 for a device.
    """

    kind = "result"
    channel = ("dev", "result")
    num_examples: Examples
    metrics: Metrics
    update: UpdateRef | None
    usage: Usage
    payload: Payload = b""
    vectors: ModelRef | None = None
    scalars: Scalars = {}
    population: Annotated[int, Field(ge=1, le=MAX_POPULATION)] = 1

    @model_validator(mode="after")
    def _has_what_its_action_gives(self) -> Result:
        if self.action != "exchange":
            if not self.num_examples:
                raise ValueError(f"num_examples of an order to {self.action} is at least 1")
            if self.payload:
                raise ValueError(f"the result of an order to {self.action} has no payload")
        return self


class Request(OrderAnswer):
    """A device asks for its order with fresh URLs."""

    kind = "request"
    channel = ("dev", "request")


class Receipt(OrderAnswer):
    """The server's final answer to a result, sent after it was journalled.

    accepted: counted. late: another set was aggregated. refused: ``reason`` says why. unknown: no
    such run or round here.
    """

    kind = "receipt"
    channel = ("dev", "receipt")
    status: Literal["accepted", "late", "refused", "unknown"]
    reason: Text = ""
