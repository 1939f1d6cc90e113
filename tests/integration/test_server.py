"""The real server on a real broker and a real store: hostile peers, operators, restarts."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import sqlalchemy as sa
import urllib3
from pydantic import SecretStr

from broker.brokers.access_control import AccessControl, ManualAccess
from broker.brokers.nats import EmbeddedBroker
from broker.session.endpoint import Endpoint
from broker.session.publication import Delivery, Publication
from broker.session.session import MqttSession
from broker.wire.access import BrokerUser, Grants, Role, grants
from broker.wire.messages import (
    MAX_MESSAGE_BYTES,
    Decline,
    DeviceInfo,
    DeviceState,
    Message,
    Order,
    Receipt,
    Request,
    Result,
    RunDocument,
    ServerState,
    UpdateRef,
    Usage,
    decode,
)
from broker.wire.topics import Topics, parse
from fl_server.dataplane.workers import Done, JobDone, TaskDone
from fl_server.members.membership import SiteInfo
from fl_server.persistence.database import JournalError
from fl_server.persistence.journal import Journal
from fl_server.rounds.events import UpdateVerified
from fl_server.rounds.facts import Fact
from fl_server.server import Server, ServerSettings
from rengo.operator.client import OperatorClient
from runtime.errors import ConfigError, RunNotCompleted
from runtime.security.identity import Identity, new_identity
from runtime.security.signing import SIGNATURE_BYTES, SecretKey
from storage.store.embedded import EmbeddedStore
from storage.store.s3 import S3Store
from storage.updates.stream import write_update
from storage.versions.keys import RunKeys
from storage.weights import Weights, write_safetensors
from tests.integration.broker_fixtures import Owner, eventually
from tests.messages import SAMPLES, content, envelope, signed
from tests.objects import beside_in
from tests.updates import info_of

DOMAIN = "home"
BASE = f"rengo/v1/{DOMAIN}"
TOPICS = Topics(DOMAIN)
ANYONE = Grants((f"{BASE}/#",), (f"{BASE}/#",))
HTTP = urllib3.PoolManager(retries=False)


@dataclass
class Place:
    """A broker and a store that the tests of this file share."""

    broker: EmbeddedBroker
    store: EmbeddedStore
    server: Identity
    operator: Identity

    def endpoint(self, name: str, client_id: str = "") -> Endpoint:
        host, port = self.broker.endpoint
        password = f"secret-of-{name}"
        return Endpoint(host, port, name, password, client_id or f"{name}-1", persistent=False)


def key_of(name: str) -> SecretKey:
    """Return the key that whoever has this name signs with in these tests."""
    return SecretKey(hashlib.sha256(name.encode()).hexdigest())


SERVER = key_of("server").public


def known(identity: Identity) -> Identity:
    """Return an identity with the password that the broker of these tests knows."""
    return identity.model_copy(update={"password": SecretStr(f"secret-of-{identity.id}")})


def said(topic: str, what: Message | bytes, sender: str = "d-1", key: str = "") -> bytes:
    """Return what ``sender`` says on a topic, signed by him or by the owner of ``key``."""
    data = what if isinstance(what, bytes) else content(what, sender)
    return signed(data, parse(topic), key_of(key or sender))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("server")
    broker = EmbeddedBroker(folder / "broker", ack_wait_s=5.0)
    store = EmbeddedStore(folder / "store")
    users = [
        BrokerUser("server", "secret-of-server", grants(Role.SERVER, DOMAIN, "server")),
        BrokerUser("anyone", "secret-of-anyone", ANYONE),
        BrokerUser("d-1", "secret-of-d-1", grants(Role.DEVICE, DOMAIN, "d-1")),
        BrokerUser("operator", "secret-of-operator", grants(Role.OPERATOR, DOMAIN, "operator")),
    ]
    broker.start(users)
    try:
        store.start()
        S3Store(store.settings).ensure_bucket()
        server, operator = (
            new_identity(role, DOMAIN, role, *broker.endpoint, key=key_of(role), server_key=SERVER)
            for role in ("server", "operator")
        )
        yield Place(broker, store, known(server), known(operator))
    finally:
        store.stop()
        broker.stop()


@dataclass
class Site:
    """One server in a thread of its own, an operator, and a peer that may do everything."""

    place: Place
    folder: Path
    server: Server = field(init=False)
    thread: threading.Thread = field(init=False)
    fell: list[BaseException] = field(default_factory=list)
    owner: Owner = field(default_factory=Owner)
    sessions: list[MqttSession] = field(default_factory=list)
    access: AccessControl = field(default_factory=ManualAccess)

    @property
    def journal_url(self) -> str:
        return f"sqlite:///{self.folder / 'journal.sqlite'}"

    def start(self) -> None:
        project = self.folder.name.replace("_", "-").lower()
        self.server = Server(
            ServerSettings(self.folder, SiteInfo("mqtt://127.0.0.1:1"), project=project),
            self.place.server,
            [self.place.operator],
            S3Store(self.place.store.settings),
            Journal(self.journal_url),
            self.access,
        )
        self.server.start(10)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.server.run_forever()
        except BaseException as error:  # noqa: BLE001 (the test looks at it)
            self.fell.append(error)

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()

    def restart(self) -> None:
        self.stop()
        self.start()

    def peer(self, name: str = "anyone", *filters: str) -> tuple[MqttSession, Owner]:
        owner = Owner()
        session = MqttSession(
            self.place.endpoint(name, f"{name}-{len(self.sessions)}"), filters, owner
        )
        owner.session = session
        self.sessions.append(session)
        session.start()
        session.wait_connected(10)
        return session, owner

    def admit(self, *names: str) -> None:
        """Make these devices members, with the keys that they have in these tests."""
        devices = [
            {
                "id": name,
                "public_key": key_of(name).public.text,
                "client_id": f"{name}-1",
                "password": f"secret-of-{name}",
            }
            for name in names
        ]
        self.call("devices_admit", devices=devices)

    def statuses(self) -> dict[str, str]:
        """Return what the server holds of each device."""
        return {row["id"]: row["status"] for row in self.call("devices_ls")["devices"]}

    def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        with OperatorClient(self.place.operator) as client:
            return client.call(operation, arguments, timeout_s=10)

    def refused(self) -> dict[str, int]:
        found: dict[str, int] = self.call("server_info")["refused_messages"]
        return found

    def prepare(self, data: bytes, **changes: Any) -> dict[str, Any]:
        arguments = {
            "definition": {"task": "digits", "rounds": 2, "cohort": {"size": 1}},
            "size_bytes": len(data),
        }
        return self.call("runs_prepare", **{**arguments, **changes})

    def submit(self, data: bytes | None = None, **changes: Any) -> str:
        data = model() if data is None else data
        prepared = self.prepare(data, **changes)
        put(prepared["url"], data)
        return self.submit_prepared(prepared, data)

    def submit_prepared(self, prepared: dict[str, Any], data: bytes) -> str:
        """Say that ``data`` is there as version 0, and return the run's id."""
        sha256 = hashlib.sha256(data).hexdigest()
        told = self.call("runs_submit", run_id=prepared["run_id"], sha256=sha256)
        run_id: str = told["run_id"]
        return run_id

    def close(self) -> None:
        for session in self.sessions:
            session.stop()
        self.stop()
        self.forget_retained()

    def forget_retained(self) -> None:
        """Clear what the test left retained on the broker that others use too."""
        session, _ = self.peer()
        devices = {*self.server.presence.devices, "d-1", "d-2", "d-9"}
        topics = [
            TOPICS.server_state,
            *(TOPICS.run(run, "state") for run in self.server.runner.flows),
        ]
        topics += [
            TOPICS.device(name, leaf)
            for name in devices
            for leaf in ("state", "info", "health", "data")
        ]
        for topic in topics:
            session.publish(Publication(topic, b"", retain=True))
        assert session.flush(10)
        session.stop()


