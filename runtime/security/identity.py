"""Identity files: a process's name, keys and credentials, one file per role, mode 0600."""

from __future__ import annotations

import json
import secrets
import shlex
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from runtime.config import validate
from runtime.errors import ConfigError
from runtime.files import atomic_write
from runtime.security.signing import PublicKey, SecretKey
from runtime.security.tls import Tls

FORMAT = 1
Level = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
KeyText = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Role = Literal["device", "operator", "server"]


class TlsTrust(BaseModel):
    """How a TLS peer is checked: ``ca`` in PEM, None for the system's authorities.

    ``certificate`` and ``certificate_key`` are files of one's own, where the peer asks for them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca: Annotated[str, Field(max_length=65_536)] | None = None
    certificate: Path | None = None
    certificate_key: Path | None = None

    @property
    def tls(self) -> Tls:
        """The same, as a connection takes it."""
        return Tls(self.ca, self.certificate, self.certificate_key)


class Identity(BaseModel):
    """What a role needs to reach the broker of its domain.

    ``client_id`` is the id plus a secret suffix: some brokers let any user take any client id, and
    whoever knew it could erase the queue of its owner. ``index`` of ``count`` is the device's part
    of a data set that the devices of a site share. ``key`` is the seed of the identity's own
    Ed25519 key; ``server_key`` is the public key of the only server that is believed.
    ``next_password`` is the latest that the server has given, the ``rotation``-th; the broker may
    not know it yet. ``earlier_passwords`` are those given before it of which the broker has
    admitted none, the oldest first. ``store_ca``
    signs the object store's certificate, in PEM; None where what is trusted of the broker is too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    role: Role
    domain: Level
    id: Level
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
    host: Annotated[str, Field(min_length=1, max_length=255)]
    port: Annotated[int, Field(ge=1, le=65535)]
    password: SecretStr
    next_password: SecretStr | None = None
    earlier_passwords: tuple[SecretStr, ...] = ()
    rotation: Annotated[int, Field(ge=0)] = 0
    key: SecretStr
    server_key: KeyText
    tls: TlsTrust | None = None
    store_ca: Annotated[str, Field(max_length=65_536)] | None = None
    index: Annotated[int, Field(ge=0)] = 0
    count: Annotated[int, Field(ge=1)] = 1

    @field_validator("key")
    @classmethod
    def _is_key(cls, key: SecretStr) -> SecretStr:
        try:
            SecretKey(key.get_secret_value())
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return key

    @property
    def waiting_passwords(self) -> tuple[SecretStr, ...]:
        """The passwords that the broker has not admitted yet, the oldest first."""
        latest = () if self.next_password is None else (self.next_password,)
        return (*self.earlier_passwords, *latest)

    @property
    def secret_key(self) -> SecretKey:
        """What this identity signs with, and opens what was sealed for it."""
        return SecretKey(self.key.get_secret_value())

    @property
    def believed(self) -> PublicKey:
        """The server's key."""
        return PublicKey(self.server_key)

    @property
    def trust(self) -> Tls | None:
        """How the broker is checked; None for a connection without TLS."""
        return None if self.tls is None else self.tls.tls

    @property
    def store_trust(self) -> Tls | None:
        """How the object store is checked; None trusts the system's authorities."""
        return self.trust if self.store_ca is None else Tls(self.store_ca)


def new_identity(
    role: Role,
    domain: str,
    name: str,
    host: str,
    port: int,
    *,
    key: SecretKey | None = None,
    server_key: PublicKey | None = None,
    tls: TlsTrust | None = None,
) -> Identity:
    """Return a new identity with a password and a client id of its own.

    Args:
        role: what it is for.
        domain: the domain.
        name: its id.
        host: the broker's.
        port: the broker's.
        key: its key; a new one when None.
        server_key: the server's public key; its own when None, which is right for a server only.
        tls: how the broker is checked.
    """
    key = key or SecretKey.generate()
    return Identity(
        role=role,
        domain=domain,
        id=name,
        client_id=new_client_id(name),
        host=host,
        port=port,
        password=SecretStr(new_password()),
        key=SecretStr(key.text),
        server_key=(server_key or key.public).text,
        tls=tls,
    )


def new_client_id(name: str) -> str:
    """Return an MQTT client id that nobody can guess."""
    return f"{name[:40]}-{secrets.token_hex(8)}"


def new_password() -> str:
    """Return a password of 192 random bits."""
    return secrets.token_urlsafe(24)


def write_identity(path: Path, identity: Identity) -> None:
    """Write the file with mode 0600, whole or not at all."""
    document = identity.model_dump(mode="json", exclude_none=True)
    for name in ("password", "next_password", "key"):
        secret = getattr(identity, name)
        if secret is not None:
            document[name] = secret.get_secret_value()
    # left out where there are none, so that the releases that know but one read the file
    del document["earlier_passwords"]
    if identity.earlier_passwords:
        document["earlier_passwords"] = [
            each.get_secret_value() for each in identity.earlier_passwords
        ]
    atomic_write(path, (json.dumps(document, indent=2) + "\n").encode())


def read_identity(path: Path) -> Identity:
    """Return the identity.

    Raises:
        ConfigError: there is no such file, others may read it, or it is damaged; how to mend it.
    """
    try:
        mode = path.stat().st_mode & 0o077
        text = path.read_text("utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"no identity file at {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"identity file {path} cannot be read: {error}") from error
    if mode:
        raise ConfigError(
            f"identity file {path} is readable by others; run: chmod 600 {shlex.quote(str(path))}"
        )
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"identity file {path} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"identity file {path} is damaged: not an object")
    return validate(Identity, document, f"identity file {path}")
