from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable

import bcrypt
import pytest

from broker.brokers.mosquitto import to_mosquitto
from broker.brokers.nats import nats_subjects, nats_users, to_nats
from broker.wire.access import RULES, BrokerUser, Grants, Role, grants
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
        (Role.SERVER, "s", "model/digits/state", "dev/a/request"),
        (Role.DEVICE, "a", "dev/a/request", "model/digits/state"),
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
        (Role.DEVICE, "a", "model/digits/state", "dev/b/request"),
        (Role.OPERATOR, "o", "model/digits/state", "dev/a/task"),
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
    text = to_nats([idle, device], LISTER)
    users = json.loads(text.removeprefix("authorization: "))["users"]
    assert [each["allowed_connection_types"] for each in users] == [
        *(["MQTT"], ["MQTT"]),
        ["STANDARD"],
    ]
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


# --- every rendering allows what the rules grant, and nothing else --------------------------------

PEOPLE = [
    (Role.DEVICE, "dev-a"),
    (Role.DEVICE, "dev-b"),
    (Role.SERVER, "server"),
    (Role.OPERATOR, "op-a"),
    (Role.CLAIMANT, "nonce-a"),
]
LISTER = "$2b$hash-of-the-lister-s-password"
EVERYBODY = [
    BrokerUser(name, f"secret-of-{name}", grants(role, "home", name)) for role, name in PEOPLE
]
IDS = ["dev-a", "dev-b", "server", "op-a", "nonce-a", "run-1", "x"]
LEAVES = (
    *("state", "info", "health", "data", "task", "receipt", "ack", "progress", "result", "request"),
    *("reply", "events", "x"),
)
TOPICS = [
    *(
        f"{base}/{area}/{each}/{leaf}"
        for base in (BASE, "rengo/v1/away")
        for area in ("dev", "run", "op", "enroll")
        for each in IDS
        for leaf in LEAVES
    ),
    *(f"{BASE}/enroll/{each}" for each in IDS),
    *(f"{BASE}/dev/{each}" for each in IDS),
    *(f"{BASE}/server/state", f"{BASE}/server", f"{BASE}/server/state/x"),
    *(BASE, "x", "$SYS/broker/version"),
]


def granted(role: Role, identity: str, direction: str, topic: str) -> bool:
    """The rules themselves, read level by level."""
    for area, whose, leaf in getattr(RULES[role], direction):
        owner = [] if area == "server" else [identity if whose == "me" else whose]
        wanted = ["rengo", "v1", "home", area, *owner, *([leaf] if leaf else [])]
        levels = topic.split("/")
        if len(levels) == len(wanted) and all(
            want in ("+", level) for want, level in zip(wanted, levels, strict=True)
        ):
            return True
    return False


def nats_allows(name: str, direction: str, topic: str) -> bool:
    def subject_matches(pattern: str, subject: str) -> bool:
        wanted, tokens = pattern.split("."), subject.split(".")
        for position, want in enumerate(wanted):
            if want == ">":
                return len(tokens) > position
            if position >= len(tokens) or want not in ("*", tokens[position]):
                return False
        return len(wanted) == len(tokens)

    users = json.loads(to_nats(EVERYBODY, LISTER).removeprefix("authorization: "))["users"]
    (mine,) = [each for each in users if each["user"] == name]
    allowed = mine["permissions"][direction]["allow"]
    return any(subject_matches(each, topic.replace("/", ".")) for each in allowed)


def mosquitto_allows(acl: str, name: str, direction: str, topic: str) -> bool:
    who, wanted = "", {"publish": "write", "subscribe": "read"}[direction]
    for line in acl.splitlines():
        match line.split():
            case ["user", user]:
                who = user
            case ["topic", "read" | "write" | "readwrite" as may, topic_filter] if who == name:
                if wanted in may and matches(topic_filter, topic):
                    return True
            case ["topic", "read" | "write" | "readwrite", _] | []:
                continue
            case other:
                raise AssertionError(f"no line of an ACL file: {other}")
    return False


@pytest.mark.parametrize("direction", ["publish", "subscribe"])
@pytest.mark.parametrize(("role", "name"), PEOPLE)
def test_each_broker_allows_what_the_rules_grant(role: Role, name: str, direction: str) -> None:
    _, acl = to_mosquitto(EVERYBODY)
    allowed = {topic for topic in TOPICS if granted(role, name, direction, topic)}
    assert allowed, "the topics of this test must show something"
    assert {topic for topic in TOPICS if nats_allows(name, direction, topic)} == allowed
    assert {topic for topic in TOPICS if mosquitto_allows(acl, name, direction, topic)} == allowed


