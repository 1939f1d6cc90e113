"""An external broker: its users, as its operator wrote them into a file for this site."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from runtime.config import AbsolutePath, read_toml, validate
from runtime.errors import ConfigError
from runtime.security.identity import Level, TlsTrust

Password = Annotated[SecretStr, Field(min_length=8, max_length=256)]


class BrokerUserFile(BaseModel):
    """One user that exists on the broker; ``username`` becomes the identity's id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    username: Level
    password: Password


class EmqxKey(BaseModel):
    """EMQX's HTTP API, by which the server makes the devices' users itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    api_key: str
    secret: SecretStr


class BrokerTls(BaseModel):
    """Files in PEM: the authority of the broker's certificate, and one's own certificate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca: AbsolutePath | None = None
    certificate: AbsolutePath | None = None
    certificate_key: AbsolutePath | None = None

    def trust(self) -> TlsTrust:
        """Return how the broker is checked; ConfigError when a file cannot be read."""
        try:
            ca = None if self.ca is None else self.ca.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"tls.ca {self.ca} cannot be read: {error}") from error
        return TlsTrust(ca=ca, certificate=self.certificate, certificate_key=self.certificate_key)


class Credentials(BaseModel):
    """The users of an external broker: TOML, mode 0600."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server: BrokerUserFile
    operator: BrokerUserFile
    devices: list[BrokerUserFile] = []
    emqx: EmqxKey | None = None
    tls: BrokerTls = BrokerTls()


def read_credentials(path: Path) -> Credentials:
    """Return an external broker's users.

    Raises:
        ConfigError: the file is not there, readable by others, or wrong; names the key.
    """
    credentials = validate(Credentials, read_toml(path), f"credentials file {path}")
    if path.stat().st_mode & 0o077:
        raise ConfigError(
            f"credentials file {path} is readable by others; run: "
            f"chmod 600 {shlex.quote(str(path))}"
        )
    return credentials