@pytest.fixture
def site(place: Place, tmp_path: Path) -> Iterator[Site]:
    made = Site(place, tmp_path)
    made.start()
    try:
        yield made
    finally:
        made.close()


def model(seed: int = 0) -> bytes:
    source = np.random.default_rng(seed)
    out = io.BytesIO()
    arrays = {"0.weight": source.normal(size=(4, 3)).astype(np.float32)}
    write_safetensors(Weights.from_arrays(arrays), out)
    return out.getvalue()


def put(url: str, data: bytes) -> None:
    assert HTTP.request("PUT", url, body=data).status == 200


def message_of(delivery: Delivery) -> Message:
    return decode(delivery.payload, parse(delivery.topic), SERVER)[1]


def received(owner: Owner, kind: type[Message]) -> list[Any]:
    messages = [message_of(each) for each in owner.deliveries if each.payload]
    return [each for each in messages if isinstance(each, kind)]


# --- hostile messages -------------------------------------------------------------------------

DECLINE = SAMPLES["decline"]


def body(**changes: Any) -> bytes:
    packed: bytes = msgpack.packb(envelope(DECLINE, body={**DECLINE.model_dump(), **changes}))
    return packed


def bent(**changes: Any) -> bytes:
    packed: bytes = msgpack.packb(envelope(DECLINE, **changes))
    return packed


