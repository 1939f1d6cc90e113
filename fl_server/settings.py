"""A server's settings: one TOML file, environment RENGO_SERVER_…, and flags over both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from storage.s3 import StoreSettings


class ServerConfig(BaseModel):
    """What ``rengo server`` is told.

    Attributes:
        identity: the server's identity file.
        data_dir: where the journal and work in progress lie; its own folder.
        journal: a database URL; None is SQLite in ``data_dir``.
        store: the S3 endpoint and its keys; keep the file 0600, or set the secret by
            RENGO_SERVER_STORE__SECRET.
        spool_memory_bytes: the bound on verified updates held in memory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: Path
    data_dir: Path
    store: StoreSettings
    journal: str | None = None
    project: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")] = "default"
    spool_memory_bytes: Annotated[int, Field(ge=0)] = 64 << 20

    @property
    def journal_url(self) -> str:
        """The database URL in force."""
        return self.journal or f"sqlite:///{self.data_dir / 'journal.sqlite'}"
