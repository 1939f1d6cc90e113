"""Ports for servers of one's own: free, and not among those that clients are given."""

from __future__ import annotations

import socket
from unittest.mock import Mock

import pytest

from runtime.errors import ConfigError
from runtime.processes import ports


def test_a_port_can_be_bound_and_no_client_is_given_it() -> None:
    port = ports.free_port()
    assert port in range(20_000, 32_000)
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", port))
        client.bind(("127.0.0.1", 0))
        assert client.getsockname()[1] not in range(20_000, 32_000)


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = ports.free_port(), ports.free_port()
    order = Mock(return_value=Mock(sample=Mock(return_value=[taken, free])))
    monkeypatch.setattr("random.SystemRandom", order)
    with socket.socket() as server:
        server.bind(("127.0.0.1", taken))
        assert ports.free_port() == free
        order.return_value.sample.return_value = [taken]
        with pytest.raises(ConfigError, match="no free port"):
            ports.free_port()