HOSTILE: list[tuple[str, bytes, str]] = [
    ("ack", b"\xc1", "not_msgpack"),
    ("ack", b"", ""),
    ("ack", b"\x91" * 5000 + b"\xc0", "not_msgpack"),
    ("ack", b"{}", "not_msgpack"),
    ("ack", b"\xc0", "envelope"),
    ("ack", bent(v=2), "schema_version"),
    ("ack", bent(kind="os.system"), "unknown_kind"),
    ("ack", bent(sender="d-2"), "wrong_sender"),
    ("ack", bent(sender="../x"), "envelope"),
    ("ack", body(more=1), "body"),
    ("ack", body(round=-1), "body"),
    ("ack", body(reason=1), "body"),
    ("ack", content(DECLINE), "unknown_run"),
    ("request", content(SAMPLES["request"]), "unknown_run"),
    ("result", content(DECLINE), "wrong_place"),
    ("state", content(SAMPLES["server_state"]), "wrong_place"),
    ("result", bytes(MAX_MESSAGE_BYTES - SIGNATURE_BYTES), "not_msgpack"),
]


def test_hostile_messages_are_refused_and_counted_by_reason(site: Site) -> None:
    site.admit("d-1")
    session, _ = site.peer()
    for leaf, payload, _ in HOSTILE:
        topic = TOPICS.device("d-1", leaf)
        session.publish(Publication(topic, said(topic, payload) if payload else b""))
    expected: dict[str, int] = {}
    for _, _, reason in HOSTILE:
        if reason:
            expected[reason] = expected.get(reason, 0) + 1
    eventually(lambda: site.refused() == expected)
    assert site.submit(), "the server goes on"


def test_what_was_not_signed_by_its_sender_is_refused_and_counted(site: Site) -> None:
    site.admit("d-1", "d-2")
    session, _ = site.peer()
    topic, sent = TOPICS.device("d-1", "result"), result("r")
    good = said(topic, sent)
    for payload in (
        bytes(SIGNATURE_BYTES) + content(sent, "d-1"),
        content(sent, "d-1"),
        b"short",
        said(topic, sent, key="d-2"),
        said(TOPICS.device("d-2", "result"), sent),
        said(TOPICS.device("d-1", "ack"), sent),
        said("rengo/v1/away/dev/d-1/result", sent),
        good[:-1] + bytes([good[-1] ^ 1]),
    ):
        session.publish(Publication(topic, payload))
    eventually(lambda: site.refused() == {"signature": 8})
    noted = [row for row in site.call("audit_ls")["entries"] if row["act"] == "message refused"]
    assert {(row["actor"], row["detail"]["reason"]) for row in noted} == {("d-1", "signature")}


