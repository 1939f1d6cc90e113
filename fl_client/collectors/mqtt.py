"""Receives samples from topics of the site's own broker, over a connection apart from Rengo's."""

from __future__ import annotations

import json
import logging
import shlex
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import msgpack

from broker.session.endpoint import Endpoint
from broker.session.inbox import SessionEvent, SessionFault
from broker.session.publication import Delivery
from broker.session.session import MqttSession
from fl_client.datasets.sample import BadSample
from fl_client.datasets.settings import MqttSource
from runtime.errors import ConfigError
from runtime.security.tls import Tls

_LOG = logging.getLogger(__name__)
_KEEPALIVE_S = 60


class RecordSink(Protocol):
    """What receives the records: the collector."""

    def offer(self, record: dict[str, Any]) -> bool:
        """Queue a record; False when the queue is full."""

    def refuse(self, reason: str) -> None:
        """Count a record that cannot be used."""


class MqttFeed:
    """One session with the site's broker; its messages are only ever read as data."""

    def __init__(self, source: MqttSource, sink: RecordSink) -> None:
        self._source = source
        self._sink = sink
        self._rate = MessageRate(source.max_per_s)
        self._session = MqttSession(
            Endpoint(
                host=source.host,
                port=source.port,
                username=source.username,
                password=read_password(source.password_file),
                client_id=source.client_id,
                keepalive_s=_KEEPALIVE_S,
                tls=None if source.ca is None else Tls.trusting(source.ca),
            ),
            source.topics,
            self._on_event,
        )

    def start(self) -> None:
        """Connect, and try again until it succeeds."""
        self._session.start()

    def stop(self) -> None:
        """Disconnect; the broker keeps the subscription and queues messages."""
        self._session.stop()

    def _on_event(self, event: SessionEvent) -> bool:
        match event:
            case Delivery():
                accepted = self._deliver(event)
                if accepted:
                    self._session.ack(event)
                return accepted
            case SessionFault():
                _LOG.error("the site's broker: %s", event.error)
        return True

    def _deliver(self, delivery: Delivery) -> bool:
        """Pass a message on; False if the broker has to deliver it again."""
        if delivery.retain:
            return True  # an old value, which was received when it was new
        if not self._rate.allow(time.monotonic()):
            self._sink.refuse("flood")
            return True
        try:
            record = decode(delivery.payload, self._source)
        except BadSample as error:
            self._sink.refuse(error.reason)
            return True
        return self._sink.offer(record)


class MessageRate:
    """Allows so many messages a second, and bursts of ten seconds' worth. For any thread."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._most = max(1.0, 10 * per_s)
        self._left = self._most
        self._at_s: float | None = None
        self._lock = threading.Lock()

    def allow(self, now_s: float) -> bool:
        """Return whether one more message is allowed now, and count it."""
        with self._lock:
            passed_s = 0.0 if self._at_s is None else max(0.0, now_s - self._at_s)
            self._at_s = now_s
            self._left = min(self._most, self._left + passed_s * self._per_s)
            if self._left < 1:
                return False
            self._left -= 1
            return True


def decode(payload: bytes, source: MqttSource) -> dict[str, Any]:
    """Return the record in a payload; BadSample if it is too large or contains none."""
    if len(payload) > source.max_payload_bytes:
        raise BadSample("a payload beyond its bound", "oversize")
    try:
        if source.payload == "json":
            record = json.loads(payload)
        else:
            record = msgpack.unpackb(payload, strict_map_key=True, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise BadSample("a payload that cannot be read", "payload") from error
    if not isinstance(record, dict):
        raise BadSample("a payload that is no map", "payload")
    return record


def read_password(path: Path) -> str:
    """Return the password in a file; ConfigError where it cannot be read, or others may."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                f"{path} is readable by others; run: chmod 600 {shlex.quote(str(path))}"
            )
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
