"""What a device says between rounds, and what it keeps to itself."""

from __future__ import annotations

from fl_client.agent.presence import BREATH_S, PresenceDebouncer


def test_training_is_said_at_once_and_ready_after_a_breath() -> None:
    calm = PresenceDebouncer()
    calm.said("ready")
    assert calm.want("training", 0.0) == "training"
    assert calm.want("ready", 1.0) is None
    assert calm.left_s(1.0) == BREATH_S
    assert calm.overdue(1.0 + BREATH_S / 2) is None
    assert calm.overdue(1.0 + BREATH_S) == "ready"
    assert calm.left_s(9.0) is None


def test_a_device_that_trains_again_within_the_breath_says_nothing() -> None:
    calm = PresenceDebouncer()
    calm.said("training")
    assert calm.want("ready", 0.0) is None
    assert calm.want("training", 0.1) is None
    assert calm.overdue(99.0) is None


def test_a_new_connection_says_it_anew_and_owes_nothing() -> None:
    calm = PresenceDebouncer()
    calm.said("training")
    calm.want("ready", 0.0)
    calm.said("ready")
    assert calm.left_s(0.0) is None
    assert calm.want("ready", 0.0) is None