def test_nobody_unknown_is_heard_and_what_he_retained_goes(site: Site) -> None:
    site.admit("d-1")
    session, owner = site.peer("anyone", TOPICS.device("+", "state"))
    state = DeviceState(status="ready", boot_id="b", tasks=["digits"])
    for name, key in (("d-9", "d-9"), ("d-1", "d-9")):
        topic = TOPICS.device(name, "state")
        session.publish(Publication(topic, said(topic, state, name, key), retain=True))
    asked = said(TOPICS.operator("nobody", "request"), SAMPLES["operator_request"], "nobody")
    session.publish(Publication(TOPICS.operator("nobody", "request"), asked))
    claimed = said(TOPICS.enroll("join-0"), SAMPLES["claim"], "join-0")
    session.publish(Publication(TOPICS.enroll("join-0"), claimed))
    expected = {"unknown_dev": 1, "signature": 1, "unknown_op": 1, "unknown_enroll": 1}
    eventually(lambda: site.refused() == expected)
    owner.wait(lambda: sum(not each.payload for each in owner.deliveries) == 2)
    session.flush(5)
    _, late = site.peer("anyone", TOPICS.device("+", "state"), TOPICS.server_state)
    late.wait(lambda: any("server" in each.topic for each in late.deliveries))
    assert not [each for each in late.deliveries if "/dev/" in each.topic]
    assert site.statuses() == {"d-1": "enrolled"}


def test_a_flood_of_one_device_is_not_heard_and_another_is(site: Site) -> None:
    site.admit("d-1", "d-2")
    flood, _ = site.peer()
    quiet, owner = site.peer("anyone", TOPICS.device("d-2", "receipt"))
    topic, other = TOPICS.device("d-1", "ack"), TOPICS.device("d-2", "result")
    noise = said(topic, DECLINE)
    for number in range(3000):
        flood.publish(Publication(topic, noise))
        if number == 1500:
            quiet.publish(Publication(other, said(other, result("no-such-run"), "d-2")))
    owner.wait(lambda: bool(received(owner, Receipt)))
    # a broker that waits long for an acknowledgement brings the message again
    eventually(lambda: sum(site.refused().values()) >= 3000, 30.0)
    refused = site.refused()
    assert refused.keys() == {"unknown_run", "rate_limited"}
    assert refused["unknown_run"] >= 500, "up to the bound it is heard"


def test_the_same_result_again_is_counted_and_answered(site: Site) -> None:
    site.admit("d-1")
    session, owner = site.peer("anyone", TOPICS.device("d-1", "receipt"))
    topic = TOPICS.device("d-1", "result")
    for _ in range(3):
        session.publish(Publication(topic, said(topic, result("no-such-run"))))
    owner.wait(lambda: len(received(owner, Receipt)) == 3)
    eventually(lambda: site.refused() == {"repeated": 2})


def test_a_flood_of_different_refusals_does_not_grow_the_count(site: Site) -> None:
    site.admit("d-1")
    session, _ = site.peer()
    topic = TOPICS.device("d-1", "ack")
    for number in range(200):
        session.publish(Publication(topic, said(topic, bent(kind=f"kind-{number}"))))
        session.publish(Publication(topic, said(topic, body(**{f"key-{number}": 1}))))
    eventually(lambda: site.refused() == {"unknown_kind": 200, "body": 200})


def test_a_device_cannot_speak_on_anothers_topic(site: Site) -> None:
    site.admit("d-1", "d-2")
    session, _ = site.peer("d-1")
    state = DeviceState(status="ready", boot_id="b", tasks=["digits"])
    for name in ("d-2", "d-1"):
        topic = TOPICS.device(name, "state")
        session.publish(Publication(topic, said(topic, state, name), retain=True))
    eventually(lambda: site.statuses() == {"d-1": "ready", "d-2": "enrolled"})
    assert site.refused() == {}, "the broker itself lets nothing of it pass"


def test_a_device_that_takes_anothers_name_on_its_own_topic(site: Site) -> None:
    site.admit("d-1", "d-2")
    session, _ = site.peer("d-1")
    state, topic = SAMPLES["device_state"], TOPICS.device("d-1", "state")
    session.publish(Publication(topic, said(topic, state, "d-2", key="d-1"), retain=True))
    eventually(lambda: site.refused() == {"wrong_sender": 1})
    assert site.statuses() == {"d-1": "enrolled", "d-2": "enrolled"}


