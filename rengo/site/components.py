"""The broker and the store of a site, each as one TOML file from which any process starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from broker.brokers.listener import LOOPBACK, ListenerTls
from broker.brokers.mosquitto import MosquittoAccess, MosquittoBroker
from broker.brokers.nats import EmbeddedBroker, NatsAccess
from runtime.config import AbsolutePath
from storage.store.embedded import EmbeddedStore
from storage.store.servers.base import StoreTls

_Port = Annotated[int, Field(ge=1, le=65535)]


class _ListenerSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: AbsolutePath
    port: _Port
    host: str = LOOPBACK
    certificate: AbsolutePath | None = None
    certificate_key: AbsolutePath | None = None

    @model_validator(mode="after")
    def _has_both_or_neither(self) -> _ListenerSection:
        if (self.certificate is None) != (self.certificate_key is None):
            raise ValueError("certificate and certificate_key belong together")
        return self

    @property
    def _files(self) -> tuple[Path, Path] | None:
        if self.certificate is None or self.certificate_key is None:
            return None
        return self.certificate, self.certificate_key


class BrokerPart(_ListenerSection):
    """What ``rengo broker`` is told.

    Attributes:
        folder: its state, its users and its log.
        port: of MQTT.
        host: the IPv4 address to listen on; anything but loopback needs the certificate.
        certificate: PEM, the leaf and then its chain.
        certificate_key: its key.
        client_ca: what signs the clients' certificates; where given, nobody connects without one.
    """

    kind: Literal["nats", "mosquitto"] = "nats"
    client_ca: AbsolutePath | None = None

    def broker(self) -> EmbeddedBroker | MosquittoBroker:
        """Return the broker, not started; ``start(None)`` takes the users that the folder knows.

        Raises:
            ConfigError: its program is not installed, or it cannot listen so.
        """
        kind = MosquittoBroker if self.kind == "mosquitto" else EmbeddedBroker
        tls = None if self._files is None else ListenerTls(*self._files, self.client_ca)
        return kind(self.folder, self.port, host=self.host, tls=tls)

    def access(self) -> NatsAccess | MosquittoAccess:
        """Return the way to its users."""
        return MosquittoAccess(self.folder) if self.kind == "mosquitto" else NatsAccess(self.folder)


class StorePart(_ListenerSection):
    """What ``rengo store`` is told; its keys lie in its folder.

    Attributes:
        folder: the objects, the keys and the log.
        port: of S3.
        host: the IPv4 address to listen on; anything but loopback needs the certificate.
        certificate: PEM, the leaf and then its chain.
        certificate_key: its key.
        ca: the authority behind it, where the system does not know it.
        name: the name, one that the certificate is for, by which the site's processes reach it.
    """

    kind: Literal["juicefs", "seaweedfs"] = "juicefs"
    ca: AbsolutePath | None = None
    name: str | None = None

    def store(self) -> EmbeddedStore:
        """Return the store, not started; ConfigError when this kind cannot listen so."""
        tls = None if self._files is None else StoreTls(*self._files, self.ca, self.name)
        return EmbeddedStore(self.folder, self.kind, self.port, host=self.host, tls=tls)
