"""Where a managed broker listens, and with which certificates."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from runtime.errors import ConfigError

LOOPBACK = "127.0.0.1"
_EVERYWHERE = "0.0.0.0"  # noqa: S104 (compared with, never bound by default)


class ListenAddress(NamedTuple):
    """The address of a broker from its own machine."""

    host: str
    port: int


@dataclass(frozen=True)
class ListenerTls:
    """The certificate that a listener presents, and whether it asks clients for theirs.

    Args:
        certificate: PEM, the leaf first and then the chain up to the CA, so that a client sees the
            CA.
        key: the leaf's, without a passphrase.
        client_ca: signs the clients' certificates; where given, nobody connects without one.

    Raises:
        ConfigError: a file does not exist.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        for what in ("certificate", "key", "client_ca"):
            path: Path | None = getattr(self, what)
            if path is not None and not path.is_file():
                raise ConfigError(f"the broker's TLS {what} {path} does not exist")
            if path is not None:
                object.__setattr__(self, what, path.absolute())


def require_private(host: str, tls: ListenerTls | None) -> str:
    """Return ``host``, an IPv4 address or ``localhost``, when passwords are safe there.

    Raises:
        ConfigError: it is neither, or others can reach it and there is no TLS.
    """
    try:
        address = ipaddress.IPv4Address(LOOPBACK if host == "localhost" else host)
    except ValueError as error:
        raise ConfigError(
            f"the broker cannot listen on {host!r}: give an IPv4 address, {_EVERYWHERE} for all"
        ) from error
    if tls is None and not address.is_loopback:
        raise ConfigError(
            f"a broker that listens on {host} is reached from the network and needs TLS: "
            f"passwords would travel in the clear; give it a certificate, or let it listen on "
            f"{LOOPBACK}"
        )
    return str(address)


def local_address(host: str, port: int) -> ListenAddress:
    """Return the address of a listener on ``host`` from its own machine."""
    return ListenAddress(LOOPBACK if host == _EVERYWHERE else host, port)
