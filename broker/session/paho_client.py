"""A paho client that reports how its network thread and its TLS socket fail."""

from __future__ import annotations

import contextlib
import ssl
from typing import Any, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode


class NetworkLoopObserver(Protocol):
    """Called by a client about its network thread, on that thread."""

    def loop_began(self) -> None:
        """The thread begins."""

    def loop_failed(self, error: Exception) -> None:
        """The thread failed, in paho itself or in a callback."""

    def loop_ended(self) -> None:
        """The thread ends."""


class TlsSocket(ssl.SSLSocket):
    """A socket that keeps the error of TLS, which paho only logs, and that leaks no descriptor."""

    failure: ssl.SSLError | None = None

    def do_handshake(self, block: bool = False) -> None:
        """As the base; a failure closes the socket."""
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """As the base; keeps an error of TLS."""
        try:
            return super().recv(buflen, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            self.failure = error
            raise

    def send(self, data: Any, flags: int = 0) -> int:
        """As the base; keeps an error of TLS, also one that the peer sent before it closed."""
        try:
            return super().send(data, flags)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError as error:
            # the peer closed the connection, perhaps after an alert that says why
            with contextlib.suppress(OSError):
                self.recv(1)
            self.failure = self.failure or (error if isinstance(error, ssl.SSLError) else None)
            raise


class PahoClient(mqtt.Client):
    """A paho client whose network thread cannot end unnoticed."""

    observer: NetworkLoopObserver | None = None

    def loop_forever(self, *_: Any, **__: Any) -> MQTTErrorCode:
        """Run the network thread's loop, and call the observer at its start and end."""
        observer = self.observer
        if observer is None:
            return MQTTErrorCode.MQTT_ERR_INVAL
        observer.loop_began()
        try:
            return super().loop_forever(timeout=1.0, retry_first_connection=False)
        except Exception as error:  # noqa: BLE001 (the loop of the network thread)
            observer.loop_failed(error)
            return MQTTErrorCode.MQTT_ERR_UNKNOWN
        finally:
            observer.loop_ended()