def result(run_id: str, **changes: Any) -> Result:
    values: dict[str, Any] = {
        "action": "train",
        "run_id": run_id,
        "round": 1,
        "attempt": 1,
        "num_examples": 5,
        "metrics": {},
        "update": UpdateRef(key="x", size_bytes=1, header_sha256="0" * 64),
        "usage": Usage(),
    }
    return Result(**{**values, **changes})


@pytest.mark.parametrize("action", ["train", "evaluate"])
def test_a_result_of_an_unknown_run_gets_its_last_word(action: str, site: Site) -> None:
    session, owner = site.peer("anyone", TOPICS.device("d-1", "receipt"))
    site.admit("d-1")
    topic = TOPICS.device("d-1", "result")
    session.publish(Publication(topic, said(topic, result("no-such-run", action=action))))
    owner.wait(lambda: bool(received(owner, Receipt)))
    (receipt,) = received(owner, Receipt)
    assert (receipt.status, receipt.run_id, receipt.round) == ("unknown", "no-such-run", 1)
    assert receipt.action == action


def test_a_reply_survives_a_device_that_speaks_another_protocol(site: Site) -> None:
    """What one device retains must not take the command line from the operator."""
    session, _ = site.peer()
    for leaf, payload in (("state", bent(v=9)), ("info", b"\xc1")):
        session.publish(Publication(TOPICS.device("d-9", leaf), payload, retain=True))
    session.flush(5)
    assert site.call("runs_ls") == {"runs": []}


# --- operations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "arguments", "said"),
    [
        ("no_such_thing", {}, "no operation 'no_such_thing'; there are: server_info, devices_ls"),
        ("call", {}, "no operation 'call'"),
        ("__init__", {}, "no operation '__init__'"),
        ("server_info", {"more": 1}, "server_info: unknown key 'more'"),
        ("runs_show", {}, "runs_show: 'run_id': Field required"),
        ("runs_show", {"run_id": "A B"}, "'run_id': String should match pattern"),
        ("runs_show", {"run_id": "none"}, "no run 'none'; `rengo runs ls` lists them"),
        ("runs_stop", {"run_id": "none"}, "no run 'none'"),
        ("models_url", {"name": "none"}, "no version"),
        ("devices_ls", {"after": "x" * 65}, "devices_ls: 'after' is no place in a list"),
        (
            "runs_submit",
            {"run_id": "none", "sha256": "0" * 64},
            "run none was not prepared, or too long ago",
        ),
        ("runs_submit", {"run_id": "none"}, "'sha256': Field required"),
        ("runs_prepare", {"definition": {}}, "'size_bytes': Field required"),
        (
            "runs_prepare",
            {"definition": {}, "size_bytes": 1},
            "run definition: 'task': Field required",
        ),
        ("runs_submit", {"run_id": "none", "sha256": "0" * 63}, "'sha256': "),
        (
            "runs_prepare",
            {"definition": {"task": "t"}, "size_bytes": 1 << 40},
            "'size_bytes': ",
        ),
        (
            "runs_prepare",
            {
                "definition": {"task": "t", "algorithm": {"name": "x"}},
                "size_bytes": 1,
            },
            "no algorithm 'x'; there are: ",
        ),
    ],
)
def test_a_wrong_request_is_answered_with_what_is_wrong(
    operation: str, arguments: dict[str, Any], said: str, site: Site
) -> None:
    with pytest.raises(ConfigError) as caught:
        site.call(operation, **arguments)
    assert said in str(caught.value)


def test_a_version_0_that_is_not_there(site: Site) -> None:
    prepared = site.prepare(model())
    with pytest.raises(ConfigError, match=r"000000\.safetensors"):
        site.submit_prepared(prepared, model())
    put(prepared["url"], model())
    assert site.submit_prepared(prepared, model()) == prepared["run_id"]
    assert site.submit_prepared(prepared, model()) == prepared["run_id"]
    assert len(site.call("runs_ls")["runs"]) == 1


