"""Free ports for the servers that Rengo starts itself."""

from __future__ import annotations

import socket

from runtime.errors import ConfigError


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of ``host`` that nothing listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


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
