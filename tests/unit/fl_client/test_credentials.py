"""A device's keyring: a password is on disk before anybody relies on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_client.identity.credentials import DeviceCredentials
from runtime.errors import PeerError
from runtime.security.identity import Identity, new_identity, read_identity
from runtime.security.signing import SecretKey

NEW = "a-password-of-the-server"


@pytest.fixture
def identity() -> Identity:
    return new_identity("device", "home", "d-1", "127.0.0.1", 1)


def sealed(identity: Identity, text: str) -> bytes:
    return identity.secret_key.public.seal(text.encode())


def test_a_new_password_stands_beside_the_old_until_it_was_admitted(
    identity: Identity, tmp_path: Path
) -> None:
    path, old = tmp_path / "d.json", identity.password.get_secret_value()
    keyring = DeviceCredentials(path, identity)
    changed = keyring.store_password(1, sealed(identity, NEW))
    assert changed is not None
    assert changed == read_identity(path)
    assert changed.password.get_secret_value() == old
    assert changed.next_password is not None
    assert changed.next_password.get_secret_value() == NEW
    assert keyring.confirm_password(old) is None, "the broker still takes the old one"
    final = keyring.confirm_password(NEW)
    assert final is not None
    assert final == read_identity(path)
    assert (final.password.get_secret_value(), final.next_password) == (NEW, None)
    assert keyring.store_password(1, sealed(identity, NEW)) is None, (
        "offered again, it is kept already"
    )


def test_an_older_password_does_not_come_back(identity: Identity, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    first, second = sealed(identity, NEW), sealed(identity, "another-of-the-server")
    DeviceCredentials(path, identity).store_password(1, first)
    DeviceCredentials(path, read_identity(path)).store_password(2, second)
    kept = read_identity(path)
    with pytest.raises(PeerError) as caught:
        DeviceCredentials(path, kept).store_password(1, first)
    assert caught.value.reason == "replayed"
    assert read_identity(path) == kept


def test_what_another_could_have_sealed_or_sent_is_refused(
    identity: Identity, tmp_path: Path
) -> None:
    path = tmp_path / "d.json"
    keyring = DeviceCredentials(path, identity)
    for wrong in (
        SecretKey.generate().public.seal(NEW.encode()),
        b"",
        sealed(identity, "short"),
        sealed(identity, "x" * 300),
        sealed(identity, "with\nline"),
        sealed(identity, "ümlaut-ümlaut"),
    ):
        with pytest.raises(PeerError):
            keyring.store_password(1, wrong)
    assert not path.exists()
