"""Doubles of what surrounds the members of a server: registry, broker and threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from broker.brokers.access_control import ManualAccess
from broker.session.endpoint import Endpoint
from broker.wire.access import BrokerUser
from broker.wire.messages import Message
from fl_server.members.broker_watch import BrokerWatch
from fl_server.members.membership import Membership, SiteInfo
from fl_server.members.rules import AuditEvent, DeviceRecord
from fl_server.members.store import MemberRegistry
from runtime.errors import RengoError
from runtime.security.identity import new_identity

SERVER = new_identity("server", "home", "server", "127.0.0.1", 1)
DEVICE = new_identity("device", "home", "d", "127.0.0.1", 1)
MEMBER = DeviceRecord(
    "d", DEVICE.secret_key.public.text, DEVICE.client_id, DEVICE.password.get_secret_value()
)


class Access(ManualAccess):
    """A broker: who may connect at this moment."""

    manages_users = True

    def __init__(self) -> None:
        self.passwords = {MEMBER.id: MEMBER.password}
        self.sessions: list[str] = []

    def apply(self, users: Iterable[BrokerUser]) -> None:
        self.passwords = {user.name: user.password for user in users}

    def lasting_sessions(self) -> list[str]:
        return list(self.sessions)


class Rows:
    """The registry's rows, which outlive the server's process."""

    def __init__(self) -> None:
        self.kept = {MEMBER.id: MEMBER}
        self.acts: list[AuditEvent] = []

    def devices(self) -> list[DeviceRecord]:
        return list(self.kept.values())

    def tokens(self) -> list[Any]:
        return []

    def write(self, acts: Iterable[AuditEvent], *, devices: Iterable[DeviceRecord] = ()) -> None:
        self.acts += acts
        self.kept |= {each.id: each for each in devices}


class Tasks:
    """The server's threads: what they have to do, and what goes on when it is done."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], Any], Callable[[Any], None], Any]] = []
        self.ended: list[Callable[[], None]] = []

    def start_task(
        self,
        work: Callable[[], Any],
        then: Callable[[Any], None],
        failed: Callable[[RengoError], None],
    ) -> None:
        self.waiting.append((work, then, failed))

    def run_all(self) -> None:
        """Do what there is to do, and what comes of it."""
        while self.waiting:
            work, then, failed = self.waiting.pop(0)
            try:
                value = work()
            except RengoError as error:
                failed(error)
            else:
                then(value)


def membership(
    rows: Rows, access: Access, publish: Callable[[str, Message], None] = lambda *_: None
) -> Membership:
    """Return the members of these rows, whose sessions end without a network."""
    made = Membership(
        cast(MemberRegistry, rows),
        SERVER,
        [],
        SiteInfo("mqtt://127.0.0.1:1"),
        access,
        Endpoint.of(SERVER),
        publish,
    )
    made.broker = QuietWatch(access, Endpoint.of(SERVER))
    return made


class QuietWatch(BrokerWatch):
    """Ends the sessions of the double."""

    def end_sessions(self, client_ids: Iterable[str]) -> None:
        assert isinstance(self.access, Access)
        for client_id in client_ids:
            self.access.sessions.remove(client_id)
