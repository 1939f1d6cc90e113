"""Identity files: private, whole, and named when they are not."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from runtime.errors import ConfigError
from runtime.security.identity import Identity, new_identity, read_identity, write_identity


@pytest.fixture
def path(tmp_path: Path) -> Path:
    where = tmp_path / "identities" / "d-1.json"
    write_identity(where, new_identity("device", "home", "d-1", "127.0.0.1", 1883))
    return where


def test_what_is_written_is_read(path: Path) -> None:
    identity = read_identity(path)
    assert (identity.role, identity.domain, identity.id) == ("device", "home", "d-1")
    assert (identity.host, identity.port, identity.index, identity.count) == (
        "127.0.0.1",
        1883,
        0,
        1,
    )
    write_identity(path, identity)
    assert read_identity(path) == identity


def test_secrets_are_new_each_time_and_never_shown() -> None:
    one, two = (new_identity("device", "home", "d-1", "h", 1) for _ in range(2))
    assert one.client_id != two.client_id
    assert one.client_id.startswith("d-1-")
    assert one.password != two.password
    assert len(one.password.get_secret_value()) >= 32
    assert one.password.get_secret_value() not in repr(one)


def test_a_client_id_is_usable_however_long_the_name_is() -> None:
    assert len(new_identity("device", "home", "d" * 64, "h", 1).client_id) <= 64


def test_the_file_is_private(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o644])
def test_a_file_that_others_can_read_is_refused_with_the_mend(mode: int, path: Path) -> None:
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"readable by others; run: chmod 600 {path}"):
        read_identity(path)


def test_a_read_only_file_of_ones_own_is_fine(path: Path) -> None:
    path.chmod(0o400)
    assert read_identity(path).id == "d-1"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no identity file at"):
        read_identity(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_identity(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"x"', "\x00", "[" * 100_000])
def test_a_damaged_file_is_named(text: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"identity file {path} is damaged"):
        read_identity(path)


def test_bytes_that_are_no_text_are_named(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_identity(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("role", "root"),
        ("domain", "A b"),
        ("id", "d/1"),
        ("client_id", ""),
        ("host", ""),
        ("port", 0),
        ("port", 70_000),
        ("port", "x"),
        ("index", -1),
        ("count", 0),
        ("more", 1),
    ],
)
def test_a_wrong_key_is_named_without_the_password(key: str, value: Any, path: Path) -> None:
    document = json.loads(path.read_text())
    password = document["password"]
    path.write_text(json.dumps({**document, key: value}))
    with pytest.raises(ConfigError) as caught:
        read_identity(path)
    assert f"'{key}'" in str(caught.value)
    assert str(path) in str(caught.value)
    assert password not in str(caught.value)


@pytest.mark.parametrize("key", ["role", "domain", "id", "client_id", "host", "port", "password"])
def test_a_missing_key_is_named(key: str, path: Path) -> None:
    document = json.loads(path.read_text())
    del document[key]
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=f"'{key}': Field required"):
        read_identity(path)


def test_an_identity_does_not_change(path: Path) -> None:
    identity: Identity = read_identity(path)
    with pytest.raises(ValidationError):
        identity.host = "elsewhere"  # type: ignore[misc]
