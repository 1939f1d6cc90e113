"""What a device says between rounds, and what it keeps to itself."""

from __future__ import annotations

from fl_client.agent.presence import READY_DELAY_S, PresenceDebouncer


def test_training_is_said_at_once_and_ready_after_a_breath() -> None:
    presence = PresenceDebouncer()
    presence.published("ready")
    assert presence.change("training", 0.0) == "training"
    assert presence.change("ready", 1.0) is None
    assert presence.left_s(1.0) == READY_DELAY_S
    assert presence.due(1.0 + READY_DELAY_S / 2) is None
    assert presence.due(1.0 + READY_DELAY_S) == "ready"
    assert presence.left_s(9.0) is None


def test_a_device_that_trains_again_within_the_breath_says_nothing() -> None:
    presence = PresenceDebouncer()
    presence.published("training")
    assert presence.change("ready", 0.0) is None
    assert presence.change("training", 0.1) is None
    assert presence.due(99.0) is None


def test_a_new_connection_says_it_anew_and_owes_nothing() -> None:
    presence = PresenceDebouncer()
    presence.published("training")
    presence.change("ready", 0.0)
    presence.published("ready")
    assert presence.left_s(0.0) is None
    assert presence.change("ready", 0.0) is None
