"""When a session connects again, and what it reports."""

from __future__ import annotations

import pytest

from broker.session.endpoint import ClientIdInUse, Unanswered
from broker.session.reconnect import NextAttempt, ReconnectPolicy
from runtime.errors import AuthenticationFailed, TransportError, UntrustedPeer

REFUSED = AuthenticationFailed("refused")
UNREACHABLE = TransportError("no route")


@pytest.fixture
def policy() -> ReconnectPolicy:
    return ReconnectPolicy("dev-a-1")


@pytest.mark.parametrize("others", [1, 3])
def test_a_refused_password_is_reported_after_all_others_and_one_more_try(
    policy: ReconnectPolicy, others: int
) -> None:
    number = 2 * (others + 1)
    found = [policy.attempt_failed(REFUSED, other_passwords=others) for _ in range(number)]
    assert found == [
        *[NextAttempt.OTHER_PASSWORD] * others,
        NextAttempt.SAME_AGAIN,
        *[NextAttempt.OTHER_PASSWORD] * others,
        NextAttempt.REPORT,
    ]


def test_a_connection_in_between_allows_both_again(policy: ReconnectPolicy) -> None:
    policy.attempt_failed(REFUSED, other_passwords=0)
    policy.connected()
    assert policy.attempt_failed(REFUSED, other_passwords=0) is NextAttempt.SAME_AGAIN


@pytest.mark.parametrize("error", [UNREACHABLE, UntrustedPeer("no such CA")])
def test_what_another_try_does_not_change_is_reported_at_once(
    policy: ReconnectPolicy, error: Exception
) -> None:
    assert policy.attempt_failed(error, other_passwords=0) is NextAttempt.REPORT


def test_three_short_lives_in_a_row_mean_that_the_client_id_is_in_use(
    policy: ReconnectPolicy,
) -> None:
    assert policy.connection_ended(1.0, None, lost=True) is None
    assert policy.connection_ended(1.0, None, lost=False) is None
    assert policy.connection_ended(1.0, None, lost=True) is None
    assert isinstance(policy.connection_ended(1.0, None, lost=True), ClientIdInUse)


def test_who_is_thrown_out_before_the_answer_knows_it_too(policy: ReconnectPolicy) -> None:
    for _ in range(2):
        assert policy.connection_ended(1.0, None, lost=True) is None
        policy.attempt_failed(Unanswered("closed"), other_passwords=0)
    assert isinstance(policy.connection_ended(1.0, None, lost=True), ClientIdInUse)


@pytest.mark.parametrize("deaths", [3, 10])
@pytest.mark.parametrize("error", [UNREACHABLE, REFUSED], ids=["restarts", "other passwords"])
def test_a_broker_that_ends_connections_itself_is_no_second_process(
    policy: ReconnectPolicy, deaths: int, error: Exception
) -> None:
    for _ in range(deaths):
        policy.connected()
        assert policy.connection_ended(1.0, None, lost=True) is None
        policy.attempt_failed(error, other_passwords=1)


def test_a_connection_that_lasted_forgets_the_short_lives(policy: ReconnectPolicy) -> None:
    for lived_s in (1.0, 1.0, 60.0, 1.0, 1.0):
        assert policy.connection_ended(lived_s, None, lost=True) is None


def test_a_broker_that_names_the_takeover_is_believed(policy: ReconnectPolicy) -> None:
    found = policy.connection_ended(60.0, ClientIdInUse("taken over"), lost=True)
    assert isinstance(found, ClientIdInUse)


def test_a_series_of_the_same_errors_is_new_once(policy: ReconnectPolicy) -> None:
    errors = [REFUSED, REFUSED, UNREACHABLE, REFUSED]
    assert [policy.is_new(error) for error in errors] == [True, False, True, True]
    policy.connection_ended(60.0, None, lost=True)
    assert policy.is_new(REFUSED)


def test_delays_double_up_to_their_bound_and_begin_anew_after_a_stable_connection(
    policy: ReconnectPolicy,
) -> None:
    delays = [policy.next_delay_s() for _ in range(200)]
    for attempt, delay_s in enumerate(delays):
        assert 0 <= delay_s <= min(30.0, 0.5 * 2 ** min(attempt, 16))
    assert max(delays) > 15.0
    assert not policy.first_attempt
    policy.connection_ended(60.0, None, lost=True)
    assert policy.first_attempt
    assert policy.next_delay_s() <= 0.5


def test_a_reported_error_and_a_second_try_lengthen_the_delay(policy: ReconnectPolicy) -> None:
    policy.attempt_failed(REFUSED, other_passwords=0)
    assert 0.25 <= policy.next_delay_s() <= 0.75
    policy.is_new(REFUSED)
    assert policy.next_delay_s() >= 10.25
