"""Free ports for the servers that Rengo starts itself."""

from __future__ import annotations

import random
import socket

from runtime.errors import ConfigError

# below those that Linux and macOS give to clients, one of which would take a port before its server
# has begun, or while it is away
_PORTS = range(20_000, 32_000)
_TRIES = 100


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of ``host`` that nothing has at this moment.

    Raises:
        ConfigError: none was found.
    """
    for port in random.SystemRandom().sample(_PORTS, _TRIES):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise ConfigError(f"no free port from {_PORTS.start} to {_PORTS.stop - 1} on {host}")


def require_free(port: int, purpose: str, host: str = "127.0.0.1") -> None:
    """Raise ConfigError, naming ``purpose``, when something already listens on ``port``."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} for the {purpose} on {host} is in use ({error.strerror}); "
                "stop what listens there or choose another port"
            ) from error
