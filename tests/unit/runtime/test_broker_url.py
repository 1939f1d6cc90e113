"""A broker's address as people write it."""

from __future__ import annotations

import pytest

from runtime.broker_url import BrokerPlace, parse_url, url_of
from runtime.errors import ConfigError
from runtime.security.identity import TlsTrust, new_identity


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("mqtt://127.0.0.1:1884", BrokerPlace("127.0.0.1", 1884, tls=False)),
        ("mqtt://broker.example", BrokerPlace("broker.example", 1883, tls=False)),
        ("mqtts://broker.example/", BrokerPlace("broker.example", 8883, tls=True)),
        ("mqtts://[2001:db8::1]:8884", BrokerPlace("2001:db8::1", 8884, tls=True)),
    ],
)
def test_an_address_is_read_and_written(text: str, place: BrokerPlace) -> None:
    assert parse_url(text) == place
    assert parse_url(place.url) == place


@pytest.mark.parametrize(
    "text",
    [
        *("", "broker.example", "http://h:1", "mqtt://", "mqtt://:1883", "mqtt://h:0"),
        *("mqtt://h:70000", "mqtt://h:x", "mqtt://me:secret@h:1", "mqtt://h:1/path"),
        *("mqtt://h:1?x=1", "mqtt://h:1#x", "mqtt://[::1", "MQTT//h:1"),
    ],
)
def test_what_is_no_address_is_told_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match="is not mqtt://HOST:PORT or mqtts://HOST:PORT") as told:
        parse_url(text)
    assert "secret" not in str(told.value)


def test_the_address_of_an_identity_says_whether_it_is_tls() -> None:
    plain = new_identity("device", "home", "d-1", "h", 1883)
    assert url_of(plain) == "mqtt://h:1883"
    assert url_of(plain.model_copy(update={"tls": TlsTrust()})) == "mqtts://h:1883"
