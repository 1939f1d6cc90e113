"""How a server's file says where the broker's users are made, and how large its parts are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.brokers.access_control import ManualAccess
from broker.brokers.emqx import EmqxAccess
from broker.brokers.mosquitto import MosquittoAccess
from broker.brokers.nats import NatsAccess
from fl_server.settings import BrokerSettings, ServerConfig
from runtime.config import validate
from runtime.errors import ConfigError

EMQX = {"kind": "emqx", "url": "http://h:18083", "api_key": "key", "secret": "s-e-c-r-e-t"}


def settings(values: dict[str, Any]) -> BrokerSettings:
    return validate(BrokerSettings, values, "server.toml")


@pytest.mark.parametrize(
    ("values", "kind", "ours"),
    [
        ({}, ManualAccess, False),
        ({"kind": "nats", "folder": "b"}, NatsAccess, True),
        ({"kind": "mosquitto", "folder": "b"}, MosquittoAccess, True),
        (EMQX, EmqxAccess, True),
    ],
)
def test_each_kind_has_its_way(
    values: dict[str, Any],
    kind: type,
    ours: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    access = settings(values).access()
    assert type(access) is kind
    assert access.manages_users == ours


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "nats"}, "kind 'nats' needs folder"),
        ({"kind": "mosquitto"}, "kind 'mosquitto' needs folder"),
        ({**EMQX, "secret": None}, "kind 'emqx' needs url, api_key and secret"),
        ({"kind": "rabbit"}, "'kind'"),
        ({"public_url": "http://h"}, "'public_url'"),
        ({"ca_fingerprint": "ab"}, "'ca_fingerprint'"),
    ],
)
def test_what_a_kind_lacks_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(values)


def test_the_secret_is_not_shown() -> None:
    assert "s-e-c-r-e-t" not in repr(settings(EMQX))


@pytest.mark.parametrize("name", ["part_bytes", "written_bytes"])
def test_parts_that_s3_would_refuse_are_refused(name: str) -> None:
    store = {"endpoint": "http://127.0.0.1:9000", "access_key": "key", "secret": "s-e-c-r-e-t"}
    values = {"identity": "i", "data_dir": "d", "store": store, "parts": {name: (5 << 20) - 1}}
    with pytest.raises(ConfigError, match=f"S3 takes no {name} below 5242880"):
        validate(ServerConfig, values, "server.toml")
