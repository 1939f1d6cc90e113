"""Rotations in any order with reloads, connections and kills: a device keeps a way in."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pydantic import SecretStr

from broker.session.endpoint import Endpoint
from broker.wire.messages import Message, NewPassword, PasswordKept
from fl_client.identity.credentials import DeviceCredentials
from fl_server.dataplane.workers import Workers
from fl_server.members.gate import MessageGate
from fl_server.shell.connection import ServerConnection
from fl_server.shell.devices import DeviceAdmission
from runtime.errors import PeerError, TransportError
from runtime.security.identity import Identity, read_identity, write_identity
from tests.laws import Violation
from tests.members import DEVICE, Access, Rows, Tasks, membership

SEARCH = settings(
    max_examples=60,
    stateful_step_count=50,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class OneNextPassword(DeviceCredentials):
    """A device of an earlier release: it kept one new password, the latest."""

    def store_password(self, rotation: int, sealed: bytes) -> Identity | None:
        if rotation > self._identity.rotation:
            self._identity = self._identity.model_copy(update={"next_password": None})
        return super().store_password(rotation, sealed)


class HastyAdmission(DeviceAdmission):
    """A server that offers a password whatever became of the one before."""

    def offer_password(self, device_id: str) -> None:
        sync = self._members._user_sync
        done, sync._done = sync._done, sync._wanted
        self._members.offer_password(device_id)
        sync._done = done


class Rotations(RuleBasedStateMachine):
    """One server, one broker and one device; messages wait, and a connection may end at any step.

    What is for the device waits at the broker; what is from it is lost with the connection.
    """

    credentials_kind: type[DeviceCredentials] = DeviceCredentials
    admission_kind: type[DeviceAdmission] = DeviceAdmission

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "d.json"
        write_identity(self.path, DEVICE)
        self.access, self.rows = Access(), Rows()
        self.to_device: list[Message] = []
        self.to_server: list[Message | None] = []  # None: it is ready
        self.start_server()
        self.start_device()

    def teardown(self) -> None:
        self.folder.cleanup()

    # --- the server ---------------------------------------------------------------------------

    def start_server(self) -> None:
        self.tasks = Tasks()
        self.members = membership(
            self.rows, self.access, lambda _, message: self.to_device.append(message)
        )
        self.members.update_broker()
        self.admission = self.admission_kind(
            self.members,
            cast(MessageGate, None),
            cast(Workers, self.tasks),
            cast(ServerConnection, None),
            lambda _: None,
        )

    @rule(what=st.sampled_from(["server", "device", "connection", "reload"]))
    def break_something(self, what: str) -> None:
        match what:
            case "server":
                self.start_server()
                self.cut_off_if_changed()
            case "device":
                self.start_device()
            case "connection":
                self.lose_connection()
            case "reload" if self.tasks.waiting:
                failed = self.tasks.waiting.pop(0)[2]
                self.tasks.ended.append(lambda: failed(TransportError("no answer")))

    @rule()
    def rotate(self) -> None:
        self.members.rotate("operator", "d")
        self.admission.offer_password("d")

    @precondition(lambda self: self.tasks.waiting)
    @rule()
    def reload(self) -> None:
        work, then, _ = self.tasks.waiting.pop(0)
        work()
        self.tasks.ended.append(lambda: then(None))
        self.cut_off_if_changed()

    @precondition(lambda self: self.tasks.ended)
    @rule()
    def go_on(self) -> None:
        self.tasks.ended.pop(0)()

    @precondition(lambda self: self.to_server)
    @rule()
    def hear_device(self) -> None:
        match self.to_server.pop(0):
            case PasswordKept() as kept:
                self.admission.password_kept("d", kept)
            case None:
                self.admission.offer_password("d")

    # --- the device ---------------------------------------------------------------------------

    def start_device(self) -> None:
        identity = read_identity(self.path)
        self.credentials = self.credentials_kind(self.path, identity)
        self.endpoint = Endpoint.of(identity)
        self.connection = ""  # the password that it was made with
        self.admitted: list[str] = []  # connections that its owner has not heard of

    @precondition(lambda self: not self.connection)
    @rule()
    def connect(self) -> None:
        if self.endpoint.password != self.access.passwords["d"]:
            self.endpoint = self.endpoint.with_following_password()
            return
        self.connection = self.endpoint.password
        self.admitted.append(self.connection)
        self.to_server.append(None)

    def lose_connection(self) -> None:
        self.connection = ""
        self.to_server.clear()

    def cut_off_if_changed(self) -> None:
        if self.connection and self.connection != self.access.passwords["d"]:
            self.lose_connection()

    @precondition(lambda self: self.admitted)
    @rule()
    def hear_of_connection(self) -> None:
        self.use(self.credentials.confirm_password(self.admitted.pop(0)))

    @precondition(lambda self: self.connection and not self.admitted and self.to_device)
    @rule()
    def hear_server(self) -> None:
        message = self.to_device.pop(0)
        assert isinstance(message, NewPassword)
        try:
            self.use(self.credentials.store_password(message.rotation, message.sealed))
        except PeerError:
            return  # an older one
        self.to_server.append(PasswordKept(rotation=message.rotation))

    def use(self, identity: Identity | None) -> None:
        if identity is not None:
            self.endpoint = Endpoint.of(identity)

    # --- the law ------------------------------------------------------------------------------

    @invariant()
    def it_has_what_the_broker_takes_now_and_next(self) -> None:
        disk = read_identity(self.path)
        kept = {each.get_secret_value() for each in (disk.password, *disk.waiting_passwords)}
        if self.access.passwords["d"] not in kept:
            raise Violation("a device has a way in", "the broker takes none of its passwords")
        if self.rows.kept["d"].password not in kept:
            raise Violation("a device has a way in", "the broker will take none of its passwords")


def of(credentials: type[DeviceCredentials], admission: type[DeviceAdmission]) -> type[Rotations]:
    """Return the search for these two halves."""
    halves = {"credentials_kind": credentials, "admission_kind": admission}
    return type("Chosen", (Rotations,), halves)


HALVES = [
    pytest.param(DeviceCredentials, DeviceAdmission, id="as-they-are"),
    pytest.param(OneNextPassword, DeviceAdmission, id="a-device-of-an-earlier-release"),
    pytest.param(DeviceCredentials, HastyAdmission, id="a-server-of-an-earlier-release"),
]


@pytest.mark.parametrize(("credentials", "admission"), HALVES)
def test_no_order_locks_a_device_out(
    credentials: type[DeviceCredentials], admission: type[DeviceAdmission]
) -> None:
    run_state_machine_as_test(of(credentials, admission), settings=SEARCH)


def rotate_twice_within_one_reload(found: Rotations) -> None:
    """The device stores the first password, which the broker is about to take, and the second."""
    found.connect()
    found.hear_of_connection()
    found.rotate()
    if found.tasks.waiting:  # it is offered behind a reload
        found.reload()
        found.go_on()
    found.hear_server()
    while found.to_server:
        found.hear_device()
    found.it_has_what_the_broker_takes_now_and_next()
    found.rotate()
    while found.to_device:
        found.hear_server()
    found.it_has_what_the_broker_takes_now_and_next()


@pytest.mark.parametrize(("credentials", "admission"), HALVES)
def test_two_rotations_within_one_reload(
    credentials: type[DeviceCredentials], admission: type[DeviceAdmission]
) -> None:
    found = of(credentials, admission)()
    rotate_twice_within_one_reload(found)
    found.teardown()


def test_the_law_finds_what_locked_devices_out() -> None:
    found = of(OneNextPassword, HastyAdmission)()
    with pytest.raises(Violation, match="will take none"):
        rotate_twice_within_one_reload(found)
    found.teardown()


def test_more_passwords_than_a_server_can_mean_are_refused_and_none_is_given_up(
    tmp_path: Path,
) -> None:
    path = tmp_path / "d.json"
    credentials, texts = DeviceCredentials(path, DEVICE), [f"password-{n:02}" for n in range(17)]
    for number, text in enumerate(texts[:16], start=1):
        credentials.store_password(number, DEVICE.secret_key.public.seal(text.encode()))
    with pytest.raises(PeerError):
        credentials.store_password(17, DEVICE.secret_key.public.seal(texts[16].encode()))
    kept = read_identity(path)
    assert kept.waiting_passwords == tuple(SecretStr(text) for text in texts[:16])
    final = credentials.confirm_password(texts[9])
    assert final is not None
    assert final.waiting_passwords == tuple(SecretStr(text) for text in texts[10:16])
    assert read_identity(path) == final
