"""A server's settings: one TOML file, environment RENGO_SERVER_…, and flags over both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from broker.brokers.access_control import AccessControl, ManualAccess
from broker.brokers.emqx import EmqxAccess
from broker.brokers.mosquitto import MosquittoAccess
from broker.brokers.nats import NatsAccess
from runtime.config import AbsolutePath
from storage.store.settings import StoreSettings
from storage.transfer.multipart import LEAST_PART_BYTES, PartSizes

T = TypeVar("T")


class BrokerSettings(BaseModel):
    """How the broker learns who may connect.

    Attributes:
        kind: "nats" and "mosquitto" are brokers on this machine whose files lie in ``folder``;
            "emqx" is asked by its HTTP API at ``url``; "manual" is a broker whose operator makes
            the users.
        public_url: where devices reach it, when that is not where the server does.
        ca_fingerprint: sha256 of the site's own authority, in hex, which join tokens pin.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["nats", "mosquitto", "emqx", "manual"] = "manual"
    folder: AbsolutePath | None = None
    url: str | None = None
    api_key: str | None = None
    secret: SecretStr | None = None
    public_url: Annotated[str, Field(pattern=r"^mqtts?://[^/\s]+$")] | None = None
    ca_fingerprint: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> BrokerSettings:
        if self.kind in {"nats", "mosquitto"} and self.folder is None:
            raise ValueError(f"kind {self.kind!r} needs folder")
        if self.kind == "emqx" and None in (self.url, self.api_key, self.secret):
            raise ValueError("kind 'emqx' needs url, api_key and secret")
        return self

    def access(self) -> AccessControl:
        """Return the way to the broker's users."""
        match self.kind:
            case "nats":
                return NatsAccess(_given(self.folder))
            case "mosquitto":
                return MosquittoAccess(_given(self.folder))
            case "emqx":
                secret = _given(self.secret).get_secret_value()
                return EmqxAccess(_given(self.url), _given(self.api_key), secret)
            case "manual":
                return ManualAccess()


def _given(value: T | None) -> T:
    assert value is not None  # the validator's promise
    return value


class JournalRetention(BaseModel):
    """How long the journal keeps what no run needs any more.

    Attributes:
        facts_days: each step of a run that has ended; its report stays.
        audit_days: the entries of the audit log.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    facts_days: Annotated[float, Field(ge=1, le=36_500)] = 30
    audit_days: Annotated[float, Field(ge=1, le=36_500)] = 730


class ServerConfig(BaseModel):
    """The settings of ``rengo server``.

    Attributes:
        identity: the server's identity file.
        data_dir: where the journal and work in progress lie; its own folder.
        journal: a database URL; None is SQLite in ``data_dir``.
        store: the S3 endpoint and its keys; keep the file 0600, or set the secret by
            RENGO_SERVER_STORE__SECRET.
        spool_memory_bytes: the bound on verified updates held in memory.
        parts: which files go to the store in parts, and how large those are.
        operators: the identity files of those who may steer.
        broker: how the broker learns who may connect.
        retention: how long the journal keeps what no run needs any more.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: AbsolutePath
    data_dir: AbsolutePath
    store: StoreSettings
    journal: str | None = None
    project: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")] = "default"
    spool_memory_bytes: Annotated[int, Field(ge=0)] = 64 << 20
    parts: PartSizes = PartSizes()
    operators: list[AbsolutePath] = []
    broker: BrokerSettings = BrokerSettings()
    retention: JournalRetention = JournalRetention()

    @field_validator("parts")
    @classmethod
    def _are_parts_of_s3(cls, parts: PartSizes) -> PartSizes:
        for name in ("part_bytes", "written_bytes"):
            if getattr(parts, name) < LEAST_PART_BYTES:
                raise ValueError(f"S3 takes no {name} below {LEAST_PART_BYTES}")
        return parts

    @property
    def journal_place(self) -> str | Path:
        """The database in force: a URL, or the path of an SQLite file."""
        return self.journal or self.data_dir / "journal.sqlite"
