"""What a site says, and makes anew, where a file of it is damaged or of another site."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from broker.brokers.managed_users import ManagedUsers
from broker.wire.access import BrokerUser, Grants
from rengo.site.folder import SiteFolder
from rengo.site.preparation import Preparation, SiteOptions
from runtime.errors import ConfigError
from runtime.security.identity import read_identity

Kind = Literal["nats", "mosquitto"]
FILES = {"nats": ["users.conf"], "mosquitto": ["passwords", "acl"]}


def prepared(root: Path, kind: Kind) -> ManagedUsers:
    made = Preparation(SiteFolder(root), SiteOptions(broker=kind))
    assert made.broker is not None
    return made.broker.access()


@pytest.fixture(params=["nats", "mosquitto"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def sites(tmp_path: Path, kind: Kind) -> tuple[Path, Path]:
    """Two sites, of whose broker the first has a device more."""
    own, other = tmp_path / "own", tmp_path / "other"
    access = prepared(own, kind)
    prepared(other, kind)
    users = [user_of(own, name) for name in ("server", "operator")]
    access.write([*users, BrokerUser("edge-1", "password-of-edge", Grants(("a",), ("b",)))])
    return own, other


def user_of(root: Path, name: str) -> BrokerUser:
    identity = read_identity(root / "identities" / f"{name}.json")
    return BrokerUser(name, identity.password.get_secret_value(), Grants(("a",), ("b",)))


def users_of(root: Path, kind: Kind) -> list[bytes]:
    return [(root / "broker" / name).read_bytes() for name in FILES[kind]]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:60]),
    "emptied": lambda path: path.write_bytes(b""),
    "of another form": lambda path: path.write_text('authorization: {"users": [3]}'),
}


def test_the_users_that_the_server_made_stay(
    sites: tuple[Path, Path], kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    own, _ = sites
    access = prepared(own, kind)
    before = [user_of(own, "server"), user_of(own, "operator")]
    assert access.admits(before)
    prepared(own, kind)
    prepared(own, kind)
    assert access.admits(before)
    assert not access.admits([BrokerUser("server", "another-password", Grants((), ()))])
    assert not access.admits([BrokerUser("nobody", "another-password", Grants((), ()))])
    assert "made anew" not in "".join(caplog.messages[1:])


@pytest.mark.parametrize("damage", [*DAMAGES, "of another site"])
def test_users_that_are_not_the_site_s_are_made_anew(
    sites: tuple[Path, Path], kind: Kind, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    own, other = sites
    access = prepared(own, kind)
    (name, *_) = FILES[kind]
    path = own / "broker" / name
    if damage == "of another site":
        shutil.copy(other / "broker" / name, path)
    else:
        DAMAGES[damage](path)
    assert not access.admits([user_of(own, "operator")])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        prepared(own, kind)
    assert access.admits([user_of(own, "server"), user_of(own, "operator")])
    (told,) = caplog.messages
    assert str(own / "broker") in told
    assert "made anew" in told


@pytest.mark.parametrize("name", ["server", "operator"])
def test_an_identity_of_another_site_is_named(
    sites: tuple[Path, Path], kind: Kind, name: str
) -> None:
    own, other = sites
    shutil.copy(other / "identities" / f"{name}.json", own / "identities")
    with pytest.raises(ConfigError, match=r"server\.json and .*operator\.json are not of one site"):
        prepared(own, kind)


def test_a_lost_identity_of_the_server_is_not_made_anew(
    sites: tuple[Path, Path], kind: Kind
) -> None:
    own, _ = sites
    path = own / "identities" / "server.json"
    path.unlink()
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"server\.json is missing.*rengo site restore"):
            prepared(own, kind)
        assert not path.exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broker_by_itself_says_that_its_users_are_damaged(tmp_path: Path, damage: str) -> None:
    access = prepared(tmp_path, "nats")
    DAMAGES[damage](access.folder / "users.conf")
    with pytest.raises(ConfigError, match=r"users\.conf is damaged .*`rengo up`"):
        access.adapt_to_config()
