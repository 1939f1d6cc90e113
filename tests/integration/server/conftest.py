"""One broker and one store for all tests of the server, and a new server for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.brokers.nats import EmbeddedBroker
from broker.wire.access import BrokerUser, Role, grants
from runtime.security.identity import new_identity
from storage.store.embedded import EmbeddedStore
from storage.store.s3 import S3Store
from tests.integration.server.site import ANYONE, DOMAIN, SERVER, Place, Site, key_of, known


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("server")
    broker = EmbeddedBroker(folder / "broker", ack_wait_s=5.0)
    store = EmbeddedStore(folder / "store")
    users = [
        BrokerUser("server", "secret-of-server", grants(Role.SERVER, DOMAIN, "server")),
        BrokerUser("anyone", "secret-of-anyone", ANYONE),
        BrokerUser("d-1", "secret-of-d-1", grants(Role.DEVICE, DOMAIN, "d-1")),
        BrokerUser("operator", "secret-of-operator", grants(Role.OPERATOR, DOMAIN, "operator")),
    ]
    broker.start(users)
    try:
        store.start()
        S3Store(store.settings).ensure_bucket()
        server, operator = (
            new_identity(role, DOMAIN, role, *broker.endpoint, key=key_of(role), server_key=SERVER)
            for role in ("server", "operator")
        )
        yield Place(broker, store, known(server), known(operator))
    finally:
        store.stop()
        broker.stop()


@pytest.fixture
def site(place: Place, tmp_path: Path) -> Iterator[Site]:
    made = Site(place, tmp_path)
    made.start()
    try:
        yield made
    finally:
        made.close()