def empty_model() -> bytes:
    out = io.BytesIO()
    write_safetensors(Weights.from_arrays({"steps": np.array([1], np.int64)}), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("promised", "given", "said"),
    [
        (model(0), model(1), "has sha256"),
        (model(), model()[:-1], "bytes, expected"),
        (model(), model() + b"\0", "bytes, expected"),
        (b"no safetensors at all", None, "weights: "),
        (model()[:-4], None, "its tensors end elsewhere"),
        (model() + b"\0" * 4, None, "its tensors end elsewhere"),
        (empty_model(), None, "no float parameters"),
    ],
)
def test_a_version_0_that_is_damaged(
    promised: bytes, given: bytes | None, said: str, site: Site
) -> None:
    prepared = site.prepare(promised)
    put(prepared["url"], promised if given is None else given)
    with pytest.raises((RunNotCompleted, ConfigError), match=said):
        site.submit_prepared(prepared, promised)
    assert site.call("runs_ls") == {"runs": []}


def test_a_run_that_has_ended_is_not_steered(site: Site) -> None:
    run_id = site.submit()
    assert site.call("runs_pause", run_id=run_id)["status"] == "paused"
    assert site.call("runs_resume", run_id=run_id)["status"] == "running"
    stopped = site.call("runs_stop", run_id=run_id)
    assert (stopped["status"], stopped["reason"]) == ("stopped", "stopped by the operator")
    for operation in ("runs_pause", "runs_resume", "runs_stop"):
        with pytest.raises(ConfigError, match=f"run {run_id} has ended: stopped"):
            site.call(operation, run_id=run_id)


def test_the_devices_come_in_pages(site: Site) -> None:
    session, _ = site.peer()
    info = SAMPLES["device_info"]
    assert isinstance(info, DeviceInfo)
    big = info.model_copy(update={"labels": {str(n): "x" * 100 for n in range(10)}})
    huge = info.model_copy(update={"labels": {str(n): "x" * 2000 for n in range(60)}})
    names = [f"d-{number:03d}" for number in range(150)]
    site.admit(*names)
    for name in names:
        about = huge if name == "d-007" else big
        state = DeviceState(status="ready", boot_id="b", tasks=["digits"])
        for leaf, message in (("info", about), ("state", state)):
            topic = TOPICS.device(name, leaf)
            session.publish(Publication(topic, said(topic, message, name)))
    eventually(lambda: site.call("server_info")["devices_online"] == len(names))
    with OperatorClient(site.place.operator) as client:
        rows = client.devices()
    assert [row.id for row in rows] == names
    assert rows[0].info == big
    assert rows[7].info is None, "one device must not fill the message"


# --- documents and restarts -------------------------------------------------------------------


def documents(owner: Owner) -> dict[str, RunDocument]:
    found: dict[str, RunDocument] = {}
    for delivery in owner.deliveries:
        run_id = parse(delivery.topic).id
        found.pop(run_id, None)
        if delivery.payload:
            message = message_of(delivery)
            assert isinstance(message, RunDocument)
            found[run_id] = message
    return found


def retained(site: Site, expected: set[str]) -> dict[str, RunDocument]:
    """Return the documents that a newcomer finds, which are those of the expected runs."""
    _, owner = site.peer("anyone", f"{BASE}/run/+/state")
    owner.wait(lambda: documents(owner).keys() == expected)
    return documents(owner)


def test_documents_beyond_the_kept_ones_are_cleared(site: Site) -> None:
    first = site.submit()
    ended = []
    for _ in range(22):
        ended.append(site.submit())
        site.call("runs_stop", run_id=ended[-1])
    kept = {first, *ended[-20:]}
    retained(site, kept)
    site.restart()
    found = retained(site, kept)
    assert found[first].status == "waiting"
    assert found[ended[-1]].status == "stopped"
    assert len(site.call("runs_ls")["runs"]) == 23


def server_state(site: Site) -> ServerState:
    _, owner = site.peer("anyone", TOPICS.server_state)
    owner.wait(lambda: bool(received(owner, ServerState)))
    state: ServerState = received(owner, ServerState)[-1]
    return state


