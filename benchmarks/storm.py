"""A connection storm: every device of a large fleet connects at the same moment.

    python -m benchmarks.storm [--json FILE] [BROKER=COUNT ...]

Each device is enrolled, connects as its agent does (will, persistent session, subscriptions), says
what it is, and stays. At the end the server must show every one as ready; then all are cut at once,
as by a power failure, and the server must show every one as lost.
"""

from __future__ import annotations

import argparse
import json
import selectors
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from broker.session.signer import MessageSigner
from broker.wire.messages import DeviceState
from broker.wire.topics import Topics
from rengo.operator.client import OperatorClient
from rengo.site.preparation import SiteOptions
from rengo.site.site import Site
from runtime.security.identity import Identity, new_identity

USUAL = (("mosquitto", 2000), ("nats", 500))
_PATIENCE_S = 300.0
_LOOK_EVERY_S = 0.25


@dataclass(frozen=True)
class Storm:
    """What a storm did; seconds count from the first connection's beginning."""

    broker: str
    devices: int
    admitted_s: float
    connected_s: float
    settled_s: float
    present_s: float
    lost_s: float
    failures: int


class _Device:
    """One device's connection, driven by the storm's loop."""

    def __init__(self, identity: Identity, retries: list[str]) -> None:
        self.identity = identity
        self.connected = self.settled = False
        self._retries = retries
        self._topics, self._author = (
            Topics(identity.domain),
            MessageSigner(identity.id, identity.secret_key),
        )
        self._waits: set[int] = set()
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=identity.client_id,
            clean_session=False,
            reconnect_on_failure=False,
        )
        client.username_pw_set(identity.id, identity.password.get_secret_value())
        will = self._state("lost")
        client.will_set(will.topic, will.payload, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_subscribe = lambda _c, _u, mid, _r, _p: self._answered(mid)
        client.on_publish = lambda _c, _u, mid, _r, _p: self._answered(mid)
        client.on_disconnect = lambda _c, _u, _f, reason, _p: retries.append(str(reason))
        self.client = client

    def _state(self, status: str) -> Any:
        state = DeviceState.model_validate(
            {"status": status, "boot_id": self._author.boot_id, "tasks": ["digits"]}
        )
        return self._author.sign(self._topics.device(self.identity.id, "state"), state, retain=True)

    def _on_connect(self, client: mqtt.Client, _u: Any, _f: Any, reason: Any, _p: Any) -> None:
        if reason.is_failure:
            self._retries.append(str(reason))
            return
        self.connected = True
        own = [self._topics.device(self.identity.id, leaf) for leaf in ("task", "receipt")]
        shared = [self._topics.server_state, self._topics.run("+", "state")]
        _, mid = client.subscribe([(topic, 1) for topic in (*own, *shared)])
        ready = self._state("ready")
        self._waits = {mid or 0, client.publish(ready.topic, ready.payload, 1, ready.retain).mid}

    def _answered(self, mid: int) -> None:
        self._waits.discard(mid)
        self.settled = not self._waits


class _Loop:
    """Serves many paho clients on one thread."""

    def __init__(self, devices: Iterable[_Device]) -> None:
        self.devices = list(devices)
        self._selector = selectors.DefaultSelector()

    def add(self, device: _Device) -> None:
        self._selector.register(device.client.socket(), selectors.EVENT_READ, device)

    def until(self, done: Callable[[], bool], deadline: float) -> None:
        looked = 0.0
        while time.monotonic() < deadline:
            for key, _ in self._selector.select(0.01):
                key.data.client.loop_read(64)
            for device in self.devices:
                if device.client.want_write():
                    device.client.loop_write()
            if time.monotonic() - looked > _LOOK_EVERY_S:
                looked = time.monotonic()
                if done():
                    return
        raise TimeoutError("the storm did not end")

    def cut(self) -> None:
        """Close every socket without a word."""
        for device in self.devices:
            self._selector.unregister(device.client.socket())
            device.client.on_disconnect = None
            device.client.socket().close()
        self._selector.close()


def storm(broker: str, count: int) -> Storm:
    """Let ``count`` enrolled devices connect at once to a site on a broker."""
    with (
        tempfile.TemporaryDirectory(prefix="rengo-storm-") as folder,
        Site(Path(folder), options=SiteOptions(broker=broker)) as site,
    ):
        began = time.monotonic()
        identities = [
            new_identity(
                "device",
                site.at.domain,
                f"d-{number:05d}",
                site.at.host,
                site.at.port,
                server_key=site.operator.believed,
            )
            for number in range(count)
        ]
        site.admit(identities)
        admitted_s = time.monotonic() - began
        failures: list[str] = []
        loop = _Loop(_Device(each, failures) for each in identities)
        with site.connect() as operator:
            began = time.monotonic()
            for device in loop.devices:
                device.client.connect(site.at.host, site.at.port, keepalive=60)
                loop.add(device)
            deadline = began + _PATIENCE_S
            loop.until(lambda: all(each.connected for each in loop.devices), deadline)
            connected_s = time.monotonic() - began
            loop.until(lambda: all(each.settled for each in loop.devices), deadline)
            settled_s = time.monotonic() - began
            _statuses(operator, "ready", count, deadline)
            present_s = time.monotonic() - began
            began = time.monotonic()
            loop.cut()
            _statuses(operator, "lost", count, began + _PATIENCE_S)
            lost_s = time.monotonic() - began
    times = (round(each, 2) for each in (admitted_s, connected_s, settled_s, present_s, lost_s))
    return Storm(broker, count, *times, len(failures))


def _statuses(operator: OperatorClient, status: str, count: int, deadline: float) -> None:
    """Return when the server shows ``count`` devices in that state."""
    while True:
        shown = sum(each.status == status for each in operator.devices())
        if shown == count:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{shown} of {count} devices are {status}")
        time.sleep(_LOOK_EVERY_S)


def _wanted(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in dict(USUAL) or not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not one of mosquitto=N, nats=N")
    return name, int(number)


def main() -> None:
    """Run the storms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("storms", nargs="*", type=_wanted, metavar="BROKER=COUNT")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    storms = [storm(name, count) for name, count in options.storms or USUAL]
    heads = ("broker", "devices", "admitted s", "connected s", "settled s", "all ready s")
    heads = (*heads, "all lost s", "failures")
    print("| " + " | ".join(heads) + " |")
    print("|" + " --- |" * len(heads))
    for each in storms:
        print("| " + " | ".join(str(value) for value in asdict(each).values()) + " |")
    if options.json:
        options.json.write_text(json.dumps([asdict(each) for each in storms], indent=2) + "\n")


if __name__ == "__main__":
    main()
