"""What a session that is not lasting costs the others: nothing, on every broker that Rengo runs."""

from __future__ import annotations

import pytest

from broker.session.publication import Publication
from tests.contract.broker_places import Place, kind, place
from tests.integration.broker_fixtures import BASE, Owner

__all__ = ["kind", "place"]

RESULT_A = f"{BASE}/dev/dev-a/result"
# what an operator's command line subscribes to
FILTERS = tuple(
    f"{BASE}/{each}"
    for each in (
        *("op/op-a/reply", "server/state", "dev/+/state", "dev/+/info"),
        *("run/+/state", "run/+/events"),
    )
)


def test_a_clean_session_subscribes_at_qos_0_and_a_lasting_one_at_1(place: Place) -> None:
    owners = {False: Owner(), True: Owner()}
    for persistent, owner in owners.items():
        endpoint = place.endpoint(client_id=f"reader-{persistent}", persistent=persistent)
        place.session(owner, RESULT_A, endpoint=endpoint)
    device = place.session(Owner(), endpoint=place.endpoint("dev-a"))
    device.publish(Publication(RESULT_A, b"result"))
    for owner in owners.values():
        owner.wait(lambda owner=owner: owner.payloads == [b"result"])
    # only a message of QoS 1 has an id to acknowledge it by
    assert [each.mid for each in owners[False].deliveries] == [0]
    assert all(each.mid for each in owners[True].deliveries)


@pytest.mark.soak
def test_no_message_is_lost_when_clean_sessions_end_just_before_it(place: Place) -> None:
    """NATS 2.15.1 loses 2 to 3 in 1,000 when the sessions that end had subscribed at QoS 1."""
    reader = Owner()
    place.session(reader, RESULT_A, endpoint=place.endpoint("server"))
    device = place.session(Owner(), endpoint=place.endpoint("dev-a"))
    expected = []
    for number in range(700):
        operator = place.endpoint("op-a", f"op-a-{number}", persistent=False)
        place.session(Owner(), *FILTERS, endpoint=operator).stop()
        for part in range(3):
            expected.append(b"%d: %d" % (number, part))
            assert device.publish(Publication(RESULT_A, expected[-1]))
            assert device.flush(10)
    reader.wait(lambda: len(reader.deliveries) >= len(expected))
    assert reader.payloads == expected