def test_a_restart_has_a_larger_epoch_and_all_runs(site: Site) -> None:
    run_id = site.submit()
    prepared = site.prepare(model())
    before = site.call("server_info")
    assert server_state(site) == ServerState(status="online", epoch=before["epoch"])
    site.stop()
    assert server_state(site) == ServerState(status="offline", epoch=before["epoch"])
    site.start()
    after = site.call("server_info")
    assert after["epoch"] == before["epoch"] + 1
    assert server_state(site) == ServerState(status="online", epoch=after["epoch"])
    assert [row["run_id"] for row in site.call("runs_ls")["runs"]] == [run_id]
    assert retained(site, {run_id})[run_id].epoch == after["epoch"]
    put(prepared["url"], model())
    site.submit_prepared(prepared, model())


class Device:
    """A device that answers orders as it is told, on the wire."""

    def __init__(self, site: Site, name: str = "d-1") -> None:
        self.name = name
        site.admit(name)
        self.session, self.owner = site.peer(
            "anyone", TOPICS.device(name, "task"), TOPICS.device(name, "receipt")
        )

    def say(self, leaf: str, message: Message, *, retain: bool = False) -> None:
        topic = TOPICS.device(self.name, leaf)
        self.session.publish(Publication(topic, said(topic, message, self.name), retain))

    def join(self, boot_id: str = "b-1") -> None:
        state = DeviceState(status="ready", boot_id=boot_id, tasks=["digits"])
        self.say("state", state, retain=True)

    def orders(self) -> list[Order]:
        return received(self.owner, Order)

    def order(self, round_number: int, beyond_epoch: int = 0) -> Order:
        """Return the order of that round, of a later epoch than the given one."""

        def found() -> list[Order]:
            orders = [each for each in self.orders() if each.round == round_number]
            return [each for each in orders if each.epoch > beyond_epoch]

        self.owner.wait(lambda: bool(found()))
        return found()[-1]

    def train(self, order: Order, value: float = 0.5) -> Result:
        assert order.upload is not None
        base = HTTP.request("GET", order.model.url).data
        assert hashlib.sha256(base).hexdigest() == order.model.sha256
        weights = Weights.from_arrays({"0.weight": np.zeros((4, 3), np.float32)})
        info = info_of(order, self.name, weights.layout, 5)
        out = io.BytesIO()
        written = write_update(out, info, np.full(12, value, np.float32))
        put(order.upload.url, out.getvalue())
        reference = UpdateRef(
            key=order.upload.key,
            size_bytes=written.size_bytes,
            header_sha256=written.header_sha256,
        )
        return result(order.run_id, round=order.round, attempt=order.attempt, update=reference)

    def receipt(self, number: int) -> Receipt:
        """Return the last of so many receipts."""
        self.owner.wait(lambda: len(received(self.owner, Receipt)) == number)
        receipt: Receipt = received(self.owner, Receipt)[-1]
        return receipt


def test_a_run_from_its_first_order_to_its_model(site: Site) -> None:
    device = Device(site)
    device.join()
    data = model()
    run_id = site.submit(data, definition=DEFINITION | {"evaluation": {"on": "none"}})
    for number in (1, 2):
        order = device.order(number)
        assert (order.action, order.run_id, order.attempt) == ("train", run_id, 1)
        assert order.epoch == site.call("server_info")["epoch"]
        sent = device.train(order)
        device.say("result", sent)
        assert device.receipt(number).status == "accepted"
    eventually(lambda: site.call("runs_show", run_id=run_id)["status"] == "completed")
    reference = site.call("models_url", name=run_id)
    final = HTTP.request("GET", reference["url"]).data
    assert hashlib.sha256(final).hexdigest() == reference["sha256"]
    first = np.frombuffer(data[-48:], np.float32)
    assert np.allclose(np.frombuffer(final[-48:], np.float32), first + 1.0)
    device.say("result", sent)
    assert device.receipt(3).status == "accepted", "what was counted stays so"
    keys = RunKeys(site.server.settings.project, run_id)
    store = S3Store(site.place.store.settings)
    eventually(lambda: beside_in(store, keys, {0, 1, 2}) == "")


