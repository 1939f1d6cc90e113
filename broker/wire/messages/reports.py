"""A device's reports, retained: its capabilities, the health of its machine, and its data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from broker.wire.messages.base import Finite, Id, Message, Size, Text, Total, WireModel
from broker.wire.messages.tree import TreeSummary


class Compute(WireModel):
    """A processor that a device's orders run on, and the precision of its matrix products.

    ``capability`` is CUDA's compute capability or ROCm's target.
    """

    name: Text
    model: Text = ""
    memory_bytes: Total = 0
    capability: Text = ""
    precision: Text = ""


class DeviceInfo(Message):
    """What a device is and can do, retained.

    ``accelerators`` are those of its machine, ``compute`` those that it uses. ``tree`` says what is
    below a domain; of a device there is none, and it is not encoded.
    """

    kind = "device_info"
    channel = ("dev", "info")
    role: Literal["trainer", "evaluator"]
    profile: Text
    engine: Text
    cpus: Size
    ram_bytes: Total
    accelerators: Annotated[list[Text], Field(max_length=64)]
    versions: Annotated[dict[str, Text], Field(max_length=64)]
    tasks: Annotated[list[Text], Field(max_length=64)]
    labels: Annotated[dict[str, Text], Field(max_length=64)] = {}
    compute: Annotated[list[Compute], Field(max_length=64)] = []
    tree: TreeSummary | None = None

    @model_serializer(mode="wrap")
    def _without_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        if self.tree is None:
            fields.pop("tree", None)
        return fields

    @property
    def is_domain(self) -> bool:
        """Whether there are devices below it."""
        return self.tree is not None


class DeviceHealth(Message):
    """The health of a device's machine, retained. None is unknown: not every machine tells all.

    ``load`` is the one-minute average for each CPU, ``disk_wear_percent`` the used part of the
    medium's life as it reports, ``link_dbm`` the Wi-Fi signal. ``throttled`` names what slows the
    processor down now. ``paused`` is why no training may run, empty when it may.
    ``data_left_bytes`` is what remains of today's network budget.
    """

    kind = "health"
    channel = ("dev", "health")
    temperature_c: Finite | None = None
    throttled: Annotated[list[Id], Field(max_length=8)] | None = None
    under_voltage: bool | None = None
    load: Finite | None = None
    memory_available_bytes: Total | None = None
    disk_free_bytes: Total | None = None
    disk_wear_percent: Annotated[int, Field(ge=0, le=200)] | None = None
    link: Annotated[str, Field(max_length=64)] | None = None
    link_dbm: Finite | None = None
    metered: bool | None = None
    battery_percent: Annotated[int, Field(ge=0, le=100)] | None = None
    on_battery: bool | None = None
    clock_synced: bool | None = None
    paused: Text = ""
    data_left_bytes: Total | None = None


class Bar(WireModel):
    """A class or a range of values, and the number of examples in it."""

    name: Annotated[str, Field(max_length=64)]
    count: Size


class Quantity(WireModel):
    """The label or a feature of a device's data: a histogram, and how much it has changed.

    The PSIs compare with the reference of the first training and with the report before;
    ``by_chance`` is the PSI that so few examples may give without any change. None: no reference
    yet.
    """

    name: Annotated[str, Field(max_length=80)]
    bars: Annotated[list[Bar], Field(max_length=16)]
    psi_reference: Finite | None = None
    psi_previous: Finite | None = None
    by_chance: Finite | None = None


class TaskData(WireModel):
    """What a device discloses of one task's data: every count is a multiple of ``min_count``."""

    task: Id
    min_count: Annotated[Size, Field(ge=1)]
    examples: Size
    held_out: Size
    refused: Size
    quantities: Annotated[list[Quantity], Field(max_length=16)]


class DataReport(Message):
    """A device's own data in aggregates, retained: nothing about a single example."""

    kind = "data_report"
    channel = ("dev", "data")
    tasks: Annotated[list[TaskData], Field(max_length=16)]
