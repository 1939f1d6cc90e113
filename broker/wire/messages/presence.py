"""Presence: the retained states of the server and of devices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from broker.wire.messages.base import Id, Message, Text, Total


class ServerState(Message):
    """The server's retained presence. ``epoch`` grows by one at every start of the server."""

    kind = "server_state"
    channel = ("server", "state")
    status: Literal["online", "offline"]
    epoch: Total


class DeviceState(Message):
    """A device's retained presence; the will names the boot id of its own connection.

    ``tasks`` are those that are installed, ``bundles`` those that it accepts as a bundle, or "*".
    """

    kind = "device_state"
    channel = ("dev", "state")
    status: Literal["ready", "training", "draining", "offline", "lost"]
    boot_id: Id
    role: Literal["trainer", "evaluator"] = "trainer"
    tasks: Annotated[list[Text], Field(max_length=64)] = []
    bundles: Annotated[list[Text], Field(max_length=64)] = []

    def can_run(self, task: str, *, bundled: bool) -> bool:
        """Whether the device has a task installed, or accepts it as the bundle that the run has."""
        return task in self.tasks or (bundled and not {task, "*"}.isdisjoint(self.bundles))
