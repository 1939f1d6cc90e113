"""Join tokens: whole round trips, every slip of a hand noticed, nothing shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ConfigError
from runtime.security.join_token import CLAIM_PREFIX, PREFIX, JoinToken
from runtime.security.signing import SecretKey

SERVER = SecretKey("0a" * 32).public
TOKEN = JoinToken(bytes(range(16)), "home", SERVER)
PINNED = JoinToken(bytes(range(16)), "home", SERVER, "ab" * 32)


@pytest.mark.parametrize("token", [TOKEN, PINNED, JoinToken.generate("d" * 64, SERVER)])
def test_a_token_comes_back_equal(token: JoinToken) -> None:
    assert JoinToken.parse(token.text) == token
    assert JoinToken.parse(f"  {token.text}\n") == token
    assert len(token.text) < 256


def test_what_follows_from_a_token() -> None:
    assert TOKEN.id == PINNED.id
    assert TOKEN.id.startswith(CLAIM_PREFIX)
    secrets = {TOKEN.text, TOKEN.key.text, TOKEN.broker_password, TOKEN.key.public.text}
    assert len(secrets) == 4
    assert not any(secret in repr(TOKEN) or TOKEN.secret.hex() in repr(TOKEN) for secret in secrets)
    assert JoinToken.generate("home", SERVER).id != JoinToken.generate("home", SERVER).id


@pytest.mark.parametrize("token", [TOKEN, PINNED])
def test_every_single_slip_is_noticed(token: JoinToken) -> None:
    text = token.text
    slips = [text[:at] + text[at + 1 :] for at in range(len(text))]
    slips += [text[:at] + text[at + 1] + text[at] + text[at + 2 :] for at in range(len(text) - 1)]
    slips += [
        text[:at] + ("x" if text[at] != "x" else "y") + text[at + 1 :] for at in range(len(text))
    ]
    slips += [text[:half] for half in range(len(text))] + [text + "A", text + text]
    for slip in slips:
        if slip == text:
            continue
        with pytest.raises(ConfigError, match="join token") as caught:
            JoinToken.parse(slip)
        assert text.removeprefix(PREFIX)[:12] not in str(caught.value)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: PREFIX + data.hex()))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        JoinToken.parse(text)
