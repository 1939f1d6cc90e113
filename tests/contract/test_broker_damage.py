"""A broker whose store is damaged serves: what cannot be read is set aside, and that is told."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.session.publication import Publication
from broker.session.session import MqttSession
from rengo.site.supervisor import Supervisor
from runtime.errors import TransportError
from tests.contract.broker_places import Kind, Place, Server
from tests.integration.broker_fixtures import BASE, Owner, eventually
from tests.support import soaking

DOCUMENT, ORDER = f"{BASE}/server/state", f"{BASE}/dev/dev-a/task"
_PATIENCE_S = 30.0


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garble(path: Path) -> None:
    path.write_bytes(b"garbled" + path.read_bytes()[7:])


def mislabel(path: Path) -> None:
    """Give a field a name that the server does not know."""
    data = path.read_bytes()
    assert b'"ack_wait"' in data
    path.write_bytes(data.replace(b'"ack_wait"', b'"ack~wait"'))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped": flip,
    "halved": halve,
    "emptied": empty,
    "garbled": garble,
    "removed": Path.unlink,
    "mislabelled": mislabel,
}
_QUEUE = "jetstream/jetstream/$G/streams/$MQTT_msgs/obs/*/meta.inf"
FILES = {
    "nats": [
        *(
            f"jetstream/jetstream/$G/streams/$MQTT_{stream}/{file}"
            for stream in ("msgs", "rmsgs", "sess")
            for file in ("meta.inf", "meta.sum", "msgs/*.blk", "msgs/index.db")
        ),
        *(
            f"jetstream/jetstream/$G/streams/$MQTT_{stream}/obs/*/{file}"
            for stream in ("msgs", "rmsgs")
            for file in ("meta.inf", "meta.sum", "o.dat")
        ),
    ],
    "mosquitto": ["state.db"],
}


@dataclass(frozen=True)
class Case:
    server: Server
    file: str
    damage: str

    def __str__(self) -> str:
        return f"{self.server}-{self.damage}-{self.file}"

    @property
    def is_long(self) -> bool:
        """NATS copes by itself with most of them, and alike in each stream."""
        return self.damage != "flipped" and "/$MQTT_msgs/" not in self.file


CASES = [
    Case(server, file, damage)
    for server in ("nats", "mosquitto")
    for file in FILES[server]
    for damage in DAMAGES
    if damage != "mislabelled" or file == _QUEUE
]

SET_ASIDE = {Case("nats", _QUEUE, "mislabelled"), Case("mosquitto", "state.db", "garbled")}
BEGUN_ANEW = {
    Case("nats", _QUEUE, "removed"),
    Case("nats", "jetstream/jetstream/$G/streams/$MQTT_msgs/meta.inf", "removed"),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind of broker, with a session, a queued order and a document."""
    found = {}
    for server in ("nats", "mosquitto"):
        place = Place(Kind(server, "3.1.1"), tmp_path_factory.mktemp(server))
        place.start()
        place.session(Owner(), ORDER, endpoint=place.endpoint("dev-a")).stop()
        writer = place.session(Owner(), endpoint=place.endpoint("server"))
        for topic, retain in ((DOCUMENT, True), (ORDER, False)):
            writer.publish(Publication(topic, b"written before", retain=retain))
        assert writer.flush(_PATIENCE_S)
        place.close()
        found[server] = place.folder
    return found


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    found = Supervisor(probe_every_s=0.1)
    found.start()
    yield found
    found.stop()


def of_use(place: Place) -> bool:
    """Whether a new session and that of before get what is published and retained from now on."""
    with contextlib.ExitStack() as stack:

        def connect(who: str, *topics: str, client_id: str = "") -> tuple[Owner, MqttSession]:
            owner, endpoint = Owner(), place.endpoint(who, client_id)
            session = place.session(owner, *topics, endpoint=endpoint, wait=False)
            stack.callback(session.stop)
            session.wait_connected(3.0)
            return owner, session

        try:
            old, _ = connect("dev-a", ORDER)
            _, sender = connect("server")
            for topic, retain in ((ORDER, False), (DOCUMENT, True)):
                sender.publish(Publication(topic, b"now", retain=retain))
            new, _ = connect("anyone", DOCUMENT, client_id=f"new-{time.time_ns()}")
            old.wait(lambda: b"now" in old.payloads, 3.0)
            new.wait(lambda: b"now" in new.payloads, 3.0)
            return sender.flush(3.0)
        except (TransportError, AssertionError):
            return False


@pytest.mark.parametrize("case", soaking(CASES, lambda case: case.is_long), ids=str)
def test_a_broker_with_a_damaged_file_is_of_use(
    case: Case,
    stores: dict[str, Path],
    tmp_path: Path,
    supervisor: Supervisor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(stores[case.server], tmp_path / "copy")
    place = Place(Kind(case.server, "3.1.1"), tmp_path / "copy")
    (path,) = sorted(place.broker.data_dir.glob(case.file))[:1]
    DAMAGES[case.damage](path)
    broker = place.broker
    supervisor.add("broker", broker, lambda: broker.start(None), broker.fault, broker.data_dir)
    eventually(lambda: of_use(place), _PATIENCE_S)
    kept = [path for path in broker.data_dir.iterdir() if path.suffix == ".damaged"]
    told = [each for each in caplog.messages if "store was damaged" in each]
    assert len(told) == len(kept) <= 1
    assert all(str(path) in told[0] for path in kept)
    assert kept or case not in SET_ASIDE, "nothing was set aside"
    lost = "the MQTT broker had lost queues: 1 sessions begin anew (dev-a-1)"
    assert lost in caplog.messages or case not in BEGUN_ANEW
