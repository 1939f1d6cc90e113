"""What a claim gives: one device, or one clear reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fl_server.members.rules import (
    TOKEN_MEMORY_S,
    Claimant,
    DeviceRecord,
    NewCredentials,
    TokenRecord,
    Verdict,
    forgettable,
    judge,
    password_kept,
    with_next_password,
)

KEY, OTHER_KEY = "0a" * 32, "0b" * 32
FRESH = NewCredentials("device-1f", "device-1f-secret", "a-new-password")
TOKEN = TokenRecord(
    id="join-1",
    public_key="0c" * 32,
    broker_password="p",
    group="lab",
    project="hearts",
    uses=1,
    used=0,
    expires_at=1000.0,
    made_by="operator",
    made_at=0.0,
)


def claim(
    token: TokenRecord = TOKEN,
    devices: tuple[DeviceRecord, ...] = (),
    key: str = KEY,
    name: str = "",
    now: float = 10.0,
) -> Verdict:
    known = {device.id: device for device in devices}
    return judge(Claimant(key, name), token, known, {"server", "operator"}, FRESH, now)


def enrolled() -> tuple[DeviceRecord, TokenRecord]:
    verdict = claim()
    assert verdict.device is not None
    assert verdict.token is not None
    return verdict.device, verdict.token


def test_a_claim_makes_a_device_of_the_token_s_group_and_takes_one_use() -> None:
    device, token = enrolled()
    assert (device.id, device.public_key, device.password) == ("device-1f", KEY, "a-new-password")
    assert (device.group, device.project, device.token_id) == ("lab", "hearts", TOKEN.id)
    assert (device.admitted_by, device.admitted_at) == ("operator", 10.0)
    assert token == replace(TOKEN, used=1)
    assert [act.act for act in claim().acts] == ["device enrolled"]


def test_a_wished_name_is_given() -> None:
    verdict = claim(name="attic")
    assert verdict.device is not None
    assert verdict.device.id == "attic"


def test_the_same_device_asking_again_gets_the_same_answer_and_no_second_use() -> None:
    device, token = enrolled()
    for later in (20.0, 2000.0):
        again = claim(token, (device,), now=later)
        assert again == Verdict((), device)
        assert not again.changed


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"now": 1000.0}, "expired"),
        ({"now": 1e9}, "expired"),
        ({"token": replace(TOKEN, used=1)}, "used up"),
        ({"token": replace(TOKEN, expires_at=5.0, used=1)}, "expired"),
        ({"name": "server"}, "reserved"),
        ({"name": "operator"}, "reserved"),
        ({"name": "join-2"}, "reserved"),
    ],
)
def test_each_refusal_says_why_and_is_noted(change: dict[str, object], reason: str) -> None:
    verdict = claim(**change)  # type: ignore[arg-type]
    assert verdict.device is None
    assert not verdict.changed
    assert reason in verdict.refusal
    (act,) = verdict.acts
    assert (act.actor, act.act) == (TOKEN.id, "claim refused")
    assert act.detail == {"reason": verdict.refusal}


def test_a_taken_name_and_a_known_key_are_refused() -> None:
    device, token = enrolled()
    open_token = replace(token, uses=5)
    assert "is taken" in claim(open_token, (device,), key=OTHER_KEY, name=device.id).refusal
    elsewhere = replace(open_token, id="join-2")
    assert f"already, as {device.id}" in claim(elsewhere, (device,)).refusal


@pytest.mark.parametrize("status", ["revoking", "revoked"])
def test_a_revoked_device_stays_out_with_any_token(status: str) -> None:
    device, token = enrolled()
    gone = replace(device, status=status)  # type: ignore[arg-type]
    for each in (token, replace(TOKEN, id="join-2", uses=9)):
        assert "was revoked" in claim(each, (gone,)).refusal


def test_tokens_are_forgotten_long_after_their_end() -> None:
    assert forgettable([TOKEN], 1000.0 + TOKEN_MEMORY_S - 1) == []
    assert forgettable([TOKEN], 1000.0 + TOKEN_MEMORY_S) == [TOKEN.id]


def test_a_new_password_is_in_force_once_it_is_kept() -> None:
    device, _ = enrolled()
    assert password_kept(device, 0) is None
    offered = with_next_password(device, "second-password")
    assert (offered.password, offered.next_password) == ("a-new-password", "second-password")
    again = with_next_password(offered, "third-password")
    assert password_kept(again, offered.rotation) is None, "a word about an older offer"
    kept = password_kept(again, again.rotation)
    assert kept is not None
    assert (kept.password, kept.next_password) == ("third-password", "")
    assert password_kept(kept, kept.rotation) is None
    assert kept.client_id == device.client_id, "or its queue would be lost"
