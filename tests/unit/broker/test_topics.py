"""The topic grammar: what is built is what is parsed, and nothing else is a topic."""

from __future__ import annotations

import pytest

from broker.wire.topics import LEAVES, RETAINED, Address, Topics, parse, require_level
from runtime.errors import ConfigError, PeerError

TOPICS = Topics("home")


def test_the_topics_of_the_design() -> None:
    assert TOPICS.server_state == "rengo/v1/home/server/state"
    assert TOPICS.device("d-1", "state") == "rengo/v1/home/dev/d-1/state"
    assert TOPICS.device("+", "result") == "rengo/v1/home/dev/+/result"
    assert TOPICS.run("r_1", "events") == "rengo/v1/home/run/r_1/events"
    assert TOPICS.model("digits") == "rengo/v1/home/model/digits/state"
    assert TOPICS.operator("op", "reply") == "rengo/v1/home/op/op/reply"
    assert TOPICS.enroll("nonce") == "rengo/v1/home/enroll/nonce"
    assert TOPICS.enroll("nonce", "result") == "rengo/v1/home/enroll/nonce/result"


@pytest.mark.parametrize("leaf", sorted(LEAVES["dev"]))
def test_a_device_topic_is_parsed_as_it_was_built(leaf: str) -> None:
    assert parse(TOPICS.device("d-1", leaf)) == Address("home", "dev", "d-1", leaf)


def test_the_other_topics_are_parsed_as_they_were_built() -> None:
    assert parse(TOPICS.server_state) == Address("home", "server", "", "state")
    assert parse(TOPICS.run("r", "state")) == Address("home", "run", "r", "state")
    assert parse(TOPICS.operator("o", "request")) == Address("home", "op", "o", "request")
    assert parse(TOPICS.enroll("n")) == Address("home", "enroll", "n", "")
    assert parse(TOPICS.enroll("n", "result")) == Address("home", "enroll", "n", "result")


def test_what_is_retained() -> None:
    retained = {
        (area, leaf)
        for area, leaves in LEAVES.items()
        for leaf in leaves
        if Address("home", area, "x", leaf).retained
    }
    assert retained == RETAINED
    assert retained == {
        ("server", "state"),
        ("dev", "state"),
        ("dev", "info"),
        ("dev", "health"),
        ("dev", "data"),
        ("run", "state"),
        ("model", "state"),
    }


BAD_LEVELS = [
    "",
    "A",
    "a.b",
    "a b",
    "a/b",
    "+",
    "#",
    "$sys",
    "ü",
    "a\n",
    "\n",
    "a\x00",
    "x" * 65,
    "a>b",
    "*",
]


@pytest.mark.parametrize("level", BAD_LEVELS)
def test_what_no_level_may_be(level: str) -> None:
    with pytest.raises(ConfigError, match="device id"):
        require_level(level, "device id")
    with pytest.raises(ConfigError, match="domain"):
        Topics(level)
    with pytest.raises(ConfigError, match="run id"):
        TOPICS.run(level if level != "+" else "++", "state")


def test_a_leaf_that_is_not_of_its_area_is_refused() -> None:
    for build, leaf in (
        (TOPICS.device, "reply"),
        (TOPICS.device, ""),
        (TOPICS.run, "task"),
        (TOPICS.operator, "state"),
        (TOPICS.enroll, "state"),
    ):
        with pytest.raises(ConfigError, match="no topic"):
            build("x", leaf)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "rengo",
        "rengo/v1",
        "rengo/v1/home",
        "rengo/v2/home/server/state",
        "Rengo/v1/home/server/state",
        "/rengo/v1/home/server/state",
        "rengo/v1/home/server/state/",
        "rengo/v1/home/server/info",
        "rengo/v1/home/server/x/state",
        "rengo/v1/home/dev/d",
        "rengo/v1/home/dev//state",
        "rengo/v1/home/dev/d/nonsense",
        "rengo/v1/home/dev/d/state/more",
        "rengo/v1/home/dev/+/state",
        "rengo/v1/home/#",
        "rengo/v1/home/run/r/task",
        "rengo/v1/home/model/digits/task",
        "rengo/v1/home/op/o/state",
        "rengo/v1/home/enroll/n/state",
        "rengo/v1/home/enroll",
        "rengo/v1/home/other/x/state",
        "rengo/v1/home/dev/d/state\n",
        "rengo/v1/" + "x" * 65 + "/server/state",
        "$SYS/broker/uptime",
        "a/" * 40 + "a",
    ],
)
def test_what_is_no_topic(topic: str) -> None:
    with pytest.raises(PeerError, match="not a topic of rengo/v1") as caught:
        parse(topic)
    assert caught.value.reason == "topic"


@pytest.mark.parametrize("leaf", ["", "result"])
def test_an_address_is_shown_as_its_topic(leaf: str) -> None:
    for topic in (Topics("home").enroll("n-1", leaf), Topics("home").server_state):
        assert str(parse(topic)) == parse(topic).topic == topic
