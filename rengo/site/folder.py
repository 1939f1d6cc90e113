"""A site's folder: what lies where, which version wrote it, and who may reach the broker."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from runtime.config import validate
from runtime.errors import ConfigError
from runtime.files import atomic_write, make_folder
from runtime.processes.locks import take_lock
from runtime.processes.ports import free_port
from runtime.security.identity import (
    Identity,
    Role,
    TlsTrust,
    new_identity,
    read_identity,
    write_identity,
)
from runtime.security.signing import PublicKey

FORMAT = 1
_LASTING = ("domain", "store")
HOST = "127.0.0.1"


class SiteRecord(BaseModel):
    """What a site keeps from start to start."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    format: Literal[1] = 1
    domain: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
    broker_port: Annotated[int, Field(ge=1, le=65535)]
    store_port: Annotated[int, Field(ge=1, le=65535)]
    store: Literal["juicefs", "seaweedfs"]
    broker: Literal["nats", "mosquitto", "external"] = "nats"
    host: str = HOST
    advertise: str | None = None


@dataclass(frozen=True)
class BrokerAt:
    """Where identities of the site find its broker, and how they check it."""

    domain: str
    host: str
    port: int
    tls: TlsTrust | None = None
    store_ca: str | None = None


def default_home() -> Path:
    """Return where this user's site lies: RENGO_HOME, else ``~/.rengo``.

    Raises:
        ConfigError: there is no RENGO_HOME, and the system knows no home of this user.
    """
    given = os.environ.get("RENGO_HOME")
    try:
        return (Path(given) if given else Path.home() / ".rengo").absolute()
    except RuntimeError as error:
        raise ConfigError(
            "this user has no home folder (HOME is not set); set RENGO_HOME to a folder"
        ) from error


class SiteFolder:
    """The paths below a site's data folder, created 0700.

    Raises:
        ConfigError: another version of Rengo wrote it, it is damaged, or it cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        make_folder(self.root)
        self.identities = self.root / "identities"

    @property
    def _record_path(self) -> Path:
        return self.root / "site.json"

    def lock(self) -> IO[bytes]:
        """Return the open lock of the one process that runs this site; closing it releases it.

        Raises:
            ConfigError: another process runs it.
        """
        return take_lock(
            self.root / "site.lock",
            f"another `rengo up` runs the site in {self.root}; "
            "stop it or choose another --data-dir",
        )

    def record(self) -> SiteRecord | None:
        """Return the site's record, None before its first start.

        Raises:
            ConfigError: it is damaged or of another version.
        """
        path = self._record_path
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is damaged: {error}") from error
        found = document.get("format") if isinstance(document, dict) else None
        if found != FORMAT:
            raise ConfigError(
                f"{self.root} was written by another version of Rengo (format {found}, this one "
                f"reads {FORMAT}); use that version, or another --data-dir"
            )
        return validate(SiteRecord, document, str(path))

    def record_with(self, **given: str | int | None) -> SiteRecord:
        """Return the record with given values instead of the stored ones; see :meth:`keep`.

        The domain and the kind of store stay as they were at first, for what they hold would be
        out of reach. So a first record is stored at once, with nothing else of what was given.
        """
        known = self.record()
        if known is None:
            known = self._first(given)
        changes = {
            name: value
            for name, value in given.items()
            if value is not None and name not in _LASTING
        }
        return validate(SiteRecord, {**known.model_dump(), **changes}, "the site")

    def _first(self, given: Mapping[str, str | int | None]) -> SiteRecord:
        values: dict[str, Any] = {name: given[name] for name in _LASTING}
        values |= {name: free_port(HOST) for name in ("broker_port", "store_port")}
        record = validate(SiteRecord, values, "the site")
        self.keep(record)
        return record

    def keep(self, record: SiteRecord) -> None:
        """Store a record for the next start; for one with which the site has started."""
        if record != self.record():
            atomic_write(self._record_path, record.model_dump_json(indent=2).encode())

    # --- identities ---------------------------------------------------------------------------

    def identity_path(self, name: str) -> Path:
        """Return where an identity's file lies."""
        return self.identities / f"{name}.json"

    def ensure_identity(
        self,
        role: Role,
        name: str,
        at: BrokerAt,
        *,
        index: int = 0,
        count: int = 1,
        password: SecretStr | None = None,
    ) -> Identity:
        """Return an identity that points at the site's broker, made when it is not there.

        Args:
            role: what it is for; the server's comes first, since the others believe its key.
            name: its id.
            at: the broker.
            index: which of ``count`` parts of a shared data set is its own.
            count: how many parts there are.
            password: what the broker knows already; None keeps the identity's own.
        """
        path = self.identity_path(name)
        changes: dict[str, Any] = {
            **{"host": at.host, "port": at.port, "tls": at.tls, "store_ca": at.store_ca},
            **{"index": index, "count": count},
        }
        if password is not None:
            changes["password"] = password
        if path.exists():
            known = read_identity(path)
        else:
            server = None if role == "server" else self._server_key()
            known = new_identity(role, at.domain, name, at.host, at.port, server_key=server)
        identity = known.model_copy(update=changes)
        if identity != known or not path.exists():
            write_identity(path, identity)
        return identity

    def _server_key(self) -> PublicKey:
        servers = [each for each in self.all_identities() if each.role == "server"]
        return servers[0].believed

    def all_identities(self) -> list[Identity]:
        """Return every identity of the site, by name."""
        return [read_identity(path) for path in sorted(self.identities.glob("*.json"))]