def test_updates_that_are_verified_together_share_one_write(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, written = site.server, list[list[str]]()
    post, append = server.data._post, server.journal.append
    verified: list[Done] = []

    def hold(done: Done) -> None:
        """Post the three verified updates at one moment, while the owner's thread waits."""
        if not isinstance(done, JobDone) or not isinstance(done.event, UpdateVerified):
            post(done)
            return
        verified.append(done)
        if len(verified) == 3:
            gate = threading.Event()
            post(TaskDone(lambda: opened(gate)))
            for each in verified:
                post(each)
            gate.set()

    def note(run_id: str, facts: Sequence[Fact]) -> None:
        written.append([type(fact).__name__ for fact in facts])
        append(run_id, facts)

    monkeypatch.setattr(server.data, "_post", hold)
    monkeypatch.setattr(server.journal, "append", note)
    devices = [Device(site, name) for name in ("d-1", "d-2", "d-3")]
    for device in devices:
        device.join()
    definition = DEFINITION | {"rounds": 1, "evaluation": {"on": "none"}, "cohort": {"size": 3}}
    run_id = site.submit(model(), definition=definition)
    for device in devices:
        device.say("result", device.train(device.order(1)))
    assert [device.receipt(1).status for device in devices] == 3 * ["accepted"]
    eventually(lambda: site.call("runs_show", run_id=run_id)["status"] == "completed")
    assert [facts for facts in written if "UpdateAccepted" in facts] == [
        [*3 * ["UpdateAccepted"], "RoundClosed"]
    ]


def opened(gate: threading.Event) -> None:
    assert gate.wait(20)


DEFINITION: dict[str, Any] = {"task": "digits", "rounds": 2, "cohort": {"size": 1}}


def test_an_update_that_is_not_what_it_says_is_refused_with_its_reason(site: Site) -> None:
    device = Device(site)
    device.join()
    run_id = site.submit()
    order = device.order(1)
    sent = device.train(order)
    assert order.upload is not None
    put(order.upload.url, b"something else")
    device.say("result", sent)
    receipt = device.receipt(1)
    assert receipt.status == "refused"
    assert "does not begin as an update" in receipt.reason
    history = site.call("runs_show", run_id=run_id)["history"]
    assert history[0]["refused"] == {"d-1": receipt.reason}


def test_an_order_is_asked_for_again_and_declined(site: Site) -> None:
    device = Device(site)
    device.join()
    run_id = site.submit()
    order = device.order(1)
    device.say("request", Request(action="train", run_id=run_id, round=1, attempt=1))
    device.owner.wait(lambda: len(device.orders()) == 2)
    assert device.orders()[1].model.sha256 == order.model.sha256
    device.say(
        "ack",
        Decline(action="train", run_id=run_id, round=1, attempt=1, reason="too hot"),
    )

    def told() -> bool:
        history = site.call("runs_show", run_id=run_id)["history"]
        return bool(history[0]["refused"] == {"d-1": "too hot"})

    eventually(told)


def test_orders_come_again_after_a_restart(site: Site) -> None:
    device = Device(site)
    device.join()
    run_id = site.submit()
    old = device.order(1)
    site.restart()
    new = device.order(1, beyond_epoch=old.epoch)
    assert (new.run_id, new.round, new.attempt) == (run_id, 1, 1)


# --- troubles of its own ----------------------------------------------------------------------


def test_a_server_that_cannot_journal_falls_rather_than_forgets(site: Site) -> None:
    run_id = site.submit()
    engine = sa.create_engine(site.journal_url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE rengo_facts"))
    engine.dispose()
    session, _ = site.peer()
    request = {"request_id": "q", "operation": "runs_pause", "arguments": {"run_id": run_id}}
    asked = SAMPLES["operator_request"].model_copy(update=request)
    topic = TOPICS.operator("operator", "request")
    session.publish(Publication(topic, said(topic, asked, "operator")))
    site.thread.join(20)
    assert [type(error) for error in site.fell] == [JournalError]
    assert "rengo_facts" in str(site.fell[0])
    assert server_state(site).status == "offline"


def test_a_server_stops_at_once_while_its_store_is_away(place: Place, tmp_path: Path) -> None:
    site = Site(place, tmp_path)
    site.start()
    try:
        run_id = site.submit()
        place.store.kill()
        site.call("runs_stop", run_id=run_id)  # its sweep waits for the store
        began = time.monotonic()
        site.stop()
        assert time.monotonic() - began < 20
    finally:
        place.store.start()
        site.forget_retained()
