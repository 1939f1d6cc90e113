from __future__ import annotations

import json

import pytest

from broker.access import BrokerUser, Grants, Role, grants, nats_subjects, to_nats
from broker.limits import MAX_PAYLOAD_BYTES
from broker.messages import MAX_MESSAGE_BYTES
from runtime.errors import ConfigError

BASE = "rengo/v1/home"


def matches(topic_filter: str, topic: str) -> bool:
    """MQTT matching, written out again as an oracle."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted, levels = wanted[:-1], levels[: len(wanted) - 1]
    return len(wanted) == len(levels) and all(
        want in ("+", level) for want, level in zip(wanted, levels, strict=True)
    )


def may(filters: tuple[str, ...], topic: str) -> bool:
    return any(matches(each, topic) for each in filters)


@pytest.mark.parametrize(
    ("role", "identity", "publish", "subscribe"),
    [
        (Role.DEVICE, "a", "dev/a/state", "dev/a/task"),
        (Role.DEVICE, "a", "dev/a/result", "run/r/state"),
        (Role.SERVER, "s", "dev/a/task", "dev/a/result"),
        (Role.SERVER, "s", "run/r/events", "enroll/n"),
        (Role.SERVER, "s", "enroll/n/result", "op/o/request"),
        (Role.OPERATOR, "o", "op/o/request", "dev/a/info"),
        (Role.CLAIMANT, "n", "enroll/n", "enroll/n/result"),
    ],
)
def test_what_a_role_may(role: Role, identity: str, publish: str, subscribe: str) -> None:
    allowed = grants(role, "home", identity)
    assert may(allowed.publish, f"{BASE}/{publish}")
    assert may(allowed.subscribe, f"{BASE}/{subscribe}")


@pytest.mark.parametrize(
    ("role", "identity", "publish", "subscribe"),
    [
        (Role.DEVICE, "a", "dev/b/state", "dev/b/task"),
        (Role.DEVICE, "a", "dev/a/task", "dev/b/receipt"),
        (Role.DEVICE, "a", "dev/a/receipt", "op/o/reply"),
        (Role.DEVICE, "a", "run/r/state", "dev/b/state"),
        (Role.DEVICE, "a", "server/state", "enroll/n"),
        (Role.OPERATOR, "o", "run/r/state", "dev/a/task"),
        (Role.OPERATOR, "o", "op/p/request", "op/p/reply"),
        (Role.CLAIMANT, "n", "enroll/m", "enroll/m/result"),
        (Role.CLAIMANT, "n", "enroll/n/result", "server/state"),
    ],
)
def test_what_a_role_may_not(role: Role, identity: str, publish: str, subscribe: str) -> None:
    allowed = grants(role, "home", identity)
    assert not may(allowed.publish, f"{BASE}/{publish}")
    assert not may(allowed.subscribe, f"{BASE}/{subscribe}")


@pytest.mark.parametrize("role", list(Role))
def test_nobody_may_anything_in_another_domain(role: Role) -> None:
    allowed = grants(role, "home", "a")
    assert all(each.startswith(f"{BASE}/") for each in allowed.publish + allowed.subscribe)
    assert not any("#" in each for each in allowed.publish + allowed.subscribe)


@pytest.mark.parametrize("identity", ["+", "#", "a/b", "", "A", "a b", "*", ">", "a.b"])
def test_an_identity_cannot_smuggle_a_wildcard(identity: str) -> None:
    with pytest.raises(ConfigError):
        grants(Role.DEVICE, "home", identity)
    with pytest.raises(ConfigError):
        grants(Role.DEVICE, identity, "a")


def test_filters_become_subjects() -> None:
    assert nats_subjects("a/+/c") == ["a.*.c"]
    assert nats_subjects("a/#") == ["a", "a.>"]
    assert nats_subjects("#") == [">"]


def test_the_nats_block_confines_every_user() -> None:
    idle = BrokerUser("idle", "password1", Grants((), ()))
    device = BrokerUser("a", "password2", grants(Role.DEVICE, "home", "a"))
    text = to_nats([idle, device])
    users = json.loads(text.removeprefix("authorization: "))["users"]
    assert [each["allowed_connection_types"] for each in users] == [["MQTT"], ["MQTT"]]
    for each in users:
        for direction in ("publish", "subscribe"):
            assert each["permissions"][direction]["allow"], "NATS takes an empty list for all"
    assert "rengo.v1.home.dev.a.task" in users[1]["permissions"]["subscribe"]["allow"]


@pytest.mark.parametrize("password", ["short", "with space in it", 'quote"quote', "line\nline", ""])
def test_a_password_that_would_break_a_file_is_refused(password: str) -> None:
    with pytest.raises(ConfigError) as refused:
        BrokerUser("a", password, Grants((), ()))
    assert not password or password not in str(refused.value)


def test_a_password_is_not_shown() -> None:
    assert "password1" not in repr(BrokerUser("a", "password1", Grants((), ())))


def test_the_limit_is_the_messages_limit() -> None:
    assert MAX_PAYLOAD_BYTES == MAX_MESSAGE_BYTES
