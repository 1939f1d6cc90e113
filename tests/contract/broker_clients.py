"""Topics and clients of the tests that hold every broker to the same guarantees."""

from __future__ import annotations

import paho.mqtt.client as mqtt

from broker.session.session import MqttSession
from tests.contract.broker_places import Place
from tests.integration.broker_fixtures import BASE, USERS, Owner, eventually

STATE_A = f"{BASE}/dev/dev-a/state"
STATE_B = f"{BASE}/dev/dev-b/state"
RESULT_A = f"{BASE}/dev/dev-a/result"
SERVER_STATE = f"{BASE}/server/state"
WITHOUT_A = [each for each in USERS if each.name != "dev-a"]


def watcher(place: Place, topic_filter: str = f"{BASE}/#") -> Owner:
    """One who may read everything, with a queue that holds whatever was let through."""
    owner = Owner()
    place.session(owner, topic_filter, endpoint=place.endpoint(client_id="watcher"))
    return owner


def as_server(place: Place) -> MqttSession:
    return place.session(Owner(), endpoint=place.endpoint("server"))


def subscribe(client: mqtt.Client, *filters: str) -> None:
    """Subscribe to each by itself, and wait for the answers, whatever they are."""
    answered: set[int | None] = set()
    client.on_subscribe = lambda _client, _data, mid, _codes, _props: answered.add(mid)
    for each in filters:
        mid = client.subscribe(each, 1)[1]
        eventually(lambda mid=mid: mid in answered, 5)
