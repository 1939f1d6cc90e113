"""Identity files: who a process is to the broker, one file per role, mode 0600."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from runtime.config import validate
from runtime.errors import ConfigError
from runtime.files import atomic_write

FORMAT = 1
Level = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]


class Identity(BaseModel):
    """What a role needs to reach the broker of its domain.

    ``client_id`` is the id plus a secret suffix: some brokers let any user take any client id, and
    whoever knew it could erase the queue of its owner. ``index`` of ``count`` is the device's part
    of a data set that the devices of a site share.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    role: Literal["device", "operator", "server"]
    domain: Level
    id: Level
    client_id: Level
    host: Annotated[str, Field(min_length=1, max_length=255)]
    port: Annotated[int, Field(ge=1, le=65535)]
    password: SecretStr
    index: Annotated[int, Field(ge=0)] = 0
    count: Annotated[int, Field(ge=1)] = 1


def new_identity(
    role: Literal["device", "operator", "server"], domain: str, name: str, host: str, port: int
) -> Identity:
    """Return a new identity with a password and a client id of its own."""
    return Identity(
        role=role,
        domain=domain,
        id=name,
        client_id=f"{name[:40]}-{secrets.token_hex(8)}",
        host=host,
        port=port,
        password=SecretStr(secrets.token_urlsafe(24)),
    )


def write_identity(path: Path, identity: Identity) -> None:
    """Write the file with mode 0600, whole or not at all."""
    document = identity.model_dump()
    document["password"] = identity.password.get_secret_value()
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
        raise ConfigError(f"identity file {path} is readable by others; run: chmod 600 {path}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"identity file {path} is damaged: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"identity file {path} is damaged: not an object")
    return validate(Identity, document, f"identity file {path}")
