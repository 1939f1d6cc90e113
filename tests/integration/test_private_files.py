"""Every file of a site and of its devices is for its owner alone, whatever made it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest

from broker.brokers.managed_users import wait_until
from fl_server.operations.catalogue import DEVICES_INVITE, DEVICES_ROTATE
from rengo.operator.runs import follow, submit, wait_for_devices
from rengo.site.device_process import DeviceSpec
from rengo.site.preparation import SiteOptions
from rengo.site.site import Site
from runtime.errors import ConfigError
from runtime.security.identity import Identity, read_identity
from runtime.security.join_token import JoinToken
from tests.support import require

OPEN = stat.S_IRWXG | stat.S_IRWXO
# SeaweedFS sets 0644 itself on what says of which version a volume is; its folder is 0700
OWN_MODE = {".vif"}


@contextmanager
def open_to_all() -> Iterator[None]:
    """Within the block, a file is made for everybody unless whoever makes it says otherwise."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def walked(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        yield Path(root)
        for name in [*folders, *files]:
            yield Path(root) / name


def readable_by_others(folder: Path) -> tuple[int, list[str]]:
    """Return how many entries a folder has, and those that others could open."""
    modes = {}
    for path in walked(folder):
        with suppress(FileNotFoundError):  # a running server deletes files while they are listed
            modes[path] = path.lstat().st_mode
    return len(modes), sorted(
        f"{oct(stat.S_IMODE(mode))} {path.relative_to(folder)}"
        for path, mode in modes.items()
        if not stat.S_ISLNK(mode) and mode & OPEN and path.suffix not in OWN_MODE
    )


def identities(site: Path) -> Iterator[tuple[Path, Identity]]:
    for path in site.rglob("*.json"):
        with suppress(ConfigError):  # another kind of file
            yield path, read_identity(path)


def secrets_of(identity: Identity) -> set[bytes]:
    later = () if identity.next_password is None else (identity.next_password,)
    kept = (identity.password, identity.key, *later, *identity.earlier_passwords)
    return {secret.get_secret_value().encode() for secret in kept}


def rotated(site: Path) -> bool:
    device = next(each for _, each in identities(site) if each.id == "a")
    return device.rotation == 1 and device.next_password is None


def holders(site: Path, secrets: set[bytes]) -> dict[Path, set[bytes]]:
    """Return the files of a site that hold secrets as they are, and which."""
    found = {}
    for path in site.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found[path] = {secret for secret in secrets if secret in data}
    return found


@pytest.mark.parametrize(("store", "broker"), [("juicefs", "nats"), ("seaweedfs", "mosquitto")])
def test_no_file_of_a_site_or_a_device_can_be_read_by_others(
    store: Literal["juicefs", "seaweedfs"], broker: str, tmp_path: Path
) -> None:
    if broker == "mosquitto":
        require("mosquitto")
    options = SiteOptions(store=store, broker=broker)
    with open_to_all(), Site(tmp_path / "site", options=options) as site:
        site.start_devices([DeviceSpec("a"), DeviceSpec("b", index=1, count=2)], "digits")
        with site.connect() as client:
            wait_for_devices(client, ["a", "b"], 120.0)
            run_id = submit(client, "digits", {"rounds": 2, "cohort": {"size": 2}})
            assert follow(client, run_id).report.rounds_completed == 2
            before = {s for _, each in identities(site.folder.root) for s in secrets_of(each)}
            token = client.request(DEVICES_INVITE, {}).token
            client.request(DEVICES_ROTATE, {"device_id": "a"})
            # known to be admitted, the new one is the only one that the device keeps
            assert wait_until(60.0, lambda: rotated(site.folder.root))
        count, readable = readable_by_others(site.folder.root)
        journal = site.folder.root / "server"
        made = {path.name for path in journal.iterdir()}
        assert {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite.mark"} <= made
        assert readable == []
        assert count > 60
    assert readable_by_others(tmp_path / "site")[1] == [], "nor after its end"
    # keys of the store must be readable: requests are signed with them
    own = {path: secrets_of(each) for path, each in identities(tmp_path / "site")}
    assert len(own) == 4, "of the server, an operator and two devices"
    secrets = before.union(*own.values())
    assert len(secrets) == 2 * len(own) + 1, "one password was given up"
    invited = JoinToken.parse(token)
    secrets |= {token.encode(), invited.key.text.encode(), invited.broker_password.encode()}
    for path, held in holders(tmp_path / "site", secrets).items():
        assert held <= own.get(path, set()), path


def test_files_of_before_are_closed_at_the_next_start(tmp_path: Path) -> None:
    with Site(tmp_path / "site"):
        pass
    journal = tmp_path / "site" / "server" / "journal.sqlite"
    journal.chmod(0o644)
    with Site(tmp_path / "site"):
        assert stat.S_IMODE(journal.stat().st_mode) == 0o600