def test_a_user_without_grants_may_nothing() -> None:
    idle = BrokerUser("idle", "password1", Grants((), ()))
    _, acl = to_mosquitto([idle, *EVERYBODY])
    for topic in TOPICS:
        assert not mosquitto_allows(acl, "idle", "publish", topic)
        assert not mosquitto_allows(acl, "idle", "subscribe", topic)


def test_mosquitto_gets_hashes_that_hold_the_password() -> None:
    passwords, _ = to_mosquitto(EVERYBODY)
    assert "secret-of" not in passwords
    salts = set()
    for user, line in zip(EVERYBODY, passwords.splitlines(), strict=True):
        name, hashed = line.split(":")
        _, kind, iterations, salt, digest = hashed.split("$")
        salts.add(salt)
        assert (name, kind) == (user.name, "7")
        assert base64.b64decode(digest) == hashlib.pbkdf2_hmac(
            "sha512", user.password.encode(), base64.b64decode(salt), int(iterations)
        )
    assert len(salts) == len(EVERYBODY)


@pytest.mark.parametrize("render", [lambda users: to_nats(users, LISTER), to_mosquitto])
def test_no_users_and_a_name_twice_are_refused(
    render: Callable[[list[BrokerUser]], object],
) -> None:
    with pytest.raises(ConfigError, match="at least one user"):
        render([])
    with pytest.raises(ConfigError, match="twice: dev-a"):
        render([*EVERYBODY, EVERYBODY[0]])


def marked(password: str) -> str:
    return f"$2b${password}"


def test_users_by_certificate_are_the_same_users_under_their_common_names() -> None:
    by_name, by_certificate = (
        to_nats(EVERYBODY, LISTER, hash_of=marked),
        to_nats(EVERYBODY, LISTER, hash_of=marked, by_certificate=True),
    )
    names = [each["user"] for each in json.loads(by_certificate.partition(" ")[2])["users"]]
    assert names == [*(f"CN={user.name}" for user in EVERYBODY), "rengo.sessions"]
    assert nats_users(by_name, LISTER, by_certificate=True) == by_certificate
    assert nats_users(by_certificate, LISTER, by_certificate=True) == by_certificate
    assert nats_users(by_certificate, LISTER, by_certificate=False) == by_name


def test_the_supervisor_s_user_is_given_its_rights_in_the_file_of_an_earlier_version() -> None:
    now = to_nats(EVERYBODY, LISTER)
    content = json.loads(now.partition(" ")[2])
    without = {"users": content["users"][:-1]}
    for of_earlier in (
        without,
        {"users": [*without["users"], {"user": "rengo.sessions", "password": LISTER}]},
    ):
        text = f"authorization: {json.dumps(of_earlier)}"
        assert nats_users(text, LISTER, by_certificate=False) == now


def stored(block: str) -> dict[str, str]:
    users = json.loads(block.removeprefix("authorization: "))["users"]
    return {each["user"]: each["password"] for each in users}


def test_nats_gets_hashes_that_hold_the_password() -> None:
    long = BrokerUser("long", "x" * 256, Grants((), ()))
    text = to_nats([*EVERYBODY, long], LISTER)
    found = stored(text)
    for user in (*EVERYBODY, long):
        assert user.password not in text
        # bcrypt reads 72 bytes of a password, here and in NATS
        assert bcrypt.checkpw(user.password.encode()[:72], found[user.name].encode())
    assert len(set(found.values())) == len(found), "each has a salt of its own"


def test_a_block_of_before_gets_hashes_and_the_new_lister() -> None:
    before = to_nats(EVERYBODY, "password-of-a-lister", hash_of=lambda password: password)
    assert EVERYBODY[0].password in before
    text = nats_users(before, LISTER, by_certificate=False)
    found = stored(text)
    assert found["rengo.sessions"] == LISTER
    for user in EVERYBODY:
        assert user.password not in text
        assert bcrypt.checkpw(user.password.encode(), found[user.name].encode())
    assert nats_users(text, LISTER, by_certificate=False) == text, "a hash stays"
