"""Presence: the retained states of the server and of devices."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from broker.wire.messages.base import Id, Message, Text, Total


class ServerState(Message):
    """The server's retained presence. ``epoch`` grows at every start of the server.

    Devices that get it while they are connected answer with their presence: so the server learns
    who is there, and not only who was.
    """

    kind = "server_state"
    channel = ("server", "state")
    status: Literal["online", "offline"]
    epoch: Total


class DeviceState(Message):
    """A device's retained presence; the will names the boot id of its own connection.

    ``boot_id`` is a random part of the process, a hyphen, and a random part of the connection. One
    without a hyphen is of a release whose devices do not answer a server's presence. ``tasks`` are
    those that are installed, ``bundles`` those that it accepts as a bundle, or "*". ``epoch`` is
    the highest that the device has obeyed, where the present server's is lower, so that the device
    ignores it. ``domain`` says that there are devices below it. What keeps its default of these two
    is not encoded.
    """

    kind = "device_state"
    channel = ("dev", "state")
    status: Literal["ready", "training", "draining", "offline", "lost"]
    boot_id: Id
    role: Literal["trainer", "evaluator"] = "trainer"
    tasks: Annotated[list[Text], Field(max_length=64)] = []
    bundles: Annotated[list[Text], Field(max_length=64)] = []
    epoch: Total = 0
    domain: bool = False

    @model_serializer(mode="wrap")
    def _without_default(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        for name in ("epoch", "domain"):
            if not getattr(self, name):
                fields.pop(name, None)
        return fields

    @property
    def process(self) -> str:
        """What tells this process of the device from others of it; "" where it does not say."""
        return self.boot_id.rpartition("-")[0]

    def can_run(self, task: str, *, bundled: bool) -> bool:
        """Whether the device has a task installed, or accepts it as the bundle that the run has."""
        return task in self.tasks or (bundled and not {task, "*"}.isdisjoint(self.bundles))
