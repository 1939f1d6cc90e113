"""A broker's address as people write it: ``mqtt://host:port``, or ``mqtts://`` with TLS."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from runtime.errors import ConfigError
from runtime.security.identity import Identity

_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}


class BrokerPlace(NamedTuple):
    """Where a broker is, and whether it speaks TLS."""

    host: str
    port: int
    tls: bool

    @property
    def url(self) -> str:
        """The address as people write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def parse_url(text: str) -> BrokerPlace:
    """Return what an address says; the port is MQTT's own where it names none.

    Raises:
        ConfigError: it is not an address of a broker.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
        if port is None:
            port = _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        host = port = None
    more = host and (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    if not host or not port or more or parts.scheme not in _DEFAULT_PORTS:
        shown = "an address with a user's name" if "@" in text else repr(text)
        raise ConfigError(f"{shown} is not mqtt://HOST:PORT or mqtts://HOST:PORT")
    return BrokerPlace(host, port, parts.scheme == "mqtts")


def url_of(identity: Identity) -> str:
    """Return the address of an identity's broker."""
    return BrokerPlace(identity.host, identity.port, identity.tls is not None).url
