"""Building and parsing are each other's inverse, on every text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.wire.access import Role, grants
from broker.wire.topics import LEAVES, Address, Topics, parse
from runtime.errors import ConfigError, PeerError

levels = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=64)
AREAS = {"dev": Topics.device, "run": Topics.run, "op": Topics.operator}


@given(levels, levels, st.sampled_from(sorted(AREAS)), st.data())
def test_what_is_built_is_parsed(
    domain: str, identity: str, area: str, data: st.DataObject
) -> None:
    leaf = data.draw(st.sampled_from(sorted(LEAVES[area])))  # type: ignore[index]
    topic = AREAS[area](Topics(domain), identity, leaf)
    assert parse(topic) == Address(domain, area, identity, leaf)  # type: ignore[arg-type]


@given(st.text(max_size=80) | st.lists(st.text("adev+#$/.1 \n", max_size=4)).map("/".join))
def test_any_text_is_an_address_or_a_refusal(text: str) -> None:
    for topic in (text, f"rengo/v1/{text}", f"rengo/v1/home/dev/{text}"):
        try:
            address = parse(topic)
        except PeerError:
            continue
        parts = ["rengo", "v1", address.domain, address.area, address.id, address.leaf]
        assert "/".join(part for part in parts if part) == topic


@given(st.text(max_size=70), st.text(max_size=70))
def test_no_identity_reaches_into_another_level(domain: str, identity: str) -> None:
    """What a device may publish to has five levels below the domain's, whatever it is called."""
    try:
        allowed = grants(Role.DEVICE, domain, identity)
    except ConfigError:
        return
    for topic in allowed.publish:
        assert topic.split("/")[:5] == ["rengo", "v1", domain, "dev", identity]
        assert len(topic.split("/")) == 6
